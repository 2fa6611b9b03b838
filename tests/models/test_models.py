"""What holds for every model, and how a model is built by name."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from karpjax import errors, models, options
from karpjax.losses import classification
from karpjax.models import cnn, lenet, mlp, recurrent, resnet, vit
from tests.models.drawing import drawn

SMALL = {  # small enough to compile; with the shape of an example
  'logistic': (mlp.LogisticRegression, (6, 1)),
  'mlp': (functools.partial(mlp.MLP, widths=(8, 8), residual=True, norm='batch'), (4,)),
  'lenet1989': (functools.partial(lenet.LeNet1989, output='linear'), (16, 16, 1)),
  'cnn': (functools.partial(cnn.CNN, widths=(4, 8), hidden=(8,), attention='cbam'), (8, 8, 1)),
  'cnn 1-D': (
    functools.partial(cnn.CNN, widths=(4,), hidden=(), norm='batch', attention='se', activation='gelu'),
    (12, 1),
  ),
  'vgg': (functools.partial(cnn.CNN, widths=(4,), depth=2, hidden=(8,), norm='batch'), (4, 4, 3)),
  'resnet20': (functools.partial(resnet.ResNet, blocks=(1, 1), widths=(4, 8)), (8, 8, 1)),
  'resnet50': (
    functools.partial(resnet.ResNet, blocks=(1, 1), widths=(4, 8), bottleneck=True, imagenet=True, attention='se'),
    (16, 16, 1),
  ),
  'vit': (functools.partial(vit.ViT, patch=2, width=8, depth=1, heads=2), (4, 6, 2)),
  'gru': (functools.partial(recurrent.GRUClassifier, widths=(4,)), (8, 1)),
}
every = pytest.mark.parametrize('name', SMALL)


def built(name, shape, chosen, classes=5):
  x = jnp.zeros((1, *shape))
  return options.build(models.MODELS, name, chosen, x, call={'train': False}, classes=classes)


def module_and_shapes(name, dtype=jnp.float32):
  """A small model, its variables as shapes, and a batch of six as shapes."""
  constructor, shape = SMALL[name]
  module, x = constructor(classes=5, dtype=dtype), jax.ShapeDtypeStruct((6, *shape), jnp.float32)
  return module, jax.eval_shape(module.init, jax.random.key(0), x), x, jax.ShapeDtypeStruct((6,), jnp.int32)


@functools.cache
def initialised(name, dtype=jnp.float32):
  """A small model, its variables, and a batch of six."""
  constructor, shape = SMALL[name]
  module, x = constructor(classes=5, dtype=dtype), np.random.default_rng(0).normal(size=(6, *shape))
  x = x.astype(np.float32)
  return module, jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), x), x


def training_gradient(module, variables, x, labels):
  state = {name: value for name, value in variables.items() if name != 'params'}

  def loss(params):
    logits, updated = module.apply(
      {'params': params, **state}, x, train=True, rngs={'dropout': jax.random.key(1)}, mutable=list(state)
    )
    return classification.cross_entropy(logits, labels).sum(), (logits, updated)

  return jax.grad(loss, has_aux=True)(variables['params'])


@pytest.mark.parametrize(
  'name, shape, classes, options, expected',
  [
    # greydanus/mnist1d, notebooks/models.py: LinearBase, MLPBase, ConvBase, GRUBase, as its notebooks print them
    ('logistic', (40, 1), 10, {}, 410),
    ('mlp', (40, 1), 10, {'widths': (100, 100), 'residual': True}, 15_210),
    (
      'cnn',
      (40, 1),
      10,
      {'widths': (25,) * 3, 'kernel_size': (5, 3, 3), 'stride': 2, 'padding': '1', 'pool': 1, 'hidden': ()},
      5_210,
    ),
    ('gru', (40, 1), 10, {}, 5_134),
    # LeCun et al. 1989, section 3
    ('lenet1989', (16, 16, 1), 10, {}, 9_760),
    # keras-io examples, mnist_cnn of Keras 2: "Total params: 1,199,882"
    (
      'cnn',
      (28, 28, 1),
      10,
      {'padding': 'VALID', 'pool': (1, 2), 'dropout': (0.25, 0.5)},
      1_199_882,
    ),
    # TF Privacy's mnist_dpsgd_tutorial_common.py, by hand: 64 * 16 + 16, 256 * 32 + 32, 512 * 32 + 32, 330
    (
      'cnn',
      (28, 28, 1),
      10,
      dict(widths=(16, 32), kernel_size=(8, 4), stride=2, padding='same,valid', pool_stride=1, hidden=(32,)),
      26_010,
    ),
    # by hand: 9 * 32 + 32, 9 * 32 * 64 + 64, 49 * 64 * 128 + 128, 1290
    ('cnn', (28, 28, 1), 10, {}, 421_642),
    # 27 * 16 + 16, 144 * 32 + 32, 64 * 32 * 64 + 64, 650
    ('cnn', (32, 32, 3), 10, {'widths': (16, 32), 'hidden': (64,)}, 136_874),
    # 27 * 64 + 64, 576 * 128 + 128, 64 * 128 * 10 + 10
    ('cnn', (32, 32, 3), 10, {'widths': (64, 128), 'hidden': ()}, 157_578),
    # 27 * 64 + 64, 112 * 112 * 64 * 256 + 256, 257,000
    ('cnn', (224, 224, 3), 1000, {'widths': (64,), 'hidden': (256,)}, 205_779_944),
  ],
)
def test_parameter_counts(name, shape, classes, options, expected):
  module = built(name, shape, options, classes=classes)
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *shape)))
  assert sum(math.prod(a.shape) for a in jax.tree.leaves(variables['params'])) == expected


# those that differ in what they compute; the others cost compile time and add nothing
@pytest.mark.parametrize(
  'name', ['cnn 1-D', *(pytest.param(name, marks=pytest.mark.slow) for name in ('mlp', 'gru', 'lenet1989', 'resnet20'))]
)
def test_an_example_in_evaluation_sees_itself_alone(name):
  """A permutation of the batch permutes the logits; changing one example leaves the others' as they were."""
  constructor, shape = SMALL[name]
  module, x = constructor(classes=5), np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
  variables = drawn(module, x)  # a head that begins at 0 would give the same whatever it sees
  order = np.array([3, 0, 5, 1, 4, 2])
  apply = jax.jit(lambda x: module.apply(variables, x, train=False))
  logits = apply(x)
  np.testing.assert_allclose(apply(x[order]), logits[order], atol=1e-5)
  changed = x.copy()
  changed[0] += 1
  after = apply(changed)
  np.testing.assert_allclose(after[1:], logits[1:], atol=1e-6)
  assert np.abs(after[0] - logits[0]).max() > 1e-3


