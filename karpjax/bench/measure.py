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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from karpjax import command_line, config, errors, options
from karpjax.bench import setup as setups

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
  torch_python: str = bench_flag(sys.executable, 'The interpreter that has PyTorch; none for ours alone.')
  torch_compile: bool = bench_flag(False, 'Time torch.compile too; it needs a C++ compiler.')
  json: str = bench_flag('', 'Write the figures to this file too.')


class Worker:
  """A process that answers each line of JSON with another."""

  def __init__(self, folder: Path, name: str, python: str, module: str, job: dict):
    self.name, self.times, self.peaks, self.memory = name, [], [], 0
    job_file, self.errors = folder / f'{name}.json', folder / f'{name}.err'
    job_file.write_text(json.dumps({**job, 'started': time.time()}))
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    with self.errors.open('w') as stderr:
      self.process = subprocess.Popen(
        [python, '-m', module, str(job_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
      )
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
    measured = self.answer()
    self.times.append(measured['seconds'])
    self.peaks.append(measured['peak'])
    self.memory = measured['memory']

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()
    self.process.stdout.close()


def has_torch(python: str) -> bool:
  """Whether an interpreter can import PyTorch.

  Raises:
    UsageError: where there is no such interpreter.
  """
  if python == 'none':
    return False
  look = 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
  try:
    return subprocess.run([python, '-c', look], capture_output=True, check=False).returncode == 0
  except OSError:
    raise errors.UsageError(f'torch_python={python} cannot be run; give a Python, or none') from None


def measure(setup: setups.Setup, flags: Bench) -> dict:
  """Times everything; the figures as `report` prints them."""
  with_torch = has_torch(flags.torch_python)
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def start(name, python, module, **job):
      worker = Worker(folder, name, python, module, {'setup': dataclasses.asdict(setup), **job})
      stack.callback(worker.close)
      return worker

    def ours(name, seeds=1, parallel='none', **job):
      print(f'compiling {name} …', file=sys.stderr)
      own = {name: setup.config[name] for name in ('steps_per_call', 'threads')}
      job = own | {'seeds': seeds, 'parallel': parallel} | job
      return start(name, sys.executable, 'karpjax.bench.ours', **job)

    weights = str(folder / 'weights.npz')
    workers = [ours('ours', save=weights)]
    workers += [ours(f'ours, {n} seeds', seeds=n, parallel=flags.parallel) for n in flags.seeds if n != 1]
    workers += [ours(f'ours, {n} a call', steps_per_call=n) for n in flags.steps_per_call]
    workers += [ours(f'ours, {n} thread{"s" if n > 1 else ""}', threads=n) for n in flags.threads]
    if with_torch and flags.torch_compile:
      workers.append(
        start('torch.compile', flags.torch_python, 'karpjax.bench.torch.training', load=weights, compiled=True)
      )
    if with_torch:
      workers.append(start('PyTorch', flags.torch_python, 'karpjax.bench.torch.training', load=weights))
    for turn in range(flags.rounds):
      for worker in workers if turn % 2 == 0 else workers[::-1]:
        worker.turn(flags.round_seconds)
    return {'setup': dataclasses.asdict(setup), 'rows': [row(worker, workers[0]) for worker in workers]}


def row(worker: Worker, ours: Worker) -> dict:
  """The figures of one worker: seconds, FLOP/s, bytes, and its time as a multiple of ours, turn by turn."""
  low, middle, high = statistics.quantiles(worker.times, n=4) if len(worker.times) > 1 else worker.times * 3
  flops = worker.facts.get('flops') or ours.facts['flops']  # PyTorch is credited with ours
  peak = statistics.median(worker.peaks)
  return {
    **worker.facts,
    'name': worker.name,
    'seconds': middle,
    'quartiles': (low, high),
    'turns': worker.times,
    'ratio': statistics.median(theirs / own for theirs, own in zip(worker.times, ours.times)),
    'flops': flops,
    'peak': peak,
    'share_of_peak': flops / middle / peak if flops else None,
    'memory': worker.memory,
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
  setup, rows = result['setup'], result['rows']
  shape, flags = 'x'.join(map(str, setup['shape'])), setup['config']
  kinds = {'image_classification': 'images', 'gan': 'images', 'policy_gradient': 'observations'}
  what = kinds.get(setup['experiment'], 'texts')
  lines = [
    f'{name}: {flags.get("model", "actor_critic")}, {rows[0]["parameters"]:,} parameters, {what} {shape}, '
    f'batch {flags["batch_size"]}, {flags["optimiser"]}',
    f'{rows[0]["flops"] / 1e6:,.3f} MFLOP a step, by our count',
    '',
    f'{"":18}{"ms a step":>11}{"quartiles":>21}{"steps/s":>12}{"x ours":>9}{"of peak":>9}{"GFLOP/s peak":>14}'
    f'{"compile s":>11}{"memory MB":>11}',
  ]
  for r in rows:
    low, high = (1e3 * q for q in r['quartiles'])
    share = '' if r['share_of_peak'] is None else f'{r["share_of_peak"]:.1%}'
    compiling = f'{r["compile_seconds"]:.1f}' if 'compile_seconds' in r else ''
    lines.append(
      f'{r["name"]:18}{1e3 * r["seconds"]:11.4g}{f"{low:.4g} – {high:.4g}":>21}{1 / r["seconds"]:12,.1f}'
      f'{r["ratio"]:9.2f}{share:>9}{r["peak"] / 1e9:14.0f}{compiling:>11}{r["memory"] / 2**20:11.0f}'
    )
  lines.append('')
  lines += [f'{r["name"]}: {said(r)}' for r in rows]
  lines.append('')
  lines += [f'first losses, {r["name"]}: {losses(r["losses"])}' for r in rows if not isinstance(r['losses'][0], list)]
  if rows[-1]['name'] == 'PyTorch':
    ratio = rows[-1]['ratio']
    lines += ['', f'ours is {ratio:.2f} times as fast as PyTorch', *whole_training(setup['training'], rows)]
  return '\n'.join(lines)


def whole_training(steps: int, rows: list[dict]) -> list[str]:
  """The line on all steps of a training with what comes before them, where the set-up says how many there are."""
  if not steps:
    return []
  ours, theirs = (row['start_seconds'] + steps * row['seconds'] for row in (rows[0], rows[-1]))
  return [
    f'a training of {steps:,} steps, imports and compilation included: {ours:.1f} s against {theirs:.1f} s, '
    f'{theirs / ours:.1f} times as fast'
  ]


def said(r: dict) -> str:
  """How a row was run."""
  if 'threads' in r:
    layout = 'channels last' if r['channels_last'] else 'channels first'
    return f'{r["versions"]}, {r["threads"]} threads, {layout}, {"fused" if r["fused"] else "plain"} optimiser'
  calls = r['steps_per_call']
  return f'{r["versions"]}, {calls} step{"s" if calls > 1 else ""} a call'


def losses(values) -> str:
  return ' '.join(f'{x:.7f}' for x in values)


def parse(experiment: str, flags: list[str]) -> tuple[dict, dict]:
  """The Config that an experiment's flags give, and the model's options among them, as JSON."""
  made = command_line.parse(importlib.import_module(f'experiments.{experiment}').Config, flags)
  given = {name: value for name, value in made.model_options().items() if value is not None}
  return config.to_json(made), json.loads(json.dumps(given))


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
    setup = setups.read(name, parse)
    if flags.batch_size:
      setup = dataclasses.replace(setup, config=setup.config | {'batch_size': flags.batch_size})
    result = measure(setup, flags)
  except errors.UsageError as error:
    print(f'bench: {command_line.flagged(error, Bench)}', file=sys.stderr)
    return 2
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
