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
  python launch.py bench all                                  # every set-up, into the tables of karpjax/bench/README.md
  python launch.py bench start                                # whole commands: what it costs to begin and to end

Both start from the same weights and see the same batches; their first losses must agree, or the command
fails. Ours is the whole step of a run: gathered from resident uint8 images, guarded against NaN, metrics.
PyTorch's finds its batches ready as floats, in the fastest of its numbers of threads, memory layouts and
optimiser codes. Images and labels are random, without augmentation. "of peak" is the step's FLOP/s, as we count
its FLOPs, over those of a large float32 matmul by the same library, timed after each turn. "x ours" is the ratio
of the medians, beside it the quartiles of the turns' ratios. "all in" and "memory" are of processes of their own, which
make a number of steps and end: their time from start to end, imports and compilation included, without
evaluation or files, and their largest resident set; PyTorch's is spared the search for what is fastest.
"""

import dataclasses
import datetime
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from karpjax import command_line, errors, options
from karpjax.bench import measure, results, start
from karpjax.bench import setup as setups
from karpjax.bench.start import bench_flag
from karpjax.train import commits

TOLERANCE = 1e-4  # relative, of the first losses
RECORDED_ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Bench(start.Common):
  """The flags of `bench NAME`."""

  batch_size: int = bench_flag(0, "Examples a step; 0: the benchmark's own.", low=0)
  seeds: tuple[int, ...] = bench_flag((), 'Vmapped seeds to time beside one, such as 8.', low=1)
  parallel: str = bench_flag(
    'none', 'How several seeds are spread: over one device, or over all.', choices=('none', 'seeds')
  )
  steps_per_call: tuple[int, ...] = bench_flag((), 'Steps per call to time beside auto.', low=1)
  threads: tuple[int, ...] = bench_flag((), 'Threads of ours to time beside one for each core.', low=1)
  round_seconds: float = bench_flag(1.0, 'How long a turn takes, about.', above=0)
  starts: int = bench_flag(3, 'Processes of each side that are timed from start to end.', low=0)
  torch_compile: bool = bench_flag(False, 'Time torch.compile too; it needs a C++ compiler.')


@dataclasses.dataclass(frozen=True)
class All(Bench):
  """The flags of `bench all`."""

  only: tuple[str, ...] = bench_flag((), 'These set-ups; else all.', choices=setups.NAMES)
  machine: str = bench_flag('', "The machine's name in the tables; else its processor and cores.")
  record: bool = bench_flag(True, 'Append to results.jsonl beside README.md, and write its tables anew.')


def one(name: str, flags: Bench) -> tuple[dict, bool]:
  """Measures a set-up and prints its report; the figures, and whether all workers ran and their first losses agree.

  Raises:
    RuntimeError: where ours stops.
  """
  setup = measure.read(name, [f'--batch_size={flags.batch_size}'] * bool(flags.batch_size))
  result = measure.measure(setup, flags)
  result['disagreement'] = measure.disagreement(result['rows'])
  print(measure.report(name, result), flush=True)
  if len(result['rows']) > 1:
    print(f'first losses agree to {result["disagreement"]:.1e}')
  agree = result['disagreement'] <= TOLERANCE
  if not agree:
    print(f'THE FIRST LOSSES DIFFER by more than {TOLERANCE}: these are not the same training', file=sys.stderr)
  return result, agree and not any(why.startswith(f'{side} stopped') for side, why in result['lacks'].items())


def bench(name: str, flags: Bench) -> tuple[dict, int]:
  """`bench NAME`: (the figures, the exit code)."""
  result, fine = one(name, flags)
  if 'PyTorch' in result['lacks'] and result['setup']['twin'] != 'none':
    print('without PyTorch: --torch_python=PATH names an interpreter that has it', file=sys.stderr)
  return result, int(not fine)


def bench_all(flags: All) -> tuple[list[dict], int]:
  """`bench all`: (the lines of results.jsonl, the exit code); a set-up that cannot run stands in no other's way."""
  if flags.record and flags.rounds < RECORDED_ROUNDS:
    why = f'a recorded row needs at least {RECORDED_ROUNDS}; record=false only prints'
    raise errors.UsageError(f'rounds={flags.rounds}: {why}')
  about = {'date': datetime.date.today().isoformat(), 'git': commits.current(measure.ROOT)}
  about['machine'] = flags.machine or measure.machine.name()
  lines, code = [], 0
  for name in flags.only or setups.NAMES:
    setup = measure.read(name)
    try:
      result, fine = one(name, flags)
      rows, lacks = {row['name']: row for row in result['rows']}, result['lacks']
    except RuntimeError as error:
      fine, rows, lacks = False, {}, {'ours': str(error)}
      print(f'bench: {name}: {error}', file=sys.stderr)
    code = max(code, int(not fine))
    lines.append(results.entry(name, setup.steps, about, rows, lacks))
    if flags.record and (fine or lacks):  # never losses that differ
      results.record(lines[-1])
  return lines, code


def main(argv: list[str]) -> int:
  """NAME|all|start [flags] -> exit code: 0, 1 where losses disagree or what is timed fails, 2 for bad input."""
  name = argv[0] if argv else ''
  kinds: dict[str, tuple[type, Callable]] = {'all': (All, bench_all), 'start': (start.Start, start.bench)}
  kind, run = kinds.get(name, (Bench, functools.partial(bench, name)))
  try:
    if command_line.asks_help(argv):
      about = start.__doc__ if name == 'start' else f'{__doc__}\nNAME is one of: {", ".join(setups.NAMES)}'
      which = command_line.typed(argv, 'help') or 'all'
      print(command_line.usage(kind, f'bench {name if name in kinds else "NAME"}', about, which))
      return 0
    if not name or name.startswith('-'):
      raise errors.UsageError('which set-up? python launch.py bench NAME, all or start; bench --help lists them')
    if name not in kinds:
      errors.choose('benchmark', name, dict.fromkeys([*setups.NAMES, *kinds]))
    flags = command_line.parse(kind, argv[1:])
    options.check(flags)
    if flags.json and not Path(flags.json).absolute().parent.is_dir():
      raise errors.UsageError(f'json={flags.json}: there is no such folder')
    found, code = run(flags)
  except errors.UsageError as error:
    return command_line.refuse('bench', error, kind)
  except RuntimeError as error:
    print(f'bench: {error}', file=sys.stderr)
    return 1
  if flags.json:
    Path(flags.json).write_text(json.dumps(found, indent=2))
  return code
