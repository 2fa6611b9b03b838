import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from karpjax.losses import contrastive

DRAW = np.random.default_rng(0)
A, B = DRAW.normal(size=(2, 8, 5)).astype('f4')


def cosines(x, y):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def test_nt_xent_as_the_paper_writes_it():
  """Over 2 n views, of which each is told from all others but itself (Chen et al. 2020, algorithm 1)."""
  both = np.concatenate([A, B])
  scores = cosines(both, both) / 0.3
  np.fill_diagonal(scores, -np.inf)
  pairs = special.logsumexp(scores, 1) - scores[np.arange(16), (np.arange(16) + 8) % 16]
  np.testing.assert_allclose(contrastive.nt_xent(A, B, 0.3), (pairs[:8] + pairs[8:]) / 2, rtol=1e-5)


def test_nt_xent_of_the_other_view_alone():
  scores = cosines(A, B) / 0.5
  theirs = special.logsumexp(scores, 1) - np.diagonal(scores)
  np.testing.assert_allclose(contrastive.nt_xent(A, B, 0.5, within=False), theirs, rtol=1e-5)


def test_barlow_as_the_paper_writes_it():
  a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (A, B))
  correlation = a.T @ b / 8
  theirs = np.square(np.diagonal(correlation) - 1).sum()
  theirs += 0.1 * np.square(correlation[~np.eye(5, dtype=bool)]).sum()
  np.testing.assert_allclose(contrastive.barlow(A, B, 0.1), np.full(8, theirs), rtol=1e-5)


def test_distance_is_that_of_unit_vectors():
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  np.testing.assert_allclose(contrastive.distance(A, B), np.square(unit(A) - unit(B)).sum(1), rtol=1e-4)


@pytest.mark.parametrize('loss', [
  lambda a, b: contrastive.nt_xent(a, b, 0.5), lambda a, b: contrastive.nt_xent(a, b, 0.5, within=False),
  lambda a, b: contrastive.barlow(a, b, 0.1),
])  # fmt: skip
def test_eight_replicas_have_the_value_and_the_gradient_of_one(loss):
  """Of the mean over the whole batch, as the step takes it: sums over replicas, divided once."""
  weights = DRAW.normal(size=(5, 4)).astype('f4')
  mean = lambda w: loss(A @ w, B @ w).mean()
  value, gradient = jax.value_and_grad(mean)(weights)
  own = lambda w, a, b: loss(a @ w, b @ w).sum()
  split = lambda x: x.reshape(8, 1, -1)
  values, gradients = jax.pmap(jax.value_and_grad(own), axis_name='data', in_axes=(None, 0, 0))(
    weights, split(A), split(B)
  )
  np.testing.assert_allclose(values.sum() / 8, value, rtol=1e-5)
  np.testing.assert_allclose(gradients.sum(0) / 8, gradient, rtol=1e-4, atol=1e-6)


def test_equal_views_have_the_least_loss_there_is_and_gradients_stay_finite():
  same = jnp.ones((4, 3))
  assert np.isfinite(jax.grad(lambda x: contrastive.nt_xent(x, x, 0.1).sum())(same)).all()
  assert np.isfinite(jax.grad(lambda x: contrastive.nt_xent(x, x, 0.1).sum())(jnp.zeros((4, 3)))).all()
  assert np.isfinite(jax.grad(lambda x: contrastive.barlow(x, x, 0.1).sum())(same)).all()
