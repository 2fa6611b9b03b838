"""The run's page: one index.html that shows its folder. It opens from disk and fetches nothing."""

import html
import json
import shlex
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from karpjax.report import writers
from karpjax.report.plots import title

PICTURES = ('.png', '.gif', '.svg')
HEADLINES = [
  'bleu',
  'f1',
  'fid',
  'modes',
  'accuracy',
  'error',
  'episode_return',
  'psnr_gain',
  'psnr',
  'loss',
]  # the first found are shown large
SHARES = ('accuracy', 'error', 'top5_accuracy', 'label_accuracy', 'high_quality')  # are shown in per cent
CURVES = ('loss', 'bleu', 'f1', 'accuracy', 'error', 'episode_return', 'psnr_gain', 'psnr')  # come first
LONGEST_TEXT = 6000  # characters of a text that the page shows
STYLE = """
:root { color-scheme: light dark; --paper: #f4f5f7; --card: #ffffff; --ink: #1d2129; --quiet: #5c6470;
  --line: #dfe2e8; --accent: #0062a3; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1e2229; --ink: #e8eaee;
  --quiet: #a2aab6; --line: #343a44; --accent: #7cc0f4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; }
h2 { margin: 36px 0 12px; font-size: 18px; }
p { margin: 6px 0; }
.quiet { color: var(--quiet); }
.headlines { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; padding: 0; list-style: none; }
.headlines li { flex: 1 1 150px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; }
.headlines b { display: block; font-size: 23px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.headlines small { font-size: 14px; font-weight: normal; color: var(--quiet); white-space: nowrap; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 14px; }
.pictures.large { display: block; columns: 2 460px; column-gap: 14px; }
.pictures.large figure { break-inside: avoid; margin-bottom: 14px; }
figure { margin: 0; padding: 10px; background: #ffffff; border: 1px solid var(--line); border-radius: 10px; }
figure a { display: block; }
figure img { display: block; width: 100%; height: auto; max-height: 660px; object-fit: contain; }
figcaption { padding-top: 6px; font-size: 13px; color: #565d68; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th, td { padding: 6px 14px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 500; }
td { overflow-wrap: anywhere; min-width: 8em; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 20px;
  align-items: start; }
.columns > section { min-width: 0; }
pre { margin: 0; padding: 12px 16px; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 10px 14px; }
details table { border-top: 1px solid var(--line); }
a { color: var(--accent); }
"""


def write_page(folder: Path) -> Path:
  """index.html from whatever of config.json, summary.json, report.json, metrics.csv, plots/ and texts/ is there."""
  folder = Path(folder)
  config, summary, report = (_read(folder / f'{name}.json') for name in ('config', 'summary', 'report'))
  flags = config.get('resolved') or config.get('flags') or {}
  name = title(str(config.get('experiment', folder.resolve().name)))
  about = [f'{title(what)}: {flags[what]}' for what in ('dataset', 'environment', 'model') if flags.get(what)]
  seeds = next((len(value['values']) for value in summary.values() if _over_seeds(value)), 1)
  about += [f'{seeds} seeds: mean ± standard deviation'] if seeds > 1 else []
  body = [
    f'<header><h1>{html.escape(name)}</h1>',
    f'<p class="quiet">{html.escape(" · ".join(about))}</p>' if about else '',
    _headlines(summary),
    '</header>',
    *_pictures(folder),
    *_report(report),
    *_texts(folder),
    '<div class="columns">',
    _section('Final numbers', _rows(('', ''), _summary_rows(summary))),
    _section(
      'Flags',
      _rows(('', ''), [(flag, _text(value)) for flag, value in flags.items() if value not in (None, '', [])]),
    ),
    '</div>',
    _section(
      'Run it again',
      f'<pre>{html.escape(_command(config["command"]))}</pre>' if config.get('command') else '',
    ),
    '<div class="columns">',
    _section('Parameters', _parameters(config.get('parameters') or [])),
    _section('Where it ran', _rows(('', ''), _surroundings(config, summary))),
    '</div>',
    _section('Files', _files(folder)),
  ]
  page = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(" · ".join([name, *about]))}</title>\n<style>{STYLE}</style>\n</head>\n'
    '<body>\n<main>\n' + '\n'.join(part for part in body if part) + '\n</main>\n</body>\n</html>\n'
  )
  path = folder / 'index.html'
  writers.write_bytes(path, page.encode())
  return path


