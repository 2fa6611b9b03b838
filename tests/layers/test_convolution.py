"""The convolution equals XLA's in values and derivatives, and is XLA's where it does not run on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from karpjax.errors import UsageError
from karpjax.layers import convolution as conv
from karpjax.layers import cpu

# batch 2; size, window, strides, padding, in, out: few and many channels, each lowering, each kind of padding
CASES = [
  ((9, 8), (3, 3), (1, 1), 'SAME', 1, 4),
  ((9, 8), (3, 3), (2, 2), 'SAME', 16, 8),
  ((6, 8), (3, 2), (1, 1), ((0, 2), (3, 1)), 16, 16),
  ((6, 5), (3, 3), (1, 1), 'SAME', 16, 68),  # in halves of the batch
  ((7, 6), (4, 4), (2, 2), ((1, 2), (1, 1)), 5, 128),
  ((9, 8), (1, 1), (2, 2), 'SAME', 16, 4),
  ((9, 8), (5, 5), (1, 2), ((0, 3), (2, 1)), 3, 5),
  ((14, 8), (5, 4), (3, 2), ((0, 0), (1, 2)), 6, 5),  # rows that no window reaches
  ((8, 9), (3, 2), (3, 3), 'VALID', 16, 3),
  ((11,), (5,), (2,), 'SAME', 1, 6),
  ((11,), (3,), (1,), ((2, 0),), 24, 6),
]
MORE = [
  ((9, 8), (3, 3), (1, 1), 'VALID', 16, 8),
  ((9, 8), (1, 1), (1, 1), 'SAME', 16, 4),
  ((9, 8), (7, 7), (2, 2), 'SAME', 3, 5),
  ((8, 8), (2, 2), (2, 2), 'VALID', 16, 3),
]
slow = lambda cases: [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def arrays(size, window, channels, features, dtype=jnp.float32, seeds=()):
  """x [*seeds, 2, *size, channels], kernel [*seeds, *window, channels, features]."""
  rng = np.random.default_rng(0)  # NumPy's: a draw of JAX's with so many axes is compiled for seconds
  shapes = (*seeds, 2, *size, channels), (*seeds, *window, channels, features)
  return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def ours(strides, padding):
  return lambda x, kernel: conv.convolution(x, kernel, strides=strides, padding=padding)


def plain(strides, padding):
  def f(x, kernel):
    dimensions = conv.DIMENSIONS[kernel.ndim - 2]
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimensions)

  return f


def derivatives(f):
  """(value, gradients) of a loss whose cotangent differs from place to place."""

  def both(*args):
    y, pullback = jax.vjp(f, *args)
    return y, *pullback(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

  return jax.jit(both)


def assert_close(a, b, tolerance=2e-6):
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert one.dtype == other.dtype and one.shape == other.shape
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize('size, window, strides, padding, channels, features', [*CASES, *slow(MORE)])
def test_equals_xla_in_values_and_gradients(size, window, strides, padding, channels, features):
  args = arrays(size, window, channels, features)
  assert_close(derivatives(ours(strides, padding))(*args), derivatives(plain(strides, padding))(*args))


@pytest.mark.parametrize(  # not in halves: an odd batch, and many channels; and copies of fields
  'strides, batch, channels, features', [((1, 1), 3, 16, 8), ((1, 1), 2, 33, 40), ((2, 1), 1, 3, 5)]
)
def test_other_forms_of_a_kernels_gradient(strides, batch, channels, features):
  x, kernel = arrays((6, 5), (3, 2), channels, features)
  x = np.random.default_rng(1).normal(size=(batch, *x.shape[1:])).astype(np.float32)
  assert_close(derivatives(ours(strides, 'SAME'))(x, kernel), derivatives(plain(strides, 'SAME'))(x, kernel))


def test_bfloat16_equals_float32_to_its_rounding():
  args = arrays((9, 8), (3, 3), 16, 8, jnp.bfloat16)
  exact = derivatives(plain((1, 1), 'SAME'))(*(a.astype(jnp.float32) for a in args))
  result = derivatives(ours((1, 1), 'SAME'))(*args)
  assert all(r.dtype == jnp.bfloat16 for r in result)
  assert_close([r.astype(jnp.float32) for r in result], exact, 2e-2)


@pytest.mark.parametrize('strides', [pytest.param((1, 1), marks=pytest.mark.slow), (2, 2)])
def test_gradient_of_a_gradient_penalty(strides):
  """As WGAN-GP asks: the gradient in the kernel, of the norm of the gradient in the input."""

  def penalty(f):
    def norm(x, kernel):
      score = lambda x: jnp.tanh(f(jnp.tanh(f(x, kernel)), kernel)).sum()
      return (jax.grad(score)(x) ** 2).sum()

    return jax.jit(jax.grad(norm, argnums=(0, 1)))

  args = arrays((6, 6), (3, 3), 3, 3)
  assert_close(penalty(ours(strides, 'SAME'))(*args), penalty(plain(strides, 'SAME'))(*args), 1e-5)


@pytest.mark.parametrize(
  'channels, seeds, mapped', [(1, 3, (0, 0)), (16, 3, (None, 0)), (16, 3, (0, None)), (16, 4, (0, 0))]
)
def test_vmap_equals_a_loop(channels, seeds, mapped, monkeypatch):
  monkeypatch.setattr(cpu, 'UNROLLED', 3)  # the fourth makes it a loop
  x, kernel = arrays((6, 5), (3, 3), channels, 4, seeds=(seeds,))
  args = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), mapped)]
  batched = jax.jit(jax.vmap(derivatives(ours((1, 1), 'SAME')), mapped))(*args)
  one = derivatives(plain((1, 1), 'SAME'))
  rows = [one(*(a[i] if axis == 0 else a for a, axis in zip(args, mapped))) for i in range(seeds)]
  assert_close(batched, jax.tree.map(lambda *leaves: np.stack(leaves), *rows))


def test_no_grouped_convolution_for_vmapped_seeds_and_no_slow_one_in_a_loop():
  """XLA's CPU is fast only at ungrouped convolutions of [batch, ..., channels]."""
  x, kernel = arrays((12, 12), (3, 3), 16, 8, seeds=(3,))
  step = jax.vmap(derivatives(ours((1, 1), 'SAME')))
  text = jax.jit(lambda *a: lax.fori_loop(0, 4, lambda i, c: step(x, c[2]), step(*a))).lower(x, kernel).as_text()
  lines = [line for line in text.splitlines() if 'stablehlo.convolution' in line]
  assert lines and 'feature_group_count = 1' in lines[0]
  for line in lines:
    assert 'dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]' in line
    assert 'batch_group_count = 1' in line and 'feature_group_count = 1' in line


