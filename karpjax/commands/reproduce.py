"""`launch.py reproduce NAME …|all`: runs flagfiles of experiments/papers/ and prints our numbers beside the published ones.

A flagfile's comments say what it reproduces, one `# key: value` a line:
  what        in a few words
  experiment  which experiment runs it
  theirs      metric = value, …: the published numbers, under the names of our metrics
  source      where they stand
  differs     what is not as in the source: needed where it has a number
  needs       accelerator, where two CPU cores would take too long
"""

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

from karpjax import errors, paths
from karpjax.report import tables

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / 'experiments' / 'papers'
RESULTS = PAPERS / 'results.jsonl'
MARKS = '<!-- results: written by launch.py reproduce -->', '<!-- end of results -->'
HEADS = ('what', 'metric', 'theirs', 'ours', 'difference', 'seeds', 'time', 'commit', 'launch.py')


def read(path: Path) -> dict:
  """The comments of a flagfile as {key: value}; 'theirs' as {metric: number}, 'flags' as a list.

  Raises:
    UsageError: where a comment is missing.
  """
  text = path.read_text('utf-8')
  paper = dict(re.findall(r'^# (\w+): (.*)$', text, re.MULTILINE))
  pairs = re.findall(r'([\w/]+) = (none|[-\d.]+)', paper.get('theirs', ''))
  theirs = {metric: None if value == 'none' else float(value) for metric, value in pairs}
  compared = {'differs'} if any(value is not None for value in theirs.values()) else set()
  if missing := {'what', 'experiment', 'theirs', 'source', *compared} - set(paper):
    raise errors.UsageError(f'{path} lacks the comment «# {min(missing)}: …»')
  return {'name': path.stem, **paper, 'theirs': theirs, 'flags': re.findall(r'^--.*$', text, re.MULTILINE)}


def choose(names: list[str], known: dict[str, dict]) -> list[str]:
  """The flagfiles of these names, or beginning with one of them; 'all' are those that need no accelerator.

  Raises:
    UsageError: for a name that fits none.
  """
  chosen: list[str] = []
  for name in names:
    fitting = [name] if name in known else [n for n in known if n.startswith(name + '_')]
    if name == 'all':
      fitting = [n for n, paper in known.items() if paper.get('needs') != 'accelerator']
    if not fitting:
      raise errors.UsageError(f'no flagfile {name!r} in experiments/papers.{errors.nearest(name, known)}')
    chosen += fitting
  return list(dict.fromkeys(chosen))


def check(name: str, flags: list[str]) -> list[str]:
  """The flags, or with none of data_dir where the row's data lie in no folder, as it may be given for many rows.

  Raises UsageError where such a run would not measure what the row promises; nothing is compiled.
  """
  from karpjax import command_line
  from karpjax.train import prepare
  from karpjax.train.runner import Runner

  paper = read(PAPERS / f'{name}.flags')
  experiment = command_line.experiment(paper['experiment'])
  config = command_line.parse(experiment.Config, [f'--flagfile={PAPERS / name}.flags', *flags])
  program, *bound = prepare.prepare(experiment, config)
  if 'data_dir' in program.unread():
    return check(name, [*flags, '--data_dir='])
  names = prepare.measured(Runner(program, *bound), list(paper['theirs']))
  if any(metric.startswith('best/') for metric in paper['theirs']):
    prepare.refuse_select(config, names)  # without it none is the best
  for metric in paper['theirs']:
    if metric.removeprefix('best/') not in names:
      raise errors.UsageError(
        f'{name} promises {metric}, which this run does not measure.{errors.nearest(metric, names)}'
      )
  return flags


CHECK = """
import json, sys
from karpjax import command_line, errors
from karpjax.commands import reproduce
try:
  print(json.dumps(reproduce.check(sys.argv[1], sys.argv[2:])))
except errors.UsageError as error:
  command_line.refuse('reproduce', error)
  sys.exit(1)
"""


