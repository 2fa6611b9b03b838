"""Losses of Q-learning in closed form, and the projection against the paper's loop."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.losses import q_learning as losses


def test_the_target_of_double_q_learning_is_the_value_of_another_s_choice():
  online, frozen = jnp.array([[1.0, 5.0], [2.0, 0.0]]), jnp.array([[10.0, 20.0], [30.0, 70.0]])
  rewards, discounts = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.9])
  single = losses.target(rewards, discounts, frozen, frozen.argmax(-1))
  double = losses.target(rewards, discounts, frozen, online.argmax(-1))
  np.testing.assert_allclose(single, [1 + 0.5 * 20, -1 + 0.9 * 70], rtol=1e-6)
  np.testing.assert_allclose(double, [1 + 0.5 * 20, -1 + 0.9 * 30], rtol=1e-6)


def test_huber_s_gradient_is_the_clipped_error():
  errors = jnp.array([-3.0, -1.0, -0.5, 0.0, 0.2, 4.0])
  np.testing.assert_allclose(losses.huber(errors), [2.5, 0.5, 0.125, 0, 0.02, 3.5], rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda x: losses.huber(x).sum())(errors), jnp.clip(errors, -1, 1), rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda x: losses.squared(x).sum())(errors), errors, rtol=1e-6)


def test_the_projection_worked_by_hand():
  atoms, chances = jnp.array([0.0, 1.0, 2.0]), jnp.array([[0.5, 0.25, 0.25]] * 3)
  # ½ + ½ Z lies at ½, 1, 1½; where nothing follows, all of it at the reward; 7 + Z lies beyond the last atom
  projected = losses.project(chances, jnp.array([0.5, 1.25, 7.0]), jnp.array([0.5, 0.0, 1.0]), atoms)
  np.testing.assert_allclose(projected, [[0.25, 0.625, 0.125], [0, 0.75, 0.25], [0, 0, 1]], atol=1e-6)


def test_the_projection_is_that_of_the_paper_s_loop():
  drawn, size, low, high = np.random.default_rng(0), 11, -3.0, 7.0
  atoms = np.linspace(low, high, size)
  chances = drawn.dirichlet(np.ones(size), 40)
  rewards, discounts = drawn.normal(0, 4, 40), drawn.choice([0.0, 0.5, 0.99, 1.0], 40)
  rewards[:10] = np.round(rewards[:10])  # some fall on an atom exactly, where the loop's two neighbours are one
  spacing, expected = (high - low) / (size - 1), np.zeros((40, size))
  for row in range(40):
    for j in range(size):
      b = (np.clip(rewards[row] + discounts[row] * atoms[j], low, high) - low) / spacing
      below, above = int(np.floor(b)), int(np.ceil(b))
      if below == above:
        expected[row, below] += chances[row, j]
      else:
        expected[row, below] += chances[row, j] * (above - b)
        expected[row, above] += chances[row, j] * (b - below)
  given = [jnp.asarray(x, jnp.float32) for x in (chances, rewards, discounts, atoms)]
  projected = losses.project(*given)
  np.testing.assert_allclose(projected, expected, atol=1e-5)
  np.testing.assert_allclose(projected.sum(1), 1, rtol=1e-5)


def test_cross_entropy_is_least_at_its_target():
  chances = jnp.array([[0.2, 0.5, 0.3]])
  at = jnp.log(chances) + 3.0
  np.testing.assert_allclose(losses.cross_entropy(at, chances), -(chances * jnp.log(chances)).sum(), rtol=1e-5)
  np.testing.assert_allclose(jax.grad(lambda x: losses.cross_entropy(x, chances).sum())(at), 0, atol=1e-6)
  np.testing.assert_allclose(losses.expectation(at, jnp.array([1.0, 2.0, 4.0])), [0.2 + 1.0 + 1.2], rtol=1e-5)


def test_an_action_s_values_are_taken_with_all_their_atoms():
  values = jnp.arange(24.0).reshape(2, 3, 4)
  np.testing.assert_array_equal(losses.of_actions(values, jnp.array([2, 0])), [values[0, 2], values[1, 0]])
  np.testing.assert_array_equal(losses.of_actions(values[..., 0], jnp.array([2, 0])), [8, 12])
