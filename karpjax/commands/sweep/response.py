"""plots/response.png: how the metric answers to the axes of a sweep."""

import math
from pathlib import Path

import numpy as np

from karpjax.commands.sweep import question, table
from karpjax.report import plots


@plots.styled
def draw(trials: list[table.Trial], asked: question.Question, folder: Path) -> Path:
  """One axis: a line, in a band of one standard deviation over seeds. A grid of two: a heat map. Else a panel per axis.

  Args:
    trials: of which at least one is done; the others are left out, or marked where a line would go through them.
    asked: names axes and metric.
    folder: the sweep's.
  """
  names = [name for name, axis in asked.axes.items() if isinstance(axis, question.Range) or len(axis) > 1]
  names = names or list(asked.axes)
  done = [trial for trial in trials if trial.status == 'done']
  if len(names) == 2 and not asked.trials:
    return _heat_map(done, names, asked, folder)
  figure, axes = plots.new_figure(4.6 * len(names), 3.4, ncols=len(names), sharey=True, squeeze=False)
  for axis, name in zip(axes[0], names):
    x = _places(axis, name, trials, asked)
    y, std = _numbers(done, asked)
    at = np.array([x[trial.setting[name]] for trial in done])
    if len(names) == 1:
      order = np.argsort(at)
      axis.plot(at[order], y[order], color=plots.GREEN, marker='o', markersize=4)
      axis.fill_between(at[order], (y - std)[order], (y + std)[order], color=plots.GREEN, alpha=0.18, linewidth=0)
    else:
      axis.plot(at, y, color=plots.GREEN, linestyle='', marker='o', markersize=4, alpha=0.5)
      places = np.unique(at)
      if len(places) < len(at) and not isinstance(asked.axes[name], question.Range):
        most = [min(asked.sign * y[at == place]) * asked.sign for place in places]
        axis.plot(places, most, color=plots.BLUE, label='best of each value')
        axis.legend(loc='best')
    failed = [x[trial.setting[name]] for trial in trials if trial.status == 'failed']
    if failed:
      axis.plot(
        failed,
        [0.97] * len(failed),
        color=plots.VERMILION,
        linestyle='',
        marker='x',
        transform=axis.get_xaxis_transform(),
      )
    if y.min() > 0 and y.max() > 30 * y.min() and 'loss' in asked.metric:
      axis.set_yscale('log')
    axis.set_xlabel(name)
  axes[0][0].set_ylabel(asked.metric)
  axes[0][0].set_title(_title(asked) + (' · ✕ failed' if any(t.status == 'failed' for t in trials) else ''))
  return plots.save(figure, folder, 'response')


def _heat_map(done, names, asked, folder) -> Path:
  down, across = names
  rows, columns = asked.axes[down], asked.axes[across]
  grid = np.full((len(rows), len(columns)), np.nan)
  for trial, value in zip(done, _numbers(done, asked)[0]):
    grid[rows.index(trial.setting[down]), columns.index(trial.setting[across])] = value
  figure, axis = plots.new_figure(2.4 + 0.75 * len(columns), 1.6 + 0.42 * len(rows))
  good = 'viridis_r' if asked.sign == 1 else 'viridis'
  image = axis.imshow(grid, cmap=good, aspect='auto', interpolation='nearest')
  bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
  bar.outline.set_visible(False)
  low, high = np.nanmin(grid), np.nanmax(grid)
  for (row, column), value in np.ndenumerate(grid):
    dark = asked.sign * ((value - low) - (high - value)) > 0
    text, colour = ('✕', plots.VERMILION) if math.isnan(value) else (f'{value:.3g}', 'white' if dark else plots.INK)
    axis.text(column, row, text, ha='center', va='center', fontsize=7, color=colour)
  axis.set_xticks(range(len(columns)), columns)
  axis.set_yticks(range(len(rows)), rows)
  axis.tick_params(length=0)
  axis.grid(False)
  axis.spines[:].set_visible(False)
  axis.set(xlabel=across, ylabel=down)
  axis.set_title(asked.metric + (f', mean of {asked.base.seeds} seeds' if asked.base.seeds > 1 else ''))
  return plots.save(figure, folder, 'response')


def _numbers(done, asked) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation over seeds of the metric, [trials] each."""
  values = np.array([trial.numbers[asked.metric] for trial in done], np.float64)  # [trials, seeds]
  return values.mean(1), values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(done))


def _title(asked) -> str:
  seeds = asked.base.seeds
  return f'Mean ± std of {seeds} seeds' if seeds > 1 else 'At the end of training'


def _places(axis, name: str, trials, asked) -> dict[str, float]:
  """Where each value lies on the axis: numbers on a linear or logarithmic one, others side by side."""
  given = asked.axes[name]
  texts = list(given) if isinstance(given, tuple) else [trial.setting[name] for trial in trials]
  try:
    places = {text: float(text) for text in texts}
  except ValueError:
    axis.set_xticks(range(len(texts)), texts)
    return {text: float(i) for i, text in enumerate(texts)}
  if given.log if isinstance(given, question.Range) else log_spaced(list(places.values())):
    axis.set_xscale('log')
  return places


def log_spaced(values: list[float]) -> bool:
  """Whether positive numbers lie more evenly on a logarithmic axis than on a linear one."""
  values = np.unique(values)
  if values[0] <= 0 or len(values) < 2:
    return False
  if len(values) == 2:
    return bool(values[1] >= 10 * values[0])
  uneven = lambda gaps: gaps.max() / gaps.min()
  return bool(uneven(np.diff(np.log(values))) < uneven(np.diff(values)))
