"""SNGAN: the residual networks of Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", table 3.

Signatures as in `models.gan`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import convolution, initialisers, linear, pooling
from karpjax.models import conditioning


def _halved(shape, times: int) -> tuple[int, int]:
  """(height, width) of what is doubled so many times to an image of `shape`.

  Raises:
    UsageError: where that does not come out even.
  """
  (height, width, _), factor = shape, 2**times
  if height % factor or width % factor:
    raise errors.UsageError(
      f'images of {height}×{width} cannot be halved {times} times, once for each of --widths; type fewer --widths, or an '
      f'--image_size that {factor} divides, such as --image_size={max(factor, round(height / factor) * factor)}'
    )
  return height // factor, width // factor


class SNGANGenerator(nn.Module):
  """Miyato et al. 2018, table 3a: residual blocks, each of which doubles the image.

  Classes have each a gain and a bias of every batch norm (Miyato & Koyama 2018, section 4): beside a latent that is then
  normalised, what tells them apart may grow until the latent vanishes. Without norms they are beside the latent.

  Attributes:
    shape, classes, conditional, dtype: as `gan.MLPGenerator`'s.
    widths: channels of the blocks.
    norm: 'batch' or 'none'.
  """

  shape: tuple[int, ...]
  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (256, 256, 256)
  norm: str = 'batch'

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    norm, (height, width) = (
      errors.choose('norm', self.norm, conditioning.NORMS),
      _halved(self.shape, len(self.widths)),
    )
    by_class = self.conditional != 'none' and self.norm == 'batch'
    if by_class:
      norm = functools.partial(norm, classes=self.classes)
    told = {'labels': labels} if by_class else {}
    conv = functools.partial(convolution.Conv, dtype=self.dtype, kernel_init=initialisers.he_normal)

    def activated(x, name):
      return nn.relu(norm(dtype=self.dtype, name=name)(x, train=train, **told) if norm else x)

    z = z.astype(self.dtype) if by_class else conditioning.with_class(z, labels, self)
    x = linear.Dense(height * width * self.widths[0], dtype=self.dtype, name='project')(z)
    x = x.reshape(-1, height, width, self.widths[0])
    for i, channels in enumerate(self.widths, start=1):
      y = conv(channels, (3, 3), name=f'block{i}_conv1')(_doubled(activated(x, f'block{i}_norm1')))
      y = conv(channels, (3, 3), name=f'block{i}_conv2')(activated(y, f'block{i}_norm2'))
      x = y + _doubled(conv(channels, (1, 1), name=f'block{i}_shortcut')(x))
    x = conv(self.shape[-1], (3, 3), name='out')(activated(x, 'norm'))
    return jnp.tanh(x.astype(jnp.float32))


class SNGANDiscriminator(nn.Module):
  """Miyato et al. 2018, table 3b: residual blocks, of which all but the last two, and at least the first, halve the image.

  Attributes:
    classes, conditional, dtype, spectral_norm: as `gan.MLPDiscriminator`'s.
    widths: channels of the blocks.
    norm: must be 'none'.
  """

  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (128, 128, 128, 128)
  norm: str = 'none'
  spectral_norm: bool = True

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x = conditioning.seen(x, labels, self)

    def conv(x, channels, window, name):
      layer = convolution.Conv(
        channels, (window, window), dtype=self.dtype, kernel_init=initialisers.he_normal, name=name
      )
      return conditioning.layer(layer, x, self, train)

    for i, channels in enumerate(self.widths, start=1):
      pool = pooling.avg_pool if i <= max(1, len(self.widths) - 2) else lambda x: x
      y = conv(nn.relu(x) if i > 1 else x, channels, 3, f'block{i}_conv1')
      y = pool(conv(nn.relu(y), channels, 3, f'block{i}_conv2'))
      changes = x.shape[1:] != y.shape[1:]
      x = y + (conv(pool(x), channels, 1, f'block{i}_shortcut') if changes else x)
    return conditioning.judged(nn.relu(x).sum((1, 2)), labels, self, train, initialisers.lecun_normal)


def _doubled(x):
  """Nearest neighbours: [batch, height, width, channels] -> [batch, 2 height, 2 width, channels]."""
  return x.repeat(2, 1).repeat(2, 2)
