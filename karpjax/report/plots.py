"""Plots of a run, as PNG files in its folder `plots`: numbers in, one picture out, in one style."""

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.report import rendering, writers

# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9'
SPLITS = {'train': BLUE, 'validation': GREEN, 'test': VERMILION}
INK, FAINT = '#222222', '#8a8f98'
SUPTITLE = {'x': 0.01, 'ha': 'left', 'fontweight': 'bold', 'fontsize': 10.5, 'parse_math': False}  # as an axis' title
RUNS = BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK  # of runs side by side
LOGARITHMIC = 'loss', 'norm', 'perplexity'  # families whose axis is logarithmic where they span two decades


# ---- figures ----


@contextlib.contextmanager
def drawing(folder: Path, name: str, width: float, height: float, rows: int = 1, *, margins=None, **subplots):
  """(figure, axes) in the house style, of so many inches, which becomes plots/NAME.png when all is drawn.

  It is unknown to pyplot: nothing to close, no display to look for. `margins` (left, right, bottom, top), in inches,
  are twice as fast as having them found, the default.
  """
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(fname=rendering.STYLE):
    figure = Figure(figsize=(width, height), layout=None if margins else 'constrained')
    if margins:
      left, right, bottom, top = margins
      figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    yield figure, figure.subplots(rows, **subplots)
  rendering.draw(figure, functools.partial(writers.write_bytes, Path(folder) / 'plots' / f'{name}.png'))


def title(name: str) -> str:
  """A metric's or a file's name as a reader would write it: 'top5_accuracy' -> 'Top-5 accuracy'."""
  words = name.replace('_', ' ').replace('/', ' · ').replace('top5', 'top-5').split()
  text = ' '.join({'ece': 'expected calibration error', 'f1': 'F1'}.get(word, word) for word in words)
  return text[:1].upper() + text[1:]


def short(text: str, length: int = 16) -> str:
  """At most `length` characters, the last one an ellipsis where some are left out."""
  text = str(text)
  return text if len(text) <= length else text[: length - 1] + '…'


def cells(
  axis, values: np.ndarray, across: Sequence[str], down: Sequence[str], *, font=None, turn=0, every=1, **colours
):
  """Draws values [rows, columns] as cells, without grid, frame and ticks, named `across` and `down`;
  returns the image.
  """
  image = axis.imshow(values, interpolation='nearest', **{'cmap': 'Blues', 'vmin': 0, 'vmax': 1, **colours})
  axis.set_xticks(range(0, len(across), every), [short(x, 14) for x in across[::every]], rotation=turn, fontsize=font)
  axis.set_yticks(range(0, len(down), every), [short(x, 14) for x in down[::every]], fontsize=font)
  axis.grid(False)
  axis.spines[:].set_visible(False)
  axis.tick_params(length=0)
  return image


# ---- plots ----


