"""Linear layers, by one matmul for all, and the dropout between them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from karpjax import axes
from karpjax.layers import cpu
from karpjax.lean import quantisation


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x, kernel, dtype=None):
  """x @ kernel. Its derivatives are in reverse mode, of any order.

  Args:
    x: […, in].
    kernel: [in, out], of the same dtype.
    dtype: of the sums and the result […, out]; None: as x.
  """
  return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _kernel_gradient(x, gradient):
  """xᵀ g in this order, over all but the last axes. JAX's own rule is (gᵀ x)ᵀ."""
  axes = tuple(range(x.ndim - 1))
  return jax.lax.dot_general(x, gradient, ((axes, axes), ((), ())))


def _backward(dtype, kept, gradient):
  x, kernel = kept
  gradient, on_cpu = gradient.astype(kernel.dtype), functools.partial(cpu.linear_kernel_gradient, _kernel_gradient)
  of_kernel = jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=_kernel_gradient)
  return matmul(gradient, kernel.T), of_kernel


matmul.defvjp(lambda x, kernel, dtype: (matmul(x, kernel, dtype), (x, kernel)), _backward)


def dense(x, kernel, dtype=None):
  """`matmul` of what enters a layer and its kernel; both in 8 bits are multiplied as integers."""
  entering = quantisation.entering(x, -1)
  return (matmul if entering is x else _matmul_of_8_bits)(entering, kernel, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul_of_8_bits(x, kernel, dtype):
  (x_whole, x_scale), (whole, scale) = quantisation.integers(x, 8, (-1,)), quantisation.integers(kernel, 8, (0,))
  y = jnp.matmul(x_whole.astype(jnp.int8), whole.astype(jnp.int8), preferred_element_type=jnp.int32)
  return (y * x_scale * scale[0]).astype(dtype or x.dtype)


_matmul_of_8_bits.defvjp(lambda x, kernel, dtype: (_matmul_of_8_bits(x, kernel, dtype), (x, kernel)), _backward)


def _dot_general(x, kernel, dimension_numbers, precision=None):
  return dense(x, kernel)  # nn.Dense asks for nothing else


Dense = functools.partial(nn.Dense, dot_general=_dot_general)


def Head(features: int, *, kernel_init=nn.linear.default_kernel_init, names=(), **options) -> Callable:
  """A last layer: a Dense whose kernel is no matrix to an optimiser; names: of its axes,
  as `nn.with_partitioning`'s. Of 0 features there is none: what comes in goes out.
  """
  if not features:
    return lambda x: x
  return Dense(features, kernel_init=axes.declare(kernel_init, '', names), **options)


@struct.dataclass
class Rows:
  """Rows of a table that are not taken before they are projected, as the embeddings of tokens: `table[index]`, […, in].

  Attributes:
    table: [n, in].
    index: […] int32.
  """

  table: jax.Array
  index: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Of what they are."""
    return *self.index.shape, self.table.shape[-1]

  def astype(self, dtype) -> 'Rows':
    """The same of another dtype."""
    return Rows(self.table.astype(dtype), self.index)


def rows(table, index):
  """table[index], […, in]; as Rows where each is taken twice or more in the mean, so that fewer are projected."""
  known = isinstance(index.size, int)  # not in an export for any batch
  return Rows(table, index) if known and 2 * len(table) <= index.size else table[index]


class Lookup(nn.Module):
  """The rows of a table that numbers stand for, as the vectors of tokens: by this module they can be looked at, and changed.

  Attributes:
    of: the array of a batch that the numbers are.
    late: whether rows are taken as `rows` does.
  """

  of: str = 'tokens'
  late: bool = False

  def __call__(self, table, index):
    """table [n, in], index […] int32 -> […, in]."""
    return rows(table, index) if self.late else table[index]


def reorder(x, order):
  """`order` of the leading axes of x […, in] or of Rows."""
  return x.replace(index=order(x.index)) if isinstance(x, Rows) else order(x)


def project(x, kernel, dtype=None):
  """`dense` of x […, in] or of Rows, whose table is multiplied: […, out]."""
  return dense(x.table, kernel, dtype)[x.index] if isinstance(x, Rows) else dense(x, kernel, dtype)


class Dropout(nn.Module):
  """Drops units in training and scales the others by 1 / (1 - rate) (Srivastava et al. 2014); draws Linen's masks.

  Attributes:
    rate: in [0, 1); 0 draws nothing.
  """

  rate: float

  @nn.compact
  def __call__(self, x, *, train: bool):
    """x: any shape and float dtype -> the same; takes a key of the collection 'dropout'."""
    if not train or self.rate == 0:
      return x
    keep = 1 - self.rate
    mask = jax.random.bernoulli(self.make_rng('dropout'), keep, x.shape)
    return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)