def _headlines(summary: Mapping[str, Any]) -> str:
  """The four numbers which a reader looks for first, large."""
  found = []
  for metric in HEADLINES:
    found += [f'{split}/{metric}' for split in ('test', 'validation', 'train') if f'{split}/{metric}' in summary][:1]
  if 'test/accuracy' in found and 'test/error' in found:
    found.remove('test/error')
  found = found[:2] + [name for name in ('parameters', 'seconds') if name in summary]
  items = [
    f'<li><span class="quiet">{html.escape(title(name))}</span><b>{_value(name, summary[name])}</b></li>'
    for name in found
  ]
  return f'<ul class="headlines">{"".join(items)}</ul>' if items else ''


def _pictures(folder: Path) -> list[str]:
  """The curves, then all other pictures of plots/ and its subfolders, with captions from their names."""
  found = sorted(path for path in (folder / 'plots').rglob('*') if path.suffix.lower() in PICTURES)
  order = {f'curve_{metric}': i for i, metric in enumerate(CURVES)}
  curves = [path for path in found if path.stem.startswith('curve_')]
  curves.sort(key=lambda path: (order.get(path.stem, len(order)), path.stem))
  others = [path for path in found if path not in curves]

  def figure(path):
    link = html.escape(urllib.parse.quote(path.relative_to(folder).as_posix()))
    caption = title(path.relative_to(folder / 'plots').with_suffix('').as_posix())
    if path in curves:
      caption = f'{title(path.stem.removeprefix("curve_"))} over steps'
    alt = f'{caption}, {"animation" if path.suffix.lower() == ".gif" else "plot"}'
    return (
      f'<figure><a href="{link}"><img src="{link}" alt="{html.escape(alt)}" loading="lazy"></a>'
      f'<figcaption>{html.escape(caption)}</figcaption></figure>'
    )

  return [
    _section(heading, f'<div class="pictures {kind}">{"".join(map(figure, paths))}</div>' if paths else '')
    for heading, kind, paths in (('Curves', '', curves), ('Plots', 'large', others))
  ]


def _texts(folder: Path) -> list[str]:
  """The texts of texts/, folded up where they are long."""
  sections = []
  for path in sorted((folder / 'texts').glob('*.txt')):
    text = path.read_text(encoding='utf-8', errors='replace')
    shown = text[:LONGEST_TEXT].rstrip()
    link = html.escape(f'texts/{urllib.parse.quote(path.name)}')
    more = f'<p><a href="{link}">all of it</a></p>' if len(text) > LONGEST_TEXT else ''
    sections.append(_section(title(path.stem), f'<pre>{html.escape(shown)}</pre>{more}'))
  return sections


def _report(report: Mapping[str, Any]) -> list[str]:
  """The per-class table of a classification, folded up where the classes are many; baselines; mistakes in texts."""
  if not report.get('classes'):
    return []
  heads = ('class', 'precision', 'recall', 'F1', 'support')

  def row(name, scores):
    return (
      name,
      *(f'{scores[score] or 0:.4f}' for score in ('precision', 'recall', 'f1')),
      f'{scores["support"]:,}',
    )

  averages = [row(f'{name} average', report[name]) for name in ('micro', 'macro', 'weighted') if name in report]
  rows = [row(scores['class'], scores) for scores in report['classes']]
  heading = 'Per class'
  about = ' · '.join(str(report[name]) for name in ('heading', 'shown') if report.get(name))
  if len(rows) <= 20:
    content = _rows(heads, rows + averages)
  else:
    folded = f'<details><summary>{len(rows)} classes</summary>{_table(heads, rows)}</details>'
    content = f'<div class="scroll">{_table(heads, averages)}{folded}</div>'
  sections = [_section(heading, (f'<p class="quiet">{html.escape(about)}</p>' if about else '') + content)]
  if report.get('baselines'):
    metrics = list(next(iter(report['baselines'].values())))
    beside = [(name, *(f'{row[m]:.4f}' for m in metrics)) for name, row in report['baselines'].items()]
    sections.append(_section('TF-IDF', _rows(('', *map(title, metrics)), beside)))
  if report.get('mistakes'):
    wrong = [(row['text'], row['true'], row['predicted'], f'{row["probability"]:.2f}') for row in report['mistakes']]
    sections.append(_section('Worst mistakes', _rows(('text', 'true', 'predicted', 'probability'), wrong)))
  return sections


