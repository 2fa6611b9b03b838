"""The run's page: one index.html that shows its folder. It opens from disk and fetches nothing."""

import json
import string
import urllib.parse
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from karpjax.report import writers
from karpjax.report.plots import title
from karpjax.report.tables import is_number

PICTURES = ('.png', '.gif', '.svg')
# Shown large are the first two that there are; their curves come first, that of the loss before them.
METRICS = 'bleu', 'f1', 'fid', 'modes', 'accuracy', 'error', 'episode_return', 'psnr_gain', 'psnr', 'loss'
PERCENTAGES = 'accuracy', 'error', 'top5_accuracy', 'label_accuracy', 'high_quality'
FILES = 'config.json', 'summary.json', 'metrics.csv', 'metrics.jsonl', 'report.txt', 'report.json', 'cells.html'
LONGEST_TEXT = 6000  # characters of a text that the page shows
LONGEST_TABLE = 30  # rows; longer ones are folded up


def write_page(folder: Path) -> Path:
  """index.html from whatever of config.json, summary.json, report.json, plots/ and texts/ is there."""
  folder = Path(folder)
  config, summary, report = (read_json(folder / f'{name}.json') for name in ('config', 'summary', 'report'))
  flags = config.get('resolved') or config.get('flags') or {}
  name = title(str(config.get('experiment', folder.resolve().name)))
  about = [f'{title(what)}: {flags[what]}' for what in ('dataset', 'environment', 'model') if flags.get(what)]
  seeds = max((len(value['values']) for value in summary.values() if over_seeds(value)), default=1)
  about += [f'{seeds} seeds: mean ± standard deviation'] if seeds > 1 else []
  chosen = [(flag, plain(value)) for flag, value in flags.items() if value not in (None, '', [])]
  shapes = [
    (p['name'], ' × '.join(map(str, p['shape'])) or 'scalar', f'{p["count"]:,}') for p in config.get('parameters', [])
  ]
  total = f'{sum(p["count"] for p in config.get("parameters", [])):,}'
  body = [
    f'<header><h1>{escape(name)}</h1>',
    f'<p class="quiet">{escape(" · ".join(about))}</p>' if about else '',
    headlines(summary),
    '</header>',
    *pictures(folder),
    *tables(report),
    *texts(folder),
    '<div class="columns">',
    section('Final numbers', table([(title(key), figure(key, value)) for key, value in summary.items()])),
    section('Flags', table(chosen)),
    '</div>',
    section('Run it again', f'<pre>{escape(config["command"])}</pre>' if config.get('command') else ''),
    '<div class="columns">',
    section('Parameters', table(shapes, ('name', 'shape', 'count'), f'{len(shapes)} arrays, {total} parameters')),
    section('Where it ran', table(surroundings(config, summary))),
    '</div>',
    section('Files', ' · '.join(f'<a href="{name}">{name}</a>' for name in FILES if (folder / name).exists())),
  ]
  path = folder / 'index.html'
  page = string.Template(Path(__file__).with_suffix('.html').read_text())
  page = page.substitute(title=escape(' · '.join([name, *about])), body='\n'.join(filter(None, body)))
  writers.write_bytes(path, page.encode())
  return path


# ---- parts ----


def headlines(summary: Mapping[str, Any]) -> str:
  """The four numbers that a reader looks for first, large."""
  names = []
  for metric in METRICS:
    names += [f'{split}/{metric}' for split in ('test', 'validation', 'train') if f'{split}/{metric}' in summary][:1]
  if 'test/accuracy' in names and 'test/error' in names:
    names.remove('test/error')
  items = []
  for name in names[:2] + [name for name in ('parameters', 'seconds') if name in summary]:
    value = escape(figure(name, summary[name])).replace(' ± ', ' <small>± ')
    value += '</small>' if '<small>' in value else ''
    items.append(f'<li><span class="quiet">{escape(title(name))}</span><b>{value}</b></li>')
  return f'<ul class="headlines">{"".join(items)}</ul>' if items else ''


