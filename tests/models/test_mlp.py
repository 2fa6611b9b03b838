import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors, models, options
from karpjax.models import mlp


def test_logistic_regression_begins_uninformed_and_is_linear():
  module = mlp.LogisticRegression(10)
  x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
  np.testing.assert_array_equal(module.apply(params, x), np.zeros((3, 10)))
  kernel = np.random.default_rng(1).normal(size=(20, 10)).astype(np.float32)
  params = {'params': {'logits': {'kernel': kernel, 'bias': np.arange(10.0, dtype=np.float32)}}}
  np.testing.assert_allclose(module.apply(params, x), x.reshape(3, 20) @ kernel + np.arange(10), rtol=1e-5)


def test_mlp_against_numpy():
  module = mlp.MLP(4, widths=(6, 6, 5))
  x = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
  apply = jax.jit(lambda params, x: [module.clone(residual=added).apply(params, x) for added in (False, True)])
  p = jax.tree.map(np.asarray, params['params'])
  layer = lambda name, h: h @ p[name]['kernel'] + p[name]['bias']
  first = np.maximum(layer('hidden1', x), 0)
  for residual, logits in enumerate(apply(params, x)):
    second = np.maximum(layer('hidden2', first), 0) + residual * first
    third = np.maximum(layer('hidden3', second), 0)
    np.testing.assert_allclose(logits, layer('logits', third), atol=1e-5)


def test_dropout_rates_go_to_their_layers():
  """Everything is kept where the rate is 0; a rate near 1 on the inputs leaves the bias alone."""
  x = np.ones((2, 8), np.float32)
  module = mlp.MLP(3, widths=(16,), dropout=0.5)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))

  def run(module, train=True):
    return jax.jit(lambda: module.apply(params, x, train=train, rngs={'dropout': jax.random.key(1)}))()

  plain = run(mlp.MLP(3, widths=(16,)))
  np.testing.assert_array_equal(run(module, train=False), plain)
  assert np.abs(run(module) - plain).max() > 1e-3
  almost_all = run(mlp.MLP(3, widths=(16,), input_dropout=0.999999))
  np.testing.assert_allclose(almost_all, np.zeros((2, 3)), atol=1e-6)


def test_initial_scales():
  """He et al. 2015: var = 2 / fan_in before ReLU; LeCun et al. 1998: 1 / fan_in before tanh."""
  for activation, gain in (('relu', 2), ('gelu', 2), ('tanh', 1)):
    kernel = mlp.kernel_init(activation)(jax.random.key(0), (400, 300), jnp.float32)
    np.testing.assert_allclose(np.var(kernel), gain / 400, rtol=0.03)


def test_norm_replaces_the_bias_and_trains_on_the_batch():
  module = mlp.MLP(2, widths=(4,), norm='batch')
  x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
  variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
  assert 'bias' not in variables['params']['hidden1']
  _, updated = jax.jit(lambda v: module.apply(v, x, train=True, mutable=['batch_stats']))(variables)
  hidden = x @ np.asarray(variables['params']['hidden1']['kernel'])
  np.testing.assert_allclose(updated['batch_stats']['norm1']['mean'], 0.1 * hidden.mean(0), atol=1e-5)


@pytest.mark.parametrize(
  'chosen, message',
  [
    ({'widths': (8, 0)}, 'widths=8,0: at least 1'),
    ({'dropout': 1.0}, 'dropout=1.0: at least 0 and less than 1'),
    ({'dropout': (0.1, 0.2), 'widths': (1, 2, 3)}, 'dropout=0.1,0.2: 2 values; expected one for all, or 3'),
  ],
)
def test_options_that_make_no_sense_are_refused(chosen, message):
  with pytest.raises(errors.UsageError, match=message):
    options.build(models.MODELS, 'mlp', chosen, jnp.zeros((1, 4)), call={'train': False}, classes=2)
