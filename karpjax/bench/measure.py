"""Our training step and PyTorch's, in a process each, turn by turn; then processes that make so many steps and end."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from karpjax import command_line, config, errors
from karpjax.bench import machine, worker
from karpjax.bench import setup as setups
from karpjax.report import tables

ROOT = Path(__file__).parents[2]
OLDEST = 2, 4  # PyTorch whose optimisers are fused on a CPU too
LOOK = """
import importlib.metadata, importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
print(importlib.metadata.version('torch'))
"""


def read(name: str, flags: Sequence[str] = ()) -> setups.Setup:
  """The set-up called `name`, with other flags behind its own.

  Raises:
    UsageError: for an unknown name; the nearest is offered.
  """
  errors.choose('benchmark', name, dict.fromkeys(setups.NAMES))
  text = (setups.FOLDER / f'{name}.flags').read_text()
  about = dict(re.findall(r'^# (\w+): (.*)$', text, re.MULTILINE))
  experiment = importlib.import_module(f'experiments.{about["experiment"]}')
  flags = ['--seed=0', f'--steps={2**20}', *(line for line in text.splitlines() if line.startswith('--')), *flags]
  parsed = lambda *more: config.settled(command_line.parse(experiment.Config, [*flags, *more]))
  made, (other, _, changes) = parsed(), about.get('beside', '').partition(': ')
  return setups.Setup(
    name,
    about['experiment'],
    about['twin'],
    tuple(map(int, about['shape'].split('x'))),
    int(about['classes']),
    config.to_json(made),
    {name: value for name, value in made.model_options().items() if value is not None},
    int(about.get('steps', 100)),
    'generation' in about,
    {other: config.to_json(parsed(*changes.split()))} if other else {},
  )


def environment() -> dict[str, str]:
  """Of a process that finds this package."""
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))}


class Worker:
  """A process that answers each line of JSON with another."""

  def __init__(self, folder: Path, name: str, python: str, module: str, job: dict):
    self.name, self.turns, self.errors = name, [], folder / f'{name}.err'
    file = folder / f'{name}.json'
    file.write_text(json.dumps(job))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    with self.errors.open('w') as stderr:
      self.process = subprocess.Popen([python, '-m', module, str(file)], stderr=stderr, **pipes)
    self.facts = self.answer()

  def answer(self) -> dict:
    line = self.process.stdout.readline()
    if not line:
      code = self.process.wait()  # what it says comes after the end of its answers
      said = self.errors.read_text().strip().splitlines() or [f'exit code {code}']
      raise RuntimeError(f'{self.name} stopped: {said[-1]}')
    return json.loads(line)

  def turn(self, seconds: float) -> None:
    """Makes as many steps as take about `seconds`, and notes what one took."""
    steps = max(1, round(seconds / self.facts['step_seconds']))
    self.process.stdin.write(json.dumps({'steps': steps}) + '\n')
    self.process.stdin.flush()
    self.turns.append(self.answer())

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()
    self.process.stdout.close()


def torch_lacks(python: str, packages: Sequence[str] = ()) -> str:
  """Why an interpreter cannot run a twin that imports PyTorch and these packages: in a few words, or ''.

  Raises:
    UsageError: where there is no such interpreter.
  """
  if python == 'none':
    return 'PyTorch was not asked for'
  try:
    done = subprocess.run([python, '-c', LOOK, 'torch', *packages], capture_output=True, text=True, check=False)
  except OSError:
    raise errors.UsageError(f'torch_python={python} cannot be run; give a Python, or none') from None
  lacking, version = [*done.stdout.split('\n'), ''][:2]
  if lacking or done.returncode:
    return f'{python} has no {lacking or "PyTorch"}'
  old = tuple(map(int, re.findall(r'\d+', version)[:2])) < OLDEST
  return f'PyTorch {version} is too old: {OLDEST[0]}.{OLDEST[1]} is needed' if old else ''


def all_in(folder: Path, name: str, python: str, module: str, job: dict) -> dict:
  """'seconds' from the start to the end of a process that makes its job's steps, and the 'memory' it had at most."""
  begun = time.perf_counter()
  process = Worker(folder, name, python, module, job)
  process.close()
  return {'seconds': time.perf_counter() - begun, 'memory': process.facts['memory']}


