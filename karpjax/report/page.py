"""The run's page: one index.html that shows its folder. It opens from disk and fetches nothing."""

import json
import shlex
import string
import urllib.parse
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from karpjax.report import writers
from karpjax.report.plots import title
from karpjax.report.tables import is_number, last_and_best

PICTURES = ('.png', '.gif', '.svg')
# Shown large are the first two that there are; their curves come first, that of the loss before them.
METRICS = 'bleu', 'f1', 'fid', 'modes', 'accuracy', 'error', 'episode_return', 'psnr_gain', 'psnr', 'loss'
PERCENTAGES = 'accuracy', 'error', 'top5_accuracy', 'label_accuracy', 'high_quality'
FILES = (
  'config.json',
  'summary.json',
  'metrics.csv',
  'metrics.jsonl',
  'report.txt',
  'report.json',
  'cells.html',
  'trials.csv',
)
HALVES = 'Final numbers', 'Flags', 'Parameters', 'Where it ran'  # sections side by side, where there is room
LONGEST_TEXT = 6000  # characters of a text that the page shows
LONGEST_TABLE = 30  # rows; longer ones are folded up


def write_page(folder: Path) -> Path:
  """index.html from whatever of config.json, summary.json, report.json, plots/ and texts/ is there."""
  folder = Path(folder)
  config, summary, report = (writers.read_json(folder / f'{name}.json') for name in ('config', 'summary', 'report'))
  flags = config.get('flags', {})
  name = title(str(config.get('experiment', folder.resolve().name)))
  about = [f'{title(what)}: {flags[what]}' for what in ('dataset', 'environment', 'model') if flags.get(what)]
  seeds = max((len(value['values']) for value in summary.values() if over_seeds(value)), default=1)
  about += [f'{seeds} seeds: mean ± standard deviation'] if seeds > 1 else []
  arrays = config.get('parameters', [])
  shapes = [(p['name'], ' × '.join(map(str, p['shape'])) or 'scalar', f'{p["count"]:,}') for p in arrays]
  total = f'{len(shapes)} arrays, {sum(p["count"] for p in arrays):,} parameters'
  seconds, place = summary.get('compile_seconds'), shlex.quote(str(folder))
  asks = f'python launch.py {place}\npython launch.py evaluate {place}'
  where = {
    'Devices': config.get('devices'),
    'Device kind': config.get('device_kind'),
    'Git revision': config.get('git'),
    'Compilation': None if seconds is None else f'{figure("", seconds)} s',
    **(config.get('versions') or {}),
  }
  given = config.get('changed', flags)
  others = '<p class="quiet">all others are at their defaults, which config.json holds</p>' if flags else ''
  sections = {
    **pictures(folder),
    **tables(report),
    **texts(folder),
    'Final numbers': final_numbers(summary),
    'Flags': table([(flag, plain(value)) for flag, value in given.items()]) + others,
    'Run it again': f'<pre>{escape(config["command"])}</pre>' if config.get('command') else '',
    'Ask it': f'<pre>{escape(asks)}</pre>' if config.get('command') else '',
    'Parameters': table(shapes, ('name', 'shape', 'count'), total),
    'Where it ran': table([(what, plain(value)) for what, value in where.items() if value]),
    'Files': file_links(folder),
  }
  page = render(name, ' · '.join(about), sections, headlines(summary))
  writers.write_bytes(folder / 'index.html', page)
  return folder / 'index.html'


def render(name: str, about: str, sections: Mapping[str, str], headlines: str = '') -> bytes:
  """A page in the house style: its name, what it is about, and sections {heading: HTML}, but for the empty ones."""
  body = ''.join(
    f'<section{" class=half" if heading in HALVES else ""}><h2>{escape(heading)}</h2>{content}</section>\n'
    for heading, content in sections.items()
    if content
  )
  page = string.Template(Path(__file__).with_suffix('.html').read_text('utf-8'))
  return page.substitute(name=escape(name), about=escape(about), headlines=headlines, body=body).encode()


def final_numbers(summary: Mapping[str, Any]) -> str:
  """A table of summary.json: the numbers of the last weights, and beside them of the best."""
  rows, heads = last_and_best(summary, [name for name in summary if not name.startswith('best/')], figure)
  rows = [(title(name), *cells) for name, *cells in rows]
  note = '<p class="quiet">verbs use the best weights; with checkpoint=last the last</p>'
  return table(rows, heads) + note * (len(heads) > 2)


# ---- parts: {heading: HTML} ----


def headline_metrics(numbers: Mapping[str, Any]) -> list[str]:
  """The two metrics that a reader looks for first: of each the test split's, else the validation's, else train's."""
  splits = ('test', 'validation', 'train')
  found = (next((f'{s}/{metric}' for s in splits if f'{s}/{metric}' in numbers), None) for metric in METRICS)
  return [name for name in found if name and not (name == 'test/error' and 'test/accuracy' in numbers)][:2]


def headlines(summary: Mapping[str, Any]) -> str:
  """The four numbers that a reader looks for first, large."""
  items = []
  for name in headline_metrics(summary) + [name for name in ('parameters', 'seconds') if name in summary]:
    mean, *std = escape(figure(name, summary[name])).split(' ± ')
    value = mean + ''.join(f' <small>± {x}</small>' for x in std)
    if (best := figure(name, summary.get(f'best/{name}'))) not in ('–', figure(name, summary[name])):
      value += f' <small>best weights {escape(best)}</small>'
    items.append(f'<li><span class="quiet">{escape(title(name))}</span><b>{value}</b></li>')
  return ''.join(items)


