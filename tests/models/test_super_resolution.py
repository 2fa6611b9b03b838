"""Sizes are the papers'; the bicubic picture is Pillow's; pixels are shuffled to where they belong; tiles have no seams."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.super_resolution import Config
from karpjax import options
from karpjax.errors import UsageError
from karpjax.models import super_resolution as models


def count(net, shape):
  options = {'train': False}
  shapes = jax.eval_shape(lambda key: net.init(key, jnp.zeros((1, *shape)), **options), jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(shapes['params']))


def test_parameter_counts():
  # Dong et al. 2014, section 4.1: 8,032 weights of 9-1-5; biases are 64 + 32 + 1
  assert count(models.SRCNN(3, 1), (9, 9, 1)) == 8032 + 97
  # "… Using Deep Convolutional Networks" (arXiv:1501.00092), section 4.3.2: 57,184 of 9-5-5
  assert count(models.SRCNN(3, 1, kernel_sizes=(9, 5, 5)), (9, 9, 1)) == 57184 + 97
  # Shi et al. 2016, section 3.1: (5, 64), (3, 32), (3, r²)
  assert count(models.ESPCN(3, 1), (9, 9, 1)) == 25 * 64 + 64 + 9 * 64 * 32 + 32 + 9 * 32 * 9 + 9
  # Ledig et al. 2017 with PReLUs of one slope, as counted for implementations in PyTorch: 1,549,462
  assert count(models.SRResNet(4, 3), (9, 9, 3)) == 1_549_462
  # the discriminator on 96×96: convolutions, batch norms, dense layers
  widths = [3, 64, 64, 128, 128, 256, 256, 512, 512]
  convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
  expected = convolutions + 2 * sum(widths[2:]) + 6 * 6 * 512 * 1024 + 1024 + 1024 + 1
  assert count(models.Discriminator(), (96, 96, 3)) == expected


@pytest.mark.parametrize('factor', [2, 3, 4])
def test_bicubic_is_pillows(factor):
  low = np.random.default_rng(0).uniform(size=(1, 7, 11, 1)).astype(np.float32)
  theirs = Image.fromarray(low[0, ..., 0]).resize((11 * factor, 7 * factor), Image.Resampling.BICUBIC)
  np.testing.assert_allclose(models.bicubic(low, factor)[0, ..., 0], theirs, atol=3e-6)


def test_pixel_shuffle_is_equation_4():
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 9 * 2))
  y = models.pixel_shuffle(x, 3)
  assert y.shape == (2, 9, 12, 2)
  for row in range(9):
    for column in range(12):
      place = 3 * (row % 3) + column % 3
      np.testing.assert_array_equal(y[:, row, column], x[:, row // 3, column // 3, 2 * place : 2 * place + 2])


@pytest.mark.parametrize('name', ['srcnn', pytest.param('espcn', marks=pytest.mark.slow), 'srresnet'])
def test_residual_nets_begin_as_the_bicubic_picture_and_add_to_it(name):
  options = {'blocks': 0, 'width': 2} if name == 'srresnet' else {'widths': (2, 2)}
  plain, residual = (
    models.MODELS[name](factor=2, channels=3, **options, residual=residual) for residual in (False, True)
  )
  low = np.random.default_rng(0).uniform(size=(1, 6, 5, 3)).astype(np.float32)

  @jax.jit
  def made(low):
    key = jax.random.key(0)
    variables = plain.init(key, low)
    added = residual.apply(variables, low) - plain.apply(variables, low)
    return residual.apply(residual.init(key, low), low), added, plain.apply(variables, low)

  first, added, alone = made(low)
  np.testing.assert_allclose(first, models.bicubic(low, 2), atol=1e-6)
  np.testing.assert_allclose(added, models.bicubic(low, 2), atol=1e-5)
  assert np.abs(alone).max() > 0.01


def test_the_discriminator_scores_each_image():
  net = models.Discriminator(discriminator_widths=(4, 8), discriminator_hidden=5)
  images = np.random.default_rng(0).uniform(size=(3, 14, 14, 1)).astype(np.float32)
  variables = jax.jit(lambda x: net.init(jax.random.key(0), x, train=False))(images)
  score = jax.jit(lambda x: net.apply(variables, x, train=False))
  assert variables['params']['hidden']['kernel'].shape == (4 * 4 * 8, 5)  # 14 -> 7 -> 4
  assert 'norm1' not in variables['params'] and 'norm2' in variables['params']  # none behind the first convolution
  scores = score(images)
  assert scores.shape == (3,)
  np.testing.assert_allclose(score(images[1:2]), scores[1:2], rtol=1e-5)


@pytest.mark.parametrize(
  'name, options_, message',
  [
    ('espcn', {'blocks': 3}, 'model espcn has no blocks=3'),
    ('srcnn', {'widths': (8,)}, 'one odd kernel size more than widths'),
    ('espcn', {'kernel_sizes': (5, 4, 3)}, 'one odd kernel size'),
  ],
)
def test_what_makes_no_sense_is_refused(name, options_, message):
  with pytest.raises(UsageError, match=message):
    options.build(models.MODELS, name, Config(**options_), jnp.zeros((1, 8, 8, 1)), factor=3, channels=1)


# ---- pictures of any size ----


def test_parts_lie_one_behind_the_other_and_margins_are_kept():
  for length, tile, margin in itertools.product(range(1, 40), (5, 8, 13), (0, 1, 2)):
    spans = models.spans(length, tile, margin)
    assert spans[0][:2] == (0, 0) and spans[-1][2] == length
    for (_, _, end), (_, first, _) in itertools.pairwise(spans):
      assert end == first
    for start, first, last in spans:
      assert first < last
      assert start >= 0 and start + min(tile, length) <= length  # tiles are all of one size
      assert first == 0 or first - start >= margin
      assert last == length or start + tile - last >= margin


NETS = {
  'srcnn': models.SRCNN(2, 1, residual=False, widths=(4, 2), kernel_sizes=(9, 5, 5)),
  'espcn': models.ESPCN(3, 1, widths=(4, 2), residual=True),
  'srresnet': models.SRResNet(4, 1, residual=False, blocks=1, width=2),
}


@pytest.mark.parametrize('name', NETS)
def test_tiled_equals_whole_and_a_smaller_margin_does_not(name):
  net = NETS[name]
  picture = np.random.default_rng(0).uniform(size=(39, 58, net.channels)).astype(np.float32)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 2, 2, net.channels)))
  variables = jax.tree.map(lambda x: x + np.float32(0.02), variables)  # no kernel of zeros, no bias of 0
  function = jax.jit(lambda x: net.apply(variables, x))
  whole = function(picture[None])[0]
  assert whole.shape == (39 * net.factor, 58 * net.factor, net.channels)

  def tiled(margin):
    return models.in_tiles(function, picture, tile=2 * net.reach + 5, margin=margin, scale=net.factor)

  np.testing.assert_allclose(tiled(net.reach), whole, atol=1e-5)
  assert np.abs(tiled(net.reach - 1) - whole).max() > 1e-4


@pytest.mark.parametrize('name', NETS)
def test_what_lies_around_a_picture_changes_nothing(name):
  net, draw = NETS[name], np.random.default_rng(0)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 2, 2, net.channels)))
  variables = jax.tree.map(lambda x: x + np.float32(0.02), variables)
  canvas, present = (
    draw.uniform(size=(1, 15, 14, net.channels)).astype(np.float32),
    np.zeros((1, 15, 14, 1), np.float32),
  )
  present[:, 4:11, 0:9] = 1
  alone = jax.jit(lambda x: net.apply(variables, x))(canvas[:, 4:11, :9])
  among = jax.jit(lambda x: net.apply(variables, x, present=present))(canvas)
  scale = net.factor
  np.testing.assert_allclose(among[:, 4 * scale : 11 * scale, : 9 * scale], alone, atol=1e-5)


def test_a_picture_smaller_than_a_tile_is_one_tile():
  picture = np.random.default_rng(0).uniform(size=(7, 30, 2))
  seen = []

  def function(x):
    seen.append(x.shape)
    return np.flip(x, 3)

  np.testing.assert_array_equal(models.in_tiles(function, picture, tile=12, margin=2), picture[..., ::-1])
  assert set(seen) == {(1, 7, 12, 2)}
