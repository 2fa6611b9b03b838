"""What a classification run leaves beside its curves: the per-class report and the plots that suit it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.data.dataset import Split
from karpjax.metrics import classification
from karpjax.report import pictures, plots, progress, writers

BATCH = 500  # examples in one call of predict
MISTAKES = 20
SALIENCIES = 8


def draw(program, dataset, state, t: int, folder: Path, *, seeds: int = 1) -> None:
  """A Program's `report` for images and signals: predicts the test split (else validation, else train) for `write`.

  Args:
    program: its `predict` gives logits [batch, classes].
    dataset: with classes; the report is of one of its splits.
    state: of one seed.
    t: the step, for the report's heading.
    folder: the run's folder.
    seeds: how many the run has; `state` is that of the first.
  """
  name, split, labels, probabilities = predictions(program, dataset, state)
  spec = dataset.spec
  write(
    folder,
    classes=spec.classes,
    labels=labels,
    probabilities=probabilities,
    images=lambda indices: split.fetch(indices)['image'].astype(np.float32) / spec.maximum,
    kernel=first_kernel(getattr(state, 'eval_params', None), spec.shape),
    saliency=lambda indices: saliency(program, state, _batch(split, indices)),
    heading=f'{name} split, step {t}',
    seeds=seeds,
  )


def draw_texts(
  program,
  dataset,
  texts: Mapping[str, Split],
  state,
  t: int,
  folder: Path,
  *,
  seeds: int = 1,
  baselines: Callable[[], Mapping[str, Mapping[str, float]]] = dict,
) -> None:
  """A Program's `report` for texts: as `draw`, the worst mistakes written out, and baselines beside.

  Args:
    program, dataset, state, t, folder, seeds: as `draw`'s.
    texts: {split: of 'text' [n], the strings themselves}.
    baselines: () -> {model: {metric: number}}.
  """
  name, _, labels, probabilities = predictions(program, dataset, state)
  write(
    folder,
    classes=dataset.spec.classes,
    labels=labels,
    probabilities=probabilities,
    texts=texts[name].arrays['text'],
    baselines=baselines(),
    heading=f'{name} split, step {t}',
    seeds=seeds,
  )


def predictions(program, dataset, state) -> tuple[str, Split, np.ndarray, np.ndarray]:
  """Name of the split reported, the split, its labels [n] and the probabilities [n, classes] that the program gives."""
  name = next(name for name in ('test', 'validation', 'train') if name in dataset.splits)
  split = dataset.splits[name]
  labels = split.fetch(np.arange(split.size))['label'] if split.arrays is None else split.arrays['label']
  return name, split, labels, probabilities(program, state, split)


def probabilities(program, state, split: Split) -> np.ndarray:
  """[size, classes] float32 that a Program whose `predict` gives logits has for a split's examples."""
  key = jax.random.key(0)
  predict = jax.jit(lambda state, batch: jax.nn.softmax(program.predict(state, batch, key)))
  size, rows = min(BATCH, split.size), []
  for start in range(0, split.size, size):
    batch = _batch(split, (start + np.arange(size)) % split.size)  # the last batch is filled up from the first
    rows.append(np.asarray(predict(state, batch))[: split.size - start])
  return np.concatenate(rows)


def write(
  folder: Path,
  *,
  classes: Sequence[str],
  labels: np.ndarray,
  probabilities: np.ndarray,
  images: Callable[[np.ndarray], np.ndarray] | None = None,
  texts: Sequence[str] | None = None,
  kernel: np.ndarray | None = None,
  saliency: Callable[[np.ndarray], np.ndarray] | None = None,
  baselines: Mapping[str, Mapping[str, float]] | None = None,
  heading: str = 'test split',
  seeds: int = 1,
) -> None:
  """report.txt, report.json, and the plots: confusion matrix, reliability, worst mistakes, filters, saliency.

  Args:
    folder: the run's folder.
    classes: their names.
    labels: [n] int.
    probabilities: [n, classes].
    images: example numbers [k] -> [k, height, width, channels] in [0, 1], or signals [k, length, channels]; the worst
      mistakes are drawn.
    texts: [n]; the worst mistakes are lines of report.txt.
    kernel: of the first layer, [height, width, in, out] or [width, in, out]; None: no such plot.
    saliency: example numbers [k] -> [k, height, width] or [k, length]; None: no such plot.
    baselines: {model: {metric: number}}, for report.txt; None or empty: none.
    heading: says in the report what was predicted.
    seeds: of the run; the arrays are those of the first, and what is written says so.
  """
  labels = np.asarray(labels)
  predicted, names = probabilities.argmax(1), np.asarray(classes, object)
  confusion, calibration = classification.tally(labels, probabilities)
  error = classification.expected_calibration_error(calibration)
  shown = f'first of {seeds} seeds' if seeds > 1 else ''
  note = f' · {shown}' if shown else ''
  report = {
    'heading': heading,
    'shown': shown,
    'expected_calibration_error': error,
    **classification.per_class_report(confusion, classes),
  }
  lines = [table(report, heading + note)]

  plots.confusion(confusion, classes, folder, note)
  plots.reliability(calibration, error, folder, note)
  # The worst are those whose true class got the least; ties in order of their numbers.
  wrong = np.flatnonzero(predicted != labels)
  given = probabilities[wrong, labels[wrong]]
  worst = wrong[np.argsort(given, kind='stable')[:MISTAKES]]
  true, guessed, chance = names[labels[worst]], names[predicted[worst]], probabilities[worst, predicted[worst]]
  if not len(worst):
    (Path(folder) / 'plots' / 'worst_mistakes.png').unlink(missing_ok=True)  # an earlier report's
  elif images is not None:
    pictures.mistakes(images(worst), true, guessed, chance, folder, note)
  if baselines:
    report['baselines'] = baselines
    lines.append('\n'.join([*compared(baselines), '']))
  if texts is not None and len(worst):
    report['mistakes'] = [
      {'true': t, 'predicted': p, 'probability': float(c), 'text': texts[i]}
      for t, p, c, i in zip(true, guessed, chance, worst)
    ]
    lines.append(mistakes(report['mistakes']))
  if kernel is not None:
    pictures.filters(kernel, folder, note)
  if saliency is not None:
    few = np.arange(min(SALIENCIES, len(labels)))
    pictures.saliency(images(few), saliency(few), names[labels[few]], names[predicted[few]], folder, note)
  writers.write_json(Path(folder) / 'report.json', report)
  writers.write_bytes(Path(folder) / 'report.txt', '\n'.join(lines).encode())


