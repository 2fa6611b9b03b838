"""The network of LeCun et al. 1989.

"Backpropagation applied to handwritten zip code recognition", Neural Computation 1(4), 541-551.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import dropout, initialisers

ACTIVATIONS = {'tanh': jnp.tanh, 'relu': nn.relu}
OUTPUTS = {'tanh': jnp.tanh, 'linear': lambda x: x}
BACKGROUND = -1.0  # beyond the border, of the image and of the feature maps alike


class Weights(nn.Module):
  """Kernel and bias of one layer; kernel from U(-2.4 / sqrt(fan_in), 2.4 / sqrt(fan_in))."""

  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  fan_in: int
  bias: float = 0.0

  @nn.compact
  def __call__(self):
    kernel = self.param('kernel', initialisers.uniform(2.4 / self.fan_in**0.5), self.kernel_shape)
    return kernel, self.param('bias', nn.initializers.constant(self.bias), self.bias_shape)


def patches(x):
  """[..., n, n] -> [..., 5, 5, n / 2, n / 2]: 5x5 windows, two pixels apart, in a border of background.

  Rows first, then columns: ten slices instead of twenty-five, and as few to add up in the gradient.
  """
  n = x.shape[-1]
  x = jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((2, 1), (2, 1)), constant_values=BACKGROUND)  # [..., n + 3, n + 3]
  x = jnp.stack([x[..., u : u + n - 1 : 2, :] for u in range(5)], axis=-3)  # [..., 5, n / 2, n + 3]
  return jnp.stack([x[..., v : v + n - 1 : 2] for v in range(5)], axis=-3)  # [..., 5, 5, n / 2, n / 2]


def connect(kernel):
  """[12, 25 * 8] -> [12, 25 * 12], zero where a plane of H2 does not see a plane of H1.

  The paper leaves the pattern open ("a scheme that will not be discussed here"). Here planes 0 to 3 see planes
  0 to 7 of H1, planes 4 to 7 see 4 to 11, and planes 8 to 11 see 0 to 3 and 8 to 11. One dense product is faster
  than three small ones.
  """
  first, second, third = jnp.split(kernel.reshape(12, 25, 8), 3)  # [4, 25, 8] each
  return jnp.concatenate(
    [
      jnp.pad(first, ((0, 0), (0, 0), (0, 4))),
      jnp.pad(second, ((0, 0), (0, 0), (4, 0))),
      jnp.concatenate([third[..., :4], jnp.zeros((4, 25, 4), kernel.dtype), third[..., 4:]], axis=2),
    ]
  ).reshape(12, 300)


def windows(x):
  """[batch, 8, 8, 12] -> [batch * 16, 25 * 12]: as `patches`, planes last, so that both steps copy contiguous runs."""
  batch = x.shape[0]
  x = jnp.pad(x, ((0, 0), (2, 1), (2, 1), (0, 0)), constant_values=BACKGROUND)  # [batch, 11, 11, 12]
  x = x.reshape(batch, 11, 11 * 12)
  x = jnp.stack([x[:, :, 24 * j : 24 * j + 60] for j in range(4)], axis=1)  # [batch, 4, 11, 60]
  x = x.reshape(batch, 4, 11 * 60)
  x = jnp.stack([x[:, :, 120 * i : 120 * i + 300] for i in range(4)], axis=1)  # [batch, 4, 4, 300]
  return x.reshape(batch * 16, 300)


def add_windows(d):
  """The transpose of `windows`, [batch * 16, 25 * 12] -> [batch, 8, 8, 12], with updates in place.

  In pairs of pixels, window j covers the pair j - 1, the pair j and half of the pair j + 1, along both axes.
  """
  update = jax.lax.dynamic_update_slice
  d = d.reshape(-1, 4, 4, 5, 60)  # [batch, i, j, row of the window, its columns and planes]
  x = d[..., 24:48]  # [batch, 4, 4, 5, 24]
  x = update(x, x[:, :, :3] + d[:, :, 1:, :, :24], (0, 0, 0, 0, 0))
  x = update(x, x[:, :, 1:, :, :12] + d[:, :, :3, :, 48:], (0, 0, 1, 0, 0))
  y = x[:, :, :, 2:4]  # [batch, 4, 4, 2, 24]
  y = update(y, y[:, :3] + x[:, 1:, :, :2], (0, 0, 0, 0, 0))
  y = update(y, y[:, 1:, :, :1] + x[:, :3, :, 4:], (0, 1, 0, 0, 0))
  return y.swapaxes(2, 3).reshape(-1, 8, 8, 12)


@jax.custom_vjp
def weighted_sums(x, kernel):
  """H2's convolution: [batch, 8, 8, 12] and [12, 300] -> [batch * 16, 12]."""
  return windows(x) @ kernel.T


def weighted_sums_forward(x, kernel):
  x = windows(x)
  return x @ kernel.T, (x, kernel)


def weighted_sums_backward(saved, d):
  x, kernel = saved
  # Without the barrier XLA takes the transpose into the product, which is slower than transposing first.
  transposed = jax.lax.optimization_barrier(d.T)  # [12, batch * 16]
  return add_windows(d @ kernel), transposed @ x


weighted_sums.defvjp(weighted_sums_forward, weighted_sums_backward)


class LeNet1989(nn.Module):
  """9,760 parameters: 16x16 -> H1 12 planes 8x8 -> H2 12 planes 4x4 -> H3 30 units -> classes.

  Attributes:
    classes: output units.
    dtype: of the computation; parameters and outputs are float32.
    activation: of the hidden units, 'tanh' or 'relu'.
    output: 'tanh' with biases from -1 as nine targets of ten are -1, or 'linear' with biases from 0.
    dropout: rate at which H2's units are dropped in training.
  """

  classes: int = 10
  dtype: jnp.dtype = jnp.float32
  activation: str = 'tanh'
  output: str = 'tanh'
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """[batch, 16, 16, 1] in [-1, 1] -> [batch, classes] float32."""
    activation = errors.choose('activation', self.activation, ACTIVATIONS)
    output = errors.choose('output', self.output, OUTPUTS)
    if x.shape[1:] != (16, 16, 1):
      shape = 'x'.join(map(str, x.shape[1:]))
      raise errors.UsageError(f'lenet1989 takes images of 16x16x1, not {shape}; resize them or choose model cnn')
    batch = x.shape[0]
    layers = (
      Weights((12, 25), (64, 12), 25, name='h1')(),
      Weights((12, 200), (16, 12), 200, name='h2')(),
      Weights((192, 30), (30,), 192, name='h3')(),
      Weights((30, self.classes), (self.classes,), 30, -1.0 if self.output == 'tanh' else 0.0, name='out')(),
    )
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = jax.tree.map(lambda p: p.astype(self.dtype), layers)
    # A single image has many positions and few planes: positions come last in the product of H1, planes after it.
    x = patches(x.astype(self.dtype)[..., 0])  # [batch, 5, 5, 8, 8]
    x = w1 @ x.reshape(batch, 25, 64).swapaxes(0, 1).reshape(25, batch * 64)  # [12, batch * 64]
    x = activation(x.reshape(12, batch, 64).transpose(1, 2, 0) + b1)  # [batch, 64, 12]
    x = weighted_sums(x.reshape(batch, 8, 8, 12), connect(w2))  # [batch * 16, 12]
    x = activation(x.reshape(batch, 16, 12) + b2).reshape(batch, 192)
    x = dropout.Dropout(self.dropout)(x, train=train)
    x = activation(x @ w3 + b3)  # [batch, 30]
    x = x @ w4 + b4  # [batch, classes]
    return output(x.astype(jnp.float32))
