"""One matmul for all linear layers, with a backward pass that the CPU's compiler gets without transposed copies."""

import functools

import jax
from flax import linen as nn


@jax.custom_vjp
def matmul(x, kernel):
  """x @ kernel: […, in], [in, out] -> […, out]. Its derivatives are in reverse mode, of any order."""
  return x @ kernel


def _forward(x, kernel):
  return x @ kernel, (x, kernel)


def _backward(kept, gradient):
  # xᵀ g in this order. JAX's own rule is (gᵀ x)ᵀ, for which XLA's CPU backend copies g transposed, and computes what made
  # g, such as the derivative of an activation, anew while it does: the step of bench gpt_shakespeare_cpu takes a fifth
  # longer.
  x, kernel = kept
  x = jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
  axes = tuple(range(x.ndim - 1))
  return matmul(gradient, kernel.T), jax.lax.dot_general(x, gradient, ((axes, axes), ((), ())))


matmul.defvjp(_forward, _backward)


def _dot_general(x, kernel, dimension_numbers, precision=None):
  return matmul(x, kernel)  # nn.Dense asks for nothing else


Dense = functools.partial(nn.Dense, dot_general=_dot_general)
