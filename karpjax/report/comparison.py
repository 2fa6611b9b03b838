"""Runs side by side: one page with their curves over each other, the flags that differ, and their final numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.report import page, plots, writers

COLOURS = plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.SKY, plots.INK


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of the runs.

  Attributes:
    name: what tells it from the others.
    flags: {name: value} of all its flags.
    rows: of its metrics.jsonl.
    summary: its final numbers; {} while it is not finished.
    link: where its own page is, or ''.
  """

  name: str
  flags: Mapping[str, Any]
  rows: Sequence[Mapping[str, Any]]
  summary: Mapping[str, Any]
  link: str = ''


def differing(flags: Sequence[Mapping[str, Any]]) -> list[str]:
  """The names of the flags that are not the same in all of these; but for where each is kept."""
  names = dict.fromkeys(name for each in flags for name in each if name != 'workdir')
  return [name for name in names if any(each.get(name) != flags[0].get(name) for each in flags)]


def shared_metrics(entries: Sequence[Entry]) -> list[str]:
  """The metrics that at least two of the runs have (of a single run: its own), in order of appearance."""
  own = [{*writers.columns(entry.rows), *entry.summary} for entry in entries]
  names = dict.fromkeys(name for entry in entries for name in (*writers.columns(entry.rows), *entry.summary))
  return [name for name in names if '/' in name and sum(name in each for each in own) >= min(2, len(own))]


def write(entries: Sequence[Entry], folder: Path, heading: str, *, pictures: Sequence[Path] = ()) -> Path:
  """index.html in a folder, with plots/curve_METRIC.png beside it.

  Args:
    entries: at least one.
    folder: of the page.
    heading: of the page.
    pictures: others that the page shows first, inside the folder.
  """
  drawn = [path for name in shared_metrics(entries) if (path := overlay(entries, name, folder))]
  names = [f'<a href="{escape(e.link)}">{escape(e.name)}</a>' if e.link else escape(e.name) for e in entries]
  seeds = any(page.over_seeds(value) for entry in entries for value in entry.summary.values())
  about = f'{len(entries)} runs' + ('; of several seeds mean ± standard deviation' if seeds else '')
  about_tables = {
    what: page.section(what, page.table(rows, ('', *(entry.name for entry in entries))))
    for what, rows in tables(entries).items()
  }
  body = [
    f'<header><h1>{escape(heading)}</h1><p class="quiet">{about}</p><p>{" · ".join(names)}</p></header>',
    about_tables.get('Final numbers', ''),
    page.gallery('', 'large', pictures, folder),
    page.gallery('Curves', '', drawn, folder),
    about_tables.get('Flags that differ', ''),
  ]
  return page.write(folder / 'index.html', heading, body)


def tables(entries: Sequence[Entry]) -> dict[str, list[tuple[str, ...]]]:
  """{heading: rows}: the final numbers but for those of train, and the flags that differ; a column for each run."""
  final = [n for n in shared_metrics(entries) if any(n in e.summary for e in entries) and not n.startswith('train/')]
  flags = differing([entry.flags for entry in entries])
  rows = {
    'Final numbers': [(name, *(page.figure(name, entry.summary.get(name)) for entry in entries)) for name in final],
    'Flags that differ': [(n, *(page.plain(entry.flags.get(n)) or '–' for entry in entries)) for n in flags],
  }
  return {heading: own for heading, own in rows.items() if own}


@plots.styled
def overlay(entries: Sequence[Entry], name: str, folder: Path) -> Path | None:
  """plots/curve_METRIC.png: one metric of all runs over steps, of several seeds their mean; None where none has two points."""
  curves = {}
  for entry in entries:
    points = {row['step']: np.mean(row[name]) for row in entry.rows if name in row}
    if len(points) > 1:
      curves[entry.name] = points
  if not curves:
    return None
  figure, axis = plots.new_figure(5.2, 3.3 + 0.17 * len(curves))
  for i, (label, points) in enumerate(curves.items()):
    colour = COLOURS[i] if len(curves) <= len(COLOURS) else f'C{i % 10}'
    style = '-' if i < 10 else '--'
    axis.plot(list(points), list(points.values()), style, color=colour, label=plots.short(label, 60), linewidth=1.2)
  values = [x for points in curves.values() for x in points.values() if np.isfinite(x)]
  plots.logarithmic_where_wide(axis, name, values)
  axis.set_title(plots.title(name))
  axis.set_xlabel('step')
  axis.xaxis.set_major_formatter('{x:,.0f}')
  figure.legend(loc='outside lower left', fontsize=8)
  return plots.save(figure, folder, 'curve_' + name.replace('/', '_'))
