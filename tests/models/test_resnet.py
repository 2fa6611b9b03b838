import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import errors, models, options
from karpjax.models import resnet


def count(name, shape, classes, **chosen):
  module = options.build(models.MODELS, name, chosen, classes=classes)
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *shape)))
  return sum(math.prod(a.shape) for a in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(
  'name, attention, shape, expected',
  [
    # He et al. 2015, table 6: 0.27 M and 0.85 M; akamaster/pytorch_resnet_cifar10 counts as we do
    ('resnet20', 'none', (32, 32, 3), 269_722),
    ('resnet56', 'none', (32, 32, 3), 853_018),
    # torchvision's resnet18 and resnet50
    ('resnet18', 'none', (224, 224, 3), 11_689_512),
    ('resnet50', 'none', (224, 224, 3), 25_557_032),
    # Woo et al. 2018, table 4: 11.78 M and 28.09 M, each with SE and with CBAM
    ('resnet18', 'cbam', (224, 224, 3), 11_778_592 + 8 * 98),
    pytest.param('resnet18', 'se', (224, 224, 3), 11_778_592, marks=pytest.mark.slow),
    pytest.param('resnet50', 'se', (224, 224, 3), 28_088_024, marks=pytest.mark.slow),
    pytest.param('resnet50', 'cbam', (224, 224, 3), 28_088_024 + 16 * 98, marks=pytest.mark.slow),
  ],
)
def test_parameter_counts(name, attention, shape, expected):
  assert count(name, shape, 10 if shape[0] == 32 else 1000, attention=attention) == expected


def test_cifar_count_in_closed_form():
  """n blocks a stage: stem, 2n convolutions a stage with scale and bias each, no shortcut has params; 6n + 2 layers."""
  for n, name in ((3, 'resnet20'), (9, 'resnet56')):
    widths, total, before = (16, 32, 64), 27 * 16 + 2 * 16, 16
    for width in widths:
      total += 9 * before * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
      before = width
    assert count(name, (32, 32, 3), 10) == total + 64 * 10 + 10


def blocks_in_torch(p, x, stride, bottleneck, projection):
  """One block in training mode, from our params, with PyTorch's own layers. x: [batch, channels, height, width]."""
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  conv = lambda x, name, stride: functional.conv2d(
    x, p[name]['kernel'].permute(3, 2, 0, 1), stride=stride, padding=p[name]['kernel'].shape[0] // 2
  )
  norm = lambda x, name: functional.batch_norm(x, None, None, p[name]['scale'], p[name]['bias'], training=True)
  strides = (1, stride, 1) if bottleneck else (stride, 1)
  y = x
  for i, s in enumerate(strides, start=1):
    y = norm(conv(y, f'conv{i}', s), f'norm{i}')
    y = torch.relu(y) if i < len(strides) else y
  if projection:
    x = norm(conv(x, 'projection', stride), 'projection_norm')
  else:
    x = functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
  return torch.relu(x + y)


@pytest.mark.parametrize('bottleneck, imagenet', [(False, False), (False, True), (True, True)])
def test_a_block_equals_pytorchs_layers(bottleneck, imagenet):
  """The stride in the 3x3 convolution (v1.5), shortcut of option A or B, padding 1 on both sides."""
  torch = pytest.importorskip('torch')
  block = resnet.Block(6, 2, bottleneck, imagenet, 'none', jnp.float32)
  x = np.random.default_rng(0).normal(size=(3, 9, 8, 4)).astype(np.float32)
  variables = jax.jit(lambda key: block.init(key, x, train=False))(jax.random.key(0))
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda a: np.asarray(a) + rng.normal(0, 0.1, a.shape).astype(np.float32), variables['params'])
  run = jax.jit(lambda v: block.apply(v, x, train=True, mutable=['batch_stats'])[0])
  y = run({**variables, 'params': params})
  expected = blocks_in_torch(
    jax.tree.map(torch.tensor, params), torch.tensor(x).permute(0, 3, 1, 2), 2, bottleneck, imagenet
  )
  np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1).numpy(), atol=2e-4)


def test_zero_initialised_blocks_begin_as_their_shortcut():
  block = resnet.Block(4, 1, False, True, 'none', jnp.float32)
  x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)
  variables = jax.jit(lambda key: block.init(key, x, train=False))(jax.random.key(0))
  y = jax.jit(lambda v: block.apply(v, x, train=True, mutable=['batch_stats'])[0])(variables)
  np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_initial_scale_is_heis_backward_case():
  kernel = resnet.kernel_init(jax.random.key(0), (3, 3, 32, 64), jnp.float32)
  np.testing.assert_allclose(np.var(kernel), 2 / (9 * 64), rtol=0.03)


@pytest.mark.parametrize('bottleneck, imagenet', [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize('shape', [(8, 8, 1), (28, 28, 1), (1, 1, 3), (33, 47, 3), (40, 1)])
def test_any_size_is_taken(bottleneck, imagenet, shape):
  module = resnet.ResNet(7, blocks=(1,) * 4, widths=(1, 2, 3, 4), bottleneck=bottleneck, imagenet=imagenet)
  x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  logits, _ = jax.eval_shape(lambda key, x: module.init_with_output(key, x, train=False), jax.random.key(0), x)
  assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)


@pytest.mark.parametrize(
  'widths, message', [((16, 32), 'widths=16,32: this ResNet has 3 stages'), ((16, 8, 32), 'never shrink')]
)
def test_widths_that_do_not_fit_are_refused(widths, message):
  with pytest.raises(errors.UsageError, match=message):
    options.build(models.MODELS, 'resnet20', {'widths': widths}, jnp.zeros((1, 8, 8, 1)), classes=2)