@every
def test_bfloat16_training_lowers_for_accelerators_and_leaves_params_gradients_statistics_and_logits_float32(name):
  module, variables, x, labels = module_and_shapes(name, jnp.bfloat16)
  traced = jax.jit(functools.partial(training_gradient, module)).trace(variables, x, labels)
  _, (logits, _) = traced.out_info
  assert logits.shape == (6, 5)
  assert {a.dtype for a in jax.tree.leaves((variables, traced.out_info))} == {jnp.dtype(jnp.float32)}
  text = traced.lower(lowering_platforms=('tpu', 'cuda')).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line or 'stablehlo.convolution' in line]
  assert any('xbf16>,' in line for line in products) or name == 'logistic'  # whose one matmul makes the logits


@pytest.mark.parametrize('name', ['cnn 1-D', pytest.param('gru', marks=pytest.mark.slow)])
def test_bfloat16_is_near_float32(name):
  module, variables, x = initialised(name)
  exact, rounded = (
    jax.jit(lambda v, m=m: m.apply(v, x, train=False))(variables) for m in (module, module.clone(dtype=jnp.bfloat16))
  )
  np.testing.assert_allclose(rounded, exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.parametrize('remat', ['full', pytest.param('dots', marks=pytest.mark.slow)])
def test_rematerialisation_changes_no_gradient_logit_or_statistic(remat):
  module = resnet.ResNet(5, blocks=(1,), widths=(4,))
  x = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  labels = np.arange(6, dtype=np.int32) % 5
  kept, anew = (functools.partial(training_gradient, module.clone(remat=how)) for how in ('none', remat))
  programs = [str(jax.make_jaxpr(f)(variables, x, labels)) for f in (kept, anew)]
  assert ['remat' in p or 'checkpoint' in p for p in programs] == [
    False,
    True,
  ]  # called one or the other, by JAX's version
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
  jax.tree.map(close, jax.jit(anew)(variables, x, labels), jax.jit(kept)(variables, x, labels))


def test_mapped_seeds_have_the_weights_and_gradients_of_each_alone():
  module, first, x = initialised('cnn 1-D')
  keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
  variables = jax.jit(lambda keys: jax.lax.map(lambda key: module.init(key, x, train=False), keys))(keys)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), variables, first)
  kernels = np.asarray(variables['params']['conv1']['kernel'])
  assert np.abs(kernels[0] - kernels[1]).max() > 0.01
  labels = np.arange(6, dtype=np.int32) % 5
  gradient = jax.jit(lambda v, x: training_gradient(module, v, x, labels)[0])
  mapped = jax.jit(jax.vmap(gradient))(variables, np.stack([x, -x]))
  for s, example in enumerate((x, -x)):
    alone = gradient(jax.tree.map(lambda a, s=s: a[s], variables), example)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(alone))
    jax.tree.map(lambda a, b, s=s: np.testing.assert_allclose(a[s], b, atol=2e-5), mapped, alone)


