"""What can be told of a classifier at every threshold: areas under ROC curves, and how sure numbers of few examples are."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from karpjax.metrics.collect import collect

DRAWS = 1000  # of the bootstrap


def sums(logits, batch, examples: int) -> dict[str, Any]:
  """The probabilities [examples, classes] of all examples, and their labels, plus 1."""
  return collect(
    {'probabilities': jax.nn.softmax(logits), 'labels': batch['label'] + 1}, batch['index'], batch['mask'], examples
  )


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """Of labels [n] and probabilities [n, classes]: of two classes that of the last one, else the mean of each against the rest.

  NaN where a class, or all the rest, is missing.
  """
  from sklearn.metrics import roc_auc_score

  classes = [probabilities.shape[1] - 1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
  each = [labels == c for c in classes]
  if any(one.all() or not one.any() for one in each) or not np.isfinite(probabilities).all():
    return float('nan')
  return float(np.mean([roc_auc_score(one, probabilities[:, c]) for one, c in zip(each, classes)]))


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """{'auc': …} of `sums` (on the host, one seed)."""
  labels = np.asarray(sums['labels']) - 1
  return {'auc': auc(labels[labels >= 0], np.asarray(sums['probabilities'])[labels >= 0])}


def threshold(is_one: np.ndarray, scores: np.ndarray) -> float:
  """From which score on the sum of sensitivity and specificity is largest (Youden 1950); of equal ones the highest.

  0.5 where a score is no number, or only one kind is there.
  """
  from sklearn.metrics import roc_curve

  if not np.isfinite(scores).all() or is_one.all() or not is_one.any():
    return 0.5
  false, true, thresholds = roc_curve(is_one, scores, drop_intermediate=False)
  best = int(np.argmax(true - false))
  below = scores[scores < thresholds[best]]
  return float(
    (thresholds[best] + below.max()) / 2 if len(below) and np.isfinite(thresholds[best]) else min(thresholds[best], 1.0)
  )


def at_threshold(is_one: np.ndarray, scores: np.ndarray, at: float) -> dict[str, float]:
  """{'sensitivity', 'specificity', 'precision', 'accuracy'}; NaN where nothing is counted."""
  said = scores >= at
  ratio = lambda hits, whole: float(hits.sum() / whole.sum()) if whole.sum() else float('nan')
  return {
    'sensitivity': ratio(said & is_one, is_one), 'specificity': ratio(~said & ~is_one, ~is_one),
    'precision': ratio(said & is_one, said), 'accuracy': float((said == is_one).mean()),
  }  # fmt: skip


def interval(statistic: Callable, *arrays: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The middle 95 % of a statistic over DRAWS drawings of as many examples with replacement (Efron 1979: percentiles).

  Args:
    statistic: arrays of drawn examples -> a number; NaN leaves a draw out.
    arrays: [n, …] each.
  """
  draw, size, found = np.random.default_rng(seed), len(arrays[0]), []
  for _ in range(DRAWS):
    rows = draw.integers(size, size=size)
    found.append(statistic(*(x[rows] for x in arrays)))
  finite = np.array(found)[np.isfinite(found)]
  return tuple(np.quantile(finite, [0.025, 0.975]).tolist()) if len(finite) else (float('nan'),) * 2