def pictures(folder: Path) -> dict[str, str]:
  """The curves, then all other pictures of plots/ and its subfolders, with captions from their names."""

  def shown(path, caption):
    link, caption = urllib.parse.quote(path.relative_to(folder).as_posix()), escape(caption)
    kind = 'animation' if path.suffix.lower() == '.gif' else 'plot'
    image = f'<a href="{link}"><img src="{link}" alt="{caption}, {kind}" loading="lazy"></a>'
    return f'<figure>{image}<figcaption>{caption}</figcaption></figure>'

  plots = folder / 'plots'
  paths = sorted(path for path in plots.rglob('*') if path.suffix.lower() in PICTURES)
  curves = {path.stem.removeprefix('curve_'): path for path in paths if path.stem.startswith('curve_')}
  ordered = dict.fromkeys([name for name in ('loss', *METRICS) if name in curves] + list(curves))
  others = [path for path in paths if path not in curves.values()]
  groups = {
    'curves': [shown(curves[name], f'{title(name)} over steps') for name in ordered],
    'plots': [shown(path, title(path.relative_to(plots).with_suffix('').as_posix())) for path in others],
  }
  return {
    title(kind): f'<div class="pictures {kind}">{"".join(group)}</div>' for kind, group in groups.items() if group
  }


def tables(report: Mapping[str, Any]) -> dict[str, str]:
  """A table of each list of rows in report.json, and of each group of named rows."""
  groups: dict[str, list[Mapping]] = {}
  for name, value in report.items():
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
      groups[name] = value
    elif isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values()):
      groups[name] = [{'': key, **row} for key, row in value.items()]
    elif isinstance(value, Mapping):
      groups.setdefault('averages', []).append({'': name, **value})
  cell = lambda x: f'{x:.4f}' if isinstance(x, float) else f'{x:,}' if isinstance(x, int) else plain(x)
  about = ' · '.join(str(report[name]) for name in ('heading', 'shown') if report.get(name))
  sections = {}
  for name, rows in groups.items():
    cells = [tuple(cell(row.get(head)) for head in rows[0]) for row in rows]
    caption = f'<p class="quiet">{escape(about)}</p>' if about and not sections else ''
    sections[title(name)] = caption + table(cells, tuple(map(title, rows[0])), f'{len(rows)} {title(name).lower()}')
  return sections


def file_links(folder: Path) -> str:
  """Links to those of FILES that are there."""
  return ' · '.join(f'<a href="{name}">{name}</a>' for name in FILES if (folder / name).exists())


def texts(folder: Path) -> dict[str, str]:
  """The texts of texts/; of long ones the beginning."""
  sections = {}
  for path in sorted((folder / 'texts').glob('*.txt')):
    text = path.read_text(encoding='utf-8', errors='replace')
    more = f'<p><a href="texts/{urllib.parse.quote(path.name)}">all of it</a></p>' if len(text) > LONGEST_TEXT else ''
    sections[title(path.stem)] = f'<pre>{escape(text[:LONGEST_TEXT].rstrip())}</pre>{more}'
  return sections


def table(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...] = (), folded: str = '') -> str:
  """Rows of text; columns of numbers are set flush right. Long tables are folded up under the words `folded`."""
  if not rows:
    return ''
  classes = [' class=number' if all(map(is_number, column)) else '' for column in zip(*rows)]
  head = ''.join(f'<th scope=col{c}>{escape(text)}</th>' for text, c in zip(heads, classes))
  body = ''.join(
    f'<tr><th scope=row{classes[0]}>{escape(row[0])}</th>'
    + ''.join(f'<td{c}>{escape(text)}</td>' for text, c in zip(row[1:], classes[1:]))
    + '</tr>'
    for row in rows
  )
  content = f'<table>{f"<thead><tr>{head}</tr></thead>" if head else ""}<tbody>{body}</tbody></table>'
  if folded and len(rows) > LONGEST_TABLE:
    content = f'<details><summary>{escape(folded)}</summary>{content}</details>'
  return f'<div class="scroll">{content}</div>'


# ---- values ----


def over_seeds(value: Any) -> bool:
  return isinstance(value, Mapping) and 'mean' in value and 'values' in value


def figure(name: str, value: Any) -> str:
  """A metric of summary.json: a number, a percentage, or either ± its deviation over seeds."""
  mean, *std = (value['mean'], value['std']) if over_seeds(value) else (value,)
  # an error of regression may well be larger than 1
  percent = name.rpartition('/')[2] in PERCENTAGES and isinstance(mean, int | float) and 0 <= mean <= 1
  return ' ± '.join([number(mean, percent, 4), *(number(x, percent, 2) for x in std)])


def number(value: Any, percent: bool, digits: int) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return '–' if value is None else plain(value)
  if percent:
    return f'{100 * value:.2f} %'
  return f'{value:,.0f}' if isinstance(value, int) or 10_000 <= abs(value) < 1e15 else f'{value:.{digits}g}'


def plain(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ', '.join(map(plain, value))
  return '' if value is None else value if isinstance(value, str) else json.dumps(value)