def lowered(f, args, platform):
  """StableHLO's operations, sorted, less the one-branch `case` on a constant that `platform_dependent` leaves."""
  text = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
  wrapper = re.compile(r'stablehlo\.(case|return)|stablehlo\.constant dense<\d> : tensor<i32>')
  lines = [re.sub(r'%[\w:#]+', '%', line.strip()) for line in text.splitlines() if 'stablehlo.' in line]
  return sorted(line for line in lines if not wrapper.search(line))


@pytest.mark.parametrize('platform', ['tpu', pytest.param('cuda', marks=pytest.mark.slow)])
@pytest.mark.parametrize('vmapped', [False, True])
@pytest.mark.parametrize(
  'size, window, strides, padding, channels, features',
  [*CASES[:2], *slow([MORE[1], CASES[-1]])],
)
def test_accelerators_get_the_plain_program(platform, vmapped, size, window, strides, padding, channels, features):
  args = arrays(size, window, channels, features, seeds=(3,) if vmapped else ())
  wrap = jax.vmap if vmapped else lambda f: f
  text = [lowered(wrap(derivatives(f(strides, padding))), args, platform) for f in (ours, plain)]
  assert sum('stablehlo.convolution' in line for line in text[0]) == 3
  assert text[0] == text[1]


def test_layer_is_linens():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  for options in ({}, {'strides': 2, 'use_bias': False}, {'padding': ((1, 0), (2, 1))}):
    theirs, layer = nn.Conv(5, (3, 3), **options), conv.Conv(5, (3, 3), **options)
    variables = theirs.init(jax.random.key(1), x)
    assert_close(layer.init(jax.random.key(1), x), variables)  # drawn flat: to the last bit
    assert_close(layer.apply(variables, x), theirs.apply(variables, x))
  half = conv.Conv(5, (3, 3), strides=2, dtype=jnp.bfloat16)
  variables = half.init(jax.random.key(1), x)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
  assert half.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'shape, window, stride, padding',
  [
    ((2, 8, 6, 3), 2, 2, 'VALID'),
    ((2, 11, 7, 3), 3, 3, 'VALID'),
    ((2, 9, 7, 3), 3, 2, 'SAME'),
    ((2, 9, 3), 2, 2, 'VALID'),
  ],
)
def test_pools_are_linens(shape, window, stride, padding):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  rank = len(shape) - 2
  for mine, theirs in ((conv.max_pool, nn.max_pool), (conv.avg_pool, nn.avg_pool)):
    f = lambda x, pool=mine: pool(x, window, stride, padding)
    g = lambda x, pool=theirs: pool(x, (window,) * rank, (stride,) * rank, padding)
    assert_close(derivatives(f)(x), derivatives(g)(x))
    assert lowered(f, (x,), 'tpu') == lowered(g, (x,), 'tpu')


