"""What a run that gives tags leaves beside its curves: thresholds, scores of each tag, and the plots that suit it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from karpjax.data import splitting
from karpjax.metrics import multi_label as metrics
from karpjax.report import pictures, plots, tables, writers

THRESHOLDS = 'thresholds.json'
PICTURES, DRAWN = 12, 12  # images that are shown, and curves at the most


def write(
  folder: Path, *, tags, found: Mapping[str, tuple], images=None, kernel=None, saliency=None, heading: str = 'test split',
  seeds: int = 1,
) -> None:  # fmt: skip
  """report.txt, report.json, thresholds.json, and the plots: precision and recall, annotations, filters.

  Args:
    tags: their names.
    found: {split: (labels [n, tags], probabilities [n, tags])}; the last is shown, by thresholds of the largest F1 of
      'validation', or of 0.5 without that.
    images, kernel, heading, seeds: as for `report.classification.write`.
    saliency: not drawn; of a tag `explain` tells.
  """
  folder, note, (labels, probabilities) = Path(folder), tables.first_of(seeds), list(found.values())[-1]
  chosen = metrics.best_thresholds(*found['validation']) if 'validation' in found else np.full(len(tags), 0.5)
  whence = 'of the largest F1 in the validation split' if 'validation' in found else '0.5: there is no validation split'
  rows = metrics.per_tag(labels, probabilities, chosen, tags)
  report = {
    'heading': heading, 'shown': note.removeprefix(' · '), 'thresholds': whence,
    'scores': metrics.scores(labels, probabilities, chosen), 'scores_at_half': metrics.scores(labels, probabilities),
    'prior_map': _prior(labels), 'tags': rows,
  }  # fmt: skip
  show = lambda x: '–' if x is None else f'{x:.4f}'
  heads = 'average_precision', 'precision', 'recall', 'f1', 'threshold'
  lines = [(row['tag'], *(show(row[name]) for name in heads), row['support']) for row in rows]
  table = tables.table(lines, ('tag', 'AP', 'precision', 'recall', 'F1', 'threshold', 'support'))
  both = [(name, show(x), show(report['scores_at_half'][name])) for name, x in report['scores'].items()]
  scores = tables.table(both, ('', 'at these thresholds', 'at 0.5'))
  prior = f'Mean average precision of a guess by how frequent tags are: {report["prior_map"]:.4f}'
  text = [heading + note, f'Thresholds: {whence}', '', *table, '', *scores, '', prior, '']
  if left := [row['tag'] for row in rows if row['average_precision'] is None]:
    text += [f'Without an average precision, since all examples have it or none has: {", ".join(left)}', '']
  writers.write_json(folder / 'report.json', report)
  writers.write_json(folder / THRESHOLDS, dict(zip(tags, chosen.tolist())))
  writers.write_bytes(folder / 'report.txt', '\n'.join(text).encode())
  _precision_recall(labels, probabilities, tags, report['scores']['macro_map'], folder, note)
  if images is not None:
    few = splitting.sample(len(labels), PICTURES)
    _annotations(images(few), labels[few], probabilities[few] >= chosen, tags, folder, note)
  if kernel is not None:
    pictures.filters(kernel, folder, note)


def _prior(labels) -> float:
  able = metrics.scorable(labels)
  return float(np.mean([(labels[:, i] == 1).sum() / (labels[:, i] >= 0).sum() for i in able])) if len(able) else np.nan


def _precision_recall(labels, probabilities, tags, mean: float, folder: Path, note: str) -> None:
  """plots/precision_recall.png: a curve for each tag, of many for those of the least average precision."""
  from sklearn.metrics import precision_recall_curve

  curves = []
  for i in metrics.scorable(labels):
    known = labels[:, i] >= 0
    own = labels[known, i], probabilities[known, i]
    if not np.isnan(average := metrics.average_precision(*own)):
      curves.append((average, tags[i], precision_recall_curve(*own)))
  curves = sorted(curves, key=lambda curve: curve[:2])[:DRAWN]
  with plots.drawing(folder, 'precision_recall', 5.2, 4.4) as (figure, axis):
    for number, (average, tag, (precision, recall, _)) in enumerate(curves):
      style = {'color': f'C{number % 10}', 'linestyle': '-' if number < 10 else '--', 'linewidth': 1.1}
      axis.step(recall, precision, where='post', label=f'{plots.short(tag)} {average:.3f}', **style)
    axis.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel='recall', ylabel='precision')
    some = f' · the {DRAWN} tags of least AP' if len(metrics.scorable(labels)) > DRAWN else ''
    axis.set_title(f'Precision and recall · mAP {mean:.3f}{some}{note}')
    if curves:
      figure.legend(loc='outside lower left', ncols=3, fontsize=7)


def _annotations(images, labels, given, tags, folder: Path, note: str) -> None:
  """plots/annotations.png: images [n, ...] and what they are said to be: what is wrong, and what is missing, in colours."""
  captions = []
  for own, said in zip(labels, given):
    lines = [(plots.short(tag), plots.VERMILION if own[i] == 0 else plots.INK) for i, tag in enumerate(tags) if said[i]]
    missing = [
      (f'not said: {plots.short(tag)}', plots.PURPLE) for i, tag in enumerate(tags) if own[i] == 1 and not said[i]
    ]
    captions.append([*lines, *missing][:8])
  pictures.grid(images, 6, 'What images are said to be' + note, folder, 'annotations', captions=captions, width=1.1)
