"""EfficientNet-Lite0 (Tan & Le 2019, without gates and with relu6): a published network that is small on a CPU."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import convolution, initialisers, linear
from karpjax.layers.normalisation import BatchNorm
from karpjax.models.mlp import Classifier, check_rank
from karpjax.options import option

# how many blocks, the window of their convolutions, the stride of the first, how much wider they are within, channels
BLOCKS = (
  (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, LAST = 32, 1280
kernel_init = initialisers.variance_scaling(2.0, 'fan_out', 'normal')
Norm = functools.partial(BatchNorm, momentum=0.99, epsilon=1e-3)


class Block(nn.Module):
  """An inverted residual (Sandler et al. 2018): wider, a depthwise convolution, narrower; added to x where shapes agree."""

  window: int
  stride: int
  expansion: int
  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    """x: [batch, height, width, in] -> [batch, *ceil(size / stride), features]."""
    conv = functools.partial(convolution.Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init)
    y, wide = x, self.expansion * x.shape[-1]
    if self.expansion > 1:
      y = nn.relu6(Norm(dtype=self.dtype, name='expand_norm')(conv(wide, (1, 1), name='expand')(y), train=train))
    y = convolution.Depthwise(kernel_size=(self.window,) * 2, strides=self.stride, dtype=self.dtype, name='depthwise')(
      y
    )
    y = nn.relu6(Norm(dtype=self.dtype, name='depthwise_norm')(y, train=train))
    y = Norm(dtype=self.dtype, name='project_norm')(conv(self.features, (1, 1), name='project')(y), train=train)
    return convolution.FeatureMaps()(x + y if x.shape == y.shape else y)


class EfficientNetLite0(Classifier):
  """A stem, 16 blocks of BLOCKS, a 1x1 convolution, the mean over places, one dense layer: 4,652,008 params of 1000 classes."""

  dropout: float = option(0.2, "The rate of dropout of the last layer's inputs.", low=0, below=1)

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, height, width, channels] -> logits [batch, classes] float32."""
    check_rank(x, 3)
    conv = functools.partial(convolution.Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init)
    x = conv(STEM, (3, 3), 2, name='stem')(x.astype(self.dtype))
    x = nn.relu6(Norm(dtype=self.dtype, name='stem_norm')(x, train=train))
    number = 0
    for count, window, stride, expansion, features in BLOCKS:
      for i in range(count):
        number += 1
        x = Block(window, stride if i == 0 else 1, expansion, features, self.dtype, name=f'block{number}')(x, train)
    x = nn.relu6(Norm(dtype=self.dtype, name='last_norm')(conv(LAST, (1, 1), name='last')(x), train=train))
    x = linear.Dropout(self.dropout)(x.mean((1, 2), dtype=jnp.float32), train=train)  # [batch, LAST]
    return linear.Head(self.classes, name='logits')(x)
