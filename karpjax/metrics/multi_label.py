"""How well tags are given: every example's scores, gathered on the device, and what they come to, on the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from karpjax.metrics.collect import collect
from karpjax.program import pair

FIRST = 5  # tags of an example that `precision_at_5` looks at


def sums(logits, labels, losses, batch, examples: int) -> dict[str, Any]:
  """What evaluation adds up.

  Args:
    logits: [batch, tags].
    labels: [batch, tags]: 1, 0, or below 0 where a tag is not known.
    losses: [batch] float32.
    batch: with 'index' and 'mask'.
    examples: as for `collect`.

  Returns:
    'loss': (sum, count); 'probabilities': [examples, tags] float32; 'labels': [examples, tags] int8, plus 2, and so 0 where
    there is no example.
  """
  rows = {'probabilities': jax.nn.sigmoid(logits), 'labels': (labels + 2).astype(np.int8)}
  return {'loss': pair(losses, batch['mask']), **collect(rows, batch['index'], batch['mask'], examples)}


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """The final numbers of `sums` (on the host, one seed): 'loss' and those of `scores`."""
  loss, count = (float(x) for x in sums['loss'])
  labels = np.asarray(sums['labels']).astype(int) - 2
  there = (labels > -2).any(1)
  found = scores(labels[there], np.asarray(sums['probabilities'])[there]) if there.any() else {}
  return {'loss': loss / count if count else np.nan, **found}


def scores(labels: np.ndarray, probabilities: np.ndarray, thresholds=0.5) -> dict[str, float]:
  """Numbers of labels [n, tags], 1, 0 or -1 where not known, and probabilities [n, tags].

  Args:
    thresholds: from which on a tag is given: one, or [tags].

  Returns:
    'macro_map': the mean over tags of average precision, of those which some known example has, and some has not.
    'micro_map': the average precision of all (example, tag) together.
    'micro_f1', 'macro_f1': of the tags given; of a tag that is neither there nor given 0.
    'precision_at_5': how many of an example's five likeliest tags it has, of those that are known.
    'exact_match': of how many examples all known tags are right.
    'hamming_accuracy': of how many (example, tag).
  """
  known, given = labels >= 0, probabilities >= thresholds
  has = lambda tag: average_precision(labels[known[:, tag], tag], probabilities[known[:, tag], tag])
  f1 = _f1(labels, given, known)
  first = np.argsort(np.where(known, -probabilities, np.inf), 1, kind='stable')[:, :FIRST]
  hits, looked = (np.take_along_axis(x, first, 1) for x in (labels == 1, known))
  right = given == (labels == 1)
  mean = lambda values: float(np.mean(values)) if len(values) else np.nan
  return {
    'macro_map': mean([has(tag) for tag in scorable(labels)]),
    'micro_map': average_precision(labels[known], probabilities[known]) if (labels == 1).any() else np.nan,
    'micro_f1': float(_f1(*(x[known][:, None] for x in (labels, given, known)))[0]) if known.any() else np.nan,
    'macro_f1': mean(f1),
    'precision_at_5': mean(hits[looked]),
    'exact_match': mean((right | ~known).all(1)),
    'hamming_accuracy': mean(right[known]),
  }


def average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """scikit-learn's, of [n]; NaN where a probability is."""
  from sklearn.metrics import average_precision_score

  return float(average_precision_score(labels, probabilities)) if not np.isnan(probabilities).any() else np.nan


def scorable(labels: np.ndarray) -> np.ndarray:
  """The numbers of the tags of labels [n, tags] that some known example has, and some has not."""
  return np.flatnonzero((labels == 1).any(0) & (labels == 0).any(0))


def _f1(labels, given, known) -> np.ndarray:
  """[tags]; 0 where a tag is neither there nor given."""
  hits = ((labels == 1) & given & known).sum(0)
  return 2 * hits / np.maximum((labels == 1).sum(0) + (given & known).sum(0), 1)


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
  """[tags]: of each tag the threshold of the largest F1, halfway to the next lower probability; 0.5 of one that is not
  `scorable`, or has a probability of NaN.

  Of equal ones the highest.
  """
  thresholds = np.full(labels.shape[1], 0.5)
  for tag in scorable(labels):
    known = labels[:, tag] >= 0
    if np.isnan(probabilities[known, tag]).any():
      continue
    order = np.argsort(-probabilities[known, tag], kind='stable')
    p, there = probabilities[known, tag][order].astype(float), labels[known, tag][order] == 1
    f1 = 2 * np.cumsum(there) / (np.arange(1, len(p) + 1) + there.sum())
    ends = np.append(p[1:] < p[:-1], True)  # equal ones are given together
    best = np.argmax(np.where(ends, f1, -1))
    thresholds[tag] = (p[best] + (p[best + 1] if best + 1 < len(p) else 0)) / 2
  return thresholds


def per_tag(labels: np.ndarray, probabilities: np.ndarray, thresholds, tags: Sequence[str]) -> list[dict[str, Any]]:
  """Of each tag: {'tag', 'average_precision' (None where not `scorable`), 'precision', 'recall', 'f1', 'threshold', 'support'}."""
  rows, can, given = [], {*scorable(labels).tolist()}, probabilities >= thresholds
  for i, tag in enumerate(tags):
    known = labels[:, i] >= 0
    there, own = labels[known, i] == 1, given[known, i]
    hits = int((there & own).sum())
    ratio = lambda whole, hits=hits: hits / whole if whole else 0.0
    rows.append({
      'tag': tag,
      'average_precision': average_precision(there, probabilities[known, i]) if i in can else None,
      'precision': ratio(int(own.sum())), 'recall': ratio(int(there.sum())),
      'f1': ratio((int(own.sum()) + int(there.sum())) / 2), 'threshold': float(thresholds[i]), 'support': int(there.sum()),
    })  # fmt: skip
  return rows
