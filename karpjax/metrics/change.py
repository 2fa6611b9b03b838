"""Whether the rate of hits in a sequence has risen, found online: a CUSUM, or a binomial test of a moving window."""

import math
from typing import NamedTuple

import numpy as np

TESTS = ('cusum', 'binomial')


class Alert(NamedTuple):
  at: int  # the place at which it was raised
  since: int  # the estimated beginning of the rise
  reference: float  # the expected rate
  rate: float  # that from `since` to `at`


class Watch(NamedTuple):
  statistics: np.ndarray  # [n] float64: evidence for a rise at each place, in nats; 0 where none is sought
  references: np.ndarray  # [n] float64: the expected rate there; NaN while too little is known
  alerts: list[Alert]


def expected(count: int, size: int) -> float:
  """The expected rate after `count` hits among `size`: Laplace's estimate, and one standard error more."""
  rate = (count + 1) / (size + 2)
  return rate + math.sqrt(rate * (1 - rate) / size)


def cusum(statistic: float, hit: bool, reference: float, factor: float) -> float:
  """Page 1954: max(0, statistic + log-likelihood ratio of one observation, under odds `factor` times as high as expected).

  At the reference rate, places where this exceeds h lie at least exp(h) apart, in the mean (Lorden 1971).
  """
  odds = factor * reference / (1 - reference)
  raised = odds / (1 + odds)
  ratio = raised / reference if hit else (1 - raised) / (1 - reference)
  return max(0.0, statistic + math.log(ratio))


def binomial(count: int, size: int, reference: float) -> float:
  """-log P(X >= count), X the hits among `size` at the reference rate."""
  from scipy import stats

  return float(-stats.binom.logsf(count - 1, size, reference))


def watch(
  hits: np.ndarray,
  *,
  test: str = 'cusum',
  threshold: float = 8.0,
  window: int = 100,
  baseline: int = 200,
  reference: float | None = None,
  factor: float = 2.0,
) -> Watch:
  """Reads hits one after the other, and raises an alert wherever the evidence for a rise exceeds the threshold.

  Args:
    hits: [n] bool.
    test: 'cusum', or 'binomial' on each window.
    threshold: nats: of the CUSUM, or minus the logarithm of the test's level.
    window: places of the binomial test.
    baseline: the fewest places from which the expected rate is estimated: all those before the last `window`, since the
      last alert.
    reference: the expected rate, if it is known; then nothing is estimated.
    factor: by which the odds rise, in the CUSUM's hypothesis.
  """
  hits = np.asarray(hits, bool)
  counts = np.concatenate([[0], np.cumsum(hits)])  # counts[i]: hits among the first i
  statistics, references, alerts = np.zeros(len(hits)), np.full(len(hits), np.nan), []
  first = start = 0  # after the last alert; of the rise
  statistic = 0.0
  for i, hit in enumerate(hits):
    size = i + 1 - window - first  # places of the estimate
    if reference is None and size < baseline:
      start = i + 1
      continue
    rate = expected(int(counts[first + size] - counts[first]), size) if reference is None else reference
    if test == 'cusum':
      statistic = cusum(statistic, hit, rate, factor)
      start = start if statistic else i + 1
    elif size >= 0:
      start = i + 1 - window
      statistic = binomial(int(counts[i + 1] - counts[start]), window, rate)
    statistics[i], references[i] = statistic, rate
    if statistic > threshold:
      alerts.append(Alert(i, start, rate, float(hits[start : i + 1].mean())))
      first, start, statistic = i + 1, i + 1, 0.0
  return Watch(statistics, references, alerts)
