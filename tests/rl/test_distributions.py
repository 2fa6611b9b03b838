"""Distributions against scipy and their own draws."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from karpjax.rl import distributions
from karpjax.rl.environment import Box, Discrete


def test_categorical():
  logits = jnp.array([0.3, -1.0, 1.2])
  policy, chances = distributions.of(Discrete(3)), np.exp(logits) / np.exp(logits).sum()
  drawn = policy.sample(logits, policy.noise(jax.random.key(0), (20_000,)))
  np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, chances, atol=0.01)
  np.testing.assert_allclose(policy.log_prob(logits, jnp.arange(3)), np.log(chances), rtol=1e-5)
  np.testing.assert_allclose(policy.entropy(logits), stats.entropy(chances), rtol=1e-5)
  assert int(policy.mode(logits)) == 2 and policy.size == 3


def test_gaussian():
  policy = distributions.of(Box((2,)))
  outputs = jnp.array([0.5, -1.0, 0.2, -0.7])
  mean, deviation = np.array([0.5, -1.0]), np.exp([0.2, -0.7])
  drawn = np.asarray(policy.sample(outputs, policy.noise(jax.random.key(0), (20_000,))))
  np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
  np.testing.assert_allclose(drawn.std(0), deviation, atol=0.03)
  np.testing.assert_allclose(
    policy.log_prob(outputs, drawn[:5]), stats.norm(mean, deviation).logpdf(drawn[:5]).sum(-1), rtol=1e-4
  )
  np.testing.assert_allclose(policy.entropy(outputs), stats.norm(mean, deviation).entropy().sum(), rtol=1e-5)
  np.testing.assert_allclose(policy.mode(outputs), mean)


def test_a_squashed_gaussian_s_density_is_that_of_the_changed_variable():
  """Of one number: the Gaussian's density over the slope of tanh, by finite differences in float64; it sums up to 1."""
  outputs, noise = np.array([0.4, -0.3], np.float32), np.linspace(-4, 4, 2001, dtype=np.float32)[:, None]
  actions, log_probs = distributions.squashed_sample(jnp.asarray(outputs), jnp.asarray(noise))
  raw = 0.4 + np.exp(-0.3) * noise[:, 0].astype(np.float64)
  slopes = (np.tanh(raw + 1e-4) - np.tanh(raw - 1e-4)) / 2e-4
  np.testing.assert_allclose(actions[:, 0], np.tanh(raw), rtol=1e-4, atol=1e-6)
  density = stats.norm(0.4, np.exp(-0.3)).pdf(raw) / slopes
  np.testing.assert_allclose(np.exp(log_probs), density, rtol=2e-3)
  np.testing.assert_allclose(np.trapezoid(np.exp(log_probs), actions[:, 0]), 1, atol=2e-3)
  np.testing.assert_allclose(distributions.squashed_mode(jnp.asarray(outputs)), np.tanh([0.4]), rtol=1e-6)


def test_a_squashed_gaussian_s_numbers_are_independent_and_finite_far_out():
  one = distributions.squashed_sample(jnp.array([0.2, -0.5]), jnp.array([0.7]))[1]
  other = distributions.squashed_sample(jnp.array([-1.0, 0.1]), jnp.array([-0.2]))[1]
  both = distributions.squashed_sample(jnp.array([0.2, -1.0, -0.5, 0.1]), jnp.array([0.7, -0.2]))[1]
  np.testing.assert_allclose(both, one + other, rtol=1e-6)
  far = lambda outputs: distributions.squashed_sample(outputs, jnp.array([3.0]))[1]
  value, gradient = jax.value_and_grad(far)(jnp.array([80.0, 1.0]))
  assert np.isfinite(value) and value > 100 and np.isfinite(gradient).all()  # log(1 - tanh² u) is about -2 u
