"""Policies and values: observations [batch, *shape] -> outputs of a distribution [batch, size] and values [batch]; with a
memory, also of observations [batch, time, *shape] one after the other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax import errors
from karpjax.layers import convolution, linear, recurrence
from karpjax.models.mlp import ACTIVATIONS, check

# channels, window and stride of a body's convolutions
CONVOLUTIONS = {'mlp': (), 'cnn': ((16, 3, 1),), 'nature': ((32, 8, 4), (64, 4, 2), (64, 3, 1))}
BODIES = tuple(CONVOLUTIONS)
MEMORIES = ('none', *recurrence.CELLS)


def orthogonal(scale: float):
  return nn.initializers.orthogonal(scale)


def features(
  x,
  name: str,
  *,
  body: str,
  widths: Sequence[int],
  activation: Callable,
  kernel_init: Callable = orthogonal(math.sqrt(2)),
  dtype: Any = jnp.float32,
):
  """A body, as part of the module that calls this: x [batch, *shape] -> [batch, widths[-1]] float32.

  Args:
    x: observations; uint8 ones are brought to [0, 1].
    name: what its layers' names begin with.
    body: 'mlp', or 'cnn' for images: one 3×3 convolution of 16 channels, as MinAtar's networks (Young & Tian 2019), before
      the dense layers; 'nature' for frames of 84×84: three of 32, 64 and 64 channels (Mnih et al. 2015, methods).
    widths: units of the dense layers.
    activation: between them.
    kernel_init: of all layers.
    dtype: of the layers.
  """
  h = x.astype(dtype) / 255 if x.dtype == jnp.uint8 else x.astype(dtype)
  for layer, (channels, window, stride) in enumerate(CONVOLUTIONS[body]):
    options = dict(padding='VALID', dtype=dtype, kernel_init=kernel_init, name=f'{name}_conv{layer or ""}')
    h = activation(convolution.Conv(channels, (window, window), strides=stride, **options)(h))
  h = h.reshape(h.shape[0], -1)
  for layer, width in enumerate(widths, start=1):
    h = activation(linear.Dense(width, dtype=dtype, kernel_init=kernel_init, name=f'{name}{layer}')(h))
  return h.astype(jnp.float32)


class ActorCritic(nn.Module):
  """Two networks of the same shape, or two heads on one body, initialised as Andrychowicz et al. 2021 and PPO's first code:
  orthogonal kernels, gain √2 in the body, 0.01 of the policy's outputs, 1 of the value.

  Attributes:
    outputs: how many numbers the policy's distribution needs; half of them if `continuous`.
    continuous: whether they are means, to which the logs of the deviations are joined, which depend on nothing.
    body: 'mlp', or 'cnn' for images; see `features`.
    widths: units of the dense layers.
    activation: 'tanh', 'relu' or 'gelu'.
    shared: whether policy and value share the body.
    log_std: where the logs of the deviations begin.
    memory: 'none', or the cell of a recurrent layer between each body and what reads it: 'rnn', 'lstm' or 'gru'.
    memory_width: its units.
    dtype: of the body; outputs are float32.
  """

  outputs: int
  continuous: bool = False
  body: str = 'mlp'
  widths: tuple[int, ...] = (64, 64)
  activation: str = 'tanh'
  shared: bool = False
  log_std: float = 0.0
  memory: str = 'none'
  memory_width: int = 64
  dtype: Any = jnp.float32

  def blank(self) -> dict[str, recurrence.State]:
    """What is remembered of nothing: {body: zeros, each [memory_width]}; raises UsageError for an unknown memory."""
    errors.choose('memory', self.memory, recurrence.CELLS)
    state = recurrence.Recurrent(self.memory_width, self.memory, parent=None).initial(1)
    return {name: jax.tree.map(lambda x: x[0], state) for name in (('body',) if self.shared else ('actor', 'critic'))}

  @nn.compact
  def __call__(self, x, remembered=None, fresh=None):
    """Outputs and values.

    Args:
      x: [batch, *shape], or where `fresh` is given [batch, time, *shape].
      remembered: before this step, or the first of them: as `blank`, [batch, …]; of a policy with a memory.
      fresh: [batch, time] bool, True where an episode begins, with a blank memory.

    Returns:
      outputs [batch, outputs] float32, values [batch] float32, or [batch, time, outputs] and [batch, time]; with a memory
      also what is remembered after the last time.

    Raises:
      UsageError: for an unknown body or activation, or a width under 1.
    """
    activation = errors.choose('activation', self.activation, ACTIVATIONS)
    errors.choose('body', self.body, dict.fromkeys(BODIES))
    check(widths=self.widths, memory_width=self.memory_width)
    options = dict(body=self.body, widths=self.widths, activation=activation, dtype=self.dtype)
    lead, after = x.shape[: 1 if fresh is None else 2], {}

    def body(name):
      if self.memory == 'none':
        return features(x, name, **options)
      h = features(x.reshape(-1, *x.shape[len(lead) :]), name, **options)
      h = h.reshape(len(x), -1, h.shape[-1])  # [batch, time, widths[-1]], of one time where there is no axis of it
      layer = recurrence.Recurrent(self.memory_width, self.memory, dtype=self.dtype, name=f'{name}_memory')
      h, after[name] = layer(h, remembered[name], fresh=fresh)  # [batch, time, memory_width]
      return h.reshape(*lead, -1).astype(jnp.float32)

    acting = body('body' if self.shared else 'actor')
    judging = acting if self.shared else body('critic')
    numbers = self.outputs // 2 if self.continuous else self.outputs
    outputs = linear.Dense(numbers, kernel_init=orthogonal(0.01), name='policy')(acting)
    if self.continuous:
      log_std = self.param('log_std', nn.initializers.constant(self.log_std), (numbers,))
      outputs = jnp.concatenate([outputs, jnp.broadcast_to(log_std, outputs.shape)], -1)  # […, 2 * numbers]
    values = linear.Dense(1, kernel_init=orthogonal(1.0), name='value')(judging)[..., 0]
    return (outputs, values) if self.memory == 'none' else (outputs, values, after)
