"""Runs side by side: one page with their curves over each other, the flags that differ, and their final numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.report import page, plots, writers


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


def write(entries: Sequence[Entry], folder: Path, heading: str) -> Path:
  """index.html in a folder, with a plot of each metric that the runs share, and whatever else is in its plots/."""
  for metric in shared_metrics(entries):
    # of several seeds their mean
    curves = {e.name: {row['step']: np.mean(row[metric]) for row in e.rows if metric in row} for e in entries}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if curves:
      plots.overlaid(curves, metric, folder)
  links = [f'<a href="{escape(e.link)}">{escape(e.name)}</a>' if e.link else escape(e.name) for e in entries]
  seeds = any(page.over_seeds(value) for entry in entries for value in entry.summary.values())
  about = f'{len(entries)} runs' + ('; of several seeds mean ± standard deviation' if seeds else '')
  heads = ('', *(entry.name for entry in entries))
  numbers, flags = tables(entries)
  sections = {
    'Runs': f'<p>{" · ".join(links)}</p>',
    'Numbers side by side': page.table(numbers, heads),
    **page.pictures(folder),
    'Flags that differ': page.table(flags, heads),
  }
  writers.write_bytes(folder / 'index.html', page.render(heading, about, sections))
  return folder / 'index.html'


def tables(entries: Sequence[Entry]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
  """Rows of the final numbers, but for those of train, and of the flags that differ; a column for each run."""
  final = [n for n in shared_metrics(entries) if any(n in e.summary for e in entries) and not n.startswith('train/')]
  flags = differing([entry.flags for entry in entries])
  numbers = [(name, *(page.figure(name, entry.summary.get(name)) for entry in entries)) for name in final]
  return numbers, [(name, *(page.plain(entry.flags.get(name)) or '–' for entry in entries)) for name in flags]
