"""One matmul for all linear layers, with a backward pass that the CPU's compiler gets without transposed copies."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


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


def _backward(dtype, kept, gradient):
  # xᵀ g in this order. JAX's own rule is (gᵀ x)ᵀ, for which XLA's CPU backend copies g transposed, and computes what made
  # g, such as the derivative of an activation, anew while it does: the step of bench gpt_shakespeare_cpu takes a fifth
  # longer. The barrier spares what made x the same.
  x, kernel = kept
  gradient = gradient.astype(kernel.dtype)
  kept_x = jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
  axes = tuple(range(x.ndim - 1))
  return matmul(gradient, kernel.T), jax.lax.dot_general(kept_x, gradient, ((axes, axes), ((), ())))


matmul.defvjp(_forward, _backward)


def _dot_general(x, kernel, dimension_numbers, precision=None):
  return matmul(x, kernel)  # nn.Dense asks for nothing else


Dense = functools.partial(nn.Dense, dot_general=_dot_general)
