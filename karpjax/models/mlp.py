"""Logistic regression and the multilayer perceptron, which is also the head of the other models."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.errors import UsageError
from karpjax.layers import initialisers, linear, normalisation
from karpjax.options import option

ACTIVATIONS = {'relu': nn.relu, 'tanh': jnp.tanh, 'gelu': nn.gelu}
NORMS = {'none': None, 'batch': normalisation.BatchNorm}
INITIALISERS = 'own', 'torch'
INITIALISER = "How weights begin: by He's draw or LeCun's, biases at 0; or all uniform, as those of PyTorch's layers."
KINDS = {1: 'a table', 2: 'a 1-D signal', 3: 'an image'}  # by the rank of an example


def kernel_init(activation: str):
  """Initialiser of the kernel before an activation: LeCun et al. 1998 for tanh, else He et al. 2015."""
  return initialisers.lecun_normal if activation == 'tanh' else initialisers.he_normal


def per_layer(name: str, values, layers: int) -> tuple:
  """The values of the option `name`, one for all layers or one for each, as a tuple of `layers` values."""
  values = values if isinstance(values, tuple) else (values,)
  if len(values) not in (1, layers):
    given = ','.join(map(str, values))
    raise UsageError(f'{name}={given}: {len(values)} values; expected one for all, or {layers}')
  return values * layers if len(values) == 1 else values


def dimensions(shape) -> str:
  """(28, 28, 1) -> '28x28x1'."""
  return 'x'.join(map(str, shape))


def check_rank(x, *ranks: int) -> None:
  """Refuses a batch whose examples are of none of these ranks."""
  shape = x.shape[1:]
  if len(shape) not in ranks:
    wanted, given = ' or '.join(KINDS[rank] for rank in ranks), KINDS.get(len(shape), 'data')
    raise UsageError(f'the model takes {wanted}, not {given} of shape {dimensions(shape)}')


class Classifier(nn.Module):
  """The fields that are no options.

  Attributes:
    classes: outputs.
    dtype: of the computation; params, norm statistics and logits are float32.
  """

  classes: int
  dtype: Any = jnp.float32


class LogisticRegression(Classifier):
  """Multinomial logistic regression; with one class, linear regression. Convex, so weights begin at 0."""

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, ...] -> logits [batch, classes] float32."""
    x = x.reshape(x.shape[0], -1).astype(self.dtype).astype(jnp.float32)  # [batch, inputs]
    return linear.Head(self.classes, kernel_init=nn.initializers.zeros_init(), name='logits')(x)


class MLP(Classifier):
  """Dense layers with an activation between them."""

  widths: tuple[int, ...] = option((128,), 'Units of each hidden layer.', low=1)
  activation: str = option('relu', 'The activation function.', choices=ACTIVATIONS)
  norm: str = option('none', 'Batch norm before each activation, or none.', choices=NORMS)
  dropout: float | tuple[float, ...] = option(0.0, 'The dropout rate of hidden units, or one a layer.', low=0, below=1)
  input_dropout: float = option(0.0, 'The rate of dropout of the inputs.', low=0, below=1)
  residual: bool = option(False, "Whether a hidden layer's input is added to its output, where they are alike.")
  initialiser: str = option('own', INITIALISER, choices=INITIALISERS)
  zero_head: bool = option(False, 'Whether the last layer begins at 0, and so the loss as that of a guess.')

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, ...] -> logits [batch, classes] float32."""
    activation, norm, init = ACTIVATIONS[self.activation], NORMS[self.norm], kernel_init(self.activation)
    rates = per_layer('dropout', self.dropout, len(self.widths))
    x = x.reshape(x.shape[0], -1).astype(self.dtype)  # [batch, inputs]
    x = linear.Dropout(self.input_dropout)(x, train=train)
    for layer, (width, rate) in enumerate(zip(self.widths, rates), start=1):
      # Cut over tensor by columns, then by rows: one sum over devices for every two layers (Shoeybi et al. 2019).
      axes = ('embed', 'hidden') if layer % 2 else ('hidden', 'embed')
      begin = {'kernel_init': init, 'bias_init': nn.initializers.zeros_init()}
      begin |= initialisers.of_torch(x.shape[-1], self.initialiser)
      named = {'kernel_init': nn.with_partitioning(begin['kernel_init'], axes), 'name': f'hidden{layer}'}
      named['bias_init'] = nn.with_partitioning(begin['bias_init'], axes[1:])
      y = linear.Dense(width, norm is None, dtype=self.dtype, **named)(x)  # [batch, width]
      y = activation(norm(dtype=self.dtype, name=f'norm{layer}')(y, train=train) if norm else y)
      if self.residual and layer > 1 and x.shape == y.shape:  # as in mnist1d's MLPBase
        y = x + y
      x = linear.Dropout(rate)(y, train=train)
    first = initialisers.of_torch(x.shape[-1], self.initialiser)
    first |= {'kernel_init': nn.initializers.zeros_init()} if self.zero_head else {}
    return linear.Head(self.classes, name='logits', **first)(x.astype(jnp.float32))
