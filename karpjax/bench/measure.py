"""`launch.py bench NAME`: our training step and PyTorch's, in a process each, turn by turn.

  python launch.py bench mnist_cnn                            # ours beside PyTorch's, where it is installed
  python launch.py bench resnet20 --torch_python=PATH         # PyTorch of another interpreter
  python launch.py bench lecun1989 --seeds=8                  # eight vmapped seeds beside one
  python launch.py bench lecun1989 --seeds=8 --parallel=seeds # the same, four on each of two cores
  python launch.py bench lecun1989 --threads=1                # one thread beside one for each core
  python launch.py bench gpt_shakespeare --torch_compile      # PyTorch eager, and compiled
  python launch.py bench generation                           # a step is one token of a text
  python launch.py bench ppo_cartpole                         # a step is a rollout and its updates; PyTorch's with gymnasium
  python launch.py bench mlp --steps_per_call=1,64            # fixed numbers of steps per call beside auto

Both start from the same weights and see the same batches; their first losses must agree, or the command
fails. Ours is the whole step of a run: gathered from resident uint8 images, guarded against NaN, metrics.
PyTorch's finds its batches ready as floats, in the fastest of its numbers of threads, memory layouts and
optimiser codes. Images and labels are random, without augmentation. "of peak" is the step's FLOP/s, as we count
its FLOPs, over those of a large float32 matmul by the same library, timed after each turn.
"""

import contextlib
import dataclasses
import functools
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

from karpjax import command_line, config, errors, options
from karpjax.bench import setup as setups
from karpjax.report import tables

TOLERANCE = 1e-4  # relative, of the first losses


bench_flag = functools.partial(config.flag, group='Bench')


@dataclasses.dataclass(frozen=True)
class Bench:
  """The command's flags."""

  batch_size: int = bench_flag(0, "Examples a step; 0: the benchmark's own.", low=0)
  seeds: tuple[int, ...] = bench_flag((), 'Vmapped seeds to time beside one, such as 8.', low=1)
  parallel: str = bench_flag(
    'none', 'How several seeds are spread: over one device, or over all.', choices=('none', 'seeds')
  )
  steps_per_call: tuple[int, ...] = bench_flag((), 'Steps per call to time beside auto.', low=1)
  threads: tuple[int, ...] = bench_flag((), 'Threads of ours to time beside one for each core.', low=1)
  rounds: int = bench_flag(7, 'How many turns each side takes.', low=1)
  round_seconds: float = bench_flag(1.0, 'How long a turn takes, about.', above=0)
  torch_python: str = bench_flag(sys.executable, 'The interpreter that has PyTorch; none for ours alone.', path=True)
  torch_compile: bool = bench_flag(False, 'Time torch.compile too; it needs a C++ compiler.')
  json: str = bench_flag('', 'Write the figures to this file too.', path=True)


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
  made = command_line.parse(experiment.Config, flags)
  return setups.Setup(
    name,
    about['experiment'],
    about['twin'],
    tuple(map(int, about['shape'].split('x'))),
    int(about['classes']),
    config.to_json(made),
    {name: value for name, value in made.model_options().items() if value is not None},
    int(about.get('training', 0)),
    'generation' in about,
  )


class Worker:
  """A process that answers each line of JSON with another."""

  def __init__(self, folder: Path, name: str, python: str, module: str, job: dict):
    self.name, self.turns, self.errors = name, [], folder / f'{name}.err'
    file, root = folder / f'{name}.json', str(Path(__file__).parents[2])
    file.write_text(json.dumps({**job, 'started': time.time()}))
    path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': path})
    with self.errors.open('w') as stderr:
      self.process = subprocess.Popen([python, '-m', module, str(file)], stderr=stderr, **pipes)
    self.facts = self.answer()

  def answer(self) -> dict:
    line = self.process.stdout.readline()
    if not line:
      said = self.errors.read_text().strip().splitlines() or [f'exit code {self.process.wait()}']
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