def curves(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
  """One picture per metric family, plots/curve_FAMILY.png: train, validation and test on one axis.

  With several seeds: the mean, in a band of one standard deviation to either side. What was measured at one
  step only has no curve.
  """
  families: dict[str, dict[str, str]] = {}  # {family: {split, or the metric of none: metric}}
  for name in writers.columns(rows):
    split, _, family = name.partition('/')
    if name != 'epoch':  # a straight line
      families.setdefault(family if split in SPLITS else name, {})[split] = name
  for family, names in families.items():
    if len({row['step'] for row in rows for name in names.values() if np.isfinite(row.get(name, np.nan)).any()}) < 2:
      continue
    with drawing(folder, 'curve_' + family.replace('/', '_'), 5.2, 3.3, margins=(0.7, 0.12, 0.48, 0.36)) as (_, axis):
      splits = sorted(names, key=[*SPLITS, *names].index)
      values = [value for split in splits for value in _curve(axis, split, names[split], rows)]
      seeds = max(np.size(row[name]) for row in rows for name in names.values() if name in row)
      _over_steps(axis, family, values)
      axis.set_title(title(family) + (f' · mean ± std of {seeds} seeds' if seeds > 1 else ''))
      axis.legend(loc='best', handlelength=1.4)


def overlaid(curves: Mapping[str, Mapping[int, float]], metric: str, folder: Path) -> None:
  """plots/curve_METRIC.png: one metric of several runs, {name of a run: {step: value}}."""
  with drawing(folder, 'curve_' + metric.replace('/', '_'), 5.2, 3.3 + 0.17 * len(curves)) as (figure, axis):
    for i, (name, points) in enumerate(curves.items()):
      colour = RUNS[i] if len(curves) <= len(RUNS) else f'C{i % 10}'
      line = '-' if i < 10 else '--'
      axis.plot(list(points), list(points.values()), line, color=colour, label=short(name, 60), linewidth=1.2)
    _over_steps(axis, metric, [x for points in curves.values() for x in points.values() if np.isfinite(x)])
    axis.set_title(title(metric))
    figure.legend(loc='outside lower left', fontsize=8)


def _over_steps(axis, metric: str, values: Sequence[float]) -> None:
  """The axes of curves: steps along, and up a logarithm for a loss and the like that spans two decades."""
  if values and min(values) > 0 and max(values) > 100 * min(values) and any(word in metric for word in LOGARITHMIC):
    axis.set_yscale('log')
  axis.set_xlabel('step')
  axis.xaxis.set_major_formatter('{x:,.0f}')
  axis.xaxis.get_major_locator().set_params(nbins=6, integer=True)
  axis.margins(x=0.02)


def _curve(axis, split: str, name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
  """Draws one metric, and returns the values drawn; seeds that have met NaN or infinity leave the mean."""
  points = {row['step']: np.atleast_1d(np.asarray(row[name], np.float64)) for row in rows if name in row}
  finite = {step: x[np.isfinite(x)] for step, x in points.items() if np.isfinite(x).any()}
  if not finite:
    return []
  figures = lambda x, digits: f'{x:,.0f}' if abs(x) >= 10**digits else f'{x:.{digits}g}'
  steps, last = list(finite), next(reversed(finite))
  mean = np.array([x.mean() for x in finite.values()])
  colour, label = SPLITS.get(split, PURPLE), f'{split if split in SPLITS else "last"} {figures(mean[-1], 4)}'
  if len(points[last]) > 1:
    std = np.array([x.std(ddof=1) if len(x) > 1 else 0 for x in finite.values()])
    label += f' ± {figures(std[-1], 2)}'
    axis.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
  if len(finite[last]) < len(points[last]):
    label += f' ({len(finite[last])} of {len(points[last])} seeds)'
  marker = {'marker': 'o', 'markersize': 3 if len(steps) > 1 else 6} if len(steps) <= 30 else {'linewidth': 1.1}
  axis.plot(steps, mean, color=colour, label=label, **marker)
  return list(mean)


def confusion(counts: np.ndarray, classes: Sequence[str], folder: Path, note: str = '') -> None:
  """plots/confusion_matrix.png: counts [classes, classes], rows the true and columns the predicted class."""
  size, counts = len(classes), np.asarray(counts)
  fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  small = size <= 20
  side = 2.6 + (0.36 * size if small else 5.2)
  with drawing(folder, 'confusion_matrix', side + 0.7, side) as (figure, axis):
    # many classes: the root lifts the rare confusions out of the white
    shown = fractions if small else np.sqrt(fractions)
    turn, every = 0 if small and max(map(len, classes)) <= 2 else 90, max(1, math.ceil(size / 50))
    image = cells(axis, shown, classes, classes, font=8 if small else 5.5, turn=turn, every=every)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label('fraction of the true class')
    if not small:
      bar.set_ticks(np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]), labels=['0', '1 %', '10 %', '25 %', '50 %', '100 %'])
    for true, predicted in np.argwhere(counts) if small else ():
      colour = 'white' if fractions[true, predicted] > 0.5 else INK
      style = {'ha': 'center', 'va': 'center', 'fontsize': 8 if counts.max() < 1000 else 6.5, 'color': colour}
      axis.text(predicted, true, counts[true, predicted], **style)
    axis.set(xlabel='predicted class', ylabel='true class')
    axis.set_title('Confusion matrix' + note)


