"""Attention over channels, and over places: gates in (0, 1) that a network lays over its own feature maps."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import convolution, initialisers, linear

REDUCTION = 16  # both papers' choice
SMALLEST = 4  # hidden units at least; only maps of under 64 channels meet it


class Excitation(nn.Module):
  """A gate's two dense layers, channels -> channels / 16 -> channels, by ReLU (Hu et al. 2018, eq. 3)."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled):
    """pooled: [..., channels] -> [..., channels], before the sigmoid."""
    channels = pooled.shape[-1]
    hidden = max(channels // REDUCTION, SMALLEST)
    x = linear.Dense(hidden, dtype=self.dtype, kernel_init=initialisers.he_normal, name='squeeze')(pooled)
    return linear.Dense(channels, dtype=self.dtype, name='excite')(nn.relu(x))


class SqueezeExcitation(nn.Module):
  """Scales each channel by a gate that sees the mean of every channel (Hu et al. 2018, eq. 2 to 4)."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, channels] -> the same shape."""
    axes = tuple(range(1, x.ndim - 1))
    mean = x.mean(axes, keepdims=True, dtype=jnp.float32)  # [batch, 1s, channels]
    gate = jax.nn.sigmoid(Excitation(self.dtype, name='excitation')(mean))
    return x * gate.astype(x.dtype)


class CBAM(nn.Module):
  """Convolutional block attention (Woo et al. 2018): a gate per channel (eq. 2), then per place (eq. 3)."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, channels] -> the same shape."""
    axes = tuple(range(1, x.ndim - 1))
    mean, highest = x.mean(axes, keepdims=True, dtype=jnp.float32), x.max(axes, keepdims=True)
    both = jnp.stack([mean, highest.astype(jnp.float32)])  # [2, batch, 1s, channels]
    gate = jax.nn.sigmoid(Excitation(self.dtype, name='excitation')(both).sum(0))  # [batch, 1s, channels]
    x = x * gate.astype(x.dtype)
    mean, highest = x.mean(-1, keepdims=True, dtype=jnp.float32), x.max(-1, keepdims=True)
    both = jnp.concatenate([mean.astype(x.dtype), highest], axis=-1)  # [batch, *spatial, 2]
    window = (7,) * len(axes)
    gate = convolution.Conv(1, window, use_bias=False, dtype=self.dtype, name='place')(both)
    return x * jax.nn.sigmoid(gate).astype(x.dtype)  # gate: [batch, *spatial, 1]


ATTENTIONS = {'none': None, 'se': SqueezeExcitation, 'cbam': CBAM}


def attend(kind: str, x, *, dtype, name: str):
  """x: [batch, *spatial, channels] after the attention called `kind`: 'none', 'se' or 'cbam'.

  Raises:
    UsageError: for an unknown kind.
  """
  attention = errors.choose('attention', kind, ATTENTIONS)
  return x if attention is None else attention(dtype=dtype, name=name)(x)
