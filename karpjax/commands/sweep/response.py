"""plots/response.png: how the metric answers to the axes of a sweep."""

import math
from pathlib import Path

import numpy as np

from karpjax.commands.sweep.settings import Axis, Sweep
from karpjax.commands.sweep.table import Trial
from karpjax.report import plots


@plots.styled
def draw(trials: list[Trial], sweep: Sweep, folder: Path) -> Path:
  """A panel per axis, with bars of one standard deviation over seeds; of a grid of two axes a heat map.

  Args:
    trials: of which at least one is done; what failed is marked on the axis.
    sweep: names axes and metric.
    folder: the sweep's.
  """
  names = [name for name, axis in sweep.axes.items() if len(axis.values) > 1] or list(sweep.axes)
  done = [trial for trial in trials if trial.status == 'done']
  failed = [trial for trial in trials if trial.status == 'failed']
  y = np.array([trial.numbers[sweep.metric] for trial in done], np.float64)  # [trials, seeds]
  y, std = y.mean(1), y.std(1, ddof=1) if y.shape[1] > 1 else None
  if len(names) == 2 and not sweep.trials:
    return _heat_map(done, y, names, sweep, folder)
  figure, axes = plots.new_figure(4.6 * len(names), 3.4, ncols=len(names), sharey=True, squeeze=False)
  for axis, name in zip(axes[0], names):
    places = _places(axis, name, trials, sweep.axes[name])
    at = np.array([places[trial.setting[name]] for trial in done])
    axis.errorbar(at, y, std, color=plots.GREEN, linestyle='', marker='o', markersize=4, alpha=0.6)
    if not sweep.axes[name].scale:
      values = np.unique(at)
      best = [sweep.sign * (sweep.sign * y[at == value]).min() for value in values]
      axis.plot(values, best, color=plots.GREEN if len(names) == 1 else plots.BLUE, label='best of each value')
    cross = [places[trial.setting[name]] for trial in failed if name in trial.setting]
    heights, on_axis = [0.97] * len(cross), axis.get_xaxis_transform()
    axis.plot(cross, heights, color=plots.VERMILION, linestyle='', marker='x', transform=on_axis)
    if y.min() > 0 and y.max() > 30 * y.min() and 'loss' in sweep.metric:
      axis.set_yscale('log')
    axis.set_xlabel(name)
  axes[0][0].set_ylabel(sweep.metric)
  seeds = f'Mean ± std of {sweep.base.seeds} seeds' if sweep.base.seeds > 1 else 'At the end of training'
  axes[0][0].set_title(seeds + (' · ✕ failed' if failed else ''))
  return plots.save(figure, folder, 'response')


def _heat_map(done: list[Trial], y: np.ndarray, names: list[str], sweep: Sweep, folder: Path) -> Path:
  down, across = names
  rows, columns = sweep.axes[down].values, sweep.axes[across].values
  grid = np.full((len(rows), len(columns)), np.nan)
  for trial, value in zip(done, y):
    grid[rows.index(trial.setting[down]), columns.index(trial.setting[across])] = value
  figure, axis = plots.new_figure(2.4 + 0.75 * len(columns), 1.6 + 0.42 * len(rows))
  good = 'viridis_r' if sweep.sign == 1 else 'viridis'
  image = axis.imshow(grid, cmap=good, aspect='auto', interpolation='nearest')
  figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03).outline.set_visible(False)
  middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
  for (row, column), value in np.ndenumerate(grid):
    dark = sweep.sign * (value - middle) > 0
    text, colour = ('✕', plots.VERMILION) if math.isnan(value) else (f'{value:.3g}', 'white' if dark else plots.INK)
    axis.text(column, row, text, ha='center', va='center', fontsize=7, color=colour)
  axis.set_xticks(range(len(columns)), columns)
  axis.set_yticks(range(len(rows)), rows)
  plots.no_frame(axis)
  axis.set(xlabel=across, ylabel=down)
  axis.set_title(sweep.metric + (f', mean of {sweep.base.seeds} seeds' if sweep.base.seeds > 1 else ''))
  return plots.save(figure, folder, 'response')


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
