"""Programs of a sweep as processes: started, watched, stopped; what they leave is read from their folders."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from karpjax.commands.sweep.settings import Setting, Sweep
from karpjax.report import writers
from karpjax.train import run_dir, runtime

ROOT = Path(__file__).parents[3]
OUTPUT = 'output.txt'
LOOK = 0.2  # seconds between two looks at a process


def command(sweep: Sweep, settings: list[Setting], folder: Path) -> list[str]:
  """What trains these settings, in this order, in one program: `launch.py` one of them, `sweep` itself several."""
  start, common = [str(ROOT / 'launch.py'), sweep.experiment], settings[0]
  if len(settings) > 1:
    own = [name for name in common if any(setting[name] != common[name] for setting in settings)] or list(common)
    numbers = {name: [getattr(sweep.config(setting), name) for setting in settings] for name in own}
    start = ['-m', 'karpjax.commands.sweep', sweep.experiment, json.dumps(numbers)]
    common = {name: text for name, text in common.items() if name not in own}
  return [sys.executable, *start, *sweep.flags(common), f'--workdir={folder}']


def run(folder: Path, command: list[str], watch: Callable[[int, list[float]], bool], metric: str) -> tuple[str, str]:
  """Runs a command that trains in a folder, unless that is finished; what it prints goes to output.txt.

  Args:
    folder: the run's.
    command: trains there, and goes on there.
    watch: is given each new value of the metric, (step, one number per member); answers whether to stop the process.
    metric: its name.

  Returns:
    ('done', ''), ('stopped', ''), or ('failed', the reason).

  Raises:
    SystemExit: 128 + signal, where this process was told to stop; the other one has saved before.
  """
  folder.mkdir(parents=True, exist_ok=True)
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))}
  # In a session of its own: a Ctrl-C comes to us, and once to it.
  options = dict(stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
  last, running, stopped = -1, True, False
  with open(folder / OUTPUT, 'ab') as output, runtime.stop_signals() as signals:
    process = subprocess.Popen(command, stdout=output, **options)
    try:
      while running:
        running = process.poll() is None
        for row in writers.read_rows(folder):
          if metric in row and row['step'] > last:
            last = row['step']
            if watch(last, np.atleast_1d(row[metric]).tolist()) and running and not stopped:
              process.terminate()
              stopped = True
        if running and signals:
          process.send_signal(signals[0])
          process.wait()
          raise SystemExit(128 + signals[0])
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(LOOK)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
  if process.returncode == 0 or stopped:
    return 'stopped' if process.returncode else 'done', ''
  if process.returncode < 0:
    memory = ': out of memory?' if process.returncode == -signal.SIGKILL else ''
    return 'failed', f'ended by {signal.Signals(-process.returncode).name}{memory}'
  lines = (folder / OUTPUT).read_text(errors='replace').strip().splitlines() or [f'exit code {process.returncode}']
  # After the error itself JAX may add a word on its traceback.
  errors = [line for line in lines if re.match(r'[\w.]+: |[\w.]+(Error|Exception|Interrupt|Exit)\b', line)] or lines
  return 'failed', re.sub(r'^[a-z_\d]+: ', '', errors[-1])


def numbers(folder: Path) -> dict[str, list[float]]:
  """{metric: [one per member]} of the end of training; {} of a run that is not finished."""
  summary = writers.read_json(folder / 'summary.json')
  number = lambda x: math.nan if x is None else x
  several = lambda x: x['values'] if isinstance(x, dict) else [x]
  return {n: [*map(number, several(x))] for n, x in summary.items() if '/' in n}


def diverged(folder: Path) -> dict[int, int]:
  """{seed: first step that met NaN or infinity}, of a run; a member's seed is its number after the first's."""
  return {int(seed): step for seed, step in writers.read_json(folder / run_dir.DIVERGED).items()}
