"""LeNet of 1989 against the paper's counts and a plain-loop NumPy implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors, options
from karpjax.models.lenet import LeNet1989

SEEN = [[*range(8)]] * 4 + [[*range(4, 12)]] * 4 + [[*range(4), *range(8, 12)]] * 4  # plane of H2 -> planes of H1


@functools.cache
def initial(output='tanh'):
  return nn.meta.unbox(jax.jit(LeNet1989(output=output).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))['params'])


def random_variables(batch=2):
  """Params with every bias away from its initial value, and images."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: np.asarray(p) + 0.1 * rng.standard_normal(p.shape).astype(np.float32), initial())
  return params, rng.uniform(-1, 1, (batch, 16, 16, 1)).astype(np.float32)


def applied(params, x, train=False, rngs=None, **options):
  apply = functools.partial(LeNet1989(**options).apply, train=train)
  return jax.jit(apply)({'params': params}, x, rngs=rngs)


def weighted_sums(image, kernels, biases, seen):
  """One layer, unit by unit. image [planes, n, n], kernels [out][seen, 5, 5], biases [out, n / 2, n / 2]."""
  n = image.shape[1]
  framed = np.full((len(image), n + 4, n + 4), -1.0)
  framed[:, 2:-2, 2:-2] = image
  out = np.array(biases, np.float64)
  for o, i, j in np.ndindex(out.shape):
    for s, plane in enumerate(seen[o]):
      out[o, i, j] += (kernels[o][s] * framed[plane, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5]).sum()
  return out


def plain(params, x):
  """The paper's network with loops. x [batch, 16, 16, 1] -> [batch, 10]."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  outputs = []
  for image in np.asarray(x, np.float64)[..., 0]:
    h1 = p['h1']['kernel'].reshape(12, 1, 5, 5), p['h1']['bias'].T.reshape(12, 8, 8)
    h1 = np.tanh(weighted_sums(image[None], *h1, [[0]] * 12))
    h2 = p['h2']['kernel'].reshape(12, 5, 5, 8).transpose(0, 3, 1, 2), p['h2']['bias'].T.reshape(12, 4, 4)
    h2 = np.tanh(weighted_sums(h1, *h2, SEEN)).transpose(1, 2, 0)
    h3 = np.tanh(h2.reshape(192) @ p['h3']['kernel'] + p['h3']['bias'])
    outputs.append(np.tanh(h3 @ p['out']['kernel'] + p['out']['bias']))
  return np.array(outputs)


def test_parameter_and_connection_counts_are_the_papers():
  params = nn.meta.unbox(jax.eval_shape(LeNet1989().init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))['params'])
  sizes = {name: (layer['kernel'].size, layer['bias'].size) for name, layer in params.items()}
  assert sizes == {
    'h1': (12 * 25, 768),  # 1,068
    'h2': (12 * 200, 192),  # 2,592
    'h3': (5760, 30),  # 5,790
    'out': (300, 10),  # 310
  }
  assert sum(map(sum, sizes.values())) == 9760
  fan_in = {name: layer['kernel'].shape[1] for name, layer in params.items() if name in ('h1', 'h2')}
  connections = {name: bias * (fan_in.get(name, kernel // bias) + 1) for name, (kernel, bias) in sizes.items()}
  assert connections == {'h1': 19968, 'h2': 38592, 'h3': 5790, 'out': 310}
  assert sum(connections.values()) == 64660


def test_each_layer_starts_within_its_bound_and_fills_it():
  params = initial()
  for name, fan_in in (('h1', 25), ('h2', 200), ('h3', 192), ('out', 30)):
    bound = 2.4 / fan_in**0.5
    kernel = np.asarray(params[name]['kernel'])
    assert 0.97 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
    assert abs(kernel.std() / (bound / 3**0.5) - 1) < 0.1
    assert (np.asarray(params[name]['bias']) == (-1 if name == 'out' else 0)).all()
  linear = initial('linear')
  assert (linear['out']['bias'] == 0).all()


def test_forward_equals_the_plain_loops():
  params, x = random_variables()
  np.testing.assert_allclose(applied(params, x), plain(params, x), atol=2e-6)


def test_gradient_equals_finite_differences_of_the_plain_loops():
  params, x = random_variables(1)
  weights = np.linspace(-1, 1, 10)
  loss = lambda p: (LeNet1989().apply({'params': p}, x) * weights).sum()
  gradients = jax.jit(jax.grad(loss))(params)
  rng = np.random.default_rng(0)
  for name in params:
    for kind in ('kernel', 'bias'):
      value = np.asarray(params[name][kind], np.float64)
      direction = rng.choice([-1.0, 1.0], value.shape)
      ends = [
        (plain({**params, name: {**params[name], kind: value + h * direction}}, x) * weights).sum()
        for h in (1e-5, -1e-5)
      ]
      expected = (ends[0] - ends[1]) / 2e-5
      assert abs((np.asarray(gradients[name][kind]) * direction).sum() - expected) < 1e-4 * max(1, abs(expected))


def test_linear_output_is_the_inverse_of_tanh_and_relu_differs():
  params, x = random_variables()
  logits = applied(params, x, output='linear')
  np.testing.assert_allclose(np.tanh(logits), applied(params, x), atol=1e-6)
  rectified = applied(params, x, output='linear', activation='relu')
  assert np.abs(rectified - logits).max() > 0.01


def test_dropout_acts_in_training_only_and_bfloat16_gives_float32():
  params, x = random_variables()
  dropped = applied(params, x, train=True, rngs={'dropout': jax.random.key(0)}, dropout=0.25)
  kept = applied(params, x, dropout=0.25)
  np.testing.assert_array_equal(kept, applied(params, x))
  assert np.abs(dropped - kept).max() > 1e-3
  half = applied(params, x, dtype=jnp.bfloat16)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, kept, atol=0.1)


def test_bad_input_is_named():
  with pytest.raises(errors.UsageError, match='16x16x1, not 28x28x1'):
    LeNet1989().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
  with pytest.raises(errors.UsageError, match='Did you mean tanh'):
    options.check(LeNet1989(activation='tan'))
