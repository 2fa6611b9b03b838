"""How fast a server answers: python -m karpjax.serving.speed WORKDIR [--flag=value …]

Starts `launch.py serve WORKDIR` on the loopback, and as many clients as are said ask one thing after the other.
"""

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from karpjax import command_line, config, errors, options, verbs
from karpjax.serving.inputs import KINDS

LAUNCH = Path(__file__).parents[2] / 'launch.py'


@dataclasses.dataclass(frozen=True)
class Measuring:
  """The flags of this command."""

  seconds: float = config.flag(10.0, 'Seconds of each measurement.', above=0, high=60)
  clients: tuple[int, ...] = config.flag((1, 8), 'Clients at once, one measurement each.', low=1, high=256)
  tokens: int = config.flag(128, 'Tokens of each text, where the run is a language model.', low=1)


def body(run, tokens: int) -> tuple[str, bytes]:
  """A path and what is asked there: a grey picture, a row without cells, a word, or a text that goes on."""
  if any(verb.model for verb in run.verbs.values()):
    return '/v1/completions', json.dumps({'prompt': '', 'max_tokens': tokens, 'stream': True}).encode()
  kind = next(KINDS[verb.inputs] for verb in run.verbs.values() if verb.inputs in KINDS)
  [example] = kind.example(run)
  if kind.name == 'image':
    return '/predict', example.getvalue()
  one = dict(zip(example.heads, [None] * len(example.heads))) if kind.name == 'row' else example
  return '/predict', json.dumps({'inputs': [one]}).encode()


@contextlib.contextmanager
def server(workdir: str) -> Iterator[int]:
  """The port of a server of its own."""
  argv = [sys.executable, str(LAUNCH), 'serve', workdir, '--port=0']
  with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
    try:
      line = process.stdout.readline()
      if not line:
        raise errors.UsageError('the server did not start')
      yield int(line.split()[0].rpartition(':')[2])
    finally:
      process.terminate()


async def _client(port: int, path: str, content: bytes, end: float, found: list) -> None:
  """Asks until the end; each answer adds (seconds to its first piece, seconds)."""
  reader, writer = await asyncio.open_connection('127.0.0.1', port)
  head = f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n'.encode()
  while (begin := time.perf_counter()) < end:
    writer.write(head + content)
    header = await reader.readuntil(b'\r\n\r\n')
    if not header.startswith(b'HTTP/1.1 200'):
      raise errors.UsageError(f'the server answers {header.splitlines()[0].decode()}')
    length = [int(line.split(b':')[1]) for line in header.splitlines() if line.lower().startswith(b'content-length')]
    first = 0.0
    if length:
      await reader.readexactly(length[0])
    while not length and (chunk := int(await reader.readline(), 16)) >= 0:
      await reader.readexactly(chunk + 2)
      first = first or time.perf_counter() - begin
      if not chunk:
        break
    found.append((first, time.perf_counter() - begin))
  writer.close()


async def measure(port: int, path: str, content: bytes, clients: int, seconds: float) -> tuple[list, float]:
  """What clients have found, and the seconds that it took."""
  found, begin = [], time.perf_counter()
  await asyncio.gather(*(_client(port, path, content, begin + seconds, found) for _ in range(clients)))
  return found, time.perf_counter() - begin


def main(argv: Sequence[str]) -> int:
  try:
    chosen = command_line.parse(Measuring, [x for x in argv if x.startswith('-')])
    options.check(chosen)
    workdir = ' '.join(x for x in argv if not x.startswith('-'))
    path, content = body(verbs.Run(workdir), chosen.tokens)
    texts = path != '/predict'
    with server(workdir) as port:
      asyncio.run(measure(port, path, content, 1, min(1.0, chosen.seconds)))  # what is first is slower
      for clients in chosen.clients:
        found, seconds = asyncio.run(measure(port, path, content, clients, chosen.seconds))
        first, whole = 1000 * np.array(found).T
        rate = (
          f'{len(found) * chosen.tokens / seconds:,.0f} tokens/s'
          if texts
          else f'{len(found) / seconds:,.0f} requests/s'
        )
        early = f'first token p50 {np.median(first):.1f} p99 {np.quantile(first, 0.99):.1f}, ' if texts else ''
        late = f'answer p50 {np.median(whole):.1f} p99 {np.quantile(whole, 0.99):.1f} ms'
        print(f'{clients} clients: {rate}, {early}{late}', flush=True)
  except errors.UsageError as error:
    return command_line.refuse('speed', error, Measuring)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
