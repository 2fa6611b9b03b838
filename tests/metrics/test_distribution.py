"""What generated examples are measured by, against SciPy, plain loops and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import pdist

from karpjax.data import bundled
from karpjax.metrics import distribution

frechet_distance, kernel_distance = distribution.frechet_distance, distribution.kernel_distance
precision_recall = distribution.precision_recall


def two(n=300, m=200, d=12):
  draw = np.random.default_rng(0)
  mix = draw.normal(size=(d, d))
  return draw.normal(size=(n, d)) @ mix, draw.normal(size=(m, d)) @ mix * 1.3 + 0.5


def test_frechet_distance_is_its_formula_by_scipy():
  a, b = two()
  covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
  expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
  assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_distances_are_in_float64():
  """Far from the origin float32 would have lost what tells the two apart."""
  a, b = (x.astype(np.float32) for x in two(n=200))
  shifted = [np.float32(2**16) + np.round(64 * x) / 64 for x in (a, b)]
  exact = [x.astype(np.float64) - 2**16 for x in shifted]
  assert frechet_distance(*shifted) == pytest.approx(frechet_distance(*exact), rel=1e-6)
  assert precision_recall(*shifted) == precision_recall(*exact)


def test_frechet_distance_in_closed_form():
  a, _ = two()
  assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
  assert frechet_distance(a, a + 2) == pytest.approx(4 * a.shape[1])  # means alone
  centred = a - a.mean(0)
  assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)))
  few = a[:5]  # fewer than features: covariances of low rank
  assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize('chunk', [1000, 7])
def test_kernel_distance_is_a_plain_double_loop(monkeypatch, chunk):
  monkeypatch.setattr(distribution, 'CHUNK', chunk)
  a, b = (x[:20] for x in two(d=4))
  b = b[:15]
  kernel = lambda x, y: (x @ y / 4 + 1) ** 3
  same = lambda x: np.mean([kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j])
  expected = same(a) + same(b) - 2 * np.mean([kernel(p, q) for p in a for q in b])
  assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased():
  """Its mean over draws from one distribution is 0, though FID's is not."""
  draw = np.random.default_rng(0)
  pairs = [draw.normal(size=(2, 30, 3)) for _ in range(300)]
  kids = [kernel_distance(a, b) for a, b in pairs]
  assert abs(np.mean(kids)) < 3 * np.std(kids) / np.sqrt(len(kids))
  assert np.mean([frechet_distance(a, b) for a, b in pairs]) > 0.1


@pytest.mark.parametrize('chunk', [1000, 13])
def test_precision_and_recall_are_a_plain_loop(monkeypatch, chunk):
  monkeypatch.setattr(distribution, 'CHUNK', chunk)
  a, b = (x[:60, :3] for x in two())

  def among(points, others):
    radii = [np.sort(np.linalg.norm(others - o, axis=1))[3] for o in others]  # the 0th is itself
    return np.mean([any(np.linalg.norm(p - o) <= r for o, r in zip(others, radii)) for p in points])

  assert precision_recall(a, b) == pytest.approx((among(b, a), among(a, b)))
  far = a + 1000
  assert precision_recall(a, far) == (0, 0)
  assert precision_recall(a, a) == (1, 1)


def test_a_generator_of_few_kinds_has_precision_without_recall():
  real = np.random.default_rng(0).normal(size=(400, 2))
  fake = real[:1] + 0.01 * np.random.default_rng(1).normal(size=(400, 2))
  precision, recall = precision_recall(real, fake)
  assert precision > 0.9 and recall < 0.05


def test_diversity_is_the_root_mean_square_of_all_pairwise_distances():
  a, _ = (x.astype(np.float32) for x in two())
  mask = np.arange(300) < 250
  expected = np.sqrt((pdist(a[:250]) ** 2).mean())
  parts = [distribution.moments(jnp.asarray(a[s]), jnp.asarray(mask[s])) for s in (slice(0, 100), slice(100, 300))]
  sums = {name: np.asarray(parts[0][name] + parts[1][name]) for name in parts[0]}
  assert distribution.diversity(sums) == pytest.approx(expected, rel=1e-5)
  masked = distribution.moments(jnp.asarray(a) * jnp.nan, jnp.zeros(300, bool))
  assert float(masked['count']) == 0 and np.isfinite(masked['sum']).all()