def test_a_maximum_that_was_rounded_otherwise_has_no_gradient_rather_than_nan():
  x, rounded = jnp.ones((3, 2)), jnp.array([1.0, 1.0 + 1e-6, 1.0])
  (gradient,) = conv._shares((1,), (x, rounded), jnp.full(3, 2.0))
  np.testing.assert_array_equal(gradient, [[1, 1], [0, 0], [1, 1]])


def test_max_pool_passes_the_whole_gradient_at_ties():
  x = jnp.ones((1, 4, 4, 1))
  gradient = jax.jit(jax.grad(lambda x: conv.max_pool(x).sum()))(x)
  np.testing.assert_allclose(gradient.reshape(2, 2, 2, 2).sum((1, 3)), 1)


def test_a_window_larger_than_the_input_is_refused():
  with pytest.raises(UsageError, match=r'the window \(3, 3\) exceeds the input \(2, 2\)'):
    jax.eval_shape(
      lambda x, k: conv.convolution(x, k, padding='VALID'), jnp.zeros((2, 2, 2, 3)), jnp.zeros((3, 3, 3, 5))
    )


def test_a_transposed_convolution_of_a_size_is_the_whole_ones_beginning():
  x = jax.random.normal(jax.random.key(0), (2, 4, 3, 5))
  whole, part = (conv.ConvTranspose(6, (4, 4), size=size) for size in (None, (7, 6)))
  variables = jax.jit(whole.init)(jax.random.key(1), x)
  np.testing.assert_allclose(jax.jit(part.apply)(variables, x), jax.jit(whole.apply)(variables, x)[:, :7], atol=1e-6)


@pytest.mark.parametrize('size, window, stride', [((3, 4), 4, 2), ((5,), 3, 1)])
def test_transposed_convolution_is_laxs(size, window, stride):
  """In values and in both gradients."""
  rank = len(size)
  layer = conv.ConvTranspose(6, (window,) * rank, strides=stride)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, 5)).astype(np.float32)
  variables = layer.init(jax.random.key(1), x)
  kernel = variables['params']['kernel']  # [*window, out, in]
  assert kernel.shape == (*(window,) * rank, 6, 5)
  kernel = kernel + 0.1 * rng.normal(size=kernel.shape).astype(np.float32)
  cut = (window - stride) // 2

  def of_layer(x, kernel):
    return layer.apply({'params': {'kernel': kernel, 'bias': jnp.zeros(6)}}, x)

  def of_lax(x, kernel):
    numbers = conv.DIMENSIONS[rank]
    padding = [(window - 1 - cut, window - 1 - cut)] * rank
    return lax.conv_transpose(
      x, kernel, (stride,) * rank, padding, dimension_numbers=numbers, transpose_kernel=True
    )  # fmt: skip

  ours = jax.jit(derivatives(of_layer))(x, kernel)
  assert ours[0].shape == (2, *(stride * n for n in size), 6)
  for a, b in zip(ours, jax.jit(derivatives(of_lax))(x, kernel)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'strides, padding', [((1, 1), 'SAME'), ((2, 2), 'SAME'), ((2, 1), 'VALID'), ((1, 1), ((2, 1), (0, 3)))]
)
def test_depthwise_equals_xla_in_values_and_gradients(strides, padding):
  draw = np.random.default_rng(0)
  x, kernel = draw.normal(size=(2, 9, 8, 5)).astype('f4'), draw.normal(size=(3, 4, 1, 5)).astype('f4')
  ours = lambda x, kernel: conv.depthwise(x, kernel, strides=strides, padding=padding)
  theirs = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=5
  )
  weights = draw.normal(size=theirs(x, kernel).shape)
  for function in (lambda f: f(x, kernel), lambda f: jax.grad(lambda *a: (weights * f(*a)).sum(), (0, 1))(x, kernel)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), function(ours), function(theirs))
