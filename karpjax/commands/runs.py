"""`launch.py runs [DIR]` lists the runs below a folder; `launch.py compare WORKDIR …` sets runs side by side in one
page.
"""

import datetime
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karpjax import errors, paths
from karpjax.errors import UsageError
from karpjax.report import page, writers
from karpjax.report.comparison import Entry, differing, shared_metrics, tables, write
from karpjax.report.tables import table

NARROWEST = 24  # columns of the flags in the table
BY_TIME = re.compile(r'\d{8}-\d{6}(-\d+)?')  # a folder's name that says nothing of the run
TITLE = 'Comparison of runs'  # of the page
TELLING = 'model', 'environment', 'dataset', 'optimiser', 'learning_rate', 'batch_size'  # the flags that say most


# ---- a run, as it lies on the disk ----


def state_of(folder: Path) -> str:
  """'running', 'finished', 'failed' or 'stopped'."""
  try:
    with open(folder / '.lock') as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held by the process at work, and gone with it
  except BlockingIOError:
    return 'running'
  except OSError:
    pass
  steps = options_of(writers.read_json(folder / 'config.json')).get('steps')
  if (folder / 'trials.csv').exists() or writers.read_json(folder / 'summary.json').get('steps', ...) == steps:
    return 'finished'  # a run that went on to more steps has the old summary until it ends
  return 'failed' if (folder / 'error.txt').exists() else 'stopped'


def options_of(config: dict[str, Any], which: str = 'flags') -> dict[str, Any]:
  """The flags that a config.json tells of; {} of another program's."""
  return config[which] if isinstance(config.get(which), dict) else {}


def find(folder: Path) -> Iterator[Path]:
  """The folders of runs and of sweeps at or below this one; the parts of a sweep are the sweep's."""
  for place, folders, _ in os.walk(folder):
    folders.sort()
    if is_sweep(Path(place)) or is_run(Path(place)):
      folders.clear()
      yield Path(place)


def is_run(folder: Path) -> bool:
  """Whether a folder's config.json is a run's: other programs' files have that name too."""
  return 'experiment' in writers.read_json(folder / 'config.json')


def is_sweep(folder: Path) -> bool:
  return 'sweep ' in str(writers.read_json(folder / 'sweep.json').get('command'))


def describe(folder: Path) -> dict[str, Any]:
  """What `runs` says of a run: its JSON form.

  Returns:
    {'run', 'experiment', 'state', 'step', 'steps', 'metrics': {name: number} of the last step, 'best': of the best
    weights, 'seconds', 'written', 'flags': {name: value}, 'changed': those that are not at their defaults}.
  """
  if is_sweep(folder):
    return _describe_sweep(folder)
  config, summary = writers.read_json(folder / 'config.json'), writers.read_json(folder / 'summary.json')
  rows, flags, state = writers.read_rows(folder), options_of(config), state_of(folder)
  last = rows[-1] if rows else {}
  rows_numbers = {name: value for row in rows for name, value in row.items() if '/' in name}
  numbers = summary if state == 'finished' else rows_numbers
  return {
    'run': str(folder),
    'experiment': config.get('experiment', '?'),
    'state': state,
    'step': last.get('step', 0),
    'steps': flags.get('steps'),
    'metrics': {name: numbers[name] for name in page.headline_metrics(numbers)},
    'best': {name: numbers[f'best/{name}'] for name in page.headline_metrics(numbers) if f'best/{name}' in numbers},
    'seconds': summary.get('seconds') if state == 'finished' else None,
    'written': (folder / 'config.json').stat().st_mtime,
    'flags': flags,
    'changed': options_of(config, 'changed'),
  }


