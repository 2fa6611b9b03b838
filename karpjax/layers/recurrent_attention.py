"""Attention of recurrent decoders: one query to the places of a memory."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax.layers import linear


class Additive(nn.Module):
  """softmax over places of vᵀ tanh(W query + U memory) (Bahdanau et al. 2015, section A.1.2).

  Attributes:
    units: of the hidden layer.
    dtype: of the matmuls.
  """

  units: int
  dtype: Any = jnp.float32

  def setup(self):
    self.of_query = linear.Dense(self.units, dtype=self.dtype)
    self.of_memory = linear.Dense(self.units, use_bias=False, dtype=self.dtype)
    self.score = linear.Dense(1, use_bias=False, dtype=self.dtype)

  def keys(self, memory):
    """The part that no query changes: [batch, places, in] -> [batch, places, units]."""
    return self.of_memory(memory)

  def __call__(self, query, keys, memory, mask):
    """One query for each example.

    Args:
      query: [batch, in].
      keys: from `keys`.
      memory: [batch, places, in].
      mask: [batch, places] bool, False at padding.

    Returns:
      The weighted memory [batch, in] and the weights [batch, places] float32.
    """
    scores = self.score(jnp.tanh(self.of_query(query)[:, None] + keys))[..., 0]
    return _read(scores, memory, mask)


class Multiplicative(nn.Module):
  """softmax over places of queryᵀ W memory (Luong et al. 2015, «general»); called as `Additive` is.

  Attributes:
    units: of the query.
    dtype: of the matmuls.
  """

  units: int
  dtype: Any = jnp.float32

  def setup(self):
    self.of_memory = linear.Dense(self.units, use_bias=False, dtype=self.dtype)

  def keys(self, memory):
    """[batch, places, in] -> [batch, places, units]."""
    return self.of_memory(memory)

  def __call__(self, query, keys, memory, mask):
    """As `Additive`."""
    return _read(jnp.einsum('bu,bsu->bs', query.astype(self.dtype), keys), memory, mask)


def _read(scores, memory, mask):
  share = jax.nn.softmax(jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min))
  return jnp.einsum('bs,bsi->bi', share.astype(memory.dtype), memory), share