def reliability(calibration: np.ndarray, error: float, folder: Path, note: str = '') -> None:
  """plots/reliability_diagram.png: accuracy against confidence, and how often each confidence is met.

  Args:
    calibration: [bins, 3] count, sum of confidences and number correct per bin of confidence.
    error: the expected calibration error.
  """
  count, confidence, correct = np.asarray(calibration, np.float64).T  # [bins, 3] -> three of [bins]
  bins, met = len(count), count > 0
  left = np.arange(bins) / bins
  accuracy, stated = correct[met] / count[met], confidence[met] / count[met]
  both, over, under = np.minimum(accuracy, stated), np.maximum(stated - accuracy, 0), np.maximum(accuracy - stated, 0)
  style = {'width': 1 / bins, 'align': 'edge', 'edgecolor': 'white', 'linewidth': 0.8}
  sizes = {'rows': 2, 'height_ratios': [3, 1], 'sharex': True}
  with drawing(folder, 'reliability_diagram', 4.6, 5.3, **sizes) as (figure, (upper, lower)):
    upper.bar(left[met], both, color=BLUE, **style)
    upper.bar(left[met], over, bottom=both, color='#f2b48c', label='confidence above accuracy', **style)
    upper.bar(left[met], under, bottom=both, color=SKY, label='accuracy above confidence', **style)
    upper.plot([0, 1], [0, 1], color=INK, linestyle='--', linewidth=1, label='perfectly calibrated')
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy')
    upper.set_title(f'Reliability · ECE {100 * error:.2f} %' + note)
    lower.bar(left, count / max(count.sum(), 1), color=FAINT, **style)
    lower.set(xlabel='confidence of the predicted class', ylabel='fraction of\nexamples')
    figure.legend(loc='outside lower left', ncols=2)


def heat_maps(
  maps: Sequence[tuple], folder: Path, name: str, *, columns: int = 2, width: float = 4.2, titles=(), heading: str = ''
) -> None:
  """plots/NAME.png: heat maps beside each other.

  Args:
    maps: (values [rows, columns] in [0, 1], names of the columns, names of the rows) of each.
    columns, width: how many maps beside each other, and how wide they are, in inches.
    titles: one for each map, or none.
  """
  columns, lines, font = min(columns, len(maps)), -(-len(maps) // columns), 7 if width > 4 else 5
  size = width * columns, (width - 0.2) * lines
  with drawing(folder, name, *size, lines, ncols=columns, squeeze=False) as (figure, axes):
    for axis, text in zip(axes.flat, titles):
      axis.set_title(text, fontsize=8)
    for axis in axes.flat[len(maps) :]:
      axis.set_axis_off()
    for axis, (values, across, down) in zip(axes.flat, maps):
      cells(axis, values, across, down, font=font, turn=90, aspect='auto')
      axis.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False)
    if heading:
      figure.suptitle(heading, **SUPTITLE)


def scatter(points, labels, names: Sequence[str], heading: str, folder: Path, name: str, *, limit=None) -> None:
  """plots/NAME.png: points [n, 2], those of each label [n] (None: of one) in a colour; the axes end at ± limit,
  if any.
  """
  labels = np.zeros(len(points), int) if labels is None else np.asarray(labels)
  with drawing(folder, name, 4.6, 4.8, margins=(0.4, 0.15, 0.35, 0.4)) as (_, axis):
    for label in np.unique(labels):
      style = {'s': 6, 'color': f'C{label}', 'alpha': 0.6, 'linewidths': 0}
      axis.scatter(*points[labels == label].T, label=names[label] if len(names) else None, **style)
    axis.set_aspect('equal', adjustable='datalim')
    if limit:
      axis.set(xlim=(-limit, limit), ylim=(-limit, limit))
    if len(names):
      axis.legend(loc='upper right', ncols=2, markerscale=3)
    axis.set_title(heading)


def fit(targets: np.ndarray, outputs: np.ndarray, folder: Path, column: np.ndarray | None = None) -> None:
  """plots/predictions.png: predictions against targets, [n] each; over a single column [n], where there is one."""
  with drawing(folder, 'predictions', 5.2, 4.6) as (_, axis):
    if column is None:
      ends = [min(targets.min(), outputs.min()), max(targets.max(), outputs.max())]
      axis.plot(ends, ends, color=PURPLE, linewidth=1.2, label='equal')
      axis.scatter(targets, outputs, s=14, alpha=0.7)
      axis.set(xlabel='target', ylabel='prediction')
    else:
      order = np.argsort(column)
      axis.scatter(column, targets, s=18, alpha=0.7, label='test examples')
      axis.plot(column[order], outputs[order], color=PURPLE, label='fitted')
      axis.set(xlabel='column', ylabel='target')
    axis.legend()
    axis.set_title('Predictions on the test split')
