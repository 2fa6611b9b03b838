"""The matmul of linear layers, against JAX's own rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax.layers import linear


def drawn(*shape):
  return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


# small products, and narrow outputs of many rows or few, have forms of their own on the CPU
@pytest.mark.parametrize('shape, out', [((3,), 4), ((2, 5, 3), 4), ((2, 5, 48), 4), ((256, 96), 20), ((600, 64), 64)])
def test_values_and_gradients_are_those_of_the_plain_matmul(shape, out):
  x, kernel, target = drawn(*shape), drawn(shape[-1], out) / 10, drawn(*shape[:-1], out)
  loss = lambda matmul: lambda x, kernel: ((jnp.tanh(matmul(x, kernel)) - target) ** 2).sum()
  ours, plain = loss(linear.matmul), loss(jnp.matmul)
  np.testing.assert_array_equal(linear.matmul(x, kernel), x @ kernel)
  slope = jax.jit(lambda x, kernel: [jax.grad(loss, (0, 1))(x, kernel) for loss in (ours, plain)])
  for a, b in zip(*slope(x, kernel)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_those_of_the_plain_matmul():
  """As a gradient penalty takes them."""
  x, kernel = drawn(5, 3), drawn(3, 4)

  def penalty(matmul):
    slope = lambda kernel: jax.grad(lambda x: jnp.tanh(matmul(x, kernel)).sum())(x)
    return jax.jit(jax.grad(lambda kernel: (slope(kernel) ** 2).sum()))

  np.testing.assert_allclose(penalty(linear.matmul)(kernel), penalty(jnp.matmul)(kernel), rtol=1e-5, atol=1e-6)


def test_seeds_and_microbatches_may_lie_in_front():
  x, kernels = drawn(6, 5, 3), drawn(6, 3, 4)
  slope = jax.jit(jax.grad(lambda kernel, x: jnp.tanh(linear.matmul(x, kernel)).sum()))
  together = jax.jit(jax.vmap(slope))(kernels, x)
  np.testing.assert_allclose(together, jnp.stack([slope(k, a) for k, a in zip(kernels, x)]), rtol=1e-5, atol=1e-6)


def test_sums_may_be_wider_than_what_is_summed():
  x, kernel = drawn(2, 512).astype(jnp.bfloat16), drawn(512, 2).astype(jnp.bfloat16)
  exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
  wide = linear.matmul(x, kernel, jnp.float32)
  assert wide.dtype == jnp.float32 and linear.matmul(x, kernel).dtype == jnp.bfloat16
  np.testing.assert_allclose(wide, exact, rtol=1e-4, atol=1e-4)
  gradients = jax.grad(lambda x, k: linear.matmul(x, k, jnp.float32).sum(), (0, 1))(x, kernel)
  assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2


def test_dense_has_linens_params_and_values():
  x = drawn(5, 3)
  ours, linens = linear.Dense(4), nn.Dense(4)
  variables = ours.init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, variables, linens.init(jax.random.key(0), x))
  np.testing.assert_array_equal(ours.apply(variables, x), linens.apply(variables, x))


def test_the_barrier_is_the_cpus_alone():
  slope = jax.jit(jax.grad(lambda kernel, x: jnp.tanh(linear.matmul(jnp.tanh(x), kernel)).sum()))
  text = lambda platform: slope.trace(drawn(3, 4), drawn(5, 3)).lower(lowering_platforms=(platform,)).as_text()
  assert 'optimization_barrier' in text('cpu')
  assert not any('optimization_barrier' in text(platform) for platform in ('tpu', 'cuda'))


@pytest.mark.parametrize('count', [11, 12])
def test_rows_are_projected_before_they_are_taken_where_they_are_fewer(count):
  table, kernel, index = drawn(6, 3), drawn(3, 4), jnp.arange(count) * 5 % 6
  taken = linear.rows(table, index)
  assert isinstance(taken, linear.Rows) == (count == 12)  # twice in the mean
  assert taken.shape == (count, 3)
  np.testing.assert_allclose(linear.project(taken, kernel), table[index] @ kernel, rtol=1e-6)
