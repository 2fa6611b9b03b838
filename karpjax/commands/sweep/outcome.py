"""The outcome of a sweep, best first: a table, trials.csv, and how the metric answers to the axes,
plots/response.png.
"""

import csv
import dataclasses
import io
import shlex
from pathlib import Path

import numpy as np

from karpjax.commands.sweep.settings import Axis, Setting, Sweep
from karpjax.report import comparison, plots, progress, tables, writers

LONGEST_NOTE = 48  # characters in the printed table; a failure is said in full when it happens


@dataclasses.dataclass(frozen=True)
class Trial:
  """The outcome of one setting.

  Attributes:
    number: from 1, in the order they were listed or drawn.
    setting: {flag: value as typed}.
    status: 'done', 'failed', 'stopped' (by the search, as worse than the median) or 'running' (elsewhere).
    reason: why it failed or was stopped.
    numbers: {metric: [one per seed]}, of the end of training.
    folder: where its program ran.
    member: the number of its first seed among the members of that program; None where it has the program alone.
  """

  number: int
  setting: Setting
  status: str
  reason: str = ''
  numbers: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  folder: str = ''
  member: int | None = None


def ranked(trials: list[Trial], sweep: Sweep) -> list[Trial]:
  """Those that are done, best first by the mean over seeds, NaN last; then the others in their order."""
  worth = lambda trial: np.nan_to_num(sweep.sign * np.mean(trial.numbers[sweep.metric]), nan=np.inf)
  done = sorted((trial for trial in trials if trial.status == 'done'), key=worth)
  return done + [trial for trial in trials if trial.status != 'done']


# ---- tables ----


def _short(text: str) -> str:
  """A drawn number with four digits; what was typed stays."""
  try:
    return f'{float(text):.4g}' if len(text) > 8 else text
  except ValueError:
    return text


def lines(trials: list[Trial], sweep: Sweep) -> list[str]:
  """The printed table of trials, ranked: number, setting, the metric that selects, a note."""
  rows = []
  for place, trial in enumerate(trials):
    last, note = '', trial.status + (f': {trial.reason}' if trial.reason else '')
    if trial.status == 'done':
      last, note = progress.number(trial.numbers[sweep.metric]), 'best' if place == 0 else ''
    setting = (_short(trial.setting.get(name, '')) for name in sweep.axes)
    rows.append((str(trial.number), *setting, last, tables.shortened(note, LONGEST_NOTE)))
  kept = 'trial', sweep.metric, ''
  *table, alike = tables.narrowed(rows, ('trial', *sweep.axes, sweep.metric, ''), kept)
  return [*tables.table(*table), *([alike] if alike else [])]


def about_best(trial: Trial, sweep: Sweep) -> list[str]:
  """The best setting's numbers, and how to run it."""
  shown = {sweep.metric, 'validation/accuracy', 'test/loss', 'test/accuracy'}
  numbers = ', '.join(f'{name} {progress.number(values)}' for name, values in trial.numbers.items() if name in shown)
  flags = ' '.join(map(shlex.quote, sweep.flags(trial.setting)))
  return [f'best: trial {trial.number}: {numbers}', f'python launch.py {sweep.experiment} {flags}']


def write_csv(trials: list[Trial], sweep: Sweep, folder: Path) -> None:
  """trials.csv: a line per trial, ranked; of each metric mean and (sample) standard deviation over seeds.

  Those that are not done have no numbers: theirs would be of another step.
  """
  metrics = dict.fromkeys([sweep.metric, *(name for trial in trials for name in trial.numbers)])
  heads = [part for name in metrics for part in (name, f'{name}/std')]
  text = io.StringIO()
  columns = ['trial', *sweep.axes, 'status', *heads, 'reason', 'folder', 'member']
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  for trial in trials:
    about = {name: getattr(trial, name) for name in ('status', 'reason', 'folder', 'member')}
    row = {'trial': trial.number, **trial.setting, **about}
    for name, values in trial.numbers.items() if trial.status == 'done' else ():
      values = np.array(values, np.float64)  # null is NaN
      row |= {name: values.mean(), f'{name}/std': values.std(ddof=1) if len(values) > 1 else ''}
    writer.writerow(row)
  writers.write_bytes(folder / 'trials.csv', text.getvalue().encode())


# ---- the plot ----


def write_page(trials: list[Trial], sweep: Sweep, folder: Path) -> Path:
  """index.html: the settings beside each other, best first, their curves, and what is in plots/."""
  entries = []
  for trial in trials:
    first, seeds = trial.member, sweep.base.seeds
    own = lambda x, first=first, seeds=seeds: (
      x if first is None or not isinstance(x, list) else x[first : first + seeds]
    )
    rows = [{name: own(x) for name, x in row.items()} for row in writers.read_rows(Path(trial.folder))]
    many = {n: writers.final_of_seeds(x) if len(x) > 1 else x[0] for n, x in trial.numbers.items()}
    numbers = many if trial.status == 'done' else {}
    flags = {name: trial.setting.get(name, '') for name in sweep.axes}
    note = '' if trial.status == 'done' else f' ({trial.status})'
    text = ' '.join(f'{name}={_short(value)}' for name, value in flags.items())
    entries.append(
      comparison.Entry(f'{trial.number}: {text}{note}', flags, rows, numbers, number=f'{trial.number}{note}')
    )
  best = 'least' if sweep.sign == 1 else 'largest'
  return comparison.write(entries, folder, f'Sweep of {sweep.experiment}, by the {best} {sweep.metric}')