def pictures(folder: Path) -> list[str]:
  """The curves, then all other pictures of plots/ and its subfolders, with captions from their names."""
  paths = sorted(path for path in (folder / 'plots').rglob('*') if path.suffix.lower() in PICTURES)
  curves = {path: path.stem.removeprefix('curve_') for path in paths if path.stem.startswith('curve_')}
  order = ['loss', *METRICS[:-1]]
  first = lambda path: (order.index(curves[path]) if curves[path] in order else len(order), curves[path])

  def shown(path):
    link = escape(urllib.parse.quote(path.relative_to(folder).as_posix()))
    name = path.relative_to(folder / 'plots').with_suffix('').as_posix()
    caption = escape(f'{title(curves[path])} over steps' if path in curves else title(name))
    kind = 'animation' if path.suffix.lower() == '.gif' else 'plot'
    image = f'<a href="{link}"><img src="{link}" alt="{caption}, {kind}" loading="lazy"></a>'
    return f'<figure>{image}<figcaption>{caption}</figcaption></figure>'

  groups = ('Curves', '', sorted(curves, key=first)), ('Plots', 'large', [p for p in paths if p not in curves])
  return [
    section(heading, f'<div class="pictures {kind}">{"".join(map(shown, group))}</div>' if group else '')
    for heading, kind, group in groups
  ]


def tables(report: Mapping[str, Any]) -> list[str]:
  """A table of each list of rows in report.json, and of each group of named rows."""
  groups: dict[str, list[Mapping]] = {}
  for name, value in report.items():
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
      groups[name] = value
    elif isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values()):
      groups[name] = [{'': key, **row} for key, row in value.items()]
    elif isinstance(value, Mapping):
      groups.setdefault('averages', []).append({'': name, **value})
  about = ' · '.join(str(report[name]) for name in ('heading', 'shown') if report.get(name))
  sections = []
  for name, rows in groups.items():
    heads = list(rows[0])
    cells = [tuple(cell(row.get(head)) for head in heads) for row in rows]
    caption = f'<p class="quiet">{escape(about)}</p>' if about and not sections else ''
    content = table(cells, tuple(map(title, heads)), f'{len(rows)} {title(name).lower()}')
    sections.append(section(title(name), caption + content))
  return sections


def texts(folder: Path) -> list[str]:
  """The texts of texts/; of long ones the beginning."""
  sections = []
  for path in sorted((folder / 'texts').glob('*.txt')):
    text = path.read_text(encoding='utf-8', errors='replace')
    more = f'<p><a href="texts/{escape(urllib.parse.quote(path.name))}">all of it</a></p>'
    shown = f'<pre>{escape(text[:LONGEST_TEXT].rstrip())}</pre>'
    sections.append(section(title(path.stem), shown + (more if len(text) > LONGEST_TEXT else '')))
  return sections


def surroundings(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Devices, versions and the like."""
  compiled = summary.get('compile_seconds')
  rows = {
    'Devices': plain(config.get('devices')),
    'Device kind': plain(config.get('device_kind')),
    'Git revision': plain(config.get('git')),
    'Compilation': '' if compiled is None else f'{figure("", compiled)} s',
    **{package: plain(version) for package, version in (config.get('versions') or {}).items()},
  }
  return [row for row in rows.items() if row[1]]


def section(heading: str, content: str) -> str:
  return f'<section><h2>{escape(heading)}</h2>{content}</section>' if content else ''


def table(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...] = ('', ''), folded: str = '') -> str:
  """Rows of text; columns of numbers are set flush right. Long tables are folded up under the words `folded`."""
  if not rows:
    return ''
  right = [all(is_number(row[i]) for row in rows) for i in range(len(heads))]
  cells = lambda row, tags: ''.join(
    f'<{tag}{" class=number" if r else ""}>{escape(text)}</{tag.split()[0]}>' for tag, text, r in zip(tags, row, right)
  )
  head = f'<thead><tr>{cells(heads, ["th scope=col"] * len(heads))}</tr></thead>' if any(heads) else ''
  body = ''.join(f'<tr>{cells(row, ["th scope=row", *["td"] * (len(row) - 1)])}</tr>' for row in rows)
  content = f'<table>{head}<tbody>{body}</tbody></table>'
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
  if value is None:
    return '–'
  if isinstance(value, bool) or not isinstance(value, int | float):
    return plain(value)
  if percent:
    return f'{100 * value:.2f} %'
  return f'{value:,.0f}' if isinstance(value, int) or abs(value) >= 10_000 else f'{value:.{digits}g}'


def cell(value: Any) -> str:
  return f'{value:.4f}' if isinstance(value, float) else f'{value:,}' if isinstance(value, int) else plain(value)


def plain(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ', '.join(map(plain, value))
  return '' if value is None else value if isinstance(value, str) else json.dumps(value)


def read_json(path: Path) -> dict[str, Any]:
  return json.loads(path.read_text()) if path.exists() else {}
