"""Whether the share of hits in a sequence has risen, said while it is read: a CUSUM, or a binomial test of a moving window."""

import dataclasses
import math

import numpy as np

TESTS = ('cusum', 'binomial')


@dataclasses.dataclass(frozen=True)
class Alert:
  """Attributes:
  at: the place at which it was raised.
  since: where the rise is believed to have begun.
  reference: the share that was expected.
  share: that from `since` to `at`.
  """

  at: int
  since: int
  reference: float
  share: float


@dataclasses.dataclass(frozen=True)
class Watch:
  """Attributes:
  statistics: [n] float64, the evidence for a rise at each place, in nats; 0 where none is sought.
  references: [n] float64, the share that is expected there; NaN while too little is known.
  alerts: in their order.
  """

  statistics: np.ndarray
  references: np.ndarray
  alerts: list[Alert]


def expected(count: int, size: int) -> float:
  """The share to expect after `count` hits among `size`: theirs (Laplace's estimate), and one standard error more."""
  share = (count + 1) / (size + 2)
  return share + math.sqrt(share * (1 - share) / size)


def cusum(statistic: float, hit: bool, reference: float, factor: float) -> float:
  """Page 1954: max(0, statistic + log-likelihood ratio of one observation, under odds `factor` times as high as expected).

  Observations of the reference share lie at least exp(h) places apart, in the mean, where this exceeds h (Lorden 1971).
  """
  odds = factor * reference / (1 - reference)
  raised = odds / (1 + odds)
  ratio = raised / reference if hit else (1 - raised) / (1 - reference)
  return max(0.0, statistic + math.log(ratio))


def binomial(count: int, size: int, reference: float) -> float:
  """-log P(X >= count), X the hits among `size` of the reference share."""
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
    window: how far back the binomial test looks.
    baseline: how many places, at least, what is usual is learnt from: all those before the last `window`, since the last
      alert.
    reference: the share to expect, if it is known; then nothing is learnt.
    factor: by which the odds rise, in what the CUSUM looks for.
  """
  hits = np.asarray(hits, bool)
  counts = np.concatenate([[0], np.cumsum(hits)])  # counts[i]: hits among the first i
  statistics, references, alerts = np.zeros(len(hits)), np.full(len(hits), np.nan), []
  first = start = 0  # after the last alert; of the rise
  statistic = 0.0
  for i, hit in enumerate(hits):
    usual = i + 1 - window - first  # places that tell what is usual
    if reference is None and usual < baseline:
      start = i + 1
      continue
    share = expected(int(counts[first + usual] - counts[first]), usual) if reference is None else reference
    if test == 'cusum':
      statistic = cusum(statistic, hit, share, factor)
      start = start if statistic else i + 1
    elif usual >= 0:
      start = i + 1 - window
      statistic = binomial(int(counts[i + 1] - counts[start]), window, share)
    statistics[i], references[i] = statistic, share
    if statistic > threshold:
      alerts.append(Alert(i, start, share, float(hits[start : i + 1].mean())))
      first, start, statistic = i + 1, i + 1, 0.0
  return Watch(statistics, references, alerts)
