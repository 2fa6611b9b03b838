"""Pix2pix (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", appendix 6.1): a
U-Net that translates an image, and two discriminators of pairs, of patches or of the whole.

A convolution has a bias where no norm, which would take it away, comes after it. Each `dtype` is that of the
computation; params and outputs are float32.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from karpjax.errors import UsageError
from karpjax.layers import linear
from karpjax.layers.convolution import Conv, ConvTranspose
from karpjax.layers.normalisation import BatchNorm, InstanceNorm
from karpjax.models.gan import HALF, dcgan_init, last_init, leaky_relu
from karpjax.options import DEEPEST, option

NORMS = {'batch': BatchNorm, 'instance': InstanceNorm}  # equal in training where, as in the paper, batches are of one

_conv = partial(Conv, kernel_size=(4, 4), padding=HALF, kernel_init=dcgan_init)
_up = partial(ConvTranspose, kernel_size=(4, 4), kernel_init=dcgan_init)


def halvings(size: Sequence[int]) -> int:
  """How often both height and width can be halved without a remainder: the depth of a U-Net for such images.

  Raises:
    UsageError: where that is less than twice.
  """
  common = math.gcd(*size)
  times = (common & -common).bit_length() - 1
  if times < 2:
    shown = '×'.join(map(str, size))
    raise UsageError(f'a U-Net cannot halve images of {shown} pixels twice: image_size=64, or another multiple of 4')
  return times


def widths(width: int, depth: int) -> tuple[int, ...]:
  """Channels of the blocks: C64-C128-C256-C512-C512-… for a width of 64."""
  return tuple(width * min(2**i, 8) for i in range(depth))


class UNet(nn.Module):
  """The generator: blocks that halve the image as often as it can be, others that double it, and skips between equals.

  No norm is in the first block, nor in the last one of the encoder, where a single place may be left, of which there
  are no moments. Dropout is the noise, in the place of a vector z (section 3.2).

  Attributes:
    channels: of the output.
  """

  channels: int = 3
  dtype: Any = jnp.float32
  width: int = option(16, "Channels of the generator's first block; the paper has 64.", low=1)
  dropout: float = option(0.5, "Dropout rate in the decoder's first three blocks: the noise.", low=0, below=1)
  norm: str = option('instance', choices=NORMS)

  @nn.compact
  def __call__(self, x, *, train: bool, noise: bool):
    """x: [batch, height, width, in] in [-1, 1] -> [batch, height, width, channels] float32 in [-1, 1].

    Args:
      train: whether batch norm takes the batch's own moments.
      noise: whether dropout draws; takes a key of the collection 'dropout'.
    """
    depth, skips = widths(self.width, halvings(x.shape[1:3])), []
    norm = lambda name, x: NORMS[self.norm](dtype=self.dtype, name=f'{name}_norm')(x, train=train)
    for i, width in enumerate(depth, start=1):
      normed = 1 < i < len(depth)
      x = _conv(width, strides=2, use_bias=not normed, dtype=self.dtype, name=f'down{i}')(x)
      x = leaky_relu(norm(f'down{i}', x) if normed else x)  # [batch, height / 2, width / 2, width]
      skips.append(x)
    skips.pop()
    for i, width in enumerate(reversed(depth[:-1]), start=1):
      x = norm(f'up{i}', _up(width, use_bias=False, dtype=self.dtype, name=f'up{i}')(x))
      x = linear.Dropout(self.dropout if i <= 3 else 0)(x, train=noise)
      x = jnp.concatenate([nn.relu(x), skips.pop()], -1)  # [batch, 2 height, 2 width, 2 width]
    return jnp.tanh(_up(self.channels, dtype=self.dtype, kernel_init=last_init, name='out')(x).astype(jnp.float32))


class Discriminator(nn.Module):
  """The convolutions of both: of stride 2 as many as `layers`, and those that a discriminator adds."""

  dtype: Any = jnp.float32
  discriminator_width: int = option(16, "Channels of the discriminator's first convolution; the paper has 64.", low=1)
  norm: str = option('instance', 'The norm of both players; batch norm evaluates by running averages.', choices=NORMS)

  def blocks(self, x, strides: Sequence[int], left: int):
    """Convolutions of these strides, all but the first with a norm: [batch, height / product, …].

    Raises:
      UsageError: where fewer than `left` places each way are left behind the layers of stride 2.
    """
    height, width = x.shape[1:3]
    if min(height, width) < left * 2**self.layers:
      most = max(1, int(math.log2(max(1, min(height, width) / left))))
      raise UsageError(
        f'layers={self.layers}: a discriminator of images of {height}×{width} pixels can have 1 to {most}'
      )
    for i, (channels, stride) in enumerate(zip(widths(self.discriminator_width, len(strides)), strides), start=1):
      x = _conv(channels, strides=stride, use_bias=i == 1, dtype=self.dtype, name=f'conv{i}')(x)
      x = leaky_relu(NORMS[self.norm](dtype=self.dtype, name=f'conv{i}_norm')(x, train=True) if i > 1 else x)
    return x


class Patches(Discriminator):
  """The discriminator of patches, all at once: the PatchGAN. Three strided layers see 70×70 pixels,
  C64-C128-C256-C512.
  """

  layers: int = option(
    2, "The discriminator's strided layers; patches of 1 to 4 have 16, 34, 70, 142 pixels.", low=1, high=DEEPEST
  )

  @nn.compact
  def __call__(self, x):
    """Pairs [batch, height, width, in + out] -> scores [batch, height', width', 1] float32."""
    x = self.blocks(x, [*[2] * self.layers, 1], 3)  # the layers of stride 1 take a place each
    return _conv(1, dtype=self.dtype, kernel_init=last_init, name='score')(x).astype(jnp.float32)


class Scalar(Discriminator):
  """The discriminator of whole images: convolutions of stride 2 and two fully connected layers,
  which give one score.
  """

  layers: int = option(4, low=1, high=DEEPEST)
  hidden: int = option(512, "Units of the discriminator's first fully connected layer.", low=1)

  @nn.compact
  def __call__(self, x):
    """Pairs [batch, height, width, in + out] -> scores [batch, 1] float32."""
    x = self.blocks(x, [2] * self.layers, 1).reshape(len(x), -1)  # [batch, height · width · channels]
    x = leaky_relu(linear.Dense(self.hidden, dtype=self.dtype, name='hidden')(x))
    return linear.Head(1, dtype=self.dtype, name='score')(x).astype(jnp.float32)


GENERATORS = {'unet': UNet}
DISCRIMINATORS = {'patch': Patches, 'scalar': Scalar}
