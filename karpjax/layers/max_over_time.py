"""Features of a sequence of any length: what windows of a few steps find, at its maximum over time."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import initialisers


class MaxOverTime(nn.Module):
  """A convolution over time for each width of window, rectified, and its maximum over time (Collobert et al. 2011, Kim 2014).

  A window counts where it meets at least one real step, so a sequence of n steps has n + width - 1 of them: one that is
  shorter than the window has features too, and padding changes none.

  Params: 'window3', …: kernel [width, in, channels], drawn as He et al. 2015, and bias [channels], zeros.

  Attributes:
    windows: widths.
    channels: features of each width.
    dtype: of the matmul and the output; sums over a window are float32.
  """

  windows: tuple[int, ...] = (3, 4, 5)
  channels: int = 100
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, mask):
    """x: [..., time, in], mask: [..., time] bool, real steps first -> [..., widths * channels] of `dtype`."""
    lead, inputs = [(0, 0)] * (x.ndim - 2), x.shape[-1]
    # One matmul of every step with every place of every window, whose results are then shifted and added up: several
    # times faster on a CPU than convolutions, whose gradients are slow in a loop, and the same over vmapped seeds.
    layers = [_Window(width, inputs, self.channels, name=f'window{width}')() for width in self.windows]
    kernels = jnp.concatenate([kernel.transpose(1, 0, 2).reshape(inputs, -1) for kernel, _ in layers], 1)
    places = jnp.where(mask[..., None], x, 0).astype(self.dtype) @ kernels.astype(self.dtype)
    places = iter(jnp.split(places, sum(self.windows), -1))  # each [..., time, channels]
    features = []
    for width, (_, bias) in zip(self.windows, layers):
      found = 0
      for place in range(width):
        shift = [*lead, (width - 1 - place, place), (0, 0)]
        found += jnp.pad(next(places).astype(jnp.float32), shift)  # [..., time + width - 1, channels]
      # the windows that begin before the first step end in it or beyond; the others are real where their first step is
      real = jnp.pad(mask, [*lead, (width - 1, 0)], constant_values=True)
      found = jnp.where(real[..., None], found + bias, -jnp.inf)
      features.append(nn.relu(found.max(-2)))  # [..., channels]
    return jnp.concatenate(features, -1).astype(self.dtype)


class _Window(nn.Module):
  """The kernel and the bias of one width."""

  width: int
  inputs: int
  channels: int

  @nn.compact
  def __call__(self):
    kernel = self.param('kernel', initialisers.he_normal, (self.width, self.inputs, self.channels))
    return kernel, self.param('bias', nn.initializers.zeros_init(), (self.channels,))
