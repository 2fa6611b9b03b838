import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from karpjax.metrics import embeddings

DRAW = np.random.default_rng(0)
CENTRES = DRAW.normal(size=(4, 6))
LABELS = DRAW.integers(4, size=300)
POINTS = (CENTRES[LABELS] + 0.9 * DRAW.normal(size=(300, 6))).astype('f4')


def test_neighbours_are_scikit_learn_s():
  theirs = KNeighborsClassifier(n_neighbors=10, metric='cosine').fit(POINTS[:200], LABELS[:200]).predict(POINTS[200:])
  ours = embeddings.by_neighbours(POINTS[200:], POINTS[:200], LABELS[:200], 4)
  np.testing.assert_array_equal(ours, theirs)


def test_a_probe_is_scikit_learn_s_whatever_the_batches():
  total = None
  for start in (200, 250):
    index = np.arange(start, start + 50) - 200
    batch = {'index': index, 'mask': np.ones(50, bool)}
    sums = embeddings.probe_sums(
      POINTS[start : start + 50], LABELS[start : start + 50], batch, POINTS[:200], LABELS[:200], 100
    )
    total = sums if total is None else {name: total[name] + x for name, x in sums.items()}
  theirs = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-2, max_iter=1000)).fit(POINTS[:200], LABELS[:200])
  assert embeddings.probe(total) == pytest.approx(theirs.score(POINTS[200:], LABELS[200:]))


def test_spread_tells_collapse_from_what_fills_all_directions():
  of = lambda x: embeddings.spread(
    {n: np.asarray(v) for n, v in embeddings.spread_sums(x, np.ones(len(x), bool)).items()}
  )
  full = of(DRAW.normal(size=(4000, 16)).astype('f4'))
  assert full['spread'] == pytest.approx(1, abs=0.02) and full['effective_rank'] == pytest.approx(16, abs=0.3)
  one = of(np.ones((50, 16), 'f4') + 1e-4 * DRAW.normal(size=(50, 16)).astype('f4'))
  assert one['spread'] < 0.01
  flat = of(DRAW.normal(size=(4000, 2)).astype('f4') @ DRAW.normal(size=(2, 16)).astype('f4'))
  assert flat['effective_rank'] < 2.1


def test_masked_examples_count_nothing():
  mask = np.arange(300) < 120
  some = embeddings.spread_sums(POINTS, mask)
  few = embeddings.spread_sums(POINTS[:120], mask[:120])
  for name in some:
    np.testing.assert_allclose(some[name], few[name], rtol=1e-4, atol=1e-4)