def test_the_diversity_of_what_is_nearly_alike_is_not_lost_to_rounding():
  random = np.random.default_rng(0)
  near = (0.9 + 1e-4 * random.standard_normal((400, 64))).astype(np.float32)
  expected = np.sqrt((pdist(near.astype(np.float64)) ** 2).mean())
  mask = np.ones(200, bool)
  parts = [distribution.moments(jnp.asarray(x), mask, near[0]) for x in (near[:200], near[200:])]
  sums = {name: np.asarray(parts[0][name] + parts[1][name]) for name in parts[0]}
  assert distribution.diversity(sums) == pytest.approx(expected, rel=1e-4)
  assert distribution.diversity_of(near) == pytest.approx(expected, rel=1e-9)
  assert distribution.diversity_of(near[:1]) == 0


def test_modes_count_what_is_within_three_deviations_of_the_nearest():
  std = bundled.GRID_STD
  points = np.concatenate([bundled.GRID[3] + [[2.9 * std, 0], [0, -3.1 * std]], bundled.GRID[[7, 7, 9]], [[1.0, 1.0]]])
  counts = distribution.covered_modes(jnp.asarray(points), bundled.GRID, std, jnp.array([1, 1, 1, 1, 0, 1], bool))
  assert counts[3] == 1 and counts[7] == 2 and counts.sum() == 3


def test_the_grid_itself_has_all_modes_and_its_share():
  data = bundled.gaussians25()
  points = data.splits['train'].arrays['image']
  assert points.shape == (50_000, 2) and data.splits['test'].size == 2_500
  assert {tuple(m) for m in bundled.GRID.astype(int).tolist()} == {
    (x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
  }
  counts = np.asarray(
    distribution.covered_modes(jnp.asarray(points), bundled.GRID, bundled.GRID_STD, jnp.ones(len(points), bool))
  )
  assert counts.sum() / len(points) == pytest.approx(1 - np.exp(-4.5), abs=0.003)  # Rayleigh's distribution within 3 σ
  assert counts.min() > 1800
  labels = data.splits['train'].arrays['label']
  residual = points - bundled.GRID[labels]
  np.testing.assert_allclose(residual.std(0), 0.05, rtol=0.02)
  again = bundled.gaussians25()
  assert all(
    again.splits[s].arrays['image'].tobytes() == data.splits[s].arrays['image'].tobytes() for s in again.splits
  )
  assert not set(map(tuple, data.splits['test'].arrays['image'].tolist())) & set(map(tuple, points.tolist()))


def test_summary_of_sums():
  a, b = two(40, 40, 5)
  moments = lambda x: {n: np.asarray(v) for n, v in distribution.moments(jnp.asarray(x), jnp.ones(40, bool)).items()}
  pad = lambda x: np.concatenate([x, np.zeros((8, 5))])  # of a larger split
  sums = {'real': moments(a), 'fake': moments(b), 'real_rows': pad(a), 'fake_rows': pad(b)}
  sums |= {'class_counts': np.array([30.0, 8, 2]), 'hits': np.array(36.0)}
  numbers = distribution.summarise(sums, lambda count: (b + 1)[:count])
  assert numbers['fid'] == pytest.approx(frechet_distance(a, b))
  assert numbers['fid_floor'] == pytest.approx(frechet_distance(a, b + 1))
  assert numbers['kid'] == pytest.approx(kernel_distance(a, b))
  assert (numbers['smallest_class_share'], numbers['largest_class_share']) == (0.05, 0.75)
  assert numbers['label_accuracy'] == 0.9
  modes = {'real': moments(a), 'fake': moments(b), 'modes': np.array([0.0, 3, 27])}
  assert distribution.summarise(modes)['modes'] == 2 and distribution.summarise(modes)['high_quality'] == 0.75


@pytest.mark.parametrize('count', [1, 3, 4])
def test_of_too_few_examples_distances_are_not_a_number(count):
  """A covariance needs two, a third nearest neighbour four."""
  real, fake = np.random.default_rng(0).normal(size=(2, count, 3))
  numbers = [frechet_distance(real, fake), kernel_distance(real, fake), *distribution.precision_recall(real, fake)]
  assert np.isfinite(numbers).tolist() == [count > 1] * 2 + [count > 3] * 2
