"""Policy gradient losses in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import collectives
from karpjax.rl import ppo


def test_the_clipped_objective():
  old = jnp.zeros(4)
  new = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
  advantages = jnp.array([1.0, -1.0, 1.0, -1.0])
  # a gain is cut at 1.2 and 0.8, a loss is not
  np.testing.assert_allclose(ppo.clipped_objective(new, old, advantages, 0.2), [-1.2, 1.5, -0.5, 0.8], rtol=1e-6)
  gradient = jax.grad(lambda x: ppo.clipped_objective(x, old, advantages, 0.2).sum())(new)
  assert (np.asarray(gradient) != 0).tolist() == [False, True, True, False]


def test_the_clipped_value_loss():
  values, old, targets = jnp.array([2.0, 1.1]), jnp.array([1.0, 1.0]), jnp.array([3.0, 3.0])
  np.testing.assert_allclose(ppo.clipped_value_loss(values, old, targets, 0.2), [0.5 * 1.8**2, 0.5 * 1.9**2], rtol=1e-6)


def test_the_divergence_is_that_of_two_distributions():
  p, q = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.4, 0.4, 0.2])
  estimated = (p * ppo.approx_kl(jnp.log(q), jnp.log(p))).sum()
  np.testing.assert_allclose(estimated, (p * jnp.log(p / q)).sum(), rtol=1e-5)
  assert (np.asarray(ppo.approx_kl(jnp.log(q), jnp.log(p))) >= 0).all()


def test_advantages_are_standardised_over_all_replicas_and_by_what_counts():
  drawn = np.random.default_rng(0)
  advantages, mask = drawn.normal(3, 2, (2, 50)).astype(np.float32), drawn.random((2, 50)) < 0.7
  together = jax.pmap(ppo.standardise_advantages, collectives.REPLICAS)(advantages, mask)
  expected = (advantages - advantages[mask].mean()) / advantages[mask].std()
  np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)
