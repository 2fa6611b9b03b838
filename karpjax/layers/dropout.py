"""Dropout (Srivastava et al. 2014)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
  """Drops units in training and scales the others by 1 / (1 - rate); draws the masks that Linen's Dropout draws.

  Attributes:
    rate: in [0, 1); 0 draws nothing.
  """

  rate: float

  @nn.compact
  def __call__(self, x, *, train: bool):
    """x: any shape and float dtype -> the same; takes a key of the collection 'dropout'."""
    if not train or self.rate == 0:
      return x
    keep = 1 - self.rate
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, x.shape)
    return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)
