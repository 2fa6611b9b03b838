"""The losses of guesses that look at no input, which a model that has learnt something is below."""

import math
from collections.abc import Callable

import numpy as np

from karpjax.data import splitting
from karpjax.data.dataset import Dataset

COUNTED = 5000  # examples, where targets are made as they are fetched
VALUES = 2**24  # of them at the most, where an example has many
FETCHED = 250  # of them at once: what is made on the way to windows of a text is many times as large


def targets(data: Dataset, name: str) -> np.ndarray:
  """What training has to predict, of all examples or of a sample; nothing where train is not there, or is streamed."""
  train = data.splits.get('train')
  if train is None or train.arrays is None:
    return np.zeros(0, np.int32)
  if name in train.arrays:
    return train.arrays[name]
  one = train.fetch(np.zeros(1, np.int32))[name].size
  numbers = splitting.sample(train.size, min(COUNTED, max(1, VALUES // one)))
  return np.concatenate([train.fetch(numbers[i : i + FETCHED])[name] for i in range(0, len(numbers), FETCHED)])


def uninformed(
  data: Dataset, name: str, classes: int, label_smoothing: float = 0.0, first: int = 0
) -> dict[str, float]:
  """Fields of a Program whose loss is the cross-entropy of classes or tokens, in nats.

  Args:
    data: whose train split has, or lacks, the targets: numbers below `classes`.
    name: theirs.
    classes: how many there are.
    label_smoothing: as the loss takes it.
    first: the least target that is scored.

  Returns:
    'untrained_loss', log C of even odds, and 'uninformed_loss', the least that any fixed odds reach: the entropy of the
    targets' frequencies (of tokens: unigrams), smoothed as the loss smooths them. Without targets it is log C too.
  """
  found = targets(data, name)
  counts = np.bincount(found[found >= first].astype(np.int64), minlength=classes)
  if not counts.any():
    return {'untrained_loss': math.log(classes), 'uninformed_loss': math.log(classes)}
  odds = (1 - label_smoothing) * counts / counts.sum() + label_smoothing / classes
  return {
    'untrained_loss': math.log(classes),
    'uninformed_loss': -float((odds[odds > 0] * np.log(odds[odds > 0])).sum()),
  }


def uninformed_mean(data: Dataset, name: str, change: Callable = lambda x: x) -> dict[str, float]:
  """The same of squared errors of numbers, changed as the loss does: outputs of 0, and the mean, whose loss is the variance."""
  found = change(targets(data, name).astype(np.float64))
  return {'untrained_loss': float(np.square(found).mean()), 'uninformed_loss': float(found.var())} if len(found) else {}


def uninformed_bits(data: Dataset, maximum: float) -> dict[str, float]:
  """The same where the loss is that of pixels which are 1 by their grey value: the frequencies are each pixel's own.

  Args:
    data: with 'image' [size, …] in 0 … maximum.
  """
  images = targets(data, 'image')
  if not len(images):
    return {}
  p = images.mean(0, dtype=np.float64) / maximum
  entropy = -sum(float((q[q > 0] * np.log(q[q > 0])).sum()) for q in (p, 1 - p))
  return {'untrained_loss': p.size * math.log(2), 'uninformed_loss': entropy}
