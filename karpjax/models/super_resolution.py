"""Nets that enlarge pictures: SRCNN, ESPCN, SRResNet; SRGAN's discriminator; and pictures of any size, in tiles.

A net takes low [batch, height, width, channels] float32 in [0, 1] and gives [batch, height · factor, width · factor,
channels], on the same scale, not clipped. Its `reach` says how far it looks, in pixels of the small picture: an output
depends on no input pixel farther away. `present` [batch, height, width, 1], 1 or 0, says where the picture lies in low:
what it gives there is what it gives of the picture alone. With `residual` what its layers give is added to the bicubic
picture (Kim et al. 2016, "Accurate Image Super-Resolution Using Very Deep Convolutional Networks"), at which training
then begins. `dtype` is that of the computation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from karpjax import axes, errors
from karpjax.layers import initialisers, linear
from karpjax.layers.convolution import Conv
from karpjax.layers.normalisation import BatchNorm
from karpjax.models.gan import leaky_relu
from karpjax.options import DEEPEST, option

BICUBIC_REACH = 2  # pixels of the small picture


def bicubic(low, factor: int, present=None):
  """[batch, height, width, channels] -> `factor` times as large, by cubic convolution (Keys 1981, a = -½).

  As Pillow does it: at the edges the weights inside of the picture are made to add up to one.
  """
  larger = lambda x: jax.image.resize(x, (x.shape[0], *(n * factor for n in x.shape[1:3]), x.shape[-1]), 'cubic')
  # inside of the picture the weights that are there add up to more than a quarter
  return larger(low) if present is None else larger(low * present) / jnp.maximum(larger(present), 0.2)


def pixel_shuffle(x, factor: int):
  """[batch, height, width, factor² · channels] -> [batch, height · factor, width · factor, channels] (Shi et al. 2016,
  eq. 4).

  The channels of the place (i, j) in a square of factor × factor are those from (i · factor + j) · channels on.
  """
  batch, height, width, _ = x.shape
  x = x.reshape(batch, height, width, factor, factor, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, height * factor, width * factor, -1)


class Net(nn.Module):
  """The fields of every net, and its first and last convolutions."""

  factor: int
  channels: int
  dtype: Any = jnp.float32
  residual: bool = option(True, "Add the layers' output to the bicubic picture; the papers' nets do not.")

  def conv(self, x, present, width: int, window: int, name: str, init=initialisers.lecun_normal):
    """A convolution of x, which may be larger than `present`; what lies beyond the picture is 0,
    as what it pads with.
    """
    if present is not None:
      scale = x.shape[1] // present.shape[1]
      x = x * present.repeat(scale, 1).repeat(scale, 2).astype(x.dtype)
    return Conv(width, (window, window), dtype=self.dtype, kernel_init=init, name=name)(x)

  def output(self, x, low, present, window: int, shuffle: int = 1):
    """The last convolution, which in a residual net gives 0 at first, and what is added to it."""
    init = axes.declare(nn.initializers.zeros_init() if self.residual else initialisers.lecun_normal, '')
    x = self.conv(x, present, shuffle**2 * self.channels, window, 'output', init)
    x = pixel_shuffle(x, shuffle).astype(jnp.float32)
    return x + bicubic(low, self.factor, present) if self.residual else x

  def hidden(self, x, present, activation: Callable, init):
    """All layers but the last of a SRCNN or ESPCN."""
    widths, windows = self.widths, self.kernel_sizes
    if len(windows) != len(widths) + 1 or not all(k % 2 for k in windows):
      given = f'widths={",".join(map(str, widths))}, kernel_sizes={",".join(map(str, windows))}'
      raise errors.UsageError(f'{given}: one odd kernel size more than widths is needed, as 64,32 and 5,3,3')
    for i, (width, window) in enumerate(zip(widths, windows), start=1):
      x = activation(self.conv(x, present, width, window, f'conv{i}', init))
    return x


class SRCNN(Net):
  """Dong et al. 2014, "Image Super-Resolution Using Deep Convolutional Networks": convolutions on the bicubic picture.

  The first are followed by ReLU; the paper's windows are 9-1-5 or 9-5-5.
  """

  widths: tuple[int, ...] = option((64, 32), 'Channels of all layers but the last.', low=1)
  kernel_sizes: tuple[int, ...] = option((9, 1, 5), 'Windows of all layers.', low=1, high=256)

  @property
  def reach(self) -> int:
    return BICUBIC_REACH + math.ceil(sum(k // 2 for k in self.kernel_sizes) / self.factor)

  @nn.compact
  def __call__(self, low, *, train: bool = False, present=None):
    x = self.hidden(bicubic(low, self.factor, present), present, nn.relu, initialisers.he_normal)
    return self.output(x, low, present, self.kernel_sizes[-1])


class ESPCN(Net):
  """Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
  Neural Network": convolutions on the small picture, whose last gives factor² values for each of its pixels; tanh
  between them.
  """

  widths: tuple[int, ...] = option((64, 32), low=1)
  kernel_sizes: tuple[int, ...] = option((5, 3, 3), low=1, high=256)

  @property
  def reach(self) -> int:
    return max(BICUBIC_REACH, sum(k // 2 for k in self.kernel_sizes))

  @nn.compact
  def __call__(self, low, *, train: bool = False, present=None):
    x = self.hidden(low, present, jnp.tanh, initialisers.lecun_normal)
    return self.output(x, low, present, self.kernel_sizes[-1], self.factor)


class SRResNet(Net):
  """Ledig et al. 2017, "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network",
  figure 4.
  """

  blocks: int = option(16, 'Residual blocks.', low=0, high=DEEPEST)
  width: int = option(64, 'Channels inside.', low=1)

  @property
  def stages(self) -> tuple[int, ...]:
    """By how much each pixel shuffle enlarges: 4 is twice 2."""
    return (2, 2) if self.factor == 4 else (self.factor,)

  @property
  def reach(self) -> int:
    larger = 1.5 if self.factor == 4 else 1  # of a 3×3 window before each stage
    return max(BICUBIC_REACH, math.ceil(4 + 2 * self.blocks + 1 + larger + 4 / self.factor))

  @nn.compact
  def __call__(self, low, *, train: bool = False, present=None):
    conv = lambda name, x, width=self.width, window=3: self.conv(x, present, width, window, name)
    norm = lambda name, x: BatchNorm(dtype=self.dtype, name=name)(x, train=train)
    prelu = lambda name, x: nn.PReLU(negative_slope_init=0.25, name=name)(x)  # He et al. 2015
    first = x = prelu('prelu', conv('conv', low, window=9))
    for i in range(1, self.blocks + 1):
      y = prelu(f'block{i}_prelu', norm(f'block{i}_norm1', conv(f'block{i}_conv1', x)))
      x = x + norm(f'block{i}_norm2', conv(f'block{i}_conv2', y))
    x = first + norm('after_norm', conv('after', x))
    for i, stage in enumerate(self.stages, start=1):
      x = pixel_shuffle(conv(f'larger{i}', x, stage**2 * self.width), stage)
      x = prelu(f'larger{i}_prelu', x)  # [batch, height · stage, width · stage, width]
    return self.output(x, low, present, 9)


class Discriminator(nn.Module):
  """SRGAN's (Ledig et al. 2017, figure 4): for each width a convolution of stride 1 and one of stride 2, then two dense
  layers.

  Each convolution but the first has batch norm.
  """

  dtype: Any = jnp.float32
  discriminator_widths: tuple[int, ...] = option(
    (64, 128, 256, 512), "Channels of the discriminator's pairs of convolutions.", low=1
  )
  discriminator_hidden: int = option(1024, "Units of the discriminator's first dense layer.", low=1)

  @nn.compact
  def __call__(self, x, *, train: bool):
    """x: [batch, height, width, channels] -> scores [batch] float32: logits of being an original."""
    conv = functools.partial(Conv, kernel_size=(3, 3), dtype=self.dtype, kernel_init=initialisers.he_normal)
    for i, width in enumerate((width for width in self.discriminator_widths for _ in range(2)), start=1):
      x = conv(width, strides=2 - i % 2, name=f'conv{i}')(x)
      x = leaky_relu(BatchNorm(dtype=self.dtype, name=f'norm{i}')(x, train=train) if i > 1 else x)
    x = x.reshape(len(x), -1)  # [batch, height · width · channels]
    x = leaky_relu(linear.Dense(self.discriminator_hidden, dtype=self.dtype, name='hidden')(x))
    return linear.Head(1, name='score')(x.astype(jnp.float32))[:, 0]  # [batch]


MODELS = {'srcnn': SRCNN, 'espcn': ESPCN, 'srresnet': SRResNet}
DISCRIMINATORS = {'srgan': Discriminator}


# ---- pictures of any size ----


def spans(length: int, tile: int, margin: int) -> list[tuple[int, int, int]]:
  """How tiles cover one axis.

  Args:
    length: of the axis.
    tile: of a tile; where the axis is shorter, one tile is all of it.
    margin: by how much a tile begins before the part that it gives, and ends behind it, except at the ends of the axis:
      there it begins or ends as the axis does, so that whatever the function pads with is what it pads the whole
      picture with.

  Returns:
    [(where a tile begins, where its part begins, where that ends), …]; the parts lie one behind the other.
  """
  if length <= tile:
    return [(0, 0, length)]
  starts = [*range(0, length - tile, tile - 2 * margin), length - tile]
  ends = [*(start + tile - margin for start in starts[:-1]), length]
  return list(zip(starts, [0, *ends[:-1]], ends))


def in_tiles(function: Callable, picture: np.ndarray, *, tile: int, margin: int, scale: int = 1) -> np.ndarray:
  """function of a whole picture, without seams: the same numbers where an output depends on no pixel beyond `margin`.

  Args:
    function: [1, height, width, channels] -> [1, height · scale, width · scale, channels'], for tiles of one size
      (smaller where the picture is smaller).
    picture: [height, width, channels].
    tile, margin: see `spans`; for both axes.
    scale: how much larger the output is.

  Returns:
    [height · scale, width · scale, channels'].
  """
  rows, columns = (spans(length, tile, margin) for length in picture.shape[:2])
  inner = lambda start, first, last: slice((first - start) * scale, (last - start) * scale)
  part = lambda row, column: np.asarray(
    function(picture[None, row[0] : row[0] + tile, column[0] : column[0] + tile])[0]
  )[inner(*row), inner(*column)]
  return np.concatenate([np.concatenate([part(row, column) for column in columns], 1) for row in rows])
