"""Nets that enlarge pictures: SRCNN, ESPCN, SRResNet; and SRGAN's discriminator.

A net takes low [batch, height, width, channels] float32 in [0, 1] and gives [batch, height · factor, width · factor, channels],
on the same scale, not clipped. Its `reach` says how far it looks: an output depends on no input pixel farther away.

Attributes of each: the `factor`; `channels`; the `dtype` of the computation; `residual`: whether what the layers make is added to
the bicubic picture (Kim et al. 2016, "Accurate Image Super-Resolution Using Very Deep Convolutional Networks"), at
which training then begins; the papers of these nets do not.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import initialisers, linear
from karpjax.layers.convolution import Conv
from karpjax.layers.normalisation import BatchNorm
from karpjax.models import choices

BICUBIC_REACH = 2  # pixels of the small picture


def bicubic(low, factor: int):
  """[batch, height, width, channels] -> `factor` times as large, by cubic convolution (Keys 1981, a = -½).

  As Pillow does it: at the edges the weights inside of the picture are made to add up to one.
  """
  batch, height, width, channels = low.shape
  return jax.image.resize(low, (batch, height * factor, width * factor, channels), 'cubic')


def pixel_shuffle(x, factor: int):
  """[batch, height, width, factor² · channels] -> [batch, height · factor, width · factor, channels] (Shi et al. 2016, eq. 4).

  The channels of the place (i, j) in a square of factor × factor are those from (i · factor + j) · channels on.
  """
  batch, height, width, _ = x.shape
  x = x.reshape(batch, height, width, factor, factor, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, height * factor, width * factor, -1)


class SRCNN(nn.Module):
  """Dong et al. 2014, "Image Super-Resolution Using Deep Convolutional Networks": three convolutions on the bicubic picture.

  Attributes:
    factor, channels, dtype, residual: see the module.
    widths: of the first two layers, both ReLU.
    kernel_sizes: windows of all three: 9-1-5, or 9-5-5.
  """

  factor: int
  channels: int
  dtype: Any = jnp.float32
  residual: bool = False
  widths: tuple[int, ...] = (64, 32)
  kernel_sizes: tuple[int, ...] = (9, 1, 5)

  @property
  def reach(self) -> int:
    """In pixels of the small picture."""
    return BICUBIC_REACH + math.ceil(sum(k // 2 for k in self.kernel_sizes) / self.factor)

  @nn.compact
  def __call__(self, low, *, train: bool = False):
    x = bicubic(low, self.factor)
    for i, (width, window) in enumerate(_layers(self.widths, self.kernel_sizes), start=1):
      x = nn.relu(_conv(width, window, self.dtype, f'conv{i}', initialisers.he_normal)(x))
    return _output(self, _last(self, self.channels, self.kernel_sizes[-1])(x), low)


class ESPCN(nn.Module):
  """Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
  Network": convolutions on the small picture, whose last gives factor² values for each of its pixels.

  Attributes:
    factor, channels, dtype, residual: see the module.
    widths: of the first layers, all tanh.
    kernel_sizes: windows of all layers.
  """

  factor: int
  channels: int
  dtype: Any = jnp.float32
  residual: bool = False
  widths: tuple[int, ...] = (64, 32)
  kernel_sizes: tuple[int, ...] = (5, 3, 3)

  @property
  def reach(self) -> int:
    """In pixels of the small picture."""
    return max(BICUBIC_REACH, sum(k // 2 for k in self.kernel_sizes))

  @nn.compact
  def __call__(self, low, *, train: bool = False):
    x = low
    for i, (width, window) in enumerate(_layers(self.widths, self.kernel_sizes), start=1):
      x = jnp.tanh(_conv(width, window, self.dtype, f'conv{i}')(x))
    x = _last(self, self.factor**2 * self.channels, self.kernel_sizes[-1])(x)
    return _output(self, pixel_shuffle(x, self.factor), low)


class SRResNet(nn.Module):
  """Ledig et al. 2017, "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", figure 4.

  Attributes:
    factor, channels, dtype, residual: see the module.
    blocks: residual ones.
    width: channels inside.
  """

  factor: int
  channels: int
  dtype: Any = jnp.float32
  residual: bool = False
  blocks: int = 16
  width: int = 64

  @property
  def stages(self) -> tuple[int, ...]:
    """By how much each pixel shuffle enlarges: 4 is twice 2."""
    return (2, 2) if self.factor == 4 else (self.factor,)

  @property
  def reach(self) -> int:
    """In pixels of the small picture."""
    sizes = [math.prod(self.stages[:i]) for i in range(len(self.stages))]  # before each stage's 3×3 window
    return max(BICUBIC_REACH, math.ceil(4 + 2 * self.blocks + 1 + sum(1 / size for size in sizes) + 4 / self.factor))

  @nn.compact
  def __call__(self, low, *, train: bool = False):
    if self.blocks < 0 or self.width < 1:
      raise errors.UsageError(f'--blocks={self.blocks} --width={self.width}: at least 0 and 1 are needed')
    norm = lambda name: BatchNorm(dtype=self.dtype, name=name)
    first = x = _prelu('prelu')(_conv(self.width, 9, self.dtype, 'conv')(low))
    for i in range(1, self.blocks + 1):
      y = norm(f'block{i}_norm1')(_conv(self.width, 3, self.dtype, f'block{i}_conv1')(x), train=train)
      y = _conv(self.width, 3, self.dtype, f'block{i}_conv2')(_prelu(f'block{i}_prelu')(y))
      x = x + norm(f'block{i}_norm2')(y, train=train)
    x = first + norm('after_norm')(_conv(self.width, 3, self.dtype, 'after')(x), train=train)
    for i, stage in enumerate(self.stages, start=1):
      x = pixel_shuffle(_conv(stage**2 * self.width, 3, self.dtype, f'larger{i}')(x), stage)
      x = _prelu(f'larger{i}_prelu')(x)  # [batch, height · stage, width · stage, width]
    return _output(self, _last(self, self.channels, 9)(x), low)


class Discriminator(nn.Module):
  """SRGAN's (Ledig et al. 2017, figure 4): for each width a convolution of stride 1 and one of stride 2, then two dense layers.

  Attributes:
    widths: each convolution but the first has batch norm.
    hidden: units of the first dense layer.
    dtype: of the computation.
  """

  widths: tuple[int, ...] = (64, 128, 256, 512)
  hidden: int = 1024
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """x: [batch, height, width, channels] -> scores [batch] float32: logits of being an original."""
    for i, width in enumerate(width for width in self.widths for _ in range(2)):
      stride = 1 + i % 2
      x = Conv(width, (3, 3), stride, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'conv{i + 1}')(x)
      if i:
        x = BatchNorm(dtype=self.dtype, name=f'norm{i + 1}')(x, train=train)
      x = nn.leaky_relu(x, 0.2)
    x = x.reshape(len(x), -1)  # [batch, height · width · channels]
    x = nn.leaky_relu(linear.Dense(self.hidden, dtype=self.dtype, name='hidden')(x), 0.2)
    return linear.Dense(1, name='score')(x.astype(jnp.float32))[:, 0]  # [batch]


MODELS = {'srcnn': SRCNN, 'espcn': ESPCN, 'srresnet': SRResNet}


def build(name: str, *, factor: int, channels: int, dtype=jnp.float32, options: dict[str, Any]) -> nn.Module:
  """The net called `name`; an option of None leaves its own default.

  Raises:
    UsageError: for an unknown name, an option that it has not, or one that makes no sense.
  """
  constructor = errors.choose('model', name, MODELS)
  chosen = choices.checked(name, constructor, options, ('factor', 'channels', 'dtype'))
  module = constructor(factor=factor, channels=channels, dtype=dtype, **chosen)
  jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, channels)))
  return module


def _layers(widths, kernel_sizes):
  """(width, window) of each layer but the last."""
  if len(kernel_sizes) != len(widths) + 1 or min(*widths, *kernel_sizes) < 1 or not all(k % 2 for k in kernel_sizes):
    given = f'--widths={",".join(map(str, widths))} --kernel_sizes={",".join(map(str, kernel_sizes))}'
    raise errors.UsageError(f'{given}: one odd kernel size more than widths is needed, as 64,32 and 5,3,3')
  return zip(widths, kernel_sizes)


def _conv(width: int, window: int, dtype, name: str, init=initialisers.lecun_normal):
  return Conv(width, (window, window), dtype=dtype, kernel_init=init, name=name)


def _last(net, width: int, window: int):
  """The last convolution, which in a residual net gives 0 at first."""
  init = nn.initializers.zeros_init() if net.residual else initialisers.lecun_normal
  return _conv(width, window, net.dtype, 'output', init)


def _output(net, x, low):
  x = x.astype(jnp.float32)
  return x + bicubic(low, net.factor) if net.residual else x


def _prelu(name: str):
  return nn.PReLU(negative_slope_init=0.25, name=name)  # He et al. 2015
