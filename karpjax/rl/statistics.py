"""Running means and variances of what environments give, in the state of a run and alike on all replicas."""

import jax
import jax.numpy as jnp
from flax import struct

from karpjax import collectives


@struct.dataclass
class Running:
  """Of all numbers seen so far, place by place."""

  count: jax.Array  # [] float32
  mean: jax.Array  # [*shape] float32
  variance: jax.Array  # [*shape] float32, biased


def empty(shape: tuple[int, ...]) -> Running:
  """Nothing seen: mean 0 and variance 1, as if from a thousandth of an example."""
  return Running(jnp.full((), 1e-3), jnp.zeros(shape), jnp.ones(shape))


def update(running: Running, x) -> Running:
  """With x [..., *shape] as well, of all replicas (Chan, Golub & LeVeque 1983, eq. 2.1)."""
  axes = tuple(range(x.ndim - running.mean.ndim))
  mean = collectives.mean(x.mean(axes))
  variance = collectives.mean(jnp.square(x - mean).mean(axes))
  count = jnp.asarray(x.size / max(running.mean.size, 1), jnp.float32) * collectives.replicas()
  whole = running.count + count
  delta = mean - running.mean
  spread = running.count * running.variance + count * variance + jnp.square(delta) * running.count * count / whole
  return Running(whole, running.mean + delta * count / whole, spread / whole)


def standardise(running: Running, x, limit: float = 10.0):
  """(x - mean) / deviation, cut at ± `limit`."""
  return jnp.clip((x - running.mean) * jax.lax.rsqrt(running.variance + 1e-8), -limit, limit)
