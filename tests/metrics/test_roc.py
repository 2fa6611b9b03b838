import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from karpjax.metrics import roc

DRAW = np.random.default_rng(0)
LABELS = DRAW.integers(3, size=400)
SCORES = DRAW.random((400, 3)) + 0.6 * np.eye(3)[LABELS]
PROBABILITIES = SCORES / SCORES.sum(1, keepdims=True)


def test_areas_are_scikit_learn_s_and_those_of_mann_and_whitney():
  assert roc.auc(LABELS, PROBABILITIES) == pytest.approx(
    sklearn.roc_auc_score(LABELS, PROBABILITIES, multi_class='ovr')
  )
  two, scores = (LABELS > 0).astype(int), PROBABILITIES[:, 1:].sum(1)
  ranks = stats.mannwhitneyu(scores[two == 1], scores[two == 0]).statistic / (two.sum() * (1 - two).sum())
  assert roc.auc(two, np.stack([1 - scores, scores], 1)) == pytest.approx(ranks)
  assert np.isnan(roc.auc(np.zeros(5, int), np.full((5, 2), 0.5)))


def test_the_threshold_is_the_best_of_all():
  is_one, scores = LABELS == 1, PROBABILITIES[:, 1]
  total = lambda at: sum(roc.at_threshold(is_one, scores, at)[name] for name in ('sensitivity', 'specificity'))
  assert total(roc.threshold(is_one, scores)) == pytest.approx(max(total(at) for at in scores))
  assert roc.threshold(np.array([False, True]), np.array([np.nan, 0.9])) == 0.5
  assert 0 < roc.threshold(np.array([False, True]), np.array([0.2, 0.9])) <= 0.9


def test_rates_by_hand():
  found = roc.at_threshold(np.array([1, 1, 1, 0, 0], bool), np.array([0.9, 0.6, 0.2, 0.7, 0.1]), 0.5)
  assert found == pytest.approx(dict(sensitivity=2 / 3, specificity=1 / 2, precision=2 / 3, accuracy=3 / 5))


def test_an_interval_holds_a_mean_as_often_as_it_says():
  inside = 0
  for seed in range(60):
    low, high = roc.interval(np.mean, np.random.default_rng(seed).normal(size=80), seed=seed)
    inside += low < 0 < high
  assert 51 <= inside <= 60
  assert roc.interval(np.mean, np.arange(9.0)) == roc.interval(np.mean, np.arange(9.0))
