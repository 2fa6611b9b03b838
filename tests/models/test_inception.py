"""Inception v3 for FID: its count and shapes, a block's arithmetic against NumPy, and files that do not fit."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from karpjax import errors, features
from karpjax.data.dataset import Spec
from karpjax.models import inception


@pytest.fixture(scope='module')
def shapes():
  return inception.published()


@pytest.fixture(scope='module')
def arrays(shapes):
  return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}  # without the memory


def test_parameter_count(shapes):
  """torchvision's inception_v3 has 27,161,264 parameters: less 3,326,696 of its auxiliary head, 2,049,000 of its classifier."""
  assert sum(math.prod(x) for n, x in shapes.items() if 'running' not in n) == 27_161_264 - 3_326_696 - 2_049_000
  assert len(shapes) == 5 * 94  # convolutions
  assert shapes['Conv2d_1a_3x3.conv.weight'] == (32, 3, 3, 3)
  assert shapes['Mixed_6b.branch7x7_2.conv.weight'] == (128, 128, 1, 7)  # of width, not of height
  assert shapes['Mixed_6b.branch7x7dbl_2.conv.weight'] == (128, 128, 7, 1)
  assert shapes['Mixed_7c.branch3x3dbl_3b.conv.weight'] == (384, 384, 3, 1)
  assert shapes['Mixed_5c.branch_pool.bn.running_var'] == (64,)
  assert shapes['Mixed_7a.branch7x7x3_4.conv.weight'] == (192, 192, 3, 3)


def test_every_image_has_2048_features(arrays):
  variables = inception.from_published(arrays, 'made')
  images = jax.ShapeDtypeStruct((70, 32, 28, 1), jnp.float32)
  made = jax.eval_shape(inception.features, variables, images)
  assert made.shape == (70, 2048) and made.dtype == jnp.float32


