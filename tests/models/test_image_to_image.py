"""Pix2pix's networks: parameters counted, receptive fields by gradients, noise by dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax.errors import UsageError
from karpjax.models import image_to_image as models

GENERATING = dict(train=True, noise=False)


def count(model, shape, **options):
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), **options))
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(variables['params']))


def block(inputs, outputs):
  """Of a 4×4 convolution with batch norm, so without a bias."""
  return 16 * inputs * outputs + 2 * outputs


@pytest.mark.parametrize('norm', models.NORMS)
def test_parameters_of_the_paper_s_networks(norm):
  # The authors' PyTorch code says 54.414 M, exactly 54,413,955: it has no biases in the two convolutions without a norm.
  assert count(models.UNet(width=64, norm=norm), (256, 256, 3), **GENERATING) == 54_413_955 + 64 + 512
  # ... and 2.769 M for the discriminator
  assert count(models.Patches(discriminator_width=64, layers=3, norm=norm), (256, 256, 6)) == 2_768_705
  convolutions = (2 * 64 * 16 + 64) + block(64, 128) + block(128, 256) + block(256, 512)
  layers = (8 * 8 * 512 * 512 + 512) + (512 + 1)
  assert count(models.Scalar(discriminator_width=64, norm=norm), (128, 128, 2)) == convolutions + layers == 19_534_657


def test_the_generator_is_the_appendix_s():
  shapes = jax.eval_shape(
    lambda: models.UNet(width=64, norm='batch').init(jax.random.key(0), jnp.zeros((1, 256, 256, 3)), **GENERATING)
  )
  params = nn.meta.unbox(shapes['params'])
  kernels = {name: p['kernel'].shape for name, p in params.items() if 'kernel' in p}
  encoder = [64, 128, 256, 512, 512, 512, 512, 512]
  decoder = [512, 512, 512, 512, 256, 128, 64]
  # kernels are [4, 4, in, out] down and [4, 4, out, in] up, where `in` has the skip's channels beside those from below
  assert [kernels[f'down{i + 1}'] for i in range(8)] == [(4, 4, a, b) for a, b in zip([3, *encoder], encoder)]
  below = [512, *(2 * width for width in decoder)]
  assert [kernels[f'up{i + 1}'] for i in range(7)] == [(4, 4, b, a) for a, b in zip(below, decoder)]
  assert kernels['out'] == (4, 4, 3, 128)
  normed = {name.removesuffix('_norm') for name in params if name.endswith('_norm')}
  assert normed == set(kernels) - {'down1', 'down8', 'out'}


@pytest.mark.parametrize(
  'layers, field', [*(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 16), (2, 34))), (3, 70)]
)
def test_a_score_sees_a_patch_of_exactly_so_many_pixels(layers, field):
  model = models.Patches(discriminator_width=1, layers=layers, norm='batch')
  x = jax.random.normal(jax.random.key(0), (1, 96, 96, 2))
  variables = jax.jit(model.init)(jax.random.key(1), x)

  def score(x):
    scores, _ = model.apply(variables, x, mutable=['batch_stats'])
    return scores[0, scores.shape[1] // 2, scores.shape[2] // 2, 0]

  def without_norms(next_call, args, kwargs, context):
    """Their moments see all of the image."""
    return args[0] if isinstance(context.module, models.BatchNorm) else next_call(*args, **kwargs)

  with nn.intercept_methods(without_norms):
    seen = np.abs(jax.jit(jax.grad(score))(x)[0]).max(-1) > 0
  for axis in (0, 1):
    places = np.flatnonzero(seen.any(axis))
    assert len(places) == places[-1] - places[0] + 1 == field


@pytest.fixture(scope='module')
def small():
  """A U-Net of images of 8 × 8, its variables, and two images."""
  model, x = models.UNet(1, width=4), jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  return model, jax.jit(functools.partial(model.init, **GENERATING))(jax.random.key(1), x), x


def test_dropout_is_the_noise_and_only_where_it_is_asked_for(small):
  model, variables, x = small

  @functools.partial(jax.jit, static_argnums=1)
  def made(key, noise):
    return model.apply(variables, x, train=False, noise=noise, rngs={'dropout': jax.random.key(key)})

  assert made(0, True).shape == (2, 8, 8, 1) and np.abs(made(0, True)).max() <= 1
  np.testing.assert_array_equal(made(0, True), made(0, True))
  assert np.abs(made(0, True) - made(1, True)).max() > 1e-5
  np.testing.assert_array_equal(made(0, False), made(1, False))


def test_a_skip_leads_every_pixel_to_its_own_output(small):
  """With all of the deeper blocks cut off, an output still depends on the inputs about its place, and on no other."""
  model, variables, x = small
  cut = jax.tree.map_with_path(lambda path, p: p * ("'up" not in jax.tree_util.keystr(path)), variables)
  seen = np.asarray(jax.jit(jax.grad(lambda x: model.apply(cut, x, train=False, noise=False)[0, 4, 4, 0]))(x)[0])
  assert np.abs(seen[4, 4]).max() > 0 and np.abs(seen[[0, 7]]).max() == np.abs(seen[:, [0, 7]]).max() == 0


@pytest.mark.parametrize('size, times', [((256, 256), 8), ((64, 96), 5), ((100, 100), 2)])
def test_the_depth_follows_the_image_size(size, times):
  assert models.halvings(size) == times


@pytest.mark.parametrize('size', [(65, 65), (64, 30)])
def test_what_cannot_be_halved_twice_is_refused(size):
  with pytest.raises(UsageError, match=f'{size[0]}×{size[1]}.*multiple of 4'):
    models.halvings(size)


@pytest.mark.parametrize('model, size, most', [(models.Patches(layers=3), 23, 2), (models.Scalar(), 15, 3)])
def test_images_too_small_for_a_discriminator_are_refused(model, size, most):
  with pytest.raises(UsageError, match=f'of {size}×{size} pixels can have 1 to {most}'):
    count(model, (size, size, 2))
  count(model, (size + 1, size + 1, 2))
