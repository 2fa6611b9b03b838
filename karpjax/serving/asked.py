"""What a request to `/v1/completions` or `/v1/chat/completions` says, checked: bad values are answered 400, by name."""

import dataclasses
import secrets
from typing import Any

from karpjax.config import LAST_SEED
from karpjax.serving.app import Problem

TOKENS = {False: 16, True: 256}  # of an answer, where a request does not say
COLDEST = 1e-3  # a lower temperature takes the most probable token
# What may be said, but only so: everything else would change an answer in a way that this server does not.
FIXED = {
  'n': (1,), 'best_of': (1,), 'echo': (False,), 'suffix': ('',), 'logprobs': (False,), 'top_logprobs': (), 'logit_bias': ({},),
  'frequency_penalty': (0,), 'presence_penalty': (0,), 'tools': ([],), 'tool_choice': ('none', 'auto'),
  'response_format': ({'type': 'text'},), 'modalities': (['text'],), 'parallel_tool_calls': (True, False),
}  # fmt: skip
UNUSED = 'user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key'
KNOWN = (
  *('model', 'prompt', 'messages', 'stream', 'stream_options', 'temperature', 'top_p', 'max_tokens'),
  *('max_completion_tokens', 'stop', 'seed'),
)


@dataclasses.dataclass(frozen=True)
class Asked:
  """Attributes:
  model: the name that is asked for, or None.
  most: tokens of the answer.
  stops: texts before which it ends.
  usage: whether a stream ends with what it used.
  """

  model: str | None
  prompt: str
  most: int
  temperature: float
  top_p: float
  stops: tuple[str, ...]
  seed: int
  stream: bool
  usage: bool


def asked(body: dict[str, Any], chat: bool, most: int) -> Asked:
  """A request's JSON, checked.

  Args:
    body: what OpenAI's API takes, None standing for what is not said. A chat is its messages' texts, joined by line breaks,
      with which the model goes on, whoever said them.
    most: tokens that may be asked for.

  Raises:
    Problem: 400, for what is unknown, of a wrong type, out of its range, or not supported.
  """
  body = {name: value for name, value in body.items() if value is not None}
  for name, value in body.items():
    if name in FIXED:
      if not any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in FIXED[name]):  # logprobs=0 asks
        raise Problem(400, f'{name}={value!r} is not supported by this server', name, 'unsupported_value')
    elif name not in KNOWN + UNUSED or name == ('prompt' if chat else 'messages'):
      raise Problem(400, f'unknown argument {name!r}', name, 'unknown_parameter')
  options = _value(body, 'stream_options', dict, {})
  named = 'max_completion_tokens' if 'max_completion_tokens' in body else 'max_tokens'
  return Asked(
    model=_value(body, 'model', str, None),
    prompt=_joined(body) if chat else _prompt(body),
    most=int(_number(body, named, min(TOKENS[chat], most), int, 1, most)),
    temperature=_cold(_number(body, 'temperature', 1.0, float, 0, 2)),
    top_p=_number(body, 'top_p', 1.0, float, 1e-6, 1),
    stops=_stops(body),
    seed=int(_number(body, 'seed', secrets.randbits(32), int, -(2**63), 2**63)) & LAST_SEED,
    stream=_value(body, 'stream', bool, False),
    usage=_value(options, 'include_usage', bool, False),
  )


def _wrong(name: str, wanted: str) -> Problem:
  return Problem(400, f'{name}: {wanted} is wanted', name, 'invalid_type')


def _value(body: dict[str, Any], name: str, kind: type, default):
  if not isinstance(value := body.get(name, default), kind | type(default)):
    raise _wrong(name, {bool: 'true or false', str: 'a text', dict: 'an object'}[kind])
  return value


def _number(body: dict[str, Any], name: str, default, kind: type, low, high):
  value = body.get(name, default)
  if isinstance(value, bool) or not isinstance(value, int | kind):
    raise _wrong(name, 'a whole number' if kind is int else 'a number')
  if not low <= value <= high:  # nor is NaN
    raise Problem(400, f'{name}={value!r:.40}: at least {low:g} and at most {high:g} is wanted', name, 'invalid_value')
  return value


def _cold(temperature: float) -> float:
  return 0.0 if temperature < COLDEST else float(temperature)


def _prompt(body: dict[str, Any]) -> str:
  prompt = body.get('prompt')
  prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
  if not isinstance(prompt, str):
    raise _wrong('prompt', 'one text')
  return prompt


def _joined(body: dict[str, Any]) -> str:
  messages = body.get('messages')
  if not isinstance(messages, list) or not messages:
    raise _wrong('messages', 'a list of {"role": …, "content": …}')
  texts = []
  for message in messages:
    content = message.get('content') if isinstance(message, dict) and isinstance(message.get('role'), str) else None
    if isinstance(content, list):  # parts, of which texts alone are taken
      parts = [part.get('text') if isinstance(part, dict) and part.get('type') == 'text' else None for part in content]
      content = ''.join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
      raise _wrong('messages', 'a list of {"role": …, "content": a text}')
    texts.append(content)
  return '\n'.join(texts)


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
  stops = body.get('stop', [])
  stops = [stops] if isinstance(stops, str) else stops
  if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(x, str) and x for x in stops):
    raise _wrong('stop', 'a text, or a list of up to four, none of them empty,')
  return tuple(stops)
