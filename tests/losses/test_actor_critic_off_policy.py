"""Losses of DDPG, TD3 and SAC, worked by hand and against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.losses import actor_critic_off_policy as losses

VALUES = jnp.array([[10.0, -4.0], [20.0, -6.0]])  # [critics, batch]


def test_the_target_worked_by_hand():
  rewards, discounts = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0])  # the second is final
  np.testing.assert_allclose(losses.target(rewards, discounts, VALUES[1:]), [11, 2], rtol=1e-6)
  np.testing.assert_allclose(losses.target(rewards, discounts, VALUES), [6, 2], rtol=1e-6)
  # an unlikely action, log π = -3, is worth more by α · 3
  soft = losses.target(rewards, discounts, VALUES, jnp.array([-3.0, -3.0]), 0.2)
  np.testing.assert_allclose(soft, [1 + 0.5 * (10 + 0.6), 2], rtol=1e-6)


def test_noise_is_clipped_before_the_action_is():
  actions = jnp.array([[0.0], [0.0], [0.9], [-0.9]])
  noise = jnp.array([[1.0], [9.0], [9.0], [-1.0]])
  np.testing.assert_allclose(losses.smoothed(actions, noise, 0.2, 0.5), [[0.2], [0.5], [1], [-1]], rtol=1e-6)


def test_each_critic_s_gradient_is_its_own_error():
  targets = jnp.array([12.0, -5.0])
  np.testing.assert_allclose(losses.critics(VALUES, targets), [0.5 * (4 + 64), 0.5 * (1 + 1)], rtol=1e-6)
  gradient = jax.grad(lambda values: losses.critics(values, targets).sum())(VALUES)
  np.testing.assert_allclose(gradient, VALUES - targets, rtol=1e-6)


def test_a_deterministic_policy_follows_the_first_critic_and_a_soft_one_the_least():
  np.testing.assert_array_equal(losses.deterministic_policy(VALUES), [-10, 4])
  np.testing.assert_allclose(losses.soft_policy(VALUES, jnp.array([2.0, -1.0]), 0.5), [1 - 10, -0.5 + 6], rtol=1e-6)


def test_the_temperature_grows_where_the_entropy_is_too_small():
  for log_probs, sign in ((jnp.array([3.0, 1.0]), 1), (jnp.array([-3.0, 0.0]), -1), (jnp.array([1.5, 0.5]), 0)):
    slope = jax.grad(lambda x: losses.temperature(x, log_probs, -1.0).mean())(jnp.log(0.3))  # entropy to be -1
    np.testing.assert_allclose(slope, -0.3 * (np.mean(log_probs) - 1), atol=1e-6)
    assert np.sign(-np.round(slope, 5)) == sign  # descending
