"""`launch.py bench start`: whole commands, timed from start to end, beside PyTorch scripts of the same job, turn by turn.

  python launch.py bench start                                # all rows
  python launch.py bench start --only=default,one_step        # these
  python launch.py bench start --torch_python=PATH            # PyTorch of another interpreter

A command of ours finds an empty cache of compiled programs, in the row `warm` one that an earlier run has filled, and a
new folder. The scripts are torch/start.py, the default command as a user of PyTorch would write it, and the twin of
ppo_cartpole with gymnasium, which only trains. "of default's" is our time over that of PyTorch's whole default script.
"""

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from karpjax import config, errors
from karpjax.bench import machine, measure
from karpjax.report import tables

TWIN = Path(__file__).parent / 'torch' / 'start.py'
PACKAGES = {'start': ('sklearn', 'matplotlib', 'tensorboardX'), 'ppo_cartpole': ('gymnasium',)}
HEADS = ('', 'ours, s', 'quartiles', 'PyTorch, s', 'PyTorch / ours', 'quartiles', "of default's")

bench_flag = functools.partial(config.flag, group='Bench')


@dataclasses.dataclass(frozen=True)
class Common:
  """The flags of all that is timed."""

  rounds: int = bench_flag(7, 'How many turns each side takes.', low=1)
  torch_python: str = bench_flag(sys.executable, 'The interpreter that has PyTorch; none for ours alone.', path=True)
  json: str = bench_flag('', 'Write the figures to this file too.', path=True)


@config.defaults(rounds=5)
class Start(Common):
  """The flags of `bench start`."""

  only: tuple[str, ...] = bench_flag((), 'These rows; else all.')
  data_dir: str = bench_flag('', 'The folder where lecun1989 finds its data, as its experiment has it.', path=True)


@dataclasses.dataclass(frozen=True)
class Row:
  """What is timed: arguments of launch.py, and of PyTorch's script of the same job; '' where there is none."""

  ours: tuple[str, ...]
  script: str = ''
  theirs: tuple[str, ...] = ()
  warm: bool = False  # whether programs are in the cache
  trains: bool = True  # whether it is a run, with a folder and a cache


def rows(flags: Start) -> dict[str, Row]:
  """All that can be timed, by name."""
  default = 'image_classification'
  names = [path.stem for path in sorted((measure.ROOT / 'experiments').glob('[a-z]*.py'))]
  ppo, paper = measure.setups.FOLDER / 'ppo_cartpole.flags', measure.ROOT / 'experiments/papers/lecun1989.flags'
  steps = measure.read('ppo_cartpole').steps
  data = (f'--data_dir={flags.data_dir}',) if flags.data_dir else ()
  return {
    'default': Row((default,), 'start'),
    'one_step': Row((default, '--steps=1'), 'start', ('--steps=1',)),
    'warm': Row((default, '--steps=1'), 'start', ('--steps=1',), warm=True),
    'launch': Row((), trains=False),
    'help': Row((default, '--help'), trains=False),
    'ppo_cartpole': Row(('policy_gradient', f'--flagfile={ppo}', f'--steps={steps}'), 'ppo_cartpole'),
    'lecun1989': Row((default, f'--flagfile={paper}', '--seeds=5', *data)),
    **{f'one_step_{name}': Row((name, '--steps=1')) for name in names if name != default},
  }


