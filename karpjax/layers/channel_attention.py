"""Attention over channels, and over places: gates in (0, 1) that a network lays over its own feature maps."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    mean = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True, dtype=jnp.float32)  # [batch, 1s, channels]
    return x * jax.nn.sigmoid(Excitation(self.dtype, name='excitation')(mean)).astype(x.dtype)


class CBAM(nn.Module):
  """Convolutional block attention (Woo et al. 2018): a gate per channel (eq. 2), then per place (eq. 3)."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, channels] -> the same shape."""
    both = lambda axes: (x.mean(axes, keepdims=True, dtype=jnp.float32), x.max(axes, keepdims=True))
    mean, highest = both(tuple(range(1, x.ndim - 1)))
    pooled = jnp.stack([mean, highest.astype(jnp.float32)])  # [2, batch, 1s, channels]
    x = x * jax.nn.sigmoid(Excitation(self.dtype, name='excitation')(pooled).sum(0)).astype(x.dtype)
    mean, highest = both(-1)
    pooled = jnp.concatenate([mean.astype(x.dtype), highest], axis=-1)  # [batch, *spatial, 2]
    window = (7,) * (x.ndim - 2)
    gate = convolution.Conv(1, window, use_bias=False, dtype=self.dtype, name='place')(pooled)  # [batch, *spatial, 1]
    return x * jax.nn.sigmoid(gate).astype(x.dtype)


ATTENTIONS = {'none': None, 'se': SqueezeExcitation, 'cbam': CBAM}


def attend(kind: str, x, *, dtype, name: str):
  """x: [batch, *spatial, channels] after the attention called `kind`, a key of ATTENTIONS."""
  return x if kind == 'none' else ATTENTIONS[kind](dtype=dtype, name=name)(x)
