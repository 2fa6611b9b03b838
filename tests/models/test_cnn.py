import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors, models, options
from karpjax.models import cnn


def build(chosen):
  x = jnp.zeros((1, 8, 8, 1))
  return options.build(models.MODELS, 'cnn', chosen, x, call={'train': False}, classes=10)


def test_against_torch_layer_by_layer():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  module = cnn.CNN(10, widths=(3, 4), depth=(2, 1), kernel_size=(5, 3), stride=(2, 1), padding='1', hidden=(6,))
  x = np.random.default_rng(0).normal(size=(2, 20, 17, 2)).astype(np.float32)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))
  p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params['params'])
  conv = lambda x, name, **kw: torch.relu(
    functional.conv2d(x, p[name]['kernel'].permute(3, 2, 0, 1), p[name]['bias'], padding=1, **kw)
  )
  y = conv(conv(torch.tensor(x).permute(0, 3, 1, 2), 'conv1', stride=2), 'conv2')
  y = functional.max_pool2d(conv(functional.max_pool2d(y, 2), 'conv3'), 2)
  y = y.permute(0, 2, 3, 1).reshape(2, -1)
  hidden, logits = p['head']['hidden1'], p['head']['logits']
  y = torch.relu(y @ hidden['kernel'] + hidden['bias']) @ logits['kernel'] + logits['bias']
  np.testing.assert_allclose(jax.jit(module.apply)(params, x), y.numpy(), atol=1e-4)


def test_an_averaging_head_ignores_a_shift_of_a_framed_image_and_a_flattening_one_does_not():
  x = np.zeros((1, 16, 16, 1), np.float32)
  x[:, 4:8, 4:8] = np.random.default_rng(0).normal(size=(1, 4, 4, 1))
  shifted = np.roll(x, (4, 4), (1, 2))  # by a multiple of both poolings
  for head, alike in (('average', True), ('flatten', False)):
    module = cnn.CNN(10, widths=(4, 5), hidden=(), head=head, zero_head=False)
    params = jax.jit(module.init)(jax.random.key(0), x)
    apply = jax.jit(module.apply)
    assert np.allclose(apply(params, x), apply(params, shifted), atol=1e-5) is alike


def test_an_averaging_head_takes_any_size_with_the_same_params():
  shape = lambda n: jax.eval_shape(cnn.CNN(10, head='average').init, jax.random.key(0), np.ones((1, n, n, 3)))
  assert shape(32) == shape(100)


def test_dropout_rates_go_to_the_inputs_of_the_dense_layers():
  x = np.ones((2, 8, 8, 1), np.float32)
  plain = cnn.CNN(3, widths=(2,), hidden=(5,), zero_head=False)
  params = jax.jit(plain.init)(jax.random.key(0), x)

  def apply(rates):
    module = cnn.CNN(3, widths=(2,), hidden=(5,), dropout=rates, zero_head=False)
    return jax.jit(lambda: module.apply(params, x, train=True, rngs={'dropout': jax.random.key(1)}))()

  bias = params['params']['head']['logits']['bias']
  assert np.abs(apply(0.0) - bias).max() > 1e-2
  for rates in ((0.999999, 0.0), (0.0, 0.999999), 0.999999):  # nothing is left but the bias
    np.testing.assert_allclose(apply(rates), np.broadcast_to(bias, (2, 3)), atol=1e-6)


@pytest.mark.parametrize('depth, poolings, fits', [(1, 3, True), (1, 4, False)])
def test_too_many_poolings_are_refused(depth, poolings, fits):
  chosen = {'widths': (4,) * poolings, 'depth': depth}
  if fits:
    build(chosen)
  else:
    with pytest.raises(errors.UsageError, match='8x8x1 is too small: 1x1x4 is left before pooling 4'):
      build(chosen)


@pytest.mark.parametrize(
  'chosen, message',
  [
    ({'padding': 'VALID', 'depth': 3}, '8x8x1 is too small: 1x1x32 is left before convolution 4'),
    ({'padding': 'FULL'}, 'padding=FULL: expected SAME, VALID or a number'),
    ({'padding': 'SAME,1,1'}, 'padding=SAME,1,1: 3 values; expected one for all, or 2'),
    ({'depth': (1, 2, 3)}, 'depth=1,2,3: 3 values; expected one for all, or 2'),
    ({'kernel_size': (0,)}, 'kernel_size=0: at least 1 and at most 256 is needed'),
    ({'dropout': (0.1, 0.2, 0.3)}, 'dropout=0.1,0.2,0.3: 3 values; expected one for all, or 2'),
  ],
)
def test_options_that_make_no_sense_are_refused(chosen, message):
  with pytest.raises(errors.UsageError, match=message):
    build(chosen)


@pytest.mark.parametrize('attention, added', [('none', 0), ('se', 4 * (2 * 8) + 4 + 8), ('cbam', 4 * 16 + 12 + 98)])
def test_attention_adds_its_params_to_each_convolution(attention, added):
  module = cnn.CNN(10, widths=(8,), depth=3, attention=attention)
  size = lambda module: sum(
    a.size for a in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), np.ones((1, 8, 8, 1))))
  )
  assert size(module) - size(cnn.CNN(10, widths=(8,), depth=3)) == 3 * added