def _describe_sweep(folder: Path) -> dict[str, Any]:
  """The same of a sweep: its best setting's."""
  asks = writers.read_json(folder / 'sweep.json')
  trials = writers.read_trials(folder)
  best = trials[0] if trials and trials[0]['status'] == 'done' else {}
  return {
    'run': str(folder),
    'experiment': f'sweep of {asks["command"].split("sweep ")[1].split()[0]}',
    'state': state_of(folder),
    'step': sum(trial['status'] == 'done' for trial in trials),
    'steps': len(trials) or None,
    'metrics': {best['metric']: float(best[best['metric']])} if best else {},
    'best': {},
    'seconds': None,
    'written': (folder / 'sweep.json').stat().st_mtime,
    'flags': {},
    'changed': best.get('setting', {}),
  }


def changed_text(run: dict[str, Any], common: dict[str, Any]) -> str:
  """The flags of a run that are not at their defaults, but for those that all of these runs have alike."""
  text = lambda value: ','.join(map(str, value)) if isinstance(value, list) else str(value)
  return ' '.join(f'--{name}={text(x)}' for name, x in run['changed'].items() if common.get(name, ...) != x)


# ---- launch.py runs ----


def age(seconds: float) -> str:
  """'3 min', '2 h' or '5 d'."""
  for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
    if seconds >= size:
      return f'{seconds / size:.0f} {unit}'
  return f'{seconds:.0f} s'


def listing(runs: list[dict[str, Any]], root: Path, width: int) -> list[str]:
  """The lines of the table: a block for each experiment, the newest run last."""
  lines = []
  for experiment in sorted({run['experiment'] for run in runs}):
    own = sorted((run for run in runs if run['experiment'] == experiment), key=lambda run: run['written'])
    common = {n: x for n, x in own[0]['changed'].items() if all(r['changed'].get(n) == x for r in own)}
    common = common if len(own) > 1 else {}
    rows = []
    for run in own:
      last, best = ({n: page.figure(n, x) for n, x in run[kind].items()} for kind in ('metrics', 'best'))
      beside = {n: f' (best {x})' for n, x in best.items() if x != last[n]}
      numbers = ', '.join(f'{name} {x}{beside.get(name, "")}' for name, x in last.items())
      seconds = '' if run['seconds'] is None else str(datetime.timedelta(seconds=round(run['seconds'])))
      step = f'{run["step"]:,}' + (f'/{run["steps"]:,}' if isinstance(run['steps'], int) else '')
      name = os.path.relpath(run['run'], root) if Path(run['run']) != root else run['run']
      rows.append((name, run['state'], step, numbers, seconds, age(time.time() - run['written']), ''))
    heads = 'run', 'state', 'step', 'numbers', 'time', 'age', 'flags'
    block = table(rows, heads)
    room = max(NARROWEST, width - len(block[1]))
    flags = [changed_text(run, common) for run in own]
    lines += [experiment, *(f'  {line}' for line in block[:2])]
    lines += [
      '  ' + line.ljust(len(block[1])) + (text if len(text) <= room else text[: room - 1] + '…')
      for line, text in zip(block[2:], flags)
    ]
    if common:
      lines.append('  all with ' + changed_text({'changed': common}, {}))
    lines.append('')
  return lines


def runs(argv: list[str]) -> int:
  """The command line of `launch.py runs`; 2 where the folder does not exist."""
  parser = errors.Parser(prog='launch.py runs', description='The runs and sweeps below a folder.')
  parser.add_argument('folder', nargs='?', type=paths.expand, default='runs', help='default: runs')
  parser.add_argument('--json', action='store_true', help='print each run as a line of JSON')
  try:
    given = parser.parse_args(argv)
    root = Path(given.folder)
    if not root.is_dir():
      raise UsageError(f'{root}: no such folder')
  except UsageError as error:
    print(f'runs: {error}', file=sys.stderr)
    return 2
  described = [describe(folder) for folder in find(root)]
  if given.json:
    print(*(json.dumps(run) for run in described), sep='\n')
    return 0
  width = shutil.get_terminal_size((160, 24)).columns
  lines = listing(described, root, width) or [f'no runs below {root}; python launch.py NAME makes one']
  print(*lines, sep='\n')
  return 0


# ---- launch.py compare ----


