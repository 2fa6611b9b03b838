"""The network of LeCun et al. 1989.

"Backpropagation applied to handwritten zip code recognition", Neural Computation 1(4), 541-551.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import axes
from karpjax.errors import UsageError
from karpjax.layers import initialisers, linear
from karpjax.models.mlp import Classifier, dimensions
from karpjax.options import option

ACTIVATIONS = {'tanh': jnp.tanh, 'relu': nn.relu}
OUTPUTS = {'tanh': jnp.tanh, 'linear': lambda x: x}
BACKGROUND = -1.0  # beyond the border, of the image and of the feature maps alike


class Weights(nn.Module):
  """Kernel and bias of one layer; kernel from U(-2.4 / sqrt(fan_in), 2.4 / sqrt(fan_in))."""

  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  fan_in: int
  bias: float = 0.0
  last: bool = False

  @nn.compact
  def __call__(self):
    init = axes.declare(initialisers.uniform(2.4 / self.fan_in**0.5), '' if self.last else 'io')
    kernel = self.param('kernel', init, self.kernel_shape)
    return kernel, self.param('bias', nn.initializers.constant(self.bias), self.bias_shape)


def windows(x):
  """[batch, n, n, planes] -> [batch, n² / 4, 25 · planes]: 5x5 windows, two pixels apart, in a border of background.

  Columns first, then rows: each slice is of contiguous numbers.
  """
  batch, n, _, planes = x.shape
  cut = 5 * planes
  x = jnp.pad(x, ((0, 0), (2, 1), (2, 1), (0, 0)), constant_values=BACKGROUND).reshape(batch, n + 3, -1)
  x = jnp.stack([x[..., 2 * planes * j :][..., :cut] for j in range(n // 2)], axis=1)  # [batch, n / 2, n + 3, cut]
  x = x.reshape(batch, n // 2, -1)
  x = jnp.stack([x[..., 2 * cut * i :][..., : 5 * cut] for i in range(n // 2)], axis=1)  # [batch, n / 2, n / 2, 5 cut]
  return x.reshape(batch, n * n // 4, 5 * cut)


def connect(kernel):
  """[12, 25 * 8] -> [12, 25 * 12], zero where a plane of H2 does not see a plane of H1.

  The paper leaves the pattern open ("a scheme that will not be discussed here"). Here planes 0 to 3 see planes
  0 to 7 of H1, planes 4 to 7 see 4 to 11, and planes 8 to 11 see 0 to 3 and 8 to 11. One dense product is faster
  than three small ones.
  """
  first, second, third = jnp.split(kernel.reshape(12, 25, 8), 3)  # [4, 25, 8] each
  none = jnp.zeros((4, 25, 4), kernel.dtype)
  rows = (first, none), (none, second), (third[..., :4], none, third[..., 4:])
  return jnp.concatenate([jnp.concatenate(row, axis=2) for row in rows]).reshape(12, 300)


class LeNet1989(Classifier):
  """9,760 parameters: 16x16 -> H1 12 planes 8x8 -> H2 12 planes 4x4 -> H3 30 units -> classes."""

  classes: int = 10
  activation: str = option('tanh', 'The activation function of the hidden units.', choices=ACTIVATIONS)
  output: str = option(
    'tanh', 'tanh with biases from -1, as most targets, or linear with biases from 0.', choices=OUTPUTS
  )
  dropout: float = option(0.0, "The rate of dropout of H2's units.", low=0, below=1)

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """[batch, 16, 16, 1] in [-1, 1] -> [batch, classes] float32."""
    activation, output = ACTIVATIONS[self.activation], OUTPUTS[self.output]
    if x.shape[1:] != (16, 16, 1):
      shape = dimensions(x.shape[1:])
      raise UsageError(f'lenet1989 takes images of 16x16x1, not {shape}; resize them or choose model cnn')
    layers = (
      Weights((12, 25), (64, 12), 25, name='h1')(),
      Weights((12, 200), (16, 12), 200, name='h2')(),
      Weights((192, 30), (30,), 192, name='h3')(),
      Weights((30, self.classes), (self.classes,), 30, -1.0 if self.output == 'tanh' else 0.0, True, name='out')(),
    )
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = jax.tree.map(lambda p: p.astype(self.dtype), layers)
    x = activation(windows(x.astype(self.dtype)) @ w1.T + b1)  # [batch, 64, 12]
    x = windows(x.reshape(-1, 8, 8, 12))  # [batch, 16, 300]
    x = activation(x @ connect(w2).T + b2).reshape(-1, 192)  # [batch, 16 * 12]
    x = activation(linear.Dropout(self.dropout)(x, train=train) @ w3 + b3)  # [batch, 30]
    return output((x @ w4 + b4).astype(jnp.float32))
