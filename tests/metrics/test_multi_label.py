import numpy as np
import pytest
from sklearn import metrics as sklearn

from karpjax.metrics import multi_label as metrics

DRAW = np.random.default_rng(0)
LABELS = (DRAW.random((200, 7)) < np.linspace(0.05, 0.7, 7)).astype(int)
PROBABILITIES = np.clip(0.4 * LABELS + 0.6 * DRAW.random((200, 7)), 0, 1)


def test_scores_are_scikit_learn_s():
  found, given = metrics.scores(LABELS, PROBABILITIES), PROBABILITIES >= 0.5
  assert found['macro_map'] == pytest.approx(sklearn.average_precision_score(LABELS, PROBABILITIES, average='macro'))
  assert found['micro_map'] == pytest.approx(sklearn.average_precision_score(LABELS, PROBABILITIES, average='micro'))
  for average in ('micro', 'macro'):
    assert found[f'{average}_f1'] == pytest.approx(sklearn.f1_score(LABELS, given, average=average, zero_division=0))
  assert found['exact_match'] == pytest.approx(sklearn.accuracy_score(LABELS, given))
  assert found['hamming_accuracy'] == pytest.approx(1 - sklearn.hamming_loss(LABELS, given))
  first = np.argsort(-PROBABILITIES, 1)[:, :5]
  assert found['precision_at_5'] == pytest.approx(np.take_along_axis(LABELS, first, 1).mean())


def test_what_is_not_known_is_as_if_it_were_not_there():
  unknown = DRAW.random(LABELS.shape) < 0.3
  labels = np.where(unknown, -1, LABELS)
  found = metrics.scores(labels, PROBABILITIES)
  each = [sklearn.average_precision_score(LABELS[~u, i], PROBABILITIES[~u, i]) for i, u in enumerate(unknown.T)]
  assert found['macro_map'] == pytest.approx(np.mean(each))
  assert found == metrics.scores(labels, np.where(unknown, 1 - PROBABILITIES, PROBABILITIES))


def test_a_tag_that_all_have_or_none_has_no_average_precision():
  labels = np.stack([np.ones(20, int), np.zeros(20, int), np.arange(20) % 2], 1)
  probabilities = DRAW.random((20, 3))
  assert metrics.scores(labels, probabilities)['macro_map'] == pytest.approx(
    sklearn.average_precision_score(labels[:, 2], probabilities[:, 2])
  )
  rows = metrics.per_tag(labels, probabilities, np.full(3, 0.5), 'abc')
  assert [row['average_precision'] is None for row in rows] == [True, True, False]
  assert np.isnan(metrics.scores(labels[:, :2], probabilities[:, :2])['macro_map'])


def test_thresholds_are_the_best_of_all():
  best = metrics.best_thresholds(LABELS, PROBABILITIES)
  for tag, threshold in enumerate(best):
    f1 = lambda t, tag=tag: sklearn.f1_score(LABELS[:, tag], PROBABILITIES[:, tag] >= t, zero_division=0)
    assert f1(threshold) == pytest.approx(max(f1(t) for t in PROBABILITIES[:, tag]))
  tied = metrics.best_thresholds(np.array([[1], [0], [1]]), np.array([[0.7], [0.7], [0.2]]))
  assert tied == pytest.approx(0.1)  # all three: F1 0.8, where the two that are alike have 0.5


def test_where_a_probability_is_nan_its_tag_has_no_average_precision_and_no_threshold_of_its_own():
  probabilities = PROBABILITIES.copy()
  probabilities[3, 1] = np.nan
  found = metrics.scores(LABELS, probabilities)
  assert np.isnan(found['macro_map']) and np.isnan(found['micro_map']) and 0 < found['micro_f1'] < 1
  best = metrics.best_thresholds(LABELS, probabilities)
  assert best[1] == 0.5 and best[0] == metrics.best_thresholds(LABELS, PROBABILITIES)[0]
  rows = metrics.per_tag(LABELS, probabilities, best, [*map(str, range(len(best)))])
  assert np.isnan(rows[1]['average_precision']) and rows[0]['average_precision'] > 0
