"""What generated examples are measured by, against SciPy, plain loops and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial import distance

from karpjax import errors
from karpjax.data import bundled
from karpjax.metrics import generation

exact = functools.partial(functools.partial, generation.in_float64)
square_root, frechet_distance = exact(generation.square_root), exact(generation.frechet_distance)
kernel_distance, precision_recall = exact(generation.kernel_distance), exact(generation.precision_recall)


def two(n=300, m=200, d=12):
  draw = np.random.default_rng(0)
  mix = draw.normal(size=(d, d))
  return draw.normal(size=(n, d)) @ mix, draw.normal(size=(m, d)) @ mix * 1.3 + 0.5


def test_square_root_is_that_of_scipy():
  a = two()[0]
  matrix = a.T @ a
  np.testing.assert_allclose(square_root(matrix), scipy.linalg.sqrtm(matrix), rtol=1e-8, atol=1e-8)
  one = np.outer(a[0], a[0])  # of rank 1
  np.testing.assert_allclose(square_root(one) @ square_root(one), one, atol=1e-8)


def test_frechet_distance_is_its_formula_by_scipy():
  a, b = two()
  covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
  expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
  assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_scores_are_in_float64_and_nothing_else_is():
  a, b = two()
  jax.eval_shape(generation.scores, *map(jnp.asarray, (a, b)))  # of float32: another program
  found = generation.in_float64(generation.scores, a, b)
  assert {x.dtype for x in found.values()} == {np.dtype(np.float64)} and jnp.asarray(a).dtype == jnp.float32


def test_without_a_cpu_it_says_how_to_have_one(monkeypatch):
  def none(backend):
    raise RuntimeError(f'Unknown backend {backend}')

  monkeypatch.setattr(jax, 'local_devices', none)
  with pytest.raises(errors.UsageError, match='type JAX_PLATFORMS=.*,cpu'):
    generation.in_float64(generation.square_root, np.eye(2))


def test_frechet_distance_in_closed_form():
  a, _ = two()
  assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
  assert frechet_distance(a, a + 2) == pytest.approx(4 * a.shape[1])  # means alone
  centred = a - a.mean(0)
  assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)))
  few = a[:5]  # fewer than features: covariances of low rank
  assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize('chunk', [1000, 7])
def test_kernel_distance_is_a_plain_double_loop(chunk):
  kernel_distance = exact(functools.partial(generation.kernel_distance, chunk=chunk))
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
def test_precision_and_recall_are_a_plain_loop(chunk):
  precision_recall = exact(functools.partial(generation.precision_recall, chunk=chunk))
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
  expected = np.sqrt((distance.pdist(a[:250]) ** 2).mean())
  parts = [generation.moments(jnp.asarray(a[s]), jnp.asarray(mask[s])) for s in (slice(0, 100), slice(100, 300))]
  sums = {name: np.asarray(parts[0][name] + parts[1][name]) for name in parts[0]}
  assert generation.diversity(sums) == pytest.approx(expected, rel=1e-5)
  masked = generation.moments(jnp.asarray(a) * jnp.nan, jnp.zeros(300, bool))
  assert float(masked['count']) == 0 and np.isfinite(masked['sum']).all()


def test_rows_lie_where_their_numbers_say_and_masked_ones_nowhere():
  features = np.arange(12, dtype=np.float32).reshape(6, 2)
  order = np.array([4, 0, 3, 1, 2, 0])
  mask = np.array([True] * 5 + [False])
  whole = sum(
    np.asarray(generation.rows(jnp.asarray(features[s]), jnp.asarray(order[s]), jnp.asarray(mask[s]), 7))
    for s in (slice(0, 4), slice(4, 6))
  )
  assert whole.shape == (7, 2) and not whole[5:].any()
  np.testing.assert_array_equal(whole[order[:5]], features[:5])


def test_modes_count_what_is_within_three_deviations_of_the_nearest():
  std = bundled.GRID_STD
  points = np.concatenate([bundled.GRID[3] + [[2.9 * std, 0], [0, -3.1 * std]], bundled.GRID[[7, 7, 9]], [[1.0, 1.0]]])
  counts = generation.modes(jnp.asarray(points), bundled.GRID, std, jnp.array([1, 1, 1, 1, 0, 1], bool))
  assert counts[3] == 1 and counts[7] == 2 and counts.sum() == 3


def test_the_grid_itself_has_all_modes_and_its_share():
  data = bundled.gaussians25()
  points = data.splits['train'].arrays['image']
  assert points.shape == (50_000, 2) and data.splits['test'].size == 2_500
  assert {tuple(m) for m in bundled.GRID.astype(int).tolist()} == {
    (x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
  }
  counts = np.asarray(
    generation.modes(jnp.asarray(points), bundled.GRID, bundled.GRID_STD, jnp.ones(len(points), bool))
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
  moments = lambda x: {n: np.asarray(v) for n, v in generation.moments(jnp.asarray(x), jnp.ones(40, bool)).items()}
  pad = lambda x: np.concatenate([x, np.zeros((8, 5))])  # of a larger split
  sums = {'real': moments(a), 'fake': moments(b), 'real_rows': pad(a), 'fake_rows': pad(b)}
  sums |= {'shares': np.array([30.0, 8, 2]), 'hits': np.array(36.0)}
  numbers = generation.summarise(sums, b + 1)
  assert numbers['fid'] == pytest.approx(frechet_distance(a, b))
  assert numbers['fid_floor'] == pytest.approx(frechet_distance(a, b + 1))
  assert numbers['kid'] == pytest.approx(kernel_distance(a, b))
  assert (numbers['smallest_class_share'], numbers['largest_class_share']) == (0.05, 0.75)
  assert numbers['label_accuracy'] == 0.9
  modes = {'real': moments(a), 'fake': moments(b), 'modes': np.array([0.0, 3, 27])}
  assert generation.summarise(modes)['modes'] == 2 and generation.summarise(modes)['high_quality'] == 0.75
