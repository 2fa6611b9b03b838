"""The evidence is what its formulas say, an alert comes where there is a jump, and hardly ever where there is none."""

import math

import numpy as np
import pytest

from karpjax.metrics import change


def watch(hits, **rule):
  return change.watch(hits, change.Rule(**rule))


def test_the_cusum_is_the_largest_log_likelihood_ratio_over_all_beginnings():
  """Page's recursion against its definition: the maximum over every beginning of the sum from there on, or 0."""
  hits = np.random.default_rng(0).random(120) < 0.4
  p0, odds = 0.3, 3.0 * 0.3 / 0.7
  p1 = odds / (1 + odds)
  ratios = np.where(hits, math.log(p1 / p0), math.log((1 - p1) / (1 - p0)))
  ours = watch(hits, reference=p0, factor=3.0, threshold=1e9).statistics
  for i in range(len(hits)):
    assert ours[i] == pytest.approx(max(0, *(ratios[start : i + 1].sum() for start in range(i + 1))), abs=1e-9)


@pytest.mark.parametrize('count, size, share', [(0, 5, 0.2), (3, 5, 0.2), (5, 5, 0.01), (9, 12, 0.5)])
def test_the_binomial_evidence_sums_all_outcomes_at_least_as_high(count, size, share):
  outcomes = sum(math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(count, size + 1))
  assert change.binomial(count, size, share) == pytest.approx(-math.log(outcomes), abs=1e-9)


def test_what_is_usual_is_learnt_from_all_places_before_the_window():
  hits = np.random.default_rng(0).random(40) < 0.3
  seen = watch(hits, test='binomial', window=7, baseline=10, threshold=1e9)
  assert np.isnan(seen.references[:16]).all() and not seen.statistics[:16].any()
  for i in range(16, 40):
    count = hits[: i - 6].sum()
    share = (count + 1) / (i - 6 + 2)
    share += math.sqrt(share * (1 - share) / (i - 6))
    assert seen.references[i] == pytest.approx(share)
    assert seen.statistics[i] == pytest.approx(change.binomial(int(hits[i - 6 : i + 1].sum()), 7, share))


@pytest.mark.parametrize('test', change.TESTS)
def test_a_jump_raises_an_alert_soon_after_it_which_says_where_it_began(test):
  others = 0
  for seed in range(6):
    draw = np.random.default_rng(seed).random(1000)
    hits = draw < np.where(np.arange(1000) < 600, 0.1, 0.45)
    seen = watch(hits, test=test, window=60)
    *before, alert = seen.alerts
    others += len(before)
    assert 600 < alert.at < 680 and abs(alert.since - 600) < 90, seed
    assert 0.05 < alert.reference < 0.2 and alert.rate == pytest.approx(hits[alert.since : alert.at + 1].mean())
    assert seen.statistics[alert.at] > 8 >= seen.statistics[alert.at - 1]
  assert others <= 1  # of 6 × 1,000 places


@pytest.mark.parametrize('test', change.TESTS)
@pytest.mark.parametrize('share', [0.0, 0.2, 1.0])
def test_without_a_jump_there_is_hardly_ever_an_alert(test, share):
  series = [np.random.default_rng(seed).random(1200) < share for seed in range(4)]
  assert sum(len(watch(hits, test=test).alerts) for hits in series) <= (1 if share == 0.2 else 0)


def test_a_fall_is_no_rise():
  hits = np.random.default_rng(0).random(1000) < np.where(np.arange(1000) < 500, 0.5, 0.1)
  assert watch(hits).alerts == []


def test_after_an_alert_what_is_usual_is_found_anew():
  draw = np.random.default_rng(1).random(2000)
  hits = draw < np.repeat([0.05, 0.3, 0.8], [600, 800, 600])
  alerts = watch(hits).alerts
  assert len(alerts) == 2 and 600 < alerts[0].at < 700 and 1400 < alerts[1].at < 1500
  assert 0.25 < alerts[1].reference < 0.4


def test_where_the_share_is_known_nothing_has_to_be_learnt():
  hits = np.array([False] * 5 + [True] * 20)
  alert = watch(hits, reference=0.1, threshold=5.0).alerts[0]
  # each hit adds log((2/11) / (1/10)) = 0.598 nats: the ninth exceeds 5
  assert (alert.since, alert.at) == (5, 13)


def test_false_alerts_are_rarer_than_the_bound():
  """Lorden 1971: at least exp(h) places apart in the mean where the share is known; here h = 3."""
  hits = np.random.default_rng(0).random(40_000) < 0.2
  assert len(watch(hits, reference=0.2, threshold=3.0).alerts) < 40_000 / math.exp(3)


@pytest.mark.parametrize('test', change.TESTS)
def test_where_all_are_hits_the_usual_share_is_below_1_and_there_is_nothing_to_tell(test):
  seen = watch(np.ones(60, bool), test=test, window=10, baseline=20)
  assert (
    (seen.references[~np.isnan(seen.references)] < 1).all() and np.isfinite(seen.statistics).all() and not seen.alerts
  )
  assert change.expected(19, 20) == pytest.approx(20 / 22 + math.sqrt(20 / 22 * (2 / 22) / 20))  # one miss: as ever