@pytest.mark.parametrize(
  'name, shape, options, message',
  [
    ('resnet2', (8, 8, 1), {}, "unknown model 'resnet2'. Did you mean resnet20"),
    ('resnet20', (30,), {}, 'takes a 1-D signal or an image, not a table of shape 30'),
    ('gru', (8, 8, 1), {}, 'takes a 1-D signal, not an image of shape 8x8x1'),
    ('lenet1989', (40, 1), {}, 'lenet1989 takes images of 16x16x1, not 40x1'),
    ('lenet1989', (28, 28, 1), {}, '16x16x1'),
    ('resnet20', (8, 8, 1), {'hidden': (3,)}, 'resnet20 has no hidden=3. Its options: attention, remat, widths'),
    ('logistic', (8,), {'widths': (3,)}, 'logistic has no widths=3. Its options: none'),
    ('gru', (8, 1), {'dropout': (0.1, 0.2)}, 'dropout=0.1,0.2: model gru takes one value'),
  ],
)
def test_what_does_not_fit_is_refused_by_name(name, shape, options, message):
  with pytest.raises(errors.UsageError, match=message):
    built(name, shape, options)


def test_a_tuple_of_one_stands_for_one_value():
  assert built('lenet1989', (16, 16, 1), {'dropout': (0.25,)}).dropout == 0.25
  assert built('cnn', (8, 8, 1), {'widths': [4, 5]}).widths == (4, 5)


@pytest.mark.parametrize(
  'depth, expected',
  [((1, 1, 2, 2, 2), 132_863_336), ((2, 2, 3, 3, 3), 138_357_544), ((2, 2, 4, 4, 4), 143_667_240)],
)
def test_vgg_configurations_a_d_and_e_have_torchvisions_parameter_counts(depth, expected):
  """torchvision's vgg11, vgg16, vgg19 (Simonyan & Zisserman 2015, table 2: 133, 138 and 144 million)."""
  chosen = {'widths': (64, 128, 256, 512, 512), 'depth': depth, 'hidden': (4096, 4096), 'norm': 'none'}
  module = options.build(models.MODELS, 'vgg', chosen, classes=1000)
  params = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))['params']
  assert sum(math.prod(a.shape) for a in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize('name', ['cnn', 'mlp'])
def test_pytorch_s_initialiser_is_uniform_within_the_root_of_its_inputs(name):
  model = models.MODELS[name](10, initialiser='torch', **({'zero_head': False} if name == 'cnn' else {}))
  params = nn.meta.unbox(model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3))))['params']
  for path, kernel in traverse_util.flatten_dict(params).items():
    if path[-1] == 'kernel':
      limit, bias = 1 / np.sqrt(np.prod(kernel.shape[:-1])), traverse_util.flatten_dict(params)[*path[:-1], 'bias']
      assert 0.9 * limit < np.abs(kernel).max() <= limit and 0.5 * limit < np.abs(bias).max() <= limit, path
      assert np.std(kernel) == pytest.approx(limit / np.sqrt(3), rel=0.1)