def draw(trials: list[Trial], sweep: Sweep, folder: Path) -> None:
  """A panel per axis, with bars of one standard deviation over seeds; of a grid of two axes a heat map.

  Args:
    trials: of which at least one is done; what failed is marked on the axis.
    sweep: names axes and metric.
    folder: the sweep's.
  """
  names = [name for name, axis in sweep.axes.items() if len(axis.values) > 1] or list(sweep.axes)
  done, failed = ([trial for trial in trials if trial.status == status] for status in ('done', 'failed'))
  y = np.array([trial.numbers[sweep.metric] for trial in done], np.float64)  # [trials, seeds]
  y, std = y.mean(1), y.std(1, ddof=1) if y.shape[1] > 1 else None
  if len(names) == 2 and not sweep.trials:
    return _heat_map(done, y, names, sweep, folder)
  size = {'ncols': len(names), 'sharey': True, 'squeeze': False}
  with plots.drawing(folder, 'response', 4.6 * len(names), 3.4, **size) as (_, axes):
    for axis, name in zip(axes[0], names):
      places = _places(axis, name, trials, sweep.axes[name])
      at = np.array([places[trial.setting[name]] for trial in done])
      axis.errorbar(at, y, std, color=plots.GREEN, linestyle='', marker='o', markersize=4, alpha=0.6)
      if not sweep.axes[name].scale:
        values = np.unique(at)
        best = [sweep.sign * (sweep.sign * y[at == value]).min() for value in values]
        axis.plot(values, best, color=plots.GREEN if len(names) == 1 else plots.BLUE, label='best of each value')
      cross, up = [places[trial.setting[name]] for trial in failed if name in trial.setting], axis.get_xaxis_transform()
      axis.plot(cross, [0.97] * len(cross), color=plots.VERMILION, linestyle='', marker='x', transform=up)
      if y.min() > 0 and y.max() > 30 * y.min() and 'loss' in sweep.metric:
        axis.set_yscale('log')
      axis.set_xlabel(name)
    axes[0][0].set_ylabel(sweep.metric)
    seeds = f'Mean ± std of {sweep.base.seeds} seeds' if sweep.base.seeds > 1 else 'At the end of training'
    axes[0][0].set_title(seeds + (' · ✕ failed' if failed else ''))


def _heat_map(done: list[Trial], y: np.ndarray, names: list[str], sweep: Sweep, folder: Path) -> None:
  (down, across), (rows, columns) = names, (sweep.axes[name].values for name in names)
  found = {(trial.setting[down], trial.setting[across]): value for trial, value in zip(done, y)}
  grid = np.array([[found.get((row, column), np.nan) for column in columns] for row in rows])
  with plots.drawing(folder, 'response', 2.4 + 0.75 * len(columns), 1.6 + 0.42 * len(rows)) as (figure, axis):
    colours = {'cmap': 'viridis_r' if sweep.sign == 1 else 'viridis', 'vmin': None, 'vmax': None, 'aspect': 'auto'}
    image = plots.cells(axis, grid, columns, rows, **colours)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03).outline.set_visible(False)
    middle = (y.min() + y.max()) / 2
    for (row, column), value in np.ndenumerate(grid):
      colour = 'white' if sweep.sign * (value - middle) > 0 else plots.INK
      text, colour = ('✕', plots.VERMILION) if np.isnan(value) else (f'{value:.3g}', colour)
      axis.text(column, row, text, ha='center', va='center', fontsize=7, color=colour)
    title = sweep.metric + (f', mean of {sweep.base.seeds} seeds' if sweep.base.seeds > 1 else '')
    axis.set(xlabel=across, ylabel=down, title=title)


def _places(panel, name: str, trials: list[Trial], axis: Axis) -> dict[str, float]:
  """Where each value lies on a panel: numbers on a linear or logarithmic axis, others side by side."""
  texts = [trial.setting[name] for trial in trials if name in trial.setting] if axis.scale else axis.values
  try:
    places = {text: float(text) for text in texts}
  except ValueError:
    panel.set_xticks(range(len(texts)), texts)
    return {text: float(i) for i, text in enumerate(texts)}
  if axis.scale == 'log' or (not axis.scale and log_spaced(list(places.values()))):
    panel.set_xscale('log')
  return places


def log_spaced(values: list[float]) -> bool:
  """Whether numbers, all positive, span so much that a logarithmic axis shows them better."""
  return min(values) > 0 and max(values) >= 8 * min(values)
