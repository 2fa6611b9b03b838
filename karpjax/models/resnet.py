"""Residual networks (He et al. 2015) for CIFAR (section 4.2) and ImageNet (table 1), over any image size."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.errors import UsageError
from karpjax.layers import convolution, initialisers, linear, normalisation
from karpjax.layers.channel_attention import ATTENTIONS, attend
from karpjax.layers.transformer import REMATS, remat
from karpjax.models import mlp
from karpjax.options import option

# He et al. 2015, "Delving deep into rectifiers", eq. 14: the backward case, as in torchvision's ResNets
kernel_init = initialisers.variance_scaling(2.0, 'fan_out', 'normal')
# torchvision's dense layers: U(-1, 1) / sqrt(fan_in)
logits_init = initialisers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def conv(x, features: int, window: int, *, stride: int = 1, dtype, name: str):
  """No bias, padding window // 2: [batch, *spatial, in] -> [batch, *ceil(spatial / stride), features]."""
  rank, padding = x.ndim - 2, (window // 2, window // 2)
  kinds = dict(strides=stride, padding=(padding,) * rank, use_bias=False, dtype=dtype, kernel_init=kernel_init)
  return convolution.Conv(features, (window,) * rank, **kinds, name=name)(x)


class Block(nn.Module):
  """relu(shortcut(x) + residual(x)): two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1.

  The bottleneck's stride is in its 3x3 convolution, "v1.5", as in torchvision and flax; the paper has it in
  the first 1x1.

  Attributes:
    width: channels of the convolutions; the bottleneck's output has four times as many.
    stride: of the block.
    bottleneck: which of the two residual branches.
    imagenet: where shapes differ the shortcut is a 1x1 convolution and norm (option B), else every stride-th place with
      channels of zeros added (option A, no params); and the branch's last norm begins with scale 0 (Goyal et al. 2017,
      section 5.1).
    attention: 'none', 'se' or 'cbam', at the branch's end.
    dtype: of the computation.
  """

  width: int
  stride: int
  bottleneck: bool
  imagenet: bool
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    """x: [batch, *spatial, in] -> [batch, *ceil(spatial / stride), out]."""
    width, features, y = self.width, self.width * (4 if self.bottleneck else 1), x
    layers = [(width, 3, self.stride), (features, 3, 1)]
    if self.bottleneck:
      layers = [(width, 1, 1), (width, 3, self.stride), (features, 1, 1)]
    norm = functools.partial(normalisation.BatchNorm, dtype=self.dtype)
    for i, (channels, window, stride) in enumerate(layers, start=1):
      y = conv(y, channels, window, stride=stride, dtype=self.dtype, name=f'conv{i}')
      if i < len(layers):
        y = nn.relu(norm(name=f'norm{i}')(y, train=train))
    first = nn.initializers.zeros_init() if self.imagenet else nn.initializers.ones_init()
    y = norm(scale_init=first, name=f'norm{len(layers)}')(y, train=train)
    y = attend(self.attention, y, dtype=self.dtype, name='attention')
    reshaped = self.stride > 1 or x.shape[-1] != features
    if reshaped and self.imagenet:
      x = conv(x, features, 1, stride=self.stride, dtype=self.dtype, name='projection')
      x = norm(name='projection_norm')(x, train=train)
    elif reshaped:
      x = x[(slice(None), *(slice(None, None, self.stride),) * (x.ndim - 2))]
      x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, features - x.shape[-1]),))  # [batch, *spatial', features]
    return convolution.FeatureMaps()(nn.relu(x + y))


class ResNet(mlp.Classifier):
  """A stem, stages of blocks (each but the first halves the image), the mean over places, one dense layer.

  Attributes:
    blocks: in each stage.
    bottleneck: which kind of block.
    imagenet: the stem of ImageNet (7x7 by 2, 3x3 max pooling by 2), with projection shortcuts and
      zero-initialised last norms; else that of CIFAR (3x3), with shortcuts without params.
  """

  blocks: tuple[int, ...] = (3, 3, 3)
  bottleneck: bool = False
  imagenet: bool = False
  widths: tuple[int, ...] = option((16, 32, 64), "Channels of each stage's blocks.", low=1)
  attention: str = option('none', 'Gates in each block: squeeze-and-excitation or CBAM.', choices=ATTENTIONS)
  remat: str = option(
    'none', 'What the backward pass computes anew instead of keeping: none, full (each block), or dots (all of it but '
    'matrix products; convolutions are none of them).', choices=REMATS,
  )  # fmt: skip

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, *spatial, channels] -> logits [batch, classes] float32."""
    mlp.check_rank(x, 2, 3)
    given = ','.join(map(str, self.widths))
    if len(self.widths) != len(self.blocks):
      raise UsageError(f'widths={given}: this ResNet has {len(self.blocks)} stages; give it as many widths')
    if not self.imagenet and list(self.widths) != sorted(self.widths):
      raise UsageError(f'widths={given}: shortcuts without params need widths that never shrink')
    window, stride = (7, 2) if self.imagenet else (3, 1)
    x = conv(x.astype(self.dtype), self.widths[0], window, stride=stride, dtype=self.dtype, name='stem')
    x = nn.relu(normalisation.BatchNorm(dtype=self.dtype, name='stem_norm')(x, train=train))
    if self.imagenet:
      x = convolution.max_pool(x, 3, 2, ((1, 1),) * (x.ndim - 2))  # [batch, *spatial / 4, width]
    block, kinds = remat(Block, self.remat), (self.bottleneck, self.imagenet, self.attention, self.dtype)
    for stage, (blocks, width) in enumerate(zip(self.blocks, self.widths), start=1):
      for i in range(blocks):
        stride, name = 2 if stage > 1 and i == 0 else 1, f'stage{stage}_block{i + 1}'
        x = block(width, stride, *kinds, name=name)(x, train)  # [batch, *ceil(spatial / stride), out]
    x = x.mean(range(1, x.ndim - 1), dtype=jnp.float32)  # [batch, out]
    return linear.Head(self.classes, kernel_init=logits_init, name='logits')(x)