def run(paper: dict, workdir: Path, flags: list[str]) -> dict:
  """Runs a flagfile as a user would, and returns its evidence: numbers, command, versions, device, time.

  Raises:
    UsageError: where the run failed, or would not measure what the row promises; it has said why.
  """
  # in a process of its own, which gives the devices back
  checked = [sys.executable, '-c', CHECK, paper['name'], *flags]
  checked = subprocess.run(checked, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
  if checked.returncode:
    raise errors.UsageError(f'{paper["name"]} was not begun')
  flagfile = f'--flagfile=experiments/papers/{paper["name"]}.flags'
  command = ['launch.py', paper['experiment'], flagfile, *json.loads(checked.stdout)]
  done = subprocess.run([sys.executable, *command, f'--workdir={workdir.absolute()}'], cwd=ROOT, check=False)
  if done.returncode:
    raise errors.UsageError(f'{paper["name"]} stopped with exit code {done.returncode}')
  numbers, config = (json.loads((workdir / name).read_text()) for name in ('summary.json', 'config.json'))
  several = lambda value: value if isinstance(value, dict) else {'mean': value, 'std': None, 'values': [value]}
  return {
    'name': paper['name'],
    'date': datetime.date.today().isoformat(),
    'ours': {metric: several(numbers[metric]) for metric in paper['theirs']},
    **{name: paper[name] for name in ('theirs', 'flags')},
    **{name: numbers[name] for name in ('seconds', 'compile_seconds')},
    'command': 'python ' + ' '.join(part for part in command if not part.startswith('--data_dir')),
    'seeds': config['flags']['seeds'],
    'versions': config['versions'],
    'device': f'{len(config["devices"])} × {config["device_kind"]}',
    'git': config['git'],
  }


def refuse_dirty() -> None:
  """Raises UsageError where no commit holds the code from which a row would be recorded."""
  from karpjax.train import commits

  revision = commits.current(ROOT)
  if revision is None or revision.endswith('-dirty'):
    why = 'is not under git' if revision is None else f'differs from its commit {revision.removesuffix("-dirty")}'
    raise errors.UsageError(f'nothing is recorded: the checkout {why}; commit its code and flagfiles, or give --dirty')


def refuse_older(name: str, workdir: Path) -> None:
  """Raises UsageError where a workdir holds a run that another commit began: what goes on there is no evidence of this one."""
  from karpjax import config
  from karpjax.train import commits

  before, now = config.saved(workdir), commits.current(ROOT)
  if before and before.get('git') != now:
    text = f'the run in {workdir} is of {before.get("git") or "an unknown commit"}, not of {now}'
    raise errors.UsageError(f'{name} is not recorded: {text}; remove it, or give other --runs, or --dirty')


def shown(metric: str, value: float | None, std: float | None = None) -> str:
  """A metric for a reader: fractions as per cent; with the standard deviation over seeds where there is one."""
  if value is None:
    return '–'
  fraction = metric.rpartition('/')[2] in ('error', 'accuracy')
  number = lambda x: f'{100 * x:.2f} %' if fraction else f'{x:.2f}' if abs(x) >= 10 else f'{x:.4f}'
  return number(value) + (f' ± {number(std)}' if std is not None else '')


def rows(known: dict[str, dict], results: dict[str, dict]) -> list[tuple]:
  """A row of `HEADS` for each published number; results by name."""
  lines = []
  for name, paper in known.items():
    none, other = {'ours': {}, 'seeds': ''}, 'not run here' if paper.get('needs') == 'accelerator' else 'not run'
    result = results.get(name, none)
    if result.get('flags', paper['flags']) != paper['flags']:
      result, other = none, 'not run with these flags'
    minutes = f'{result["seconds"] / 60:.1f} min' if 'seconds' in result else ''
    for metric, theirs in paper['theirs'].items():
      ours, gap = result['ours'].get(metric), ''
      value = other
      if ours:
        value = shown(metric, ours['mean'], ours['std'] if len(ours['values']) > 1 else None)
      if ours and None not in (theirs, ours['mean']):
        gap = ('+' if ours['mean'] > theirs else '') + shown(metric, ours['mean'] - theirs)
      commit = result.get('git') or ('–' if ours else '')
      about = (str(result['seeds']), minutes, commit, f'reproduce {name}')
      lines.append((paper['what'], metric, shown(metric, theirs), value, gap, *about))
  return lines


def table(known: dict[str, dict]) -> list[str]:
  """The lines of README.md's table, from the newest result of each name; the first row of a name says what differs."""
  stored = RESULTS.read_text('utf-8').splitlines() if RESULTS.exists() else ()
  lines = []
  for row in rows(known, {line['name']: line for line in map(json.loads, stored)}):
    name = row[-1].removeprefix('reproduce ')
    again = bool(lines) and lines[-1][-2] == row[-1]
    lines.append((*row, '″' if again else known[name].get('differs', '')))
  return tables.markdown(lines, (*HEADS, 'differs'))


def write_table(known: dict[str, dict]) -> None:
  """Writes the table of the README.md beside the flagfiles anew, between its two marks."""
  tables.write_between(PAPERS / 'README.md', MARKS, table(known))


def record(result: dict, known: dict[str, dict]) -> None:
  """Appends to results.jsonl, and writes the table anew."""
  with open(RESULTS, 'a', encoding='utf-8') as file:
    file.write(json.dumps(result) + '\n')
  write_table(known)


def main(argv: list[str]) -> int:
  """Lists the flagfiles, or runs those that are named: 1 where a run failed, 2 for bad input."""
  about = 'Runs flagfiles of experiments/papers; other flags are passed to the experiment.'
  parser = errors.Parser(prog='launch.py reproduce', description=about)
  parser.add_argument('names', nargs='*', help='flagfiles, beginnings of their names, or all; none lists them')
  parser.add_argument(
    '--runs', type=paths.expand, default='runs/papers', help='where the runs are left (default runs/papers)'
  )
  parser.add_argument(
    '--record',
    action='store_true',
    help='write the results to results.jsonl and README.md beside the flagfiles; '
    'without names only write the table anew',
  )
  parser.add_argument('--dirty', action='store_true', help='record also where no commit holds the code that ran')
  try:
    options, flags = parser.parse_known_args(argv)
    known = {path.stem: read(path) for path in sorted(PAPERS.glob('*.flags'))}
    chosen = choose(options.names, known)
    if chosen and options.record and not options.dirty:
      refuse_dirty()
  except errors.UsageError as error:
    print(f'reproduce: {error}', file=sys.stderr)
    return 2
  if not chosen and options.record:
    write_table(known)
    return 0
  if not chosen:
    listed = [(name, paper['what'], paper.get('needs', '')) for name, paper in known.items()]
    print(*tables.table(listed, ('name', 'what', 'needs')), sep='\n')
    return 0
  results: dict[str, dict] = {}
  for name in chosen:
    try:
      workdir = Path(options.runs) / name
      if options.record and not options.dirty:
        refuse_dirty()
        refuse_older(name, workdir)
      results[name] = run(known[name], workdir, flags)
      if options.record:
        record(results[name], known)
    except errors.UsageError as error:
      print(f'reproduce: {error}', file=sys.stderr)
  if results:
    print(*tables.table(rows({name: known[name] for name in results}, results), HEADS), sep='\n')
  print(*(f'{name}: {known[name]["differs"]}\n' for name in results if 'differs' in known[name]), sep='', end='')
  return int(len(results) < len(chosen))
