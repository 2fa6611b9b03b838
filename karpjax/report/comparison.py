"""Runs side by side: one page with their curves over each other, the flags that differ, and their final numbers."""

import dataclasses
import urllib.parse
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.report import page, plots, writers
from karpjax.report.tables import narrowed

SIDE_BY_SIDE = 6  # runs that have a column each; more have a row each
DRAWN = 12  # runs whose curves are drawn


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of the runs.

  Attributes:
    name: what tells it from the others.
    flags: {name: value} of all its flags.
    rows: of its metrics.jsonl.
    summary: its final numbers; {} while it is not finished.
    link: where its own page is, or ''.
    number: its name where its flags stand beside it; '': `name`.
  """

  name: str
  flags: Mapping[str, Any]
  rows: Sequence[Mapping[str, Any]]
  summary: Mapping[str, Any]
  link: str = ''
  number: str = ''


def differing(flags: Sequence[Mapping[str, Any]]) -> list[str]:
  """The names of the flags that do not read the same in all of these; but for where each is kept."""
  names = dict.fromkeys(name for each in flags for name in each if name != 'workdir')
  return [name for name in names if len({page.plain(each.get(name)) for each in flags}) > 1]


def shared_metrics(entries: Sequence[Entry]) -> list[str]:
  """The metrics that at least two of the runs have (of a single run: its own), in order of appearance."""
  own = [{*writers.columns(entry.rows), *entry.summary} for entry in entries]
  names = dict.fromkeys(name for entry in entries for name in (*writers.columns(entry.rows), *entry.summary))
  return [name for name in names if '/' in name and sum(name in each for each in own) >= min(2, len(own))]


def write(entries: Sequence[Entry], folder: Path, heading: str) -> Path:
  """index.html in a folder, with a plot of each metric that the runs share, and whatever else is in its plots/.

  Args:
    entries: the runs; where they are many, the first ones have curves.
    folder: of the page.
    heading: of the page.
  """
  for metric in shared_metrics(entries):
    # of several seeds their mean
    curves = {e.name: {row['step']: np.mean(row[metric]) for row in e.rows if metric in row} for e in entries[:DRAWN]}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if curves:
      plots.overlaid(curves, metric, folder)
  address = lambda path: escape(urllib.parse.quote(path, errors='surrogateescape'))
  links = [f'<a href="{address(e.link)}">{escape(e.name)}</a>' for e in entries if e.link]
  about = [f'{len(entries)} runs']
  about += ['of several seeds mean ± standard deviation'] if any(map(_over_seeds, entries)) else []
  about += [f'curves of the first {DRAWN}'] if len(entries) > DRAWN else []
  quiet = lambda note: f'<p class="quiet">{escape(note)}</p>' if note else ''
  made = tables(entries).items()
  (first, numbers), *others = ((name, page.table(*table) + quiet(note)) for name, (*table, note) in made)
  runs = f'<p>{" · ".join(links)}</p>' if links else ''
  sections = {first: numbers, 'Runs': runs, **page.pictures(folder), **dict(others), 'Files': page.file_links(folder)}
  writers.write_bytes(folder / 'index.html', page.render(heading, '; '.join(about), sections))
  return folder / 'index.html'


def _over_seeds(entry: Entry) -> bool:
  return any(page.over_seeds(value) for value in entry.summary.values())


def tables(entries: Sequence[Entry]) -> dict[str, tuple[list[tuple[str, ...]], tuple[str, ...], str]]:
  """{heading: (rows, heads, a note or '')} of the final numbers, but for those of train, and of the flags that differ.

  A few runs have a column each, in two tables; many a row each, in one.
  """
  final = [n for n in shared_metrics(entries) if any(n in e.summary for e in entries) and not n.startswith('train/')]
  flags = differing([entry.flags for entry in entries])
  numbers = [(name, *(page.figure(name, entry.summary.get(name)) for entry in entries)) for name in final]
  given = [(name, *(page.plain(entry.flags.get(name)) or '–' for entry in entries)) for name in flags]
  if len(entries) <= SIDE_BY_SIDE:
    heads = ('', *(entry.name for entry in entries))
    return {'Numbers side by side': (numbers, heads, ''), 'Flags that differ': (given, heads, '')}
  names = ('', *(entry.number or entry.name for entry in entries))
  heads, *rows = zip(names, *given, *numbers)
  return {'Settings and numbers': narrowed(rows, heads, [''])}
