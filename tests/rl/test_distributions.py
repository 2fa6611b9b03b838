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