@pytest.mark.parametrize('count', [1, 32, 70])
def test_images_are_resized_and_stay_in_their_order(monkeypatch, count):
  """With a network that gives back some of its pixels; corners and middles of an enlarged image are known."""

  class Eye(nn.Module):
    @nn.compact
    def __call__(self, x):
      assert len(x) <= inception.PIECE and x.shape[1:] == (299, 299, 3)
      return jnp.concatenate([x[:, 0, 0], x[:, 149, 149], jnp.zeros((len(x), inception.FEATURES - 6))], -1)

  monkeypatch.setattr(inception, 'InceptionV3', Eye)
  images = np.random.default_rng(0).uniform(size=(count, 3, 3, 1)).astype(np.float32)
  found = np.asarray(inception.features({}, images))
  np.testing.assert_allclose(found[:, :3], np.repeat(2 * images[:, 0, 0] - 1, 3, -1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found[:, 3:6], np.repeat(2 * images[:, 1, 1] - 1, 3, -1), rtol=1e-5, atol=1e-6)


def test_images_shrink_without_antialiasing(monkeypatch):
  """Twice as large: each pixel is the mean of four, with antialiasing it would be of sixteen."""

  class Eye(nn.Module):
    @nn.compact
    def __call__(self, x):
      return x.reshape(len(x), -1)[:, : inception.FEATURES]

  monkeypatch.setattr(inception, 'InceptionV3', Eye)
  image = np.random.default_rng(0).uniform(size=(1, 598, 598, 3)).astype(np.float32)
  means = image.reshape(299, 2, 299, 2, 3).mean((1, 3)).reshape(-1)[: inception.FEATURES]
  np.testing.assert_allclose(inception.features({}, image)[0], 2 * means - 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('pooling', ['mean', 'max'])
def test_a_block_is_its_arithmetic(pooling):
  """Convolutions and pooling side by side; padding is left out of means, and is never a maximum."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      sides = [inception.applied(b, x, 'block.') for b in ('b 2@1x1 3@1x3+2@3x1', f'{pooling} p 2@1x1')]
      return jnp.concatenate(sides, -1), inception.applied('half 3@3x3/1', x)

  draw = np.random.default_rng(0)
  x = draw.normal(size=(2, 5, 4, 3)).astype(np.float32) - 2  # that a padded zero would be the largest
  variables = jax.eval_shape(Net().init, jax.random.key(0), x)
  assert set(variables['params']) == {'block.b_1', 'block.b_2a', 'block.b_2b', 'block.p', 'half'}
  leaves, tree = jax.tree.flatten(variables)
  variables = jax.tree.unflatten(tree, [draw.uniform(0.5, 1.5, v.shape).astype(np.float32) for v in leaves])

  def convolved(x, name, pad):
    kernel = variables['params'][name]['conv']['kernel']
    (height, width), own = kernel.shape[:2], {**variables['params'][name]['bn'], **variables['batch_stats'][name]['bn']}
    edges = ((height // 2,) * 2, (width // 2,) * 2) if pad else ((0, 0), (0, 0))
    x = np.pad(x, ((0, 0), *edges, (0, 0)))
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
      for j in range(columns):
        y[:, i, j] = np.einsum('bhwc,hwcd->bd', x[:, i : i + height, j : j + width], kernel)
    y = (y - own['mean']) / np.sqrt(own['var'] + 1e-3) * own['scale'] + own['bias']
    return np.maximum(y, 0)

  pooled = np.zeros_like(x)
  for i in range(5):
    for j in range(4):
      window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      pooled[:, i, j] = getattr(window, pooling)((1, 2))
  first = convolved(x, 'block.b_1', True)
  sides = [convolved(first, f'block.b_2{letter}', True) for letter in 'ab']
  expected = np.concatenate([*sides, convolved(pooled, 'block.p', True)], -1)
  both, half = jax.jit(Net().apply)(variables, x)
  np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(half, convolved(x, 'half', False), rtol=1e-4, atol=1e-4)
  assert half.shape == (2, 3, 2, 3) and np.any(expected > 0)


def test_names_of_a_file_are_those_of_the_network(arrays):
  draw = np.random.default_rng(0)
  kernel = draw.normal(size=(64, 48, 5, 5)).astype(np.float16)
  made = {
    **arrays,
    'Mixed_5b.branch5x5_2.conv.weight': kernel,
    'Mixed_5b.branch1x1.bn.num_batches_tracked': np.array(3),
  }
  made |= {'fc.weight': np.zeros((1008, 2048)), 'fc.bias': np.zeros(1008)}
  made['Mixed_7c.branch_pool.bn.running_mean'] = np.arange(192.0)
  variables = inception.from_published(made, 'made')
  ours = variables['params']['Mixed_5b.branch5x5_2']['conv']['kernel']
  assert ours.dtype == np.float32 and ours.shape == (5, 5, 48, 64)
  np.testing.assert_array_equal(ours[1, 4, 7], kernel[:, 7, 1, 4])
  np.testing.assert_array_equal(variables['batch_stats']['Mixed_7c.branch_pool']['bn']['mean'], np.arange(192))


@pytest.mark.parametrize(
  'name, shape, message',
  [
    ('Mixed_5b.branch1x1.conv.weight', None, r'lacks 1 of the FID network.s 470 arrays, such as Mixed_5b\.branch1x1\.conv\.weight'),
    ('Mixed_5b.branch1x1.bn.bias', (65,), r'Mixed_5b\.branch1x1\.bn\.bias is 65, and in the FID network 64'),
    ('Conv2d_1a_3x3.conv.weight', (3, 3, 3, 32), r'is 3×3×3×32, and in the FID network 32×3×3×3'),
    ('fc.weight', (1000, 2048), r'fc\.weight is 1000×2048, and in the FID network 1008×2048'),  # torchvision's own
    ('Mixed_8b.branch1x1.bn.bias', (64,), r'holds Mixed_8b\.branch1x1\.bn\.bias, .* Did you mean Mixed_\db\.branch1x1\.bn\.bias\?'),
  ],
)  # fmt: skip
def test_files_that_do_not_fit(arrays, name, shape, message):
  made = {n: x for n, x in arrays.items() if n != name}
  if shape:
    made[name] = np.zeros(shape, np.float32)
  with pytest.raises(errors.UsageError, match=message) as refused:
    inception.from_published(made, 'scorer=inception:f')
  assert '\n' not in str(refused.value) and str(refused.value).startswith('scorer=inception:f')


def spec(*shape):
  return Spec(name='made', shape=shape, classes=('0', '1'), examples=4, mean=(0.0,), std=(1.0,), maximum=255.0)


def test_bad_files_are_refused_in_one_line(tmp_path):
  safetensors.numpy.save_file({'conv.weight': np.zeros((2, 2), np.float32)}, tmp_path / 'other.safetensors')
  (tmp_path / 'broken.safetensors').write_bytes(b'not one')
  (tmp_path / 'pt_inception.pth').write_bytes(b'never opened')
  for file, shape, message in (
    ('other.safetensors', (8, 8, 1), r'lacks 470 of'),
    ('broken.safetensors', (8, 8, 1), r'cannot be read'),
    ('nowhere.safetensors', (8, 8, 1), r'cannot be read: .*No such file'),
    ('pt_inception.pth', (8, 8, 1), r"torch\.load\('pt_inception\.pth', weights_only=True\), 'pt_inception\.safetensors'\)"),
    ('other.safetensors', (2,), r'sees images, grey or in colour, not 2 numbers'),
    ('other.safetensors', (8, 8, 4), r'not 8×8×4 numbers'),
  ):  # fmt: skip
    with pytest.raises(errors.UsageError, match=message) as refused:
      features.load(f'inception:{tmp_path / file}', spec(*shape))
    assert '\n' not in str(refused.value) and 'scorer=inception:' in str(refused.value)
