"""Programs of a sweep as processes: started, watched, stopped; what they leave is read from their folders."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from karpjax.report import writers

ROOT = Path(__file__).parents[3]
OUTPUT, PART, MEMBERS = 'output.txt', 'part.json', 'members.json'
LOOK = 0.2  # seconds between two looks at a process


def members(folder: Path) -> dict | None:
  """What a finished part has left, or None."""
  try:
    return json.loads((folder / MEMBERS).read_text())
  except FileNotFoundError:
    return None


def run(folder: Path, part: dict, watch: Callable[[int, list[float]], bool], metric: str) -> tuple[str, str]:
  """Runs one part of a sweep in a process of its own, unless it is finished; what it prints goes to output.txt.

  Args:
    folder: the part's.
    part: what part.json is to hold; see `vmapped.run`.
    watch: is given each new value of the metric, (step, one number per member); answers whether to stop the process.
    metric: its name.

  Returns:
    ('done', ''), ('stopped', ''), or ('failed', the reason).

  Raises:
    SystemExit: 128 + signal, where this process was told to stop; the other one has saved before.
  """
  if members(folder):
    return 'done', ''
  folder.mkdir(parents=True, exist_ok=True)
  writers.write_json(folder / PART, part)
  paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
  command = [sys.executable, '-m', 'karpjax.commands.sweep', str(folder)]
  seen, stopped = -1, False
  with open(folder / OUTPUT, 'ab') as output, _stop_signals() as came:
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      env={**os.environ, 'PYTHONPATH': paths},
      start_new_session=True,  # a Ctrl-C comes to us, and once to it
    )
    try:
      while True:
        running = process.poll() is None
        for row in writers.read_rows(folder):
          if metric in row and row['step'] > seen:
            seen = row['step']
            stop = watch(seen, np.atleast_1d(row[metric]).tolist())
            if stop and not stopped and running:
              process.terminate()
              stopped = True
        if not running:
          break
        if came:
          process.send_signal(came[0])
          process.wait()
          raise SystemExit(128 + came[0])
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(LOOK)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
  if members(folder):
    return 'done', ''
  if stopped:
    return 'stopped', ''
  if process.returncode < 0:
    return 'failed', f'ended by {signal.Signals(-process.returncode).name}' + (
      ': out of memory?' if process.returncode == -signal.SIGKILL else ''
    )
  lines = (folder / OUTPUT).read_text(errors='replace').strip().splitlines()
  # After the error itself JAX may add a word on its traceback.
  said = [line for line in lines if re.match(r'sweep: |[\w.]+(Error|Exception|Interrupt|Exit)\b', line)] or lines
  return 'failed', said[-1].removeprefix('sweep: ') if said else f'exit code {process.returncode}'


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
  """The SIGTERM and SIGINT that have come meanwhile."""
  came: list[int] = []
  previous = {}
  with contextlib.suppress(ValueError):  # only the main thread may set handlers
    for number in (signal.SIGTERM, signal.SIGINT):
      previous[number] = signal.signal(number, lambda number, _: came.append(number))
  try:
    yield came
  finally:
    for number, old in previous.items():
      signal.signal(number, old)


def watcher(say: Callable[[str], None], metric: str, sign: int, every: float = 5) -> Callable[[int, list[float]], bool]:
  """A `watch` that says the best member's value from time to time, and never stops a process."""
  said = time.monotonic()

  def watch(step: int, values: list[float]) -> bool:
    nonlocal said
    finite = [value for value in values if np.isfinite(value)]
    if finite and time.monotonic() - said > every:
      said = time.monotonic()
      say(
        f'  step {step}: {metric} {sign * min(sign * value for value in finite):.4g}'
        + (' at best' if len(values) > 1 else '')
      )
    return False

  return watch
