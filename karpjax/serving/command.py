"""`launch.py serve WORKDIR [--flag=value …]`: a trained run answers over HTTP.

POST /predict asks a run's verb, /v1/completions and /v1/chat/completions a language model; GET / is a page with a form
that does it; /health, and /metrics for Prometheus.
"""

import dataclasses
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Sequence

from karpjax import command_line, config, errors, options
from karpjax.commands import use
from karpjax.errors import UsageError
from karpjax.train import runtime

BACKLOG = 512  # connections that the system holds for us
LONGEST_HEAD = 2**16  # bytes of a request before its body
TOKEN = 'KARPJAX_TOKEN'
NEEDED = 'starlette', 'uvicorn', 'python_multipart'


@dataclasses.dataclass(frozen=True)
class Serving(use.Asked):
  """The flags of `serve`."""

  port: int = config.flag(8000, 'The port; 0: any that is free.', low=0, high=2**16 - 1)
  host: str = config.flag('127.0.0.1', 'The address to listen on; 0.0.0.0: all, so that other machines reach it.')
  token: str = config.flag(
    '', f'What clients send as Authorization: Bearer …; the variable {TOKEN} keeps it from `ps`.'
  )
  queue: int = config.flag(256, 'Inputs that may wait, and of one request; what comes then is answered 429.', low=1)
  timeout: float = config.flag(30.0, 'Seconds that a request may take; then it is answered 504.', above=0)
  megabytes: float = config.flag(10.0, 'The largest body of a request; a larger one is answered 413.', above=0)
  slots: int = config.flag(8, 'Texts of a language model that go on at once; others wait.', low=1, high=1024)
  max_tokens: int = config.flag(1024, 'Tokens of a text that a request may ask for.', low=1)


def listening(host: str, port: int) -> socket.socket:
  """A socket that listens; a UsageError where the port is taken, or the address none of this machine."""
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)
  except OSError as error:
    raise UsageError(f'port={port} of host={host} cannot be used: {error.strerror or error}') from None


def service(run, chosen: Serving):
  """What answers for a run, compiled; a UsageError where none of its verbs can be served."""
  from karpjax.lean import quantisation
  from karpjax.serving import batching, completions, predicting

  own = lambda verb: verb.options(
    **{f.name: getattr(chosen, f.name, f.default) for f in dataclasses.fields(verb.options)}
  )
  with quantisation.within(run.config):
    for verb in run.verbs.values():
      if verb.model:
        return completions.Completing(run, verb.model(run), chosen.slots, chosen.queue, chosen.max_tokens)
    if found := batching.served(run, own):
      name, function = found
      return predicting.Predicting(run, name, function, own(run.verbs[name]), chosen.queue)
  experiment = run.stored['experiment']
  raise UsageError(
    f'{run.folder} is a run of {experiment}, none of whose verbs, {", ".join(run.verbs)}, answers requests'
  )


def known_flags(run) -> type:
  """The flags of `serve`, and those of the first verb that it may ask."""
  from karpjax.serving.inputs import KINDS

  asked = [verb.options for verb in run.verbs.values() if verb.inputs in KINDS][:1]
  return dataclasses.make_dataclass('Flags', [], bases=(*asked, Serving), frozen=True)


def _protocol(seconds: float) -> type:
  """uvicorn's, which cuts off whose next request does not begin in time, or begins with a head without end."""
  from uvicorn.protocols.http.auto import AutoHTTPProtocol

  class Protocol(AutoHTTPProtocol):
    head = 0  # bytes of it that have come

    def connection_made(self, transport):
      super().connection_made(transport)
      self.look(self)

    def data_received(self, data):
      super().data_received(data)
      self.head = self.head + len(data) if self.cycle is None or self.cycle.response_complete else 0
      if self.head > LONGEST_HEAD:
        self.cut(b'431 Request Header Fields Too Large')

    def look(self, before):
      if before is self.cycle and (self.head or self.cycle is None):  # else uvicorn ends what is idle
        self.cut(b'408 Request Timeout')
      elif not self.transport.is_closing():
        self.loop.call_later(seconds, self.look, self.cycle)

    def cut(self, status):
      self.transport.write(b'HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n' % status)
      self.transport.close()

  return Protocol


def server(made):
  """uvicorn's, of an `App`; it answers what is asked by the time that it stops."""
  import uvicorn

  return uvicorn.Server(
    uvicorn.Config(
      made.asgi, http=_protocol(made.limits.timeout), log_level='warning', access_log=False, server_header=False, limit_concurrency=2 * BACKLOG, backlog=BACKLOG,
      timeout_graceful_shutdown=10, ws='none', lifespan='on',
    )
  )  # fmt: skip


def serve(made, listener: socket.socket, say=print) -> None:
  """An `App` answers until SIGINT or SIGTERM."""
  host, port = listener.getsockname()[:2]
  say(f'http://{f"[{host}]" if ":" in host else host}:{port} answers; Ctrl-C stops it', flush=True)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)  # uvicorn has its own, and raises them once more when it has stopped
  server(made).run([listener])


def main(argv: Sequence[str]) -> int:
  known: type = Serving
  folders, flags = ([x for x in argv if x.startswith('-') == dashed] for dashed in (False, True))
  try:
    if command_line.asks_help(argv) and not folders:
      print(__doc__, *command_line.flag_lines(dataclasses.fields(known)), sep='\n')
      return 0
    if len(folders) != 1:
      raise UsageError(f'which run? python launch.py serve WORKDIR …; {len(folders)} folders are given')
    runtime.set_up()
    from karpjax import verbs

    known = known_flags(verbs.Run(folders[0], member=0))
    if command_line.asks_help(argv):
      print(__doc__, *command_line.flag_lines(dataclasses.fields(known)), sep='\n')
      return 0
    chosen = command_line.parse(known, flags)
    options.check(chosen)
    return _main(verbs.Run(folders[0], chosen.checkpoint, chosen.member, chosen.trial), chosen)
  except UsageError as error:
    return command_line.refuse('serve', error, known)


def _main(run, chosen) -> int:
  if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
    raise UsageError(f'serve needs {missing[0]}: pip install -r requirements-serve.txt')
  from karpjax.serving import app

  token = chosen.token or os.environ.get(TOKEN, '')
  if token != token.strip() or not token.isprintable():
    raise UsageError('token: no header can hold it: it has a space at an end, a line break, or bytes that are no text')
  with listening(chosen.host, chosen.port) as listener:
    if not (token or app.is_loopback(chosen.host)):
      print(
        f'serve: anybody who reaches {chosen.host} can ask this run; --token, or {TOKEN}, keeps others out',
        file=sys.stderr,
      )
    with errors.refuse_too_large():
      made = app.App(service(run, chosen), app.Limits(token, chosen.timeout, int(chosen.megabytes * 2**20)))
    print(f'weights of step {run.step} ({run.checkpoint}){run.whose}', file=sys.stderr)
    serve(made, listener)
  return 0