def has_torch(python: str) -> bool:
  """Whether an interpreter can import PyTorch; raises UsageError where there is no such interpreter."""
  look = 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
  try:
    return python != 'none' and subprocess.run([python, '-c', look], capture_output=True, check=False).returncode == 0
  except OSError:
    raise errors.UsageError(f'torch_python={python} cannot be run; give a Python, or none') from None


def measure(setup: setups.Setup, flags: Bench) -> dict:
  """Times everything; the figures as `report` prints them."""
  with_torch, many = has_torch(flags.torch_python), lambda n, what: f'ours, {n} {what}{"s" if n > 1 else ""}'
  own = {'seeds': 1, 'parallel': 'none'} | {name: setup.config[name] for name in ('steps_per_call', 'threads')}
  jobs = [('ours', {'save': True})]
  jobs += [(many(n, 'seed'), {'seeds': n, 'parallel': flags.parallel}) for n in flags.seeds if n != 1]
  jobs += [(f'ours, {n} a call', {'steps_per_call': n}) for n in flags.steps_per_call]
  jobs += [(many(n, 'thread'), {'threads': n}) for n in flags.threads]
  jobs += [('torch.compile', {'compiled': True})] * (with_torch and flags.torch_compile) + [
    ('PyTorch', {})
  ] * with_torch
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    workers, shared = [], {'setup': dataclasses.asdict(setup), 'weights': str(folder / 'weights.npz')}
    for name, job in jobs:
      python, module = flags.torch_python, 'karpjax.bench.torch.training'
      if name.startswith('ours'):
        print(f'compiling {name} …', file=sys.stderr)
        python, module, job = sys.executable, 'karpjax.bench.ours', own | job
      workers.append(Worker(folder, name, python, module, shared | job))
      stack.callback(workers[-1].close)
    for turn in range(flags.rounds):
      for worker in workers if turn % 2 == 0 else workers[::-1]:
        worker.turn(flags.round_seconds)
    return {'setup': dataclasses.asdict(setup), 'rows': [row(worker, workers[0]) for worker in workers]}


def row(worker: Worker, ours: Worker) -> dict:
  """The figures of one worker: seconds, FLOP/s, bytes, and its time as a multiple of ours, turn by turn."""
  times, own = ([turn['seconds'] for turn in one.turns] for one in (worker, ours))
  low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
  flops = worker.facts.get('flops') or ours.facts['flops']  # PyTorch is credited with ours
  peak = statistics.median(turn['peak'] for turn in worker.turns)
  return {
    **worker.facts,
    'name': worker.name,
    'seconds': middle,
    'quartiles': (low, high),
    'turns': times,
    'ratio': statistics.median(a / b for a, b in zip(times, own)),
    'flops': flops,
    'peak': peak,
    'share_of_peak': flops / middle / peak if flops else None,
    'memory': worker.turns[-1]['memory'],
  }


def disagreement(rows: list[dict]) -> float:
  """The largest relative difference of first losses between ours and any other row of one seed."""
  first = rows[0]['losses']
  others = [row['losses'] for row in rows[1:] if not isinstance(row['losses'][0], list)]
  differences = [abs(a - b) / max(abs(a), 1e-12) for other in others for a, b in zip(first, other)]
  # NaN compares with nothing, so it must not reach max().
  return float('inf') if any(d != d for d in differences) else max(differences, default=0.0)