def jobs_of(setup: setups.Setup, flags, with_torch: bool) -> dict[str, tuple[str, str, dict]]:
  """{name: (interpreter, module, job)} of all workers; ours is the first, PyTorch the last."""
  many = lambda n, what: f'ours, {n} {what}{"s" if n > 1 else ""}'
  own = {'seeds': 1, 'parallel': 'none'} | {name: setup.config[name] for name in ('steps_per_call', 'threads')}
  ours = {'ours': {'save': True}}
  ours |= {many(n, 'seed'): {'seeds': n, 'parallel': flags.parallel} for n in flags.seeds if n != 1}
  ours |= {f'ours, {n} a call': {'steps_per_call': n} for n in flags.steps_per_call}
  ours |= {many(n, 'thread'): {'threads': n} for n in flags.threads}
  changed = lambda config: dataclasses.asdict(dataclasses.replace(setup, config=config))
  ours |= {f'ours, {name}': {'setup': changed(config), 'other': True} for name, config in setup.beside.items()}
  theirs = {'torch.compile': {'compiled': True}} if flags.torch_compile else {}
  theirs = theirs | {'PyTorch': {}} if with_torch else {}
  return {name: (sys.executable, 'karpjax.bench.ours', own | job) for name, job in ours.items()} | {
    name: (flags.torch_python, 'karpjax.bench.torch.training', job) for name, job in theirs.items()
  }


def measure(setup: setups.Setup, flags) -> dict:
  """Times everything; the figures as `report` prints them, and under 'lacks' why a row of PyTorch is missing.

  Args:
    flags: a `command.Bench`.

  Raises:
    RuntimeError: where a worker of ours stops.
  """
  why = 'there is no twin' if setup.twin == 'none' else torch_lacks(flags.torch_python)
  lacks = {'PyTorch': why} if why else {}
  jobs = jobs_of(setup, flags, not lacks)
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    shared = {'setup': dataclasses.asdict(setup), 'weights': str(folder / 'weights.npz')}
    with contextlib.ExitStack() as running:
      workers = []
      for name, (python, module, job) in jobs.items():
        print(f'starting {name} …', file=sys.stderr)
        try:
          workers.append(Worker(folder, name, python, module, shared | job))
        except RuntimeError as error:
          if name.startswith('ours'):
            raise
          lacks[name] = str(error)
          continue
        running.callback(workers[-1].close)
      for turn in range(flags.rounds):
        for one in workers if turn % 2 == 0 else workers[::-1]:
          one.turn(flags.round_seconds)
    wholes = {one.name: [] for one in workers}
    for turn in range(flags.starts):
      for one in workers if turn % 2 == 0 else workers[::-1]:
        python, module, job = jobs[one.name]
        job = shared | job | {'steps': setup.steps, 'way': one.facts, 'save': False}
        wholes[one.name].append(all_in(folder, f'{one.name}, all in', python, module, job))
  rows = [row(one, workers[0], wholes[one.name]) for one in workers]
  besides = [f'{r["name"]}: {1e3 * r["seconds"]:.4g}' for r in rows if r.get('other')]
  lacks |= {'PyTorch': '; '.join([why, *besides])} if besides else {}
  return {'setup': dataclasses.asdict(setup), 'machine': machine.name(), 'lacks': lacks, 'rows': rows}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
  """The lower quartile, the median and the upper quartile."""
  return tuple(statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3)


def row(one: Worker, ours: Worker, wholes: Sequence[dict] = ()) -> dict:
  """The figures of one worker: seconds, FLOP/s, bytes, and its time as a multiple of ours.

  'ratio' is that of the medians, 'ratio_quartiles' those of the ratios turn by turn; 'memory' is that of the processes
  that made a number of steps and ended, whose median time is 'all_in', or of the worker, where there are none.
  """
  times, own = ([turn['seconds'] for turn in which.turns] for which in (one, ours))
  low, middle, high = quartiles(times)
  flops = one.facts.get('flops') or ours.facts['flops']  # PyTorch is credited with ours
  peak = statistics.median(turn['peak'] for turn in one.turns)
  lowest, _, highest = quartiles([a / b for a, b in zip(times, own)])
  return {
    **one.facts,
    'name': one.name,
    'seconds': middle,
    'quartiles': (low, high),
    'turns': times,
    'ratio': middle / statistics.median(own),
    'ratio_quartiles': (lowest, highest),
    'flops': flops,
    'peak': peak,
    'share_of_peak': flops / middle / peak if flops else None,
    'memory': max(turn['memory'] for turn in wholes or one.turns),
    'all_in': statistics.median(whole['seconds'] for whole in wholes) if wholes else None,
  }


