"""One matmul for all linear layers, with a backward pass that the CPU's compiler gets without transposed copies."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

# multiplications; beyond, the transposed copy costs more than it spares, of x and of what is narrower than x
SMALL_PRODUCT, LARGE_PRODUCT = 2**21, 2**26


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x, kernel, dtype=None):
  """x @ kernel. Its derivatives are in reverse mode, of any order.

  Args:
    x: […, in].
    kernel: [in, out], of the same dtype.
    dtype: of the sums and the result […, out]; None: as x.
  """
  return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _forward(x, kernel, dtype):
  return matmul(x, kernel, dtype), (x, kernel)


def _kernel_gradient(x, gradient):
  """xᵀ g in this order, over all but the last axes. JAX's own rule is (gᵀ x)ᵀ."""
  axes = tuple(range(x.ndim - 1))
  return jax.lax.dot_general(x, gradient, ((axes, axes), ((), ())))


def _cpu_kernel_gradient(x, gradient):
  """For (gᵀ x)ᵀ, XLA's CPU backend copies g transposed, and computes what made g, such as the derivative of an activation,
  anew while it does: the step of bench gpt_shakespeare_cpu takes a fifth longer. The barrier spares what made x the same. It
  would copy x transposed too if there were several axes to sum over: a tenth of the step of bench gpt_shakespeare.

  Where g is much narrower than x, to transpose it first and the product last is up to five times as fast as one product over
  the first axes, whose narrow side XLA does not use vectors for; not where the product is large beside the work. A small
  product is a third faster, and within the step of bench ppo_cartpole three times as fast, with x transposed first.
  """
  x = jax.lax.optimization_barrier(x)
  (*lead, wide), narrow = x.shape, gradient.shape[-1]
  rows = math.prod(lead)
  x, gradient = x.reshape(rows, wide), gradient.reshape(rows, narrow)
  if rows * wide * narrow <= LARGE_PRODUCT and wide >= 3 * narrow and (rows >= 256 or narrow <= 16):
    transposed = jax.lax.optimization_barrier(gradient.T)
    return jax.lax.optimization_barrier(transposed @ x).T
  if rows * wide * narrow <= SMALL_PRODUCT:
    transposed = jax.lax.optimization_barrier(x.T)
    return jax.lax.optimization_barrier(transposed @ gradient)
  return _kernel_gradient(x, gradient)


def _backward(dtype, kept, gradient):
  x, kernel = kept
  gradient = gradient.astype(kernel.dtype)
  forms = {'cpu': _cpu_kernel_gradient, 'default': _kernel_gradient}
  return matmul(gradient, kernel.T), jax.lax.platform_dependent(x, gradient, **forms)


matmul.defvjp(_forward, _backward)


def _dot_general(x, kernel, dimension_numbers, precision=None):
  return matmul(x, kernel)  # nn.Dense asks for nothing else


Dense = functools.partial(nn.Dense, dot_general=_dot_general)


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
  return Rows(table, index) if 2 * len(table) <= index.size else table[index]


def reorder(x, order):
  """`order` of the leading axes of x […, in] or of Rows."""
  return x.replace(index=order(x.index)) if isinstance(x, Rows) else order(x)


def project(x, kernel, dtype=None):
  """`matmul` of x […, in] or of Rows, whose table is multiplied: […, out]."""
  return matmul(x.table, kernel, dtype)[x.index] if isinstance(x, Rows) else matmul(x, kernel, dtype)
