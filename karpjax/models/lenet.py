"""The network of LeCun et al. 1989, "Backpropagation applied to handwritten zip code recognition" (Neural Computation 1(4))."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors

ACTIVATIONS = {'tanh': jnp.tanh, 'relu': nn.relu}
OUTPUTS = {'tanh': jnp.tanh, 'linear': lambda x: x}
BACKGROUND = -1.0  # beyond the border, of the image and of the feature maps alike
# Planes of H1 come in three blocks of four. Each block feeds two groups of four planes of H2, so that each plane of
# H2 sees eight of twelve: group 0 sees blocks 0 and 1, group 1 blocks 1 and 2, group 2 blocks 0 and 2.
FEEDS = ((0, 2), (0, 1), (1, 2))  # block of H1 -> groups of H2


class Weights(nn.Module):
  """Kernel and bias of one layer; kernel from U(-2.4 / sqrt(fan_in), 2.4 / sqrt(fan_in)), section 3.2 of the paper."""

  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  fan_in: int
  bias: float = 0.0

  @nn.compact
  def __call__(self):
    bound = 2.4 / self.fan_in**0.5

    def uniform(key, shape):
      return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    kernel = self.param('kernel', uniform, self.kernel_shape)
    return kernel, self.param('bias', nn.initializers.constant(self.bias), self.bias_shape)


def patches(x):
  """[batch, n, n, planes] -> [batch, (n / 2)^2, 25, planes]: 5x5 windows, two pixels apart, border of background."""
  batch, n, _, planes = x.shape
  x = jnp.pad(x, ((0, 0), (2, 1), (2, 1), (0, 0)), constant_values=BACKGROUND)  # [batch, n + 3, n + 3, planes]
  windows = [x[:, u : u + n - 1 : 2, v : v + n - 1 : 2] for u in range(5) for v in range(5)]
  return jnp.stack(windows, axis=3).reshape(batch, n * n // 4, 25, planes)


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
      raise errors.UsageError(f'lenet1989 takes images of 16x16x1, not {"x".join(map(str, x.shape[1:]))}')
    batch = x.shape[0]
    layers = (
      Weights((25, 12), (64, 12), 25, name='h1')(),
      Weights((3, 100, 8), (16, 12), 200, name='h2')(),
      Weights((192, 30), (30,), 192, name='h3')(),
      Weights((30, self.classes), (self.classes,), 30, -1.0 if self.output == 'tanh' else 0.0, name='out')(),
    )
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = jax.tree.map(lambda p: p.astype(self.dtype), layers)
    x = patches(x.astype(self.dtype))[..., 0] @ w1  # [batch, 64, 12]
    x = activation(x + b1).reshape(batch, 8, 8, 12)
    x = patches(x).reshape(batch, 16, 25, 3, 4)
    w2 = w2.reshape(3, 25, 4, 2, 4)
    x = jnp.einsum('bptji,jtiho->jhbpo', x, w2)  # [block, half, batch, 16, 4]
    (a0, a2), (b0, b1_), (c1, c2) = x
    x = jnp.concatenate([a0 + b0, b1_ + c1, a2 + c2], axis=-1)  # [batch, 16, 12]
    x = activation(x + b2).reshape(batch, 192)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = activation(x @ w3 + b3)
    x = x @ w4 + b4
    return output(x.astype(jnp.float32))
