"""The ASGI application of a server: what holds for every request, `/`, `/health` and `/metrics`.

What a run answers comes from a service: an object with
  routes: {(path, method): async (request, App) -> starlette's Response};
  about: what the page must know, for JSON;
  waiting(): how much is waiting;
  running(): an async context manager, within which it answers.
"""

import asyncio
import dataclasses
import hmac
import json
import re
import sys
import time
import traceback
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from karpjax.errors import UsageError
from karpjax.serving.batching import Full
from karpjax.serving.metrics import Metrics

LONGEST = 1000  # characters of a message, which may quote what was sent
FAILED = 'the server failed; its log says how'
GONE = 499  # as nginx counts clients that left
PAGE_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src blob:; "
  "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


@dataclasses.dataclass(frozen=True)
class Limits:
  """token: what clients must send, '' for nothing; timeout: seconds of a request; body: its bytes."""

  token: str = ''
  timeout: float = 30.0
  body: int = 10 * 2**20


class Problem(HTTPException):
  """A refusal, as OpenAI's clients read it."""

  def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, headers=None):
    super().__init__(status, message, headers)
    self.param, self.code = param, code


class App:
  """A service, its limits and its metrics; `asgi` is the application."""

  def __init__(self, service, limits: Limits):
    self.service, self.limits, self.metrics = service, limits, Metrics(service.waiting)
    routes = [
      Route(path, self._endpoint(answer), methods=[method]) for (path, method), answer in service.routes.items()
    ]
    routes += [
      Route('/', self._page),
      Route('/health', lambda request: PlainTextResponse('ok\n')),
      Route('/metrics', self._endpoint(self._metrics)),
    ]
    application = Starlette(
      routes=routes, exception_handlers={HTTPException: _refused}, lifespan=lambda _: service.running()
    )
    self._paths, self.asgi = {route.path for route in routes}, self._watched(application)

  def _watched(self, application):
    async def asgi(scope, receive, send):
      if scope['type'] != 'http':
        return await application(scope, receive, send)
      begin, status = time.perf_counter(), GONE

      async def noted(message):
        nonlocal status
        status = message.get('status', status)
        await send(message)

      try:
        await application(scope, receive, noted)
      finally:
        path = scope['path'] if scope['path'] in self._paths else 'other'
        self.metrics.note(path, status, time.perf_counter() - begin)

    return asgi

  def _endpoint(self, answer):
    async def handle(request: Request) -> Response:
      self._check_token(request)
      try:
        async with asyncio.timeout(self.limits.timeout):
          return await answer(request, self)
      except TimeoutError:
        raise Problem(504, f'no answer within {self.limits.timeout:g} seconds', code='timeout') from None
      except Full:
        raise Problem(429, 'too much is waiting; try again', code='queue_full', headers={'Retry-After': '1'}) from None
      except UsageError as error:
        raise Problem(400, str(error)) from None
      except ClientDisconnect:
        return Response(status_code=GONE)
      except HTTPException:
        raise
      except Exception:
        traceback.print_exc(file=sys.stderr)
        raise Problem(500, FAILED) from None

    return handle

  def _check_token(self, request: Request) -> None:
    kind, _, given = request.headers.get('authorization', '').partition(' ')
    right = hmac.compare_digest(given.strip().encode('latin-1'), self.limits.token.encode())  # as headers are decoded
    if self.limits.token and not (kind.lower() == 'bearer' and right):
      headers = {'WWW-Authenticate': 'Bearer'}
      raise Problem(401, 'the header Authorization: Bearer TOKEN is wrong or missing', None, 'invalid_api_key', headers)

  async def body(self, request: Request) -> bytes:
    """The body of a request; a Problem where it is too large, before all of it is read."""
    most, content = self.limits.body, bytearray()
    too_large = Problem(413, f'the body is larger than {most:,} bytes', headers={'Connection': 'close'})
    announced = request.headers.get('content-length', '')
    if announced.isdecimal() and int(announced) > most:
      raise too_large
    async for part in request.stream():
      content += part
      if len(content) > most:
        raise too_large
    return bytes(content)

  async def json(self, request: Request) -> dict[str, Any]:
    """The object that a body holds; a Problem where it holds none."""
    try:
      value = json.loads(await self.body(request), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
      raise Problem(400, f'the body is no JSON: {error}') from None
    if not isinstance(value, dict):
      raise Problem(400, 'the body is JSON, but no object {…}')
    return value

  async def _metrics(self, request: Request, app: 'App') -> Response:
    return PlainTextResponse(self.metrics.text(), media_type='text/plain; version=0.0.4')

  async def _page(self, request: Request) -> Response:
    about = {**self.service.about, 'token': bool(self.limits.token)}
    text = json.dumps(about).replace('<', '\\u003c')  # which would end the script that holds it
    page = resources.files('karpjax.serving').joinpath('page.html').read_text('utf-8')
    return HTMLResponse(page.replace('$about', text), headers={'Content-Security-Policy': PAGE_POLICY})


def _no_constant(name: str):
  raise ValueError(f'{name} is no number of JSON')


def _kind(status: int) -> str:
  return 'server_error' if status >= 500 else 'invalid_request_error'


def problem(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
  """OpenAI's error object."""
  return {'error': {'message': message[:LONGEST], 'type': _kind(status), 'param': param, 'code': code}}


async def _refused(request: Request, error: HTTPException) -> Response:
  own = {name: getattr(error, name, None) for name in ('param', 'code')}
  words = {404: f'there is no {request.url.path}', 405: f'{request.url.path} does not take {request.method}'}
  said = error.detail if isinstance(error, Problem) else words.get(error.status_code, error.detail)
  text = json.dumps(problem(error.status_code, said, **own), ensure_ascii=False)
  content = text.encode(errors='backslashreplace')  # lone surrogates, which may have been sent, as JSON escapes them
  return Response(content, error.status_code, error.headers, 'application/json')


def is_loopback(host: str) -> bool:
  """Whether only this machine reaches a host's name or address."""
  return host in ('localhost', '::1') or bool(re.fullmatch(r'127(\.\d+){3}', host))
