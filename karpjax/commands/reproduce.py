"""`launch.py reproduce NAME …|all`: runs flagfiles of experiments/papers/ and prints our numbers beside the published ones.

A flagfile's comments say what it reproduces, one `# key: value` a line:
  what        in a few words
  experiment  which experiment runs it
  theirs      metric = value, …: the published numbers, under the names of our metrics
  source      where they stand
  differs     what is not as in the source, if anything
  needs       accelerator, where two CPU cores would take too long
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

from karpjax import errors
from karpjax.report import progress, writers

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / 'experiments' / 'papers'
RESULTS = PAPERS / 'results.jsonl'
MARKS = '<!-- results: written by launch.py reproduce -->', '<!-- end of results -->'


def read(path: Path) -> dict:
  """The comments of a flagfile as {key: value}; 'theirs' as {metric: number}.

  Raises:
    UsageError: where one is missing.
  """
  paper = dict(re.findall(r'^# (\w+): (.*)$', path.read_text(), re.MULTILINE))
  missing = {'what', 'experiment', 'theirs', 'source'} - set(paper)
  if missing:
    raise errors.UsageError(f'{path} lacks the comment «# {min(missing)}: …»')
  pairs = re.findall(r'([\w/]+) = (none|[-\d.]+)', paper['theirs'])
  return {'name': path.stem, **paper, 'theirs': {m: None if v == 'none' else float(v) for m, v in pairs}}


def papers() -> dict[str, dict]:
  return {path.stem: read(path) for path in sorted(PAPERS.glob('*.flags'))}


def choose(names: list[str], known: dict[str, dict]) -> list[str]:
  """The flagfiles of these names, or beginning with one of them; 'all' are those that need no accelerator.

  Raises:
    UsageError: for a name that fits none.
  """
  chosen = []
  for name in names:
    if name == 'all':
      found = [n for n, paper in known.items() if paper.get('needs') != 'accelerator']
    else:
      found = [name] if name in known else [n for n in known if n.startswith(name + '_')]
    if not found:
      raise errors.UsageError(f'no flagfile {name!r} in experiments/papers.{errors.nearest(name, known)}')
    chosen += [n for n in found if n not in chosen]
  return chosen


def run(paper: dict, workdir: Path, flags: list[str]) -> dict:
  """Runs a flagfile as a user would, and returns its evidence: numbers, command, versions, device, time.

  Raises:
    UsageError: where the run failed; it has said why.
  """
  flagfile = f'experiments/papers/{paper["name"]}.flags'
  command = ['launch.py', paper['experiment'], f'--flagfile={flagfile}', *flags]
  done = subprocess.run([sys.executable, *command, f'--workdir={workdir.absolute()}'], cwd=ROOT, check=False)
  if done.returncode:
    raise errors.UsageError(f'{paper["name"]} stopped with exit code {done.returncode}')
  numbers, config = (json.loads((workdir / name).read_text()) for name in ('summary.json', 'config.json'))
  ours = {}
  for metric in paper['theirs']:
    value = numbers[metric]
    ours[metric] = value if isinstance(value, dict) else {'mean': value, 'std': None, 'values': [value]}
  return {
    'name': paper['name'],
    'date': datetime.date.today().isoformat(),
    'ours': ours,
    'theirs': paper['theirs'],
    'seconds': numbers['seconds'],
    'compile_seconds': numbers['compile_seconds'],
    'command': 'python ' + ' '.join(part for part in command if not part.startswith('--data_dir')),
    'seeds': config['flags']['seeds'],
    'versions': config['versions'],
    'device': f'{len(config["devices"])} × {config["device_kind"]}',
    'git': config['git'],
  }


def shown(metric: str, value: dict | float | None) -> str:
  """A metric for a reader: shares as per cent; several seeds as mean ± standard deviation."""
  if value is None:
    return '–'
  share = metric.split('/')[1] in ('error', 'accuracy')
  number = lambda x: f'{100 * x:.2f} %' if share else f'{x:.2f}' if abs(x) >= 10 else f'{x:.4f}'
  if not isinstance(value, dict):
    return number(value)
  several = value['std'] is not None and len(value['values']) > 1
  return number(value['mean']) + (f' ± {number(value["std"])}' if several else '')


def rows(known: dict[str, dict], results: dict[str, dict]) -> list[tuple]:
  """(what, metric, theirs, ours, difference, seeds, time, command) of each published number; results by name."""
  lines = []
  for name, paper in known.items():
    result = results.get(name)
    for metric, theirs in paper['theirs'].items():
      ours = result and result['ours'].get(metric)
      gap = None if not ours or theirs is None else ours['mean'] - theirs
      minutes = f'{result["seconds"] / 60:.1f} min' if result else ''
      none = 'not run here' if paper.get('needs') == 'accelerator' else 'not run'
      lines.append(
        (
          paper['what'],
          metric,
          shown(metric, theirs),
          shown(metric, ours) if ours else none,
          ('+' if gap > 0 else '') + shown(metric, gap) if gap is not None else '',
          str(result['seeds']) if result else '',
          minutes,
          f'reproduce {name}',
        )
      )
  return lines


HEADS = ('what', 'metric', 'theirs', 'ours', 'difference', 'seeds', 'time', 'launch.py')


def latest() -> dict[str, dict]:
  """The newest evidence of each flagfile."""
  lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
  return {result['name']: result for result in map(json.loads, lines)}


def write_readme(known: dict[str, dict]) -> None:
  """Writes the README's table of results anew, between its two marks."""
  path = ROOT / 'README.md'
  text = path.read_text()
  table = ['| ' + ' | '.join(HEADS) + ' |', '|' + ' --- |' * len(HEADS)]
  table += ['| ' + ' | '.join(row) + ' |' for row in rows(known, latest())]
  before, rest = text.split(MARKS[0])
  after = rest.split(MARKS[1])[1]
  writers.write_bytes(path, '\n'.join([before + MARKS[0], *table, MARKS[1] + after]).encode())


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='launch.py reproduce',
    description='Runs flagfiles of experiments/papers; other flags are passed to the experiment.',
  )
  parser.add_argument('names', nargs='*', help='flagfiles, beginnings of their names, or all; none lists them')
  parser.add_argument('--runs', default='runs/papers', help='where the runs are left (default runs/papers)')
  parser.add_argument('--no_record', action='store_true', help='leave results.jsonl and the README as they are')
  options, flags = parser.parse_known_args(argv)
  try:
    known = papers()
    if not options.names:
      print(
        *progress.table([(n, p['what'], p.get('needs', '')) for n, p in known.items()], ('name', 'what', 'needs')),
        sep='\n',
      )
      return 0
    results, failed = {}, []
    for name in choose(options.names, known):
      try:
        results[name] = run(known[name], Path(options.runs) / name, flags)
      except errors.UsageError as error:
        print(f'reproduce: {error}', file=sys.stderr)
        failed.append(name)
        continue
      if not options.no_record:
        with open(RESULTS, 'a') as file:
          file.write(json.dumps(results[name]) + '\n')
        write_readme(known)
    print(*progress.table(rows({n: known[n] for n in results}, results), HEADS), sep='\n')
    for name in results:
      if 'differs' in known[name]:
        print(f'{name}: {known[name]["differs"]}')
    return int(bool(failed))
  except errors.UsageError as error:
    print(f'reproduce: {error}', file=sys.stderr)
    return 2
