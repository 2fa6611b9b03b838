"""The plain convolutional network over one or two spatial axes, all of it options. Four examples:

* conv16-pool-conv32-pool-fc64: --widths=16,32 --hidden=64
* for 224x224 images, conv64-pool-fc256 with 1000 classes: --widths=64 --hidden=256
* Keras' mnist_cnn: --widths=32,64 --padding=VALID --pool=1,2 --hidden=128 --dropout=0.25,0.5
* mnist1d's ConvBase: --widths=25,25,25 --kernel_size=5,3,3 --stride=2 --padding=1 --pool=1 --hidden=
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import channel_attention, convolution, pooling
from karpjax.models import mlp

HEADS = ('flatten', 'average')


class CNN(nn.Module):
  """Blocks of convolution, norm, activation and attention, each closed by a max pooling; then dense layers.

  Options marked * take one value for all blocks, or one per block.

  Attributes:
    classes: outputs.
    dtype: of the computation; norm statistics and logits are float32.
    widths: channels of each block.
    depth: * convolutions in a block.
    kernel_size: * the convolutions' window.
    stride: * of a block's first convolution.
    padding: 'SAME', 'VALID', or a number of zeros on each side, such as '1'.
    pool: * window and stride of the max pooling; 1 for none. What does not fill a window is cut off.
    head: what the dense layers see: 'flatten' every place, or the 'average' over places.
    hidden: units of the dense layers before the logits.
    norm: 'none', or 'batch' for batch norm before each activation, in the dense layers too.
    dropout: rate on each dense layer's input; one for all, or one for each.
    attention: 'none', 'se' (squeeze-and-excitation) or 'cbam', after each activation.
    activation: 'relu', 'tanh' or 'gelu'.
  """

  classes: int
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (32, 64)
  depth: int | tuple[int, ...] = 1
  kernel_size: int | tuple[int, ...] = 3
  stride: int | tuple[int, ...] = 1
  padding: str = 'SAME'
  pool: int | tuple[int, ...] = 2
  head: str = 'flatten'
  hidden: tuple[int, ...] = (128,)
  norm: str = 'none'
  dropout: float | tuple[float, ...] = 0.0
  attention: str = 'none'
  activation: str = 'relu'

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, *spatial, channels] -> logits [batch, classes] float32.

    Raises:
      UsageError: for an input too small for the convolutions or poolings, or an option that makes no sense.
    """
    activation = errors.choose('activation', self.activation, mlp.ACTIVATIONS)
    norm = errors.choose('norm', self.norm, mlp.NORMS)
    head = errors.choose('head', self.head, dict(zip(HEADS, HEADS)))
    names = 'widths', 'depth', 'kernel_size', 'stride', 'pool'
    mlp.check(**{name: getattr(self, name) for name in (*names, 'hidden', 'dropout')})
    blocks = zip(*(mlp.per_layer(name, getattr(self, name), len(self.widths)) for name in names))
    rank, shape, layer = x.ndim - 2, x.shape[1:], 0
    x = x.astype(self.dtype)
    for block, (width, depth, window, stride, pool) in enumerate(blocks, start=1):
      for i in range(depth):
        layer += 1
        conv = convolution.Conv(
          width,
          (window,) * rank,
          strides=stride if i == 0 else 1,
          padding=self._padding(x, window, shape, layer),
          use_bias=norm is None,
          dtype=self.dtype,
          kernel_init=mlp.kernel_init(self.activation),
          name=f'conv{layer}',
        )
        x = conv(x)  # [batch, *spatial, width]
        if norm is not None:
          x = norm(dtype=self.dtype, name=f'norm{layer}')(x, train=train)
        x = activation(x)
        x = channel_attention.attend(self.attention, x, dtype=self.dtype, name=f'attention{layer}')
      if pool > 1:
        if min(x.shape[1:-1]) < pool:
          raise errors.UsageError(
            f'an input of {dimensions(shape)} is too small for {len(self.widths)} poolings: '
            f'{dimensions(x.shape[1:])} is left before pooling {block} by {pool}. '
            'Use fewer --widths or a smaller --pool'
          )
        x = pooling.max_pool(x, pool, pool)  # [batch, *spatial / pool, width]
    if head == 'average':
      x = x.mean(range(1, x.ndim - 1), dtype=jnp.float32)  # [batch, width]
    first, *rates = mlp.per_layer('dropout', self.dropout, len(self.hidden) + 1)
    dense = mlp.MLP(self.classes, self.dtype, self.hidden, self.activation, self.norm, tuple(rates), first, name='head')
    return dense(x, train=train)

  def _padding(self, x, window: int, shape, layer: int):
    """`padding` in the form of `convolution`, where a window of x's size fits."""
    given = str(self.padding).upper()
    if given == 'SAME':
      return given
    if given != 'VALID' and not given.isdecimal():
      raise errors.UsageError(f'--padding={self.padding}: expected SAME, VALID or a number such as 1')
    zeros = 0 if given == 'VALID' else int(given)
    if min(x.shape[1:-1]) + 2 * zeros < window:
      raise errors.UsageError(
        f'an input of {dimensions(shape)} is too small: {dimensions(x.shape[1:])} is left before '
        f'convolution {layer}, whose window is {window}. '
        'Use fewer --widths, a smaller --kernel_size or --padding=SAME'
      )
    return ((zeros, zeros),) * (x.ndim - 2)


def dimensions(shape) -> str:
  """(28, 28, 1) -> '28x28x1'."""
  return 'x'.join(map(str, shape))