def compared(baselines: Mapping[str, Mapping[str, float]], numbers: Mapping | None = None, name: str = '') -> list[str]:
  """Baselines as aligned lines, under the numbers of a run where they are given.

  Args:
    baselines: {model: {metric: number}}.
    numbers: of summary.json: a number, or several seeds' {'mean', 'std', …}, for each metric.
    name: of the run's model.
  """
  metrics = [metric for metric in next(iter(baselines.values())) if numbers is None or metric in numbers]
  shown = lambda x: f'{x["mean"]:.4f} ± {x["std"]:.4f}' if isinstance(x, Mapping) else f'{x:.4f}'
  rows = [] if numbers is None else [(name, *(shown(numbers[metric]) for metric in metrics))]
  rows += [(f'TF-IDF, {model}', *(shown(row[metric]) for metric in metrics)) for model, row in baselines.items()]
  return progress.table(rows, ('model', *metrics))


def mistakes(rows: Sequence[Mapping]) -> str:
  """The worst mistakes as aligned text, a line each."""
  width = max(len(row[name]) for row in rows for name in ('true', 'predicted'))
  lines = [
    f'{row["true"]:>{width}}  {row["predicted"]:>{width}}  {row["probability"]:11.4f}  {" ".join(row["text"].split())}'
    for row in rows
  ]
  head = f'{"true":>{width}}  {"predicted":>{width}}  {"probability":>11}  text'
  return '\n'.join(['Worst mistakes', '', head, *lines, ''])


def table(report: dict, heading: str) -> str:
  """`per_class_report`'s numbers as aligned text."""
  averages = [{'class': f'{name} average', **report[name]} for name in ('micro', 'macro', 'weighted')]
  width = max(len(row['class']) for row in [*report['classes'], *averages])
  line = lambda row: (
    f'{row["class"]:>{width}}  {row["precision"]:9.4f}  {row["recall"]:9.4f}  {row["f1"]:9.4f}  {row["support"]:9d}'
  )
  head = f'{"":>{width}}  {"precision":>9}  {"recall":>9}  {"F1":>9}  {"support":>9}'
  return '\n'.join([heading, '', head, *map(line, report['classes']), '', *map(line, averages), ''])


def first_kernel(params, shape: tuple[int, ...]) -> np.ndarray | None:
  """The kernel that meets the image, or None where no layer has such a one.

  Args:
    params: pytree of arrays.
    shape: of one example, [height, width, channels] or [length, channels].

  Returns:
    [*window, channels, out]; of a dense layer over all pixels [*shape[:-1], channels, out].
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  kernels = [x for path, x in leaves if 'kernel' in jax.tree_util.keystr(path)]
  for kernel in kernels:
    if kernel.ndim == len(shape) + 1 and kernel.shape[-2] == shape[-1]:
      return np.asarray(kernel, np.float32)
  for kernel in kernels:
    if kernel.ndim == 2 and kernel.shape[0] == np.prod(shape):
      return np.asarray(kernel, np.float32).reshape(*shape, -1)
  return None


def saliency(program, state, batch) -> np.ndarray:
  """How strongly each place moves the largest logit: [batch, height, width] or [batch, length], not negative.

  The absolute gradient, its maximum over channels (Simonyan et al. 2014, "Deep Inside Convolutional
  Networks", section 3).
  """

  @jax.jit
  def gradient(state, batch, images):
    largest = lambda images: program.predict(state, {**batch, 'image': images}, jax.random.key(0)).max(-1).sum()
    return jnp.abs(jax.grad(largest)(images)).max(-1)  # [batch, ..., channels] -> [batch, ...]

  return np.asarray(gradient(state, batch, jnp.asarray(batch['image'], jnp.float32)))


def _batch(split, indices: np.ndarray) -> dict[str, np.ndarray]:
  return {
    **split.fetch(indices),
    'index': np.asarray(indices, np.int32),
    'mask': np.ones(len(indices), bool),
  }
