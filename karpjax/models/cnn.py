"""The plain convolutional network over one or two spatial axes, all of it options. Five examples:

* conv16-pool-conv32-pool-fc64: widths=16,32 hidden=64
* for 224x224 images, conv64-pool-fc256 with 1000 classes: widths=64 hidden=256
* Keras' mnist_cnn: widths=32,64 padding=VALID pool=1,2 hidden=128 dropout=0.25,0.5
* TF Privacy's CNN of MNIST: widths=16,32 kernel_size=8,4 stride=2 padding=SAME,VALID pool_stride=1 hidden=32
* mnist1d's ConvBase: widths=25,25,25 kernel_size=5,3,3 stride=2 padding=1 pool=1 hidden=
"""

import flax.linen as nn
import jax.numpy as jnp

from karpjax.errors import UsageError
from karpjax.layers import convolution, initialisers
from karpjax.layers.channel_attention import ATTENTIONS, attend
from karpjax.models import mlp
from karpjax.options import DEEPEST, option

# options of each block: one value for all, or one per block
BLOCK = 'depth', 'kernel_size', 'stride', 'pool', 'pool_stride'


class CNN(mlp.Classifier):
  """Blocks of convolution, norm, activation and attention, each closed by a max pooling; then dense layers.

  A pooling cuts off what does not fill a window.
  """

  widths: tuple[int, ...] = option((32, 64), 'Channels of each block.', low=1)
  depth: int | tuple[int, ...] = option(
    1, 'Convolutions in a block; one number, or one per block.', low=1, high=DEEPEST
  )
  kernel_size: int | tuple[int, ...] = option(
    3, "The convolutions' window; one number, or one per block.", low=1, high=256
  )
  stride: int | tuple[int, ...] = option(1, "The stride of each block's first convolution.", low=1)
  padding: str = option('SAME', 'SAME, VALID, or the number of zeros on each side; one, or one per block.')
  pool: int | tuple[int, ...] = option(2, 'The window of the max pooling after each block; 1: none.', low=1)
  pool_stride: int | tuple[int, ...] = option(0, 'Its stride; 0: the window, so that windows do not overlap.', low=0)
  head: str = option('flatten', 'What the dense layers see: all places, or their mean.', choices=('flatten', 'average'))
  hidden: tuple[int, ...] = option((128,), 'Units of the dense layers before the last; empty: none.', low=1)
  norm: str = option('none', 'Batch norm before each activation, or none.', choices=mlp.NORMS)
  dropout: float | tuple[float, ...] = option(0.0, "Rates on the dense layers' inputs.", low=0, below=1)
  attention: str = option('none', 'Gates after each activation: squeeze-and-excitation or CBAM.', choices=ATTENTIONS)
  activation: str = option('relu', 'The activation function.', choices=mlp.ACTIVATIONS)
  initialiser: str = option('own', mlp.INITIALISER, choices=mlp.INITIALISERS)
  zero_head: bool = option(True, 'Whether the last layer begins at 0, and so the loss as that of a guess.')

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, *spatial, channels] -> logits [batch, classes] float32."""
    mlp.check_rank(x, 2, 3)
    rank, shape, layer = x.ndim - 2, x.shape[1:], 0
    activation, norm = mlp.ACTIVATIONS[self.activation], mlp.NORMS[self.norm]
    conv = {'use_bias': norm is None, 'dtype': self.dtype, 'kernel_init': mlp.kernel_init(self.activation)}

    def check(x, what, window, zeros=0):
      if min(x.shape[1:-1]) + 2 * zeros < window:
        raise UsageError(
          f'an input of {mlp.dimensions(shape)} is too small: {mlp.dimensions(x.shape[1:])} is left before {what}, '
          f'whose window is {window}. Use fewer widths, smaller windows or padding=SAME'
        )

    x = x.astype(self.dtype)
    values = [getattr(self, name) for name in BLOCK] + [tuple(self.padding.upper().split(','))]
    each = (mlp.per_layer(name, value, len(self.widths)) for name, value in zip((*BLOCK, 'padding'), values))
    blocks = zip(self.widths, *each)
    for block, (width, depth, window, stride, pool, pool_stride, padding) in enumerate(blocks, start=1):
      if padding not in ('SAME', 'VALID') and not padding.isdecimal():
        raise UsageError(f'padding={padding}: expected SAME, VALID or a number such as 1')
      zeros = int(padding) if padding.isdecimal() else 0
      conv['padding'] = padding if padding == 'SAME' else ((zeros, zeros),) * rank
      for i in range(depth):
        layer += 1
        if padding != 'SAME':
          check(x, f'convolution {layer}', window, zeros)
        begin = conv | initialisers.of_torch(window**rank * x.shape[-1], self.initialiser)
        convolve = convolution.Conv(width, (window,) * rank, stride if i == 0 else 1, name=f'conv{layer}', **begin)
        x = convolve(x)  # [batch, *spatial, width]
        x = activation(norm(dtype=self.dtype, name=f'norm{layer}')(x, train=train) if norm else x)
        x = convolution.FeatureMaps()(attend(self.attention, x, dtype=self.dtype, name=f'attention{layer}'))
      if pool > 1:
        check(x, f'pooling {block}', pool)
        x = convolution.max_pool(x, pool, pool_stride or pool)  # [batch, *spatial / pool, width]
    if self.head == 'average':
      x = x.mean(range(1, x.ndim - 1), dtype=jnp.float32)  # [batch, width]
    first, *rates = mlp.per_layer('dropout', self.dropout, len(self.hidden) + 1)
    dense = dict(widths=self.hidden, activation=self.activation, norm=self.norm, dropout=tuple(rates))
    dense |= dict(input_dropout=first, zero_head=self.zero_head, initialiser=self.initialiser)
    return mlp.MLP(self.classes, self.dtype, **dense, name='head')(x, train=train)
