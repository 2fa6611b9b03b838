"""One pooling for all models: XLA's own on accelerators, a faster lowering on the CPU."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from karpjax.layers import cpu


def _pool(x, window, stride, padding, plain, tiled):
  rank = x.ndim - 2
  plain = partial(plain, window_shape=(window,) * rank, strides=(stride,) * rank, padding=padding)
  if window != stride or padding != 'VALID':
    return plain(x)
  forms = {'cpu': lambda x: tiled(cpu.tiles(x, window), tuple(range(2, 2 + 2 * rank, 2))), 'default': plain}

  @jax.custom_vjp
  def pool(x):
    return lax.platform_dependent(x, **forms)

  def backward(x, g):
    forms_of_gradient = {name: lambda x, g, f=f: jax.vjp(f, x)[1](g)[0] for name, f in forms.items()}
    return (lax.platform_dependent(x, g, **forms_of_gradient),)

  pool.defvjp(lambda x: (pool(x), x), backward)
  return pool(x)


def max_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Maximum over windows. x: [batch, *spatial, channels] -> [batch, *spatial', channels] of x's dtype.

  Where several places of a window hold the maximum, its gradient goes to the first of them; on the CPU, where
  windows do not overlap, it is divided equally among them. After a relu, ties at 0 have no gradient either way.
  """
  return _pool(x, window, stride, padding, nn.max_pool, jnp.max)


def avg_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Mean over windows, padding as zeros. x: [batch, *spatial, channels] -> [batch, *spatial', channels]."""
  return _pool(x, window, stride, padding, nn.avg_pool, jnp.mean)