def seconds(command: Sequence[str], folder: Path) -> float:
  """What a command takes from its start to its end, in a folder of its own.

  Raises:
    RuntimeError: where it fails, with the last line that it says.
  """
  begun = time.perf_counter()
  done = subprocess.run(
    command,
    cwd=folder,
    env=measure.environment(),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  taken = time.perf_counter() - begun
  if done.returncode:
    raise RuntimeError((done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1])
  return taken


def ours(row: Row, cache: Path | None = None) -> float:
  """A command of ours, in a new folder, with this cache or an empty one."""
  with tempfile.TemporaryDirectory() as folder:
    run = [f'--workdir={folder}/run', f'--compilation_cache={cache or Path(folder, "cache")}'] if row.trains else []
    return seconds([sys.executable, str(measure.ROOT / 'launch.py'), *row.ours, *run], Path(folder))


def theirs(row: Row, python: str) -> float:
  """PyTorch's script of the same job, in a new folder."""
  with tempfile.TemporaryDirectory() as folder:
    if row.script == 'start':
      return seconds([python, str(TWIN), *row.theirs], Path(folder))
    setup = measure.read(row.script)
    way = {'threads': setup.config['threads'] or machine.cores(), 'channels_last': False, 'fused': True}
    job = {'setup': dataclasses.asdict(setup), 'steps': setup.steps, 'way': way}
    Path(folder, 'job.json').write_text(json.dumps(job))
    return seconds([python, '-m', 'karpjax.bench.torch.training', 'job.json'], Path(folder))


def timed(row: Row, flags: Start) -> dict:
  """A row's figures: 'ours' and 'theirs', the seconds of each turn, and 'why' one of them is missing."""
  lacks = measure.torch_lacks(flags.torch_python, PACKAGES[row.script]) if row.script else ''
  found = {'ours': [], 'theirs': [], 'why': lacks}
  with tempfile.TemporaryDirectory() as folder:
    cache = Path(folder) if row.warm else None
    sides = {'ours': lambda: ours(row, cache), 'theirs': lambda: theirs(row, flags.torch_python)}
    if lacks or not row.script:
      del sides['theirs']
    for turn in range(-row.warm, flags.rounds):  # before the first, one fills the cache
      for side in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
        try:
          taken = sides[side]() if turn >= 0 or side == 'ours' else 0.0
          found[side] += [taken] * (turn >= 0)
        except RuntimeError as error:
          why = f'{"ours" if side == "ours" else "PyTorch"} stopped: {error}'
          found[side], found['why'] = [], '; '.join(filter(None, (found['why'], why)))
          del sides[side]
  return found


def cells(name: str, found: dict, whole: float | None) -> tuple[str, ...]:
  """A row of the table; `whole`: the seconds of PyTorch's default script."""
  mine, other = found['ours'], found['theirs']
  low, middle, high = measure.quartiles(mine) if mine else (None,) * 3
  ratio = '', ''
  if mine and other:
    low_ratio, _, high_ratio = measure.quartiles([b / a for a, b in zip(mine, other)])
    ratio = f'{statistics.median(other) / middle:.2f}', measure.between(low_ratio, high_ratio)
  share = f'{middle / whole:.2f}' if mine and whole and name in ('default', 'one_step', 'warm') else ''
  times = (f'{middle:.2f}', measure.between(low, high)) if mine else ('', '')
  return (name, *times, f'{statistics.median(other):.2f}' if other else '', *ratio, share)


def bench(flags: Start) -> tuple[dict, int]:
  """`bench start`: (the seconds of all turns, the exit code)."""
  known = rows(flags)
  chosen = {name: errors.choose('row', name, known) for name in flags.only or known}
  measure.torch_lacks(flags.torch_python)  # an interpreter that is none is refused before anything is timed
  found = {}
  for name, row in chosen.items():
    print(f'timing {name} …', file=sys.stderr)
    found[name] = timed(row, flags)
  whole = found.get('default', {}).get('theirs')
  whole = statistics.median(whole) if whole else None
  print(f'{machine.name()}; medians of {flags.rounds}', '', sep='\n')
  print(*tables.table([cells(name, one, whole) for name, one in found.items()], HEADS), sep='\n')
  print(*(f'{name}: {one["why"]}' for name, one in found.items() if one['why']), sep='\n')
  return {'machine': machine.name(), 'rows': found}, int(any('stopped' in one['why'] for one in found.values()))
