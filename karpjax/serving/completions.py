"""`/v1/…`: a language model asked in the form of OpenAI's API; see `asked` for what a request may say."""

import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from karpjax.data import language
from karpjax.errors import check_text
from karpjax.serving import slots
from karpjax.serving.app import FAILED, GONE, App, Problem, problem
from karpjax.serving.asked import Asked, asked

OBJECTS = {
  False: ('cmpl', 'text_completion', 'text_completion'),
  True: ('chatcmpl', 'chat.completion', 'chat.completion.chunk'),
}


class Typed:
  """What tokens add to a text, whole characters at a time, up to the first of `stops`.

  Attributes:
    stopped: whether one of them has come.
  """

  def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int], stops: Sequence[str]):
    self._decode, self._before, self._stops = decode, [*before], stops
    self._begin, self._tokens, self._shown, self.stopped = len(decode(self._before)), [], 0, False

  def add(self, tokens: Sequence[int], last: bool = False) -> str:
    """The next piece; what may be the beginning of a stop waits, but for the last piece."""
    self._tokens += tokens
    text = self._decode(self._before + self._tokens)[self._begin :].rstrip('\N{REPLACEMENT CHARACTER}')
    found = [at for stop in self._stops if (at := text.find(stop, self._shown)) >= 0]
    if found:
      self.stopped, end = True, min(found)
    else:
      starts = (n for x in self._stops for n in range(1, min(len(x), len(text) + 1)) if text.endswith(x[:n]))
      end = max(self._shown, len(text) - (0 if last else max(starts, default=0)))
    piece, self._shown = text[self._shown : end], max(self._shown, end)
    return piece


class _Stream(StreamingResponse):
  """The events of an answer, which ends with them, even where the client has left before the first."""

  def __init__(self, answer: '_Answer', events: AsyncIterator[str]):
    super().__init__(events, media_type='text/event-stream', headers={'Cache-Control': 'no-cache'})
    self._answer = answer

  async def __call__(self, scope, receive, send):
    with self._answer:
      await super().__call__(scope, receive, send)


class Completing:
  """A service, as `app` says.

  Args:
    run: of a language model.
    model: of it.
    slots: texts that go on at once.
    queue: texts that may wait.
    most: tokens that a request may ask for.
  """

  def __init__(self, run, model, slots_: int, queue: int, most: int):
    self._run, self._queue, self._most, self._slots = run, queue, most, None
    self._tokeniser, self._name = run.spec.tokenisers['text'], run.folder.resolve().name
    self._programs = slots.Programs(model, run.state.variables(), slots_)
    self.routes = {
      ('/v1/models', 'GET'): self._models,
      ('/v1/models/{name:path}', 'GET'): self._model,
      ('/v1/completions', 'POST'): lambda request, app: self._complete(request, app, False),
      ('/v1/chat/completions', 'POST'): lambda request, app: self._complete(request, app, True),
    }
    about = f'weights of step {run.step} ({run.checkpoint}){run.whose}'
    self.about = {
      'kind': 'language',
      'name': self._name,
      'about': about,
      'help': 'Goes on with a text.',
      'most': most,
    }

  def waiting(self) -> int:
    return self._slots.waiting() if self._slots else 0

  def busy(self) -> int:
    """How many texts go on at this moment."""
    return self._slots.busy()

  @contextlib.asynccontextmanager
  async def running(self):
    self._slots = slots.Slots(self._programs, 0 if self._run.spec.lines else None, self._queue)
    yield
    self._slots.stop()

  # ---- models ----

  def _described(self) -> dict[str, Any]:
    return {'id': self._name, 'object': 'model', 'created': 0, 'owned_by': 'karpjax'}

  async def _models(self, request: Request, app: App) -> Response:
    return JSONResponse({'object': 'list', 'data': [self._described()]})

  async def _model(self, request: Request, app: App) -> Response:
    self._check_model(request.path_params['name'])
    return JSONResponse(self._described())

  def _check_model(self, name: str | None) -> None:
    if name not in (None, self._name):
      raise Problem(404, f'there is no model {name!r}; this server has {self._name!r}', 'model', 'model_not_found')

  # ---- completions ----

  async def _complete(self, request: Request, app: App, chat: bool) -> Response:
    what = asked(await app.json(request), chat, self._most)
    self._check_model(what.model)
    check_text('the prompt, ', what.prompt)
    prompt = await asyncio.to_thread(language.prompt, self._run.spec, what.prompt)  # megabytes take seconds
    room = self._programs.context
    if len(prompt) > room:
      said = f'the prompt has {len(prompt):,} tokens; the context of this model is {room:,}'
      raise Problem(400, said, 'messages' if chat else 'prompt', 'context_length_exceeded')
    text = slots.Text(prompt, what.most, slots.Rules(what.temperature, what.top_p, what.seed))
    self._slots.ask(text)
    app.metrics.tokens['prompt'] += len(prompt)
    kind, whole, part = OBJECTS[chat]
    head = {'id': f'{kind}-{secrets.token_hex(12)}', 'created': int(time.time()), 'model': self._name}
    answer = _Answer(text, Typed(self._tokeniser.decode, prompt, what.stops), len(prompt), app)
    if what.stream:
      return _Stream(answer, _events(answer, {**head, 'object': part}, what, chat))
    pieces = await _unless_gone(request, answer.whole())
    if pieces is None:
      return Response(status_code=GONE)
    content = ''.join(pieces)
    own = {'message': {'role': 'assistant', 'content': content}} if chat else {'text': content}
    choice = {'index': 0, **own, 'logprobs': None, 'finish_reason': answer.reason}
    return JSONResponse({**head, 'object': whole, 'choices': [choice], 'usage': answer.usage()})


