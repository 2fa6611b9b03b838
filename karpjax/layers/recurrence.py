"""Recurrent layers: one matmul of the inputs for all times, then a scan over time."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def gru_update(h, from_input, from_state):
  """One step of a gated recurrent unit (Cho et al. 2014), reset after the matmul as in cuDNN and PyTorch.

  Args:
    h: [..., units] float32, the state.
    from_input, from_state: [..., 3 units] float32: for the reset gate, the update gate and the candidate.

  Returns:
    [..., units] float32, the next state.
  """
  reset_x, update_x, candidate_x = jnp.split(from_input, 3, axis=-1)
  reset_h, update_h, candidate_h = jnp.split(from_state, 3, axis=-1)
  update = jax.nn.sigmoid(update_x + update_h)
  candidate = jnp.tanh(candidate_x + jax.nn.sigmoid(reset_x + reset_h) * candidate_h)
  return update * h + (1 - update) * candidate


class GRU(nn.Module):
  """Gated recurrent units over a sequence, read forwards or both ways at once.

  Params, as in PyTorch, with a leading axis [directions] (1, or 2 when bidirectional): 'input_kernel'
  [in, 3 units], 'input_bias' [3 units], 'state_kernel' [units, 3 units] and 'state_bias' [3 units], each
  drawn from U(-1, 1) / sqrt(units).

  Attributes:
    units: of the state, for each direction.
    bidirectional: whether a second GRU reads the sequence from its end.
    dtype: of the matmuls and the output; the state and the gates stay float32.
  """

  units: int
  bidirectional: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, initial=None):
    """Reads a sequence.

    Args:
      x: [batch, time, in].
      initial: [directions, batch, units] float32, the state before the first step; zeros by default.

    Returns:
      outputs [batch, time, directions * units] of `dtype`, those of the second direction in the sequence's
      own order, and the final state [directions, batch, units] float32.
    """
    directions, batch, gates = 1 + self.bidirectional, x.shape[0], 3 * self.units
    bound = self.units**-0.5

    def uniform(key, shape):
      return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    input_kernel = self.param('input_kernel', uniform, (directions, x.shape[-1], gates))
    input_bias = self.param('input_bias', uniform, (directions, gates))
    state_kernel = self.param('state_kernel', uniform, (directions, self.units, gates)).astype(self.dtype)
    state_bias = self.param('state_bias', uniform, (directions, gates))[:, None]
    x = x.astype(self.dtype)
    # [time, directions, batch, gates]
    projected = jnp.einsum('bti,dij->tdbj', x, input_kernel.astype(self.dtype))
    projected = turned(projected.astype(jnp.float32) + input_bias[:, None])
    if initial is None:
      initial = jnp.zeros((directions, batch, self.units), jnp.float32)

    def step(h, from_input):
      from_state = (h.astype(self.dtype) @ state_kernel).astype(jnp.float32) + state_bias
      h = gru_update(h, from_input, from_state)
      return h, h

    final, outputs = jax.lax.scan(step, initial, projected)  # outputs: [time, directions, batch, units]
    outputs = turned(outputs).transpose(2, 0, 1, 3)  # [batch, time, directions, units]
    return outputs.reshape(*x.shape[:2], -1).astype(self.dtype), final


def turned(x):
  """[time, directions, ...] with time reversed in the second direction; its own inverse."""
  return jnp.concatenate([x[:, :1], x[::-1, 1:]], axis=1)
