"""What a run leaves whose decisions are judged one kind of error at a time: ROC curves, a threshold, and intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.metrics import roc
from karpjax.report import plots, tables, writers

DRAWN = 10  # curves at the most


def write(folder: Path, found: Mapping[str, tuple], classes: Sequence[str], heading: str, note: str = '') -> list[str]:
  """roc.json and plots/roc.png; lines for a reader.

  Args:
    found: {split: (labels [n], probabilities [n, classes])}; the last is shown. Of two classes the last one is what is looked
      for, from a threshold that 'validation' has chosen, or 0.5.
    heading: which split, and when.
    note: on whose numbers they are.
  """
  labels, probabilities = list(found.values())[-1]
  area, ends = roc.auc(labels, probabilities), roc.interval(roc.auc, labels, probabilities)
  report = {'heading': heading, 'auc': area, 'interval': ends, 'examples': len(labels)}
  lines = [f'{heading}{note}: AUC {area:.4f}, 95 % of bootstrap samples between {ends[0]:.4f} and {ends[1]:.4f}']
  if len(classes) == 2:
    of = lambda split: (found[split][0] == 1, found[split][1][:, 1])
    chosen = 'validation' in found and roc.threshold(*of('validation'))
    at = chosen or 0.5
    rows, arrays = [], (labels == 1, probabilities[:, 1])
    for name, value in roc.at_threshold(*arrays, at).items():
      low, high = roc.interval(lambda one, scores, name=name: roc.at_threshold(one, scores, at)[name], *arrays)
      rows.append((name, f'{value:.4f}', f'{low:.4f} – {high:.4f}'))
      report[name] = {'value': value, 'interval': [low, high]}
    whence = 'of the largest sensitivity + specificity in the validation split' if chosen else 'no validation split'
    report['threshold'] = {'value': at, 'chosen': whence}
    lines += [f'{classes[1]} is said from {at:.4f} on ({whence}):', *tables.table(rows, ('', 'value', '95 %'))]
  writers.write_json(Path(folder) / 'roc.json', report)
  _draw(labels, probabilities, classes, area, Path(folder), note)
  return lines


def _draw(labels, probabilities, classes, area: float, folder: Path, note: str) -> None:
  from sklearn.metrics import roc_curve

  shown = [1] if len(classes) == 2 else range(len(classes))
  with plots.drawing(folder, 'roc', 4.8, 4.4) as (figure, axis):
    for number in [n for n in shown if np.isfinite(probabilities[:, n]).all() and {*(labels == n)} == {True, False}][
      :DRAWN
    ]:
      false, true, _ = roc_curve(labels == number, probabilities[:, number])
      axis.plot(false, true, color=f'C{number % 10}', linewidth=1.2, label=plots.short(classes[number]))
    axis.plot([0, 1], [0, 1], color=plots.INK, linestyle='--', linewidth=1)
    axis.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel='1 − specificity', ylabel='sensitivity', aspect='equal')
    axis.set_title(f'ROC · AUC {area:.3f}{note}')
    figure.legend(loc='outside lower left', ncols=3, fontsize=7)