@dataclasses.dataclass
class _Answer:
  """A text as it comes: `pieces`, of which nothing is lost that has come; then `reason`. Whoever leaves its `with` stops it."""

  text: slots.Text
  typed: Typed
  prompt: int
  app: App
  reason: str = 'length'

  def usage(self) -> dict[str, int]:
    new = self.text.made
    return {'prompt_tokens': self.prompt, 'completion_tokens': new, 'total_tokens': self.prompt + new}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.text.gone = True
    self.app.metrics.tokens['completion'] += self.text.made

  async def whole(self) -> list[str]:
    with self:
      return [piece async for piece in self.pieces()]

  async def pieces(self) -> AsyncIterator[str]:
    """Raises TimeoutError where the end does not come in time."""
    text, loop = self.text, asyncio.get_running_loop()
    end = loop.time() + self.app.limits.timeout
    new: list[int] | None = []
    while new is not None and not self.typed.stopped:
      new = await asyncio.wait_for(text.news.get(), end - loop.time())
      if isinstance(new, Exception):
        raise new
      if piece := self.typed.add(new or [], last=new is None):
        yield piece
    ended = text.made < text.most  # by itself
    self.reason = 'stop' if self.typed.stopped or ended else 'length'


async def _events(answer: _Answer, head: dict[str, Any], what: Asked, chat: bool) -> AsyncIterator[str]:
  """Server-sent events: a chunk for each piece, one with the reason of the end, usage where it is asked for, [DONE]."""

  def event(piece: str | None, reason: str | None = None, first: bool = False) -> str:
    own = {'delta': ({'role': 'assistant'} if first else {}) | ({} if piece is None else {'content': piece})}
    own = own if chat else {'text': piece or ''}
    return _event({**head, 'choices': [{'index': 0, **own, 'logprobs': None, 'finish_reason': reason}]})

  if chat:
    yield event('', first=True)
  try:
    async for piece in answer.pieces():
      yield event(piece)
    yield event(None, answer.reason)
    if what.usage:
      yield _event({**head, 'choices': [], 'usage': answer.usage()})
  except TimeoutError:
    yield _event(problem(504, f'no end within {answer.app.limits.timeout:g} seconds', code='timeout'))
  except RuntimeError:  # of the thread that makes the tokens, which has said so
    yield _event(problem(500, FAILED))
  yield 'data: [DONE]\n\n'


def _event(value: dict[str, Any]) -> str:
  return f'data: {json.dumps(value)}\n\n'


async def _unless_gone(request: Request, work):
  """What a coroutine gives; None, and its end, where the client leaves before."""

  async def left():
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  tasks = [asyncio.ensure_future(each) for each in (work, left())]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return tasks[0].result() if tasks[0].done() else None
  finally:
    for task in tasks:
      task.cancel()
