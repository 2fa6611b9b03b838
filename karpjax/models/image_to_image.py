"""Pix2pix (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", appendix 6.1): a U-Net that
makes an image of an image, and two discriminators of pairs, which look at patches or at the whole.

A convolution has a bias where no norm, which would take it away, comes after it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from karpjax.errors import UsageError
from karpjax.layers import linear
from karpjax.layers.convolution import Conv
from karpjax.layers.dropout import Dropout
from karpjax.layers.normalisation import BatchNorm, InstanceNorm
from karpjax.layers.transposed_convolution import ConvTranspose
from karpjax.models.conditioning import leaky_relu
from karpjax.models.dcgan import HALF, dcgan_init

NORMS = {'batch': BatchNorm, 'instance': InstanceNorm}  # equal in training where, as in the paper, batches are of one
DISCRIMINATORS = 'patch', 'scalar'

_window = dict(kernel_size=(4, 4), kernel_init=dcgan_init)
_conv = partial(Conv, padding=HALF, **_window)
_up = partial(ConvTranspose, strides=2, **_window)


def halvings(size: Sequence[int]) -> int:
  """How often both height and width can be halved without a remainder: the depth of a U-Net for such images.

  Raises:
    UsageError: where that is less than twice.
  """
  common = math.gcd(*size)
  times = (common & -common).bit_length() - 1
  if times < 2:
    shown = '×'.join(map(str, size))
    raise UsageError(f'a U-Net cannot halve images of {shown} pixels twice: --image_size=64, or another multiple of 4')
  return times


def widths(width: int, depth: int) -> tuple[int, ...]:
  """Channels of the blocks: C64-C128-C256-C512-C512-… for a width of 64."""
  return tuple(width * min(2**i, 8) for i in range(depth))


class UNet(nn.Module):
  """The generator: an encoder that halves the image in each block, a decoder that doubles it, and skips between equals.

  Attributes:
    widths: channels of the encoder's blocks; the image can be halved so many times.
    channels: of the output.
    dropout: rate in the first three blocks of the decoder: the noise, in the place of a vector z (section 3.2).
    norm: one of NORMS; not in the first block, nor in the last one of the encoder, where a single place may be left, of which
      there are no moments.
    dtype: of the computation; params are float32.
  """

  widths: tuple[int, ...] = widths(64, 8)
  channels: int = 3
  dropout: float = 0.5
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool, noise: bool):
    """An image of an image.

    Args:
      x: [batch, height, width, in] in [-1, 1].
      train: whether batch norm takes the batch's own moments.
      noise: whether dropout draws; takes a key of the collection 'dropout'.

    Returns:
      [batch, height, width, channels] float32 in [-1, 1].
    """
    skips = []
    for i, width in enumerate(self.widths):
      normed = 0 < i < len(self.widths) - 1
      x = _conv(width, strides=2, use_bias=not normed, dtype=self.dtype, name=f'down{i + 1}')(
        x
      )  # [batch, height / 2, width / 2, width]
      x = NORMS[self.norm](dtype=self.dtype, name=f'down{i + 1}_norm')(x, train=train) if normed else x
      x = leaky_relu(x)
      skips.append(x)
    skips.pop()
    for i, width in enumerate(reversed(self.widths[:-1])):
      x = _up(width, use_bias=False, dtype=self.dtype, name=f'up{i + 1}')(x)  # [batch, 2 height, 2 width, width]
      x = NORMS[self.norm](dtype=self.dtype, name=f'up{i + 1}_norm')(x, train=train)
      x = Dropout(self.dropout if i < 3 else 0)(x, train=noise)
      x = jnp.concatenate([nn.relu(x), skips.pop()], -1)  # [batch, height, width, 2 width]
    return jnp.tanh(_up(self.channels, dtype=self.dtype, name='out')(x).astype(jnp.float32))


def _check(pairs, layers: int, left: int):
  """Raises UsageError where fewer than `left` places each way are left after the layers of stride 2."""
  height, width = pairs.shape[1:3]
  if layers < 1 or min(height, width) < left * 2**layers:
    most = max(1, int(math.log2(max(1, min(height, width) / left))))
    raise UsageError(f'--layers={layers}: a discriminator of images of {height}×{width} pixels can have 1 to {most}')


def _blocks(x, module, strides: Sequence[int]):
  """Convolutions of these strides inside a discriminator, all but the first with a norm: [batch, height / product, …]."""
  for i, (width, stride) in enumerate(zip(widths(module.width, len(strides)), strides)):
    x = _conv(width, strides=stride, use_bias=i == 0, dtype=module.dtype, name=f'conv{i + 1}')(x)
    x = NORMS[module.norm](dtype=module.dtype, name=f'conv{i + 1}_norm')(x, train=True) if i else x
    x = leaky_relu(x)
  return x


class Patches(nn.Module):
  """The discriminator of patches, all at once: the PatchGAN. Three strided layers see 70×70 pixels, C64-C128-C256-C512.

  Attributes:
    width: channels of the first convolution.
    layers: of stride 2, before two of stride 1; a score depends on 16, 34, 70, 142, … pixels each way for 1, 2, 3, 4, ….
    norm: one of NORMS, in all but the first and the last layer.
    dtype: of the computation; params and scores are float32.
  """

  width: int = 64
  layers: int = 3
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Pairs [batch, height, width, in + out] -> scores [batch, height', width', 1] float32.

    Raises:
      UsageError: where not a single score is left of such images.
    """
    _check(x, self.layers, 3)  # what the layers of stride 1 need, each of which takes one
    x = _blocks(x, self, [*[2] * self.layers, 1])
    return _conv(1, dtype=self.dtype, name='score')(x).astype(jnp.float32)


class Scalar(nn.Module):
  """The discriminator of whole images: 4×4 convolutions of stride 2 and two fully connected layers, which give one score.

  Its size is that of its images; by default they are of 128×128×1, so that a pair is of 128×128×2.

  Attributes:
    width: channels of the first convolution.
    layers: convolutions; each but the last one has twice as many channels as its predecessor.
    hidden: units of the first fully connected layer.
    norm: one of NORMS, after all convolutions but the first.
    dtype: of the computation; params and scores are float32.
  """

  width: int = 64
  layers: int = 4
  hidden: int = 512
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """Pairs [batch, height, width, in + out] -> scores [batch, 1] float32.

    Raises:
      UsageError: for images that cannot be halved so often.
    """
    _check(x, self.layers, 1)
    x = _blocks(x, self, [2] * self.layers)
    x = x.reshape(len(x), -1)  # [batch, height · width · channels]
    x = leaky_relu(linear.Dense(self.hidden, dtype=self.dtype, name='hidden')(x))
    return linear.Dense(1, dtype=self.dtype, name='score')(x).astype(jnp.float32)