def disagreement(rows: list[dict]) -> float:
  """The largest relative difference of first losses between ours and any other row of one seed."""
  first = rows[0]['losses']
  others = [row['losses'] for row in rows[1:] if not (row.get('other') or isinstance(row['losses'][0], list))]
  differences = [abs(a - b) / max(abs(a), 1e-12) for other in others for a, b in zip(first, other)]
  # NaN compares with nothing, so it must not reach max().
  return float('inf') if any(d != d for d in differences) else max(differences, default=0.0)


def report(name: str, result: dict) -> str:
  """The table."""
  setup, rows, flags = result['setup'], result['rows'], result['setup']['config']
  kinds = {'image_classification': 'images', 'gan': 'images', 'policy_gradient': 'observations'}
  what = f'{kinds.get(setup["experiment"], "texts")} {"x".join(map(str, setup["shape"]))}'
  model = f'{flags.get("model", "actor_critic")}, {rows[0]["parameters"]:,} parameters'
  peaks = {r['name']: f'{r["peak"] / 1e9:.0f} GFLOP/s in {r["name"]}' for r in (rows[0], rows[-1])}
  cells = []
  for r in rows:
    share = '' if r['share_of_peak'] is None else f'{r["share_of_peak"]:.1%}'
    compiling = f'{r["compile_seconds"]:.1f}' if 'compile_seconds' in r else ''
    times = f'{1e3 * r["seconds"]:.4g}', between(*(1e3 * q for q in r['quartiles'])), f'{1 / r["seconds"]:,.1f}'
    ratio = f'{r["ratio"]:.2f}', between(*r['ratio_quartiles'])
    last = f'{r["memory"] / 2**20:.0f}', '' if r['all_in'] is None else f'{r["all_in"]:.1f}'
    cells.append((r['name'], *times, *ratio, share, f'{r["peak"] / 1e9:.0f}', compiling, *last))
  heads = (
    'ms a step',
    'quartiles',
    'steps/s',
    'x ours',
    'quartiles',
    'of peak',
    'GFLOP/s peak',
    'compile s',
    'memory MB',
  )
  lines = [
    f'{result["machine"]}; a matmul of {worker.MATRIX} × {worker.MATRIX}: {", ".join(peaks.values())}',
    f'{name}: {model}, {what}, batch {flags["batch_size"]}, {flags["optimiser"]}',
    f'{rows[0]["flops"] / 1e6:,.3f} MFLOP a step, by our count',
    *('', *tables.table(cells, ('', *heads, 'all in s'))),
    *('', *(f'{r["name"]}: {said(r)}' for r in rows)),
    f'all in: a process that makes {setup["steps"]:,} steps, from its start to its end; memory: the most it had',
    '',
  ]
  for r in (r for r in rows if not isinstance(r['losses'][0], list)):
    lines.append(f'first losses, {r["name"]}: {" ".join(f"{x:.7f}" for x in r["losses"])}')
  lines += [f'no {other}: {why}' for other, why in result['lacks'].items()]
  if rows[-1]['name'] == 'PyTorch':
    quarters = f'quartiles of turns {between(*rows[-1]["ratio_quartiles"])}'
    lines += ['', f'ours is {rows[-1]["ratio"]:.2f} times as fast as PyTorch ({quarters})']
  return '\n'.join(lines)


def between(low: float, high: float) -> str:
  """Two quartiles."""
  return f'{low:.4g} – {high:.4g}'


def said(r: dict) -> str:
  """How a row was run."""
  if 'threads' in r:
    layout, rule = 'last' if r['channels_last'] else 'first', 'fused' if r['fused'] else 'plain'
    return f'{r["versions"]}, {r["threads"]} threads, channels {layout}, {rule} optimiser'
  return f'{r["versions"]}, {r["steps_per_call"]} step{"s" if r["steps_per_call"] > 1 else ""} a call'