def _summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  return [(title(name), _plain_value(name, value)) for name, value in summary.items()]


def _surroundings(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  rows = [('Devices', _text(config.get('devices'))), ('Device kind', _text(config.get('device_kind')))]
  rows += [('Git revision', _text(config.get('git')))]
  compiled = summary.get('compile_seconds')
  rows += [('Compilation', '' if compiled is None else f'{_number(compiled)} s')]
  rows += [(package, _text(version)) for package, version in (config.get('versions') or {}).items()]
  return [row for row in rows if row[1]]


def _parameters(parameters: Iterable[Mapping[str, Any]]) -> str:
  rows = [(p['name'], ' × '.join(map(str, p['shape'])) or 'scalar', f'{p["count"]:,}') for p in parameters]
  if not rows:
    return ''
  rows += [('in all', '', f'{sum(p["count"] for p in parameters):,}')]
  heads = ('name', 'shape', 'count')
  if len(rows) <= 30:
    return _rows(heads, rows)
  table = _table(heads, rows[:-1])
  folded = f'<details><summary>{len(rows) - 1} arrays, {rows[-1][2]} parameters</summary>{table}</details>'
  return f'<div class="scroll">{folded}</div>'


def _files(folder: Path) -> str:
  names = ('config.json', 'summary.json', 'metrics.csv', 'metrics.jsonl', 'report.txt', 'report.json', 'cells.html')
  links = [f'<a href="{name}">{name}</a>' for name in names if (folder / name).exists()]
  return f'<p>{" · ".join(links)}</p>' if links else ''


def _section(heading: str, content: str) -> str:
  return f'<section><h2>{html.escape(heading)}</h2>{content}</section>' if content else ''


def _rows(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  return f'<div class="scroll">{_table(heads, rows)}</div>' if rows else ''


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  """Cells of text; a column in which every cell is a number is set flush right."""
  right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(heads))]

  def cell(tag, i, text, scope=''):
    return f'<{tag}{scope}{" class=number" if right[i] else ""}>{html.escape(text)}</{tag}>'

  head = ''
  if any(heads):
    head = ''.join(cell('th', i, text, ' scope=col') for i, text in enumerate(heads))
    head = f'<thead><tr>{head}</tr></thead>'
  lines = [
    cell('th', 0, row[0], ' scope=row') + ''.join(cell('td', i, text) for i, text in enumerate(row) if i)
    for row in rows
  ]
  return f'<table>{head}<tbody>{"".join(f"<tr>{line}</tr>" for line in lines)}</tbody></table>'


def _is_number(text: str) -> bool:
  digits = any(character.isdigit() for character in text)
  return text in ('', '–') or (digits and not text.strip('0123456789.,-+ ±eE%'))


def _over_seeds(value: Any) -> bool:
  return isinstance(value, Mapping) and 'mean' in value and 'values' in value


def _value(name: str, value: Any) -> str:
  """A headline: the number, and its deviation over seeds in small."""
  number, _, deviation = _plain_value(name, value).partition(' ± ')
  return html.escape(number) + (f' <small>± {html.escape(deviation)}</small>' if deviation else '')


def _plain_value(name: str, value: Any) -> str:
  if not _over_seeds(value):
    return _number(value, share=_is_share(name, value))
  share = _is_share(name, value['mean'])
  return f'{_number(value["mean"], share=share)} ± {_number(value["std"], share=share, digits=2)}'


def _is_share(name: str, value: Any) -> bool:
  """Whether to show a percentage; an error of regression may well be larger than 1."""
  return name.rpartition('/')[2] in SHARES and isinstance(value, int | float) and 0 <= value <= 1


def _number(value: Any, *, share: bool = False, digits: int = 4) -> str:
  if value is None:
    return '–'
  if isinstance(value, bool) or not isinstance(value, int | float):
    return _text(value)
  if share:
    return f'{100 * value:.2f} %'
  return f'{value:,.0f}' if isinstance(value, int) or abs(value) >= 10_000 else f'{value:.{digits}g}'


def _text(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, list | tuple):
    return ', '.join(map(_text, value))
  return value if isinstance(value, str) else json.dumps(value)


def _command(command: Any) -> str:
  return command if isinstance(command, str) else shlex.join(map(str, command))


def _read(path: Path) -> dict[str, Any]:
  return json.loads(path.read_text()) if path.exists() else {}
