"""The talk between the parent and a worker: one JSON object a line, on the worker's stdin and stdout."""

import contextlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

LOSSES = 5  # first steps whose losses are compared
MATRIX = 2048  # side of the matmul that stands for the machine's peak
PEAK_REPEATS = 3
LEAST = 0.2  # seconds that steps are measured for


def serve(prepare: Callable[[dict], tuple[dict, Callable, Callable]]) -> None:
  """Answers the parent until stdin ends; or, where the job names `steps`, makes so many and tells what memory that took.

  Args:
    prepare: (job) -> (what to tell first, run, matmul); `run` (n) makes n training steps and waits for them,
      `matmul` () multiplies two float32 matrices [MATRIX, MATRIX] and waits.
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # whatever a library prints must not come between the answers

  def answer(values):
    print(json.dumps(values), file=answers, flush=True)

  job = json.loads(Path(sys.argv[1]).read_text())
  first, run, matmul = prepare(job)
  if job.get('steps'):
    run(job['steps'])
    answer({'memory': peak_memory()})
    return
  matmul()
  answer({**first, 'step_seconds': step_seconds(run)})
  for line in sys.stdin:
    steps = json.loads(line)['steps']
    begun = time.perf_counter()
    run(steps)
    seconds = (time.perf_counter() - begun) / steps
    fastest = min(_seconds(matmul) for _ in range(PEAK_REPEATS))
    answer({'seconds': seconds, 'peak': 2 * MATRIX**3 / fastest, 'memory': peak_memory()})


def step_seconds(run: Callable) -> float:
  """Seconds of one step, from so many that they take LEAST seconds, after a few to warm up."""
  run(3)
  steps = 1
  while True:
    seconds = _seconds(run, steps)
    if seconds >= LEAST:
      return seconds / steps
    steps *= 4 if seconds < LEAST / 8 else 2


def peak_memory() -> int:
  """The largest resident set this process has had, in bytes; on Linux without that of the one that started it."""
  with contextlib.suppress(OSError):  # getrusage counts what the parent held when it forked
    return 1024 * int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _seconds(function: Callable, *arguments) -> float:
  begun = time.perf_counter()
  function(*arguments)
  return time.perf_counter() - begun