def report(name: str, result: dict) -> str:
  """The table."""
  setup, rows, flags = result['setup'], result['rows'], result['setup']['config']
  kinds = {'image_classification': 'images', 'gan': 'images', 'policy_gradient': 'observations'}
  what = f'{kinds.get(setup["experiment"], "texts")} {"x".join(map(str, setup["shape"]))}'
  model = f'{flags.get("model", "actor_critic")}, {rows[0]["parameters"]:,} parameters'
  cells = []
  for r in rows:
    low, high = (1e3 * q for q in r['quartiles'])
    share = '' if r['share_of_peak'] is None else f'{r["share_of_peak"]:.1%}'
    compiling = f'{r["compile_seconds"]:.1f}' if 'compile_seconds' in r else ''
    times = f'{1e3 * r["seconds"]:.4g}', f'{low:.4g} – {high:.4g}', f'{1 / r["seconds"]:,.1f}', f'{r["ratio"]:.2f}'
    cells.append((r['name'], *times, share, f'{r["peak"] / 1e9:.0f}', compiling, f'{r["memory"] / 2**20:.0f}'))
  heads = ('', 'ms a step', 'quartiles', 'steps/s', 'x ours', 'of peak', 'GFLOP/s peak', 'compile s', 'memory MB')
  lines = [
    f'{name}: {model}, {what}, batch {flags["batch_size"]}, {flags["optimiser"]}',
    f'{rows[0]["flops"] / 1e6:,.3f} MFLOP a step, by our count',
    *('', *tables.table(cells, heads)),
    *('', *(f'{r["name"]}: {said(r)}' for r in rows), ''),
  ]
  for r in (r for r in rows if not isinstance(r['losses'][0], list)):
    lines.append(f'first losses, {r["name"]}: {" ".join(f"{x:.7f}" for x in r["losses"])}')
  if rows[-1]['name'] == 'PyTorch':
    lines += ['', f'ours is {rows[-1]["ratio"]:.2f} times as fast as PyTorch']
    if steps := setup['training']:
      ours, theirs = (row['start_seconds'] + steps * row['seconds'] for row in (rows[0], rows[-1]))
      whole = f'a training of {steps:,} steps, imports and compilation included: {ours:.1f} s against {theirs:.1f} s'
      lines.append(f'{whole}, {theirs / ours:.1f} times as fast')
  return '\n'.join(lines)


def said(r: dict) -> str:
  """How a row was run."""
  if 'threads' in r:
    layout, rule = 'last' if r['channels_last'] else 'first', 'fused' if r['fused'] else 'plain'
    return f'{r["versions"]}, {r["threads"]} threads, channels {layout}, {rule} optimiser'
  return f'{r["versions"]}, {r["steps_per_call"]} step{"s" if r["steps_per_call"] > 1 else ""} a call'


def main(argv) -> int:
  """NAME [flags] -> exit code: 0, 1 where first losses disagree or a worker fails, 2 for bad input."""
  if not argv or argv[0].startswith('-'):
    print(command_line.usage(Bench, 'bench NAME', f'{__doc__}\nNAME is one of: {", ".join(setups.NAMES)}'))
    return 0 if {'--help', '-h'} & set(argv) else 2
  name, *rest = argv
  try:
    flags = command_line.parse(Bench, rest)
    options.check(flags)
    if flags.json and not Path(flags.json).absolute().parent.is_dir():
      raise errors.UsageError(f'json={flags.json}: there is no such folder')
    setup = read(name, [f'--batch_size={flags.batch_size}'] * bool(flags.batch_size))
    result = measure(setup, flags)
  except errors.UsageError as error:
    return command_line.refuse('bench', error, Bench)
  except RuntimeError as error:
    print(f'bench: {error}', file=sys.stderr)
    return 1
  result['disagreement'] = disagreement(result['rows'])
  print(report(name, result))
  if flags.json:
    Path(flags.json).write_text(json.dumps(result, indent=2))
  if len(result['rows']) > 1:
    print(f'first losses agree to {result["disagreement"]:.1e}')
  if result['disagreement'] > TOLERANCE:
    print(f'THE FIRST LOSSES DIFFER by more than {TOLERANCE}: these are not the same training', file=sys.stderr)
    return 1
  if result['rows'][-1]['name'] != 'PyTorch':
    print('without PyTorch: --torch_python=PATH names an interpreter that has it', file=sys.stderr)
  return 0
