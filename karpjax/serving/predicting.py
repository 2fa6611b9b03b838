"""`POST /predict`: the verb of a run that looks at each example alone, asked by HTTP."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from karpjax.data import tokenisers
from karpjax.errors import refuse_too_large
from karpjax.report import writers
from karpjax.serving.app import App, Problem
from karpjax.serving.batching import Batcher, Predictor, example
from karpjax.serving.inputs import KINDS, filled


class Predicting:
  """A service, as `app` says.

  Args:
    run: that is served.
    name, function: of its verb, as `batching.served` gives them.
    chosen: the verb's options.
    queue: examples that may wait, and of one request.
  """

  def __init__(self, run, name: str, function, chosen, queue: int):
    self._run, self._verb, self._chosen, self._queue = run, run.verbs[name], chosen, queue
    self._kind = KINDS[self._verb.inputs]
    self._predictor = Predictor(run, function, example(run, self._verb, chosen))
    self._batcher = None
    self.routes = {('/predict', 'POST'): self._answer}
    about = f'weights of step {run.step} ({run.checkpoint}){run.whose}'
    self.about = {
      'kind': self._kind.name,
      'columns': dict(getattr(run.spec, 'columns', {})),
      'name': run.folder.resolve().name,
      'about': about,
      'help': self._verb.help,
    }

  def waiting(self) -> int:
    return self._batcher.waiting if self._batcher else 0

  @contextlib.asynccontextmanager
  async def running(self):
    self._batcher = Batcher(self._predictor, self._queue)
    work = asyncio.create_task(self._batcher.work())
    yield
    work.cancel()

  async def _answer(self, request: Request, app: App) -> Response:
    given = await (self._pictures if self._kind.name == 'image' else self._listed)(request, app)
    if not 0 < len(given) <= self._queue:
      raise Problem(400, f'{len(given):,} inputs; a request has 1 to {self._queue:,}', 'inputs')
    inputs, arrays = await asyncio.to_thread(self._encoded, given)
    outputs = await self._batcher.ask(arrays, self._predictor.check(arrays))
    return JSONResponse({'answers': await asyncio.to_thread(self._decoded, outputs, inputs)})

  def _encoded(self, given: Sequence):
    tokenisers.quiet.set(True)  # in this call alone: a thread of asyncio's has a context of its own
    inputs = self._kind.read(self._run, given)
    with refuse_too_large():
      return inputs, filled(self._run, self._verb.encode(self._run, inputs, self._chosen))

  def _decoded(self, outputs, inputs: list) -> list[Any]:
    names = [str(each) if self._kind.name == 'image' else each for each in inputs]
    return writers.plain(list(self._verb.decode(self._run, outputs, names, self._chosen)))

  async def _listed(self, request: Request, app: App) -> list:
    body = await app.json(request)
    given = body.get('inputs', [body['input']] if 'input' in body else None)
    if not isinstance(given, list) or len(body) > 1:
      raise Problem(
        400, 'send {"inputs": [' + ('{"COLUMN": …}' if self._kind.name == 'row' else '"…"') + ', …]}', 'inputs'
      )
    return given

  async def _pictures(self, request: Request, app: App) -> list[tuple[str, bytes]]:
    """(name, bytes) of the files of a form, or of the body."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind == 'application/json':
      raise Problem(415, 'send the bytes of a PNG or JPEG file as the body, or files in a form (multipart/form-data)')
    body = await app.body(request)
    if kind != 'multipart/form-data':
      return [('the body', body)]

    async def stream():
      yield body

    try:
      form = await MultiPartParser(request.headers, stream(), max_files=self._queue, max_fields=self._queue).parse()
    except (MultiPartException, KeyError) as error:
      raise Problem(400, f'the form cannot be read: {getattr(error, "message", "it has no boundary")}') from None
    try:
      files = [each for _, each in form.multi_items() if not isinstance(each, str)]
      return [(each.filename or f'picture {n}', await each.read()) for n, each in enumerate(files, 1)]
    finally:
      await form.close()
