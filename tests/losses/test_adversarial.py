"""Objectives against their formulas in NumPy, penalties against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.layers import convolution, linear
from karpjax.losses import adversarial

SCORES = np.linspace(-4, 4, 9).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_objectives_are_their_formulas():
  real, fake = SCORES, SCORES[::-1].copy()
  log_d, log_1_d = np.log(sigmoid(real)), np.log(1 - sigmoid(fake))
  expected = {
    'minimax': (-log_d - log_1_d, log_1_d),
    'non_saturating': (-log_d - log_1_d, -np.log(sigmoid(fake))),
    'least_squares': ((real - 1) ** 2 / 2 + fake**2 / 2, (fake - 1) ** 2 / 2),
    'hinge': (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake), -fake),
    'wasserstein': (fake - real, -fake),
  }
  assert set(expected) == set(adversarial.OBJECTIVES)
  for name, (discriminator, generator, _) in adversarial.OBJECTIVES.items():
    np.testing.assert_allclose(discriminator(real, fake), expected[name][0], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(generator(fake), expected[name][1], rtol=1e-5, atol=1e-6, err_msg=name)


def test_large_scores_stay_finite_and_keep_their_gradients():
  for name, (discriminator, generator, _) in adversarial.OBJECTIVES.items():
    for x in (-200.0, 200.0):
      assert np.isfinite(discriminator(x, x)) and np.isfinite(generator(x)), name
  # what a sure discriminator leaves the generator: nothing by minimax, everything by the other (Goodfellow, section 3)
  assert abs(jax.grad(adversarial.OBJECTIVES['minimax'].generator)(-50.0)) < 1e-6
  assert jax.grad(adversarial.OBJECTIVES['non_saturating'].generator)(-50.0) == pytest.approx(-1)


def test_the_score_above_which_an_example_passes_as_real():
  boundary = lambda name, *scores: adversarial.OBJECTIVES[name].boundary(*scores)
  assert boundary('minimax', SCORES, SCORES + 5) == 0
  assert boundary('least_squares', SCORES, SCORES + 5) == 0.5
  assert float(boundary('wasserstein', jnp.array([1.0, 3.0]), jnp.array([8.0, 4.0]))) == 4


def test_penalties_of_a_linear_score_in_closed_form():
  """The gradient of w · x is w everywhere."""
  w, x = jnp.array([3.0, -4.0]), jnp.arange(6.0).reshape(3, 2)
  gradients = adversarial.input_gradients(lambda x: x @ w, x)
  np.testing.assert_allclose(gradients, jnp.tile(w, (3, 1)))
  np.testing.assert_allclose(adversarial.gradient_penalty(gradients), 16.0, rtol=1e-5)  # (5 - 1)²
  np.testing.assert_allclose(adversarial.r1_penalty(gradients), 12.5, rtol=1e-6)  # 25 / 2
  zero = jnp.zeros((3, 2))
  np.testing.assert_allclose(adversarial.gradient_penalty(zero), 1, rtol=1e-5)
  assert np.isfinite(jax.grad(lambda g: adversarial.gradient_penalty(g).sum())(zero)).all()


def critic(params, x):
  """A convolution, tanh and dense layers by the house's own lowerings: [batch, 4, 4, 1] -> [batch]."""
  y = convolution.convolution(x, params['conv'], strides=(2, 2), padding=((1, 1), (1, 1)))
  y = jnp.tanh(y).reshape(len(x), -1)
  return jnp.tanh(linear.matmul(y, params['hidden'])).sum(-1)


def params(key):
  a, b = jax.random.split(key)
  return {'conv': jax.random.normal(a, (4, 4, 1, 3)) / 3, 'hidden': jax.random.normal(b, (12, 5)) / 3}


def test_input_gradients_are_each_examples_own():
  weights, x = params(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 4, 4, 1))
  gradients = jax.jit(lambda x: adversarial.input_gradients(lambda x: critic(weights, x), x))(x)
  score = jax.jit(lambda weights, x: critic(weights, x[None])[0])
  singly = jax.jit(jax.vmap(jax.grad(score, 1), (None, 0)))(weights, x)
  np.testing.assert_allclose(gradients, singly, rtol=1e-4, atol=1e-6)
  step, place = 1e-2, (2, 1, 3, 0)
  moved = [score(weights, x[2].at[place[1:]].add(d)) for d in (step, -step)]
  np.testing.assert_allclose(gradients[place], (moved[0] - moved[1]) / (2 * step), rtol=2e-3)


@pytest.mark.parametrize('measure', [adversarial.gradient_penalty, adversarial.r1_penalty])
def test_the_double_backward_pass_is_that_of_finite_differences(measure):
  weights, x = params(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 4, 4, 1))

  @jax.jit
  def penalty(weights):
    return measure(adversarial.input_gradients(lambda x: critic(weights, x), x)).mean()

  direction = params(jax.random.key(2))
  slope = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (jax.jit(jax.grad(penalty))(weights), direction))))
  step = 5e-3
  ahead, behind = (penalty(jax.tree.map(lambda w, d: w + s * d, weights, direction)) for s in (step, -step))
  np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-2)


def test_points_between_lie_on_the_lines_and_are_drawn_example_by_example():
  real, fake = jnp.zeros((400, 2, 2, 1)), jnp.ones((400, 2, 2, 1))
  keys = jax.random.split(jax.random.key(0), 400)
  u = np.asarray(adversarial.between(keys, real, fake))
  assert (u == u[:, :1, :1]).all() and u.min() >= 0 and u.max() < 1.0001
  assert abs(u.mean() - 0.5) < 0.05 and len(np.unique(u)) > 390
  np.testing.assert_array_equal(adversarial.between(keys[7:9], real[:2], fake[:2]), u[7:9])
