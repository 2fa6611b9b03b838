"""What a classification run leaves beside its curves: the per-class report and the plots that suit it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from karpjax.data import splitting
from karpjax.metrics import classification
from karpjax.report import pictures, plots, tables, writers

MISTAKES = 20
SALIENCIES = 8


def write(
  folder: Path, *, classes, labels, probabilities, images=None, texts=None, kernel=None, saliency=None, baselines=None,
  heading: str = 'test split', seeds: int = 1,
) -> None:  # fmt: skip
  """report.txt, report.json, and the plots: confusion matrix, reliability, worst mistakes, filters, saliency.

  Args:
    classes, labels, probabilities: names; [n] int; [n, classes].
    images: example numbers [k] -> images [k, height, width, channels] in [0, 1], or signals [k, length, channels].
    texts: [n]; the worst mistakes are lines of report.txt.
    kernel: of the first layer, [height, width, in, out] or [width, in, out]; or None.
    saliency: example numbers [k] -> [k, height, width] or [k, length].
    baselines: {model: {metric: number}}, for report.txt.
    heading: what was predicted.
    seeds: of the run; the arrays are those of the first, and what is written says so.
  """
  folder, labels, names = Path(folder), np.asarray(labels), np.asarray(classes, object)
  confusion, calibration = classification.tally(labels, probabilities)
  error, note, lines = classification.expected_calibration_error(calibration), tables.first_of(seeds), []
  report = {'expected_calibration_error': error, **classification.per_class_report(confusion, classes)}
  plots.reliability(calibration, error, folder, note)

  predicted = probabilities.argmax(1)
  wrong = np.flatnonzero(predicted != labels)
  # The worst are those whose true class got the least; ties in order of their numbers.
  worst = wrong[np.argsort(probabilities[wrong, labels[wrong]], kind='stable')[:MISTAKES]]
  mistakes = names[labels[worst]], names[predicted[worst]], probabilities[worst, predicted[worst]]
  (folder / 'plots' / 'worst_mistakes.png').unlink(missing_ok=True)  # an earlier report's
  if images is not None and len(worst):
    pictures.mistakes(images(worst), *mistakes, folder, note)
  if baselines:
    report['baselines'] = baselines
    lines += [*compared(baselines), '']
  if texts is not None and len(worst):
    heads = ('true', 'predicted', 'probability', 'text')
    rows = [(true, guess, float(p), ' '.join(texts[i].split())) for true, guess, p, i in zip(*mistakes, worst)]
    report['worst_mistakes'] = [dict(zip(heads, row)) for row in rows]
    lines += ['Worst mistakes', '', *tables.table(rows, heads), '']
  if kernel is not None:
    pictures.filters(kernel, folder, note)
  if saliency is not None:
    few = splitting.sample(len(labels), SALIENCIES)
    pictures.saliency(images(few), saliency(few), names[labels[few]], names[predicted[few]], folder, note)
  write_scores(folder, report, confusion, classes, heading, seeds, lines)


def write_scores(folder: Path, scores: Mapping, confusion, classes, heading: str, seeds: int, lines=()) -> None:
  """report.json; report.txt, a table of the scores and further lines; and plots/confusion_matrix.png.

  Args:
    folder, classes, heading, seeds: as for `write`.
    scores: as from `per_class_report`, of classes or of entities; report.json holds all of it.
    confusion: [classes, classes] counts.
    lines: of report.txt.
  """
  note = tables.first_of(seeds)
  averages = [{'class': f'{name} average', **scores[name]} for name in ('micro', 'macro', 'weighted')]
  rows = [
    (row['class'], *(f'{row[name]:.4f}' for name in ('precision', 'recall', 'f1')), row['support'])
    for row in [*scores['classes'], *averages]
  ]
  table = tables.table(rows, ('class', 'precision', 'recall', 'F1', 'support'))
  writers.write_json(folder / 'report.json', {'heading': heading, 'shown': note.removeprefix(' · '), **scores})
  writers.write_bytes(folder / 'report.txt', '\n'.join([heading + note, '', *table, '', *lines]).encode())
  plots.confusion(confusion, classes, folder, note)


def compared(baselines: Mapping[str, Mapping[str, float]], numbers: Mapping | None = None, name: str = '') -> list[str]:
  """Baselines as aligned lines, under the numbers of a run where they are given; none where they share no metric.

  Args:
    baselines: {model: {metric: number}}.
    numbers: of summary.json: a number, or several seeds' {'mean', 'std', …}, for each metric.
    name: of the run's model.
  """
  metrics = [metric for metric in next(iter(baselines.values()), ()) if numbers is None or metric in numbers]
  if not metrics:
    return []
  shown = lambda x: f'{x["mean"]:.4f} ± {x["std"]:.4f}' if isinstance(x, Mapping) else f'{x:.4f}'
  rows = [] if numbers is None else [(name, *(shown(numbers[metric]) for metric in metrics))]
  rows += [(f'TF-IDF, {model}', *(shown(row[metric]) for metric in metrics)) for model, row in baselines.items()]
  return tables.table(rows, ('model', *metrics))


def first_kernel(params, shape: tuple[int, ...]) -> np.ndarray | None:
  """The kernel that meets the image, or None where no layer has such a one.

  Args:
    params: pytree of arrays.
    shape: of one example, [height, width, channels] or [length, channels].

  Returns:
    [*window, channels, out]; of a dense layer over all pixels [*shape[:-1], channels, out].
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  kernels = [np.asarray(x, np.float32) for path, x in leaves if 'kernel' in jax.tree_util.keystr(path)]
  windows = [x for x in kernels if x.ndim == len(shape) + 1 and x.shape[-2] == shape[-1]]
  dense = [x.reshape(*shape, -1) for x in kernels if x.ndim == 2 and len(x) == np.prod(shape)]
  return next(iter(windows + dense), None)


def saliency(predict: Callable, state, batch) -> np.ndarray:
  """How strongly each place moves the largest logit: [batch, height, width] or [batch, length], not negative.

  The absolute gradient, its maximum over channels (Simonyan et al. 2014, "Deep Inside Convolutional Networks", section
  3).
  """

  def largest(images, state, batch):
    return predict(state, {**batch, 'image': images}, jax.random.key(0)).max(-1).sum()

  gradient = jax.jit(jax.grad(largest))(np.asarray(batch['image'], np.float32), state, batch)
  return np.abs(gradient).max(-1)  # [batch, ..., channels] -> [batch, ...]
