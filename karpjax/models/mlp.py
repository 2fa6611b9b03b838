"""Logistic regression and the multilayer perceptron, which is also the head of the other models."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors, hyperparameters
from karpjax.layers import dropout, initialisers, linear, normalisation

ACTIVATIONS = {'relu': nn.relu, 'tanh': jnp.tanh, 'gelu': nn.gelu}
NORMS = {'none': None, 'batch': normalisation.BatchNorm}


def kernel_init(activation: str):
  """Initialiser of the kernel before an activation: LeCun et al. 1998 for tanh, else He et al. 2015."""
  return initialisers.lecun_normal if activation == 'tanh' else initialisers.he_normal


def per_layer(option: str, values, layers: int) -> tuple:
  """One value for all layers, or one for each, as a tuple of `layers` values.

  Raises:
    UsageError: for any other number of values.
  """
  values = tuple(values) if isinstance(values, (tuple, list)) else (values,)
  if len(values) not in (1, layers):
    given = ','.join(map(str, values))
    raise errors.UsageError(f'--{option}={given}: {len(values)} values; expected one for all, or {layers}')
  return values * layers if len(values) == 1 else values


def check(**values) -> None:
  """Refuses sizes under 1 and dropout rates outside [0, 1), unless traced, by the option's name, with UsageError."""
  for option, value in values.items():
    for x in value if isinstance(value, (tuple, list)) else (value,):
      if option.endswith('dropout') and hyperparameters.is_known(x) and not 0 <= x < 1:
        raise errors.UsageError(f'--{option}={x}: expected a rate of at least 0 and under 1')
      if not option.endswith('dropout') and x < 1:
        raise errors.UsageError(f'--{option}={x}: expected at least 1')


class LogisticRegression(nn.Module):
  """Multinomial logistic regression; with one class, linear regression. Convex, so weights begin at 0.

  Attributes:
    classes: outputs.
    dtype: that the inputs are rounded to; logits are float32.
  """

  classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, ...] -> logits [batch, classes] float32."""
    x = x.reshape(x.shape[0], -1).astype(self.dtype).astype(jnp.float32)  # [batch, inputs]
    return linear.Dense(self.classes, kernel_init=nn.initializers.zeros_init(), name='logits')(x)


class MLP(nn.Module):
  """Dense layers with an activation between them.

  Attributes:
    classes: outputs.
    dtype: of the hidden layers; logits are float32.
    widths: units of each hidden layer; () leaves one dense layer.
    activation: 'relu', 'tanh' or 'gelu'.
    norm: 'none', or 'batch' for batch norm before each activation.
    dropout: rate at which hidden units are dropped in training; one for all layers, or one for each. May be traced.
    input_dropout: the same of the inputs.
    residual: whether a hidden layer as wide as the one before is added to that one, as in mnist1d's MLPBase.
  """

  classes: int
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (128,)
  activation: str = 'relu'
  norm: str = 'none'
  dropout: float | tuple[float, ...] = 0.0
  input_dropout: float = 0.0
  residual: bool = False

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, ...] -> logits [batch, classes] float32.

    Raises:
      UsageError: for an unknown activation or norm, a width under 1 or a dropout rate outside [0, 1).
    """
    activation = errors.choose('activation', self.activation, ACTIVATIONS)
    norm = errors.choose('norm', self.norm, NORMS)
    check(widths=self.widths, dropout=self.dropout, input_dropout=self.input_dropout)
    rates = per_layer('dropout', self.dropout, len(self.widths))
    init = kernel_init(self.activation)
    x = x.reshape(x.shape[0], -1).astype(self.dtype)  # [batch, inputs]
    x = dropout.Dropout(self.input_dropout)(x, train=train)
    for layer, (width, rate) in enumerate(zip(self.widths, rates), start=1):
      before = x
      # Cut over tensor by columns, then by rows: one sum over devices for every two layers (Shoeybi et al. 2019).
      axes = ('embed', 'hidden') if layer % 2 else ('hidden', 'embed')
      dense = linear.Dense(
        width,
        norm is None,
        dtype=self.dtype,
        kernel_init=nn.with_partitioning(init, axes),
        bias_init=nn.with_partitioning(nn.initializers.zeros_init(), axes[1:]),
        name=f'hidden{layer}',
      )
      x = dense(x)  # [batch, width]
      if norm is not None:
        x = norm(dtype=self.dtype, name=f'norm{layer}')(x, train=train)
      x = activation(x)
      if self.residual and layer > 1 and before.shape == x.shape:
        x = before + x
      x = dropout.Dropout(rate)(x, train=train)
    return linear.Dense(self.classes, name='logits')(x.astype(jnp.float32))  # [batch, classes]
