"""Whether the share of hits in a sequence has risen, said while it is read: a CUSUM, or a binomial test of a moving window."""

import dataclasses
import math
from collections.abc import Sequence

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
  references: [n] float64, the share that is expected there; NaN while it is being found out.
  alerts: in their order.
  """

  statistics: np.ndarray
  references: np.ndarray
  alerts: list[Alert]


def expected(hits: Sequence[bool]) -> float:
  """A share to expect after these: theirs (Laplace's estimate), and one standard error more, as it is an estimate."""
  share = (sum(hits) + 1) / (len(hits) + 2)
  return share + math.sqrt(share * (1 - share) / len(hits))


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
    window: places that the binomial test looks back on.
    baseline: the first places, from which the reference is found, as `expected`; after an alert it is found anew.
    reference: the share to expect, if it is known; then there is no baseline.
    factor: by which the odds rise, in what the CUSUM looks for.
  """
  statistics, references, alerts = np.zeros(len(hits)), np.full(len(hits), np.nan), []
  first, start, share, statistic = 0, 0, reference, 0.0  # of the baseline; of the rise
  for i, hit in enumerate(np.asarray(hits, bool)):
    if reference is None and i - first < baseline:
      start = i + 1
      continue
    if share is None:
      share = expected(hits[first:i])
    if test == 'cusum':
      statistic = cusum(statistic, hit, share, factor)
      start = i + 1 if statistic == 0 else start
    elif i + 1 - first - (0 if reference is not None else baseline) >= window:
      start = i + 1 - window
      statistic = binomial(int(hits[start : i + 1].sum()), window, share)
    statistics[i], references[i] = statistic, share
    if statistic > threshold:
      alerts.append(Alert(i, start, share, float(np.mean(hits[start : i + 1]))))
      first, start, share, statistic = i + 1, i + 1, reference, 0.0
  return Watch(statistics, references, alerts)
