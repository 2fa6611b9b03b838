"""How well a classifier does: sums over examples on the device, and what they come to, on the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import program

BINS = 15  # of confidence, as in Guo et al. 2017


def sums(logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array) -> dict[str, Any]:
  """What evaluation adds up over batches, replicas and hosts; masked examples add nothing.

  Args:
    logits: [batch, classes] float32.
    labels: [batch] int32 in [0, classes).
    losses: [batch] float32, one per example.
    mask: [batch] bool, True where the example is real.

  Returns:
    'loss': (sum, count), float32 scalars.
    'correct', 'top5': int32 scalars; of equal logits the first counts as the larger.
    'confusion': [classes, classes] int32, rows the true and columns the predicted class.
    'calibration': [15, 3] float32, per bin of confidence its count, sum of confidences and number correct.
  """
  classes = logits.shape[-1]
  real = mask.astype(jnp.int32)
  predicted = logits.argmax(-1)  # [batch, classes] -> [batch]
  correct = (predicted == labels).astype(jnp.int32)

  true = jnp.take_along_axis(logits, labels[:, None], -1)  # [batch] -> [batch, 1]
  after = jnp.arange(classes) >= labels[:, None]  # [batch, classes]
  behind = (logits < true) | ((logits == true) & after)  # a NaN is not behind anything
  rank = (~behind).sum(-1)  # [batch]

  confidence = jax.nn.softmax(logits).max(-1)  # [batch]
  bins = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1)
  values = jnp.stack([jnp.ones_like(confidence), confidence, correct.astype(jnp.float32)], -1)  # [batch, 3]
  inside = (bins[:, None] == jnp.arange(BINS)) & mask.astype(bool)[:, None]  # [batch, 15]
  return {
    'loss': program.pair(losses, mask),
    'correct': (correct * real).sum(),
    'top5': ((rank < 5) * real).sum(),
    'confusion': jnp.zeros((classes, classes), jnp.int32).at[labels, predicted].add(real),
    # a masked sum, not a matmul: accelerators multiply with fewer bits
    'calibration': jnp.where(inside[:, :, None], values[:, None, :], 0).sum(0),  # [batch, 15, 3] -> [15, 3]
  }


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """The final numbers of `sums` (on the host, one seed), in float64; NaN where there was no example.

  Returns:
    'loss', 'accuracy', 'error' (1 - accuracy), 'top5_accuracy' (of more than 5 classes), 'macro_f1', 'ece'.
  """
  confusion = np.asarray(sums['confusion'])
  mean = lambda total, count=confusion.sum(): float(_divide(total, count, empty=np.nan))
  numbers = {'loss': mean(*sums['loss']), 'accuracy': mean(sums['correct']), 'error': 1 - mean(sums['correct'])}
  if len(confusion) > 5:
    numbers['top5_accuracy'] = mean(sums['top5'])
  ece = expected_calibration_error(sums['calibration'])
  return {**numbers, 'macro_f1': float(_scores(confusion)[2].mean()), 'ece': ece}


def expected_calibration_error(calibration: np.ndarray) -> float:
  """The mean over examples of |accuracy - confidence| of the example's bin, from `sums`' [15, 3].

  Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3; bin m is ((m-1)/15, m/15].
  """
  count, confidence, correct = np.asarray(calibration, np.float64).T  # [15, 3] -> three of [15]
  return float(_divide(np.abs(correct - confidence).sum(), count.sum(), empty=np.nan))


def tally(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`sums`' confusion [classes, classes] and calibration [15, 3] of labels [n] and probabilities [n, classes],
  on the host.
  """
  labels, classes = np.asarray(labels), probabilities.shape[1]
  predicted, confidence = probabilities.argmax(1), probabilities.max(1)
  confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
  known = ~np.isnan(confidence)  # what is NaN is in no bin
  bins = np.clip(np.ceil(np.nan_to_num(confidence) * BINS) - 1, 0, BINS - 1).astype(int)
  weights = (known, known * np.nan_to_num(confidence), known & (predicted == labels))
  return confusion, np.stack([np.bincount(bins, weight, BINS) for weight in weights], 1)


def per_class_report(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
  """Precision, recall, F1 and support, as scikit-learn's `classification_report`; 0 where a ratio is 0/0.

  Args:
    confusion: [classes, classes] counts, rows the true and columns the predicted class.
    classes: their names.

  Returns:
    'classes': a list of {'class', 'precision', 'recall', 'f1', 'support'};
    'micro', 'macro', 'weighted': the same over all decisions, as mean over classes, and that weighted.
  """
  confusion = np.asarray(confusion)
  support, scores = confusion.sum(1), _scores(confusion)  # [classes], [3, classes]
  total = int(support.sum())
  row = lambda values, count: {**dict(zip(('precision', 'recall', 'f1'), map(float, values))), 'support': int(count)}
  return {
    'classes': [{'class': str(name), **row(*each)} for name, *each in zip(classes, scores.T, support)],
    'micro': row([_divide(confusion.trace(), total)] * 3, total),
    'macro': row(scores.mean(1), total),
    'weighted': row(_divide(scores @ support, total), total),
  }


def _scores(confusion: np.ndarray) -> np.ndarray:
  """[3, classes] float64: precision, recall and F1."""
  hits, predicted, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
  return np.stack([_divide(hits, predicted), _divide(hits, support), _divide(2 * hits, predicted + support)])


def _divide(numerator, denominator, empty: float = 0.0):
  """numerator / denominator in float64, and `empty` where the denominator is 0."""
  denominator = np.asarray(denominator, np.float64)
  return np.where(denominator == 0, empty, numerator / np.where(denominator == 0, 1, denominator))
