"""Whether the rate of hits in a sequence has risen, found online: a CUSUM, or a binomial test of a moving window."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from karpjax import config

TESTS = ('cusum', 'binomial')


@dataclasses.dataclass(frozen=True)
class Rule:
  """When an alert is raised."""

  test: str = config.flag('cusum', 'The test for a rise.', choices=TESTS)
  threshold: float = config.flag(
    8.0, 'Nats of an alert: of the CUSUM, whose false alerts are exp(threshold) rows apart at least, in the mean; or minus the '
    'logarithm of the level of the binomial test.', above=0,
  )  # fmt: skip
  window: int = config.flag(100, 'Rows of the rolling share, and of the binomial test.', low=1)
  baseline: int = config.flag(200, 'The fewest rows, since the last alert, that tell the usual share.', low=1)
  reference: float | None = config.flag(None, 'The usual share. Default: all rows before the window.', above=0, below=1)
  factor: float = config.flag(2.0, 'The factor by which the CUSUM takes odds to rise.', above=1)


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
  """The expected rate after `count` hits among `size`: Laplace's estimate, and one standard error more, but below 1."""
  rate = (count + 1) / (size + 2)
  return min(rate + math.sqrt(rate * (1 - rate) / size), 1 - 0.5 / (size + 2))  # which only hits alone would exceed


def cusum(statistic: float, hit: bool, reference: float, factor: float) -> float:
  """Page 1954: max(0, statistic + log-likelihood ratio of one observation, under odds `factor` times as high as
  expected).

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


def watch(hits: np.ndarray, rule: Rule) -> Watch:
  """Reads hits [n] bool one after the other, and raises an alert wherever the evidence for a rise exceeds the
  threshold.
  """
  hits = np.asarray(hits, bool)
  counts = np.concatenate([[0], np.cumsum(hits)])  # counts[i]: hits among the first i
  statistics, references, alerts = np.zeros(len(hits)), np.full(len(hits), np.nan), []
  first = start = 0  # after the last alert; of the rise
  statistic = 0.0
  for i, hit in enumerate(hits):
    size = i + 1 - rule.window - first  # places of the estimate
    if rule.reference is None and size < rule.baseline:
      start = i + 1
      continue
    rate = expected(int(counts[first + size] - counts[first]), size) if rule.reference is None else rule.reference
    if rule.test == 'cusum':
      statistic = cusum(statistic, hit, rate, rule.factor)
      start = start if statistic else i + 1
    elif size >= 0:
      start = i + 1 - rule.window
      statistic = binomial(int(counts[i + 1] - counts[start]), rule.window, rate)
    statistics[i], references[i] = statistic, rate
    if statistic > rule.threshold:
      alerts.append(Alert(i, start, rate, float(hits[start : i + 1].mean())))
      first, start, statistic = i + 1, i + 1, 0.0
  return Watch(statistics, references, alerts)
