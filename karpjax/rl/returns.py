"""Advantages of what a rollout saw, one scan from the last step to the first, and moments; all arrays [time, …].

Two values belong to a step: V(s_t), and V of the state that it led to, before any reset. So an episode that was cut by
a time limit has a value beyond its end (`next_values`), one that terminated has none, and no advantage crosses an end.
"""

import jax
import jax.numpy as jnp
from flax import struct

from karpjax import collectives


def advantages(rewards, values, next_values, terminated, truncated, *, discount, gae_lambda):
  """Generalised advantage estimates (Schulman et al. 2016, eqs. 11 and 16): Σ (γλ)^l δ_{t+l} within the episode.

  λ = 0 is one step's error, 1 the whole return less the value; with `values` added, they are the λ-returns of TD(λ).
  """
  errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
  weights = discount * gae_lambda * ~(terminated | truncated)

  def backwards(future, x):
    error, weight = x
    total = error + jnp.where(weight, weight * future, 0)  # nor does NaN cross an end
    return total, total

  return jax.lax.scan(backwards, jnp.zeros_like(errors[0]), (errors, weights), reverse=True)[1]


def moments(x, mask):
  """Mean [*shape], biased variance [*shape] and count [] of x [*lead, *shape] where mask [*lead] lets it,
  over all replicas.
  """
  lead, x = tuple(range(mask.ndim)), x.astype(jnp.float32)
  counts = mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))
  total = lambda x: collectives.total(jnp.where(counts, x, 0).sum(lead))
  count = jnp.maximum(collectives.total(mask.sum()), 1).astype(jnp.float32)
  mean = total(x) / count
  return mean, total(jnp.square(x - mean)) / count, count


def explained_variance(values, targets, mask):
  """1 - Var(targets - values) / Var(targets), [] float32, as `moments`: 1 is perfect, 0 no better than a constant."""
  (_, variance, _), (_, residual, _) = moments(targets, mask), moments(targets - values, mask)
  return jnp.where(variance > 0, 1 - residual / jnp.maximum(variance, 1e-12), 0)


@struct.dataclass
class RunningMoments:
  """Mean and variance of all numbers seen so far, entry by entry; alike on all replicas."""

  count: jax.Array  # [] float32
  mean: jax.Array  # [*shape] float32
  variance: jax.Array  # [*shape] float32, biased

  @classmethod
  def init(cls, shape: tuple[int, ...]) -> 'RunningMoments':
    """Nothing seen: mean 0 and, as if from a thousandth of an example, variance 1."""
    return cls(jnp.full((), 1e-3), jnp.zeros(shape), jnp.ones(shape))

  def update(self, x, mask) -> 'RunningMoments':
    """With x [*lead, *shape] as well, as `moments` (Chan, Golub & LeVeque 1983, eq. 2.1)."""
    mean, variance, count = moments(x, mask)
    before = jnp.where(self.count < 1, mean, self.mean)  # the first mean is no example, which would widen the variance
    whole, delta = self.count + count, mean - before
    squares = self.count * self.variance + count * variance + jnp.square(delta) * self.count * count / whole
    return RunningMoments(whole, before + delta * count / whole, squares / whole)

  def standardise(self, x):
    """(x - mean) / deviation, clipped to ± 10."""
    return jnp.clip((x - self.mean) * jax.lax.rsqrt(self.variance + 1e-8), -10, 10)