def names_of(folders: list[Path], flags: list[dict[str, Any]]) -> list[str]:
  """What tells runs from each other: the last parts of their folders; of one named by its time,
  flags that differ too.
  """
  paths = [folder.resolve().parts for folder in folders]
  depth = next(n for n in range(1, 99) if len({p[-n:] for p in paths}) == len(paths) or n > max(map(len, paths)))
  different = differing(flags)
  told = [*(name for name in TELLING if name in different), *(name for name in different if name not in TELLING)]
  names = []
  for path, own in zip(paths, flags):
    about = [f'{name}={page.plain(own[name])}' for name in told if page.plain(own.get(name))][:3]
    names.append(' '.join(['/'.join(path[-depth:]), *(about if BY_TIME.fullmatch(path[-1]) else [])]))
  return names


def entries_of(folders: list[Path], page_folder: Path) -> list[Entry]:
  """The runs of these folders.

  Raises:
    UsageError: for a folder that holds no run, one that is given twice, or runs that share no metric.
  """
  if len({folder.resolve() for folder in folders}) < len(folders):
    raise UsageError('a run is given twice')
  for folder in folders:
    if not is_run(folder):
      kind = f'a sweep, whose page compares its settings: {folder / "index.html"}' if is_sweep(folder) else 'no run'
      raise UsageError(f'{folder} is {kind}' if folder.is_dir() else f'{folder}: no such folder')
    if writers.read_json(folder / 'config.json').get('population'):
      raise UsageError(f'{folder} is a part of a sweep, whose page compares its settings')
  flags = [options_of(writers.read_json(folder / 'config.json')) for folder in folders]
  entries = []
  for folder, name, own in zip(folders, names_of(folders, flags), flags):
    link = os.path.relpath(folder / 'index.html', page_folder) if (folder / 'index.html').exists() else ''
    entries.append(Entry(name, own, writers.read_rows(folder), writers.read_json(folder / 'summary.json'), link))
  if len(entries) > 1 and not shared_metrics(entries):
    raise UsageError(f'{" and ".join(map(str, folders))} share no metric')
  return entries


def make_room(output: Path) -> None:
  """Removes the curves of an earlier comparison, which need not be of these metrics.

  Raises:
    UsageError: where the folder has another page, as a run's, which would be lost, or cannot be written.
  """
  if is_run(output) or is_sweep(output):
    raise UsageError(f'--output={output} holds a run, with a page of its own; choose another folder')
  before = output / 'index.html'
  if before.exists() and TITLE not in before.read_text(errors='replace'):
    raise UsageError(f'--output={output} has a page that is no comparison; choose another folder')
  try:
    (output / 'plots').mkdir(parents=True, exist_ok=True)
    for curve in (output / 'plots').glob('curve_*.png'):
      curve.unlink()
  except OSError as error:
    raise UsageError(f'--output={output} cannot be written: {error.strerror}') from None


def compare(argv: list[str]) -> int:
  """The command line of `launch.py compare`; 2 for bad input."""
  parser = errors.Parser(prog='launch.py compare', description='Runs side by side, in one page.')
  parser.add_argument('workdir', nargs='*', type=paths.expand)
  parser.add_argument(
    '--output', type=paths.expand, default='', help="the page's folder; default: runs/compare/DATE-TIME"
  )
  try:
    given = parser.parse_args(argv)
    if not given.workdir:
      raise UsageError('which runs? python launch.py compare WORKDIR WORKDIR …')
    folders = [Path(folder) for folder in given.workdir]
    output = Path(given.output or f'runs/compare/{datetime.datetime.now():%Y%m%d-%H%M%S}')
    entries = entries_of(folders, output)
    make_room(output)
  except UsageError as error:
    print(f'compare: {error}', file=sys.stderr)
    return 2
  for name, (rows, heads, note) in tables(entries).items():
    print(*table(rows, (name.lower(), *heads[1:])), *([note] if note else []), '', sep='\n')
  print(f'page: {write(entries, output, TITLE)}')
  return 0
