"""Tiles cover a picture once, and nobody sees where they met."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import tiles
from karpjax.models import super_resolution as models


def test_parts_lie_one_behind_the_other_and_margins_are_kept():
  for length, tile, margin in itertools.product(range(1, 40), (5, 8, 13), (0, 1, 2)):
    spans = tiles.spans(length, tile, margin)
    assert spans[0][:2] == (0, 0) and spans[-1][2] == length
    for (_, _, end), (_, first, _) in itertools.pairwise(spans):
      assert end == first
    for start, first, last in spans:
      assert first < last
      assert start >= 0 and start + min(tile, length) <= length  # tiles are all of one size
      assert first == 0 or first - start >= margin
      assert last == length or start + tile - last >= margin


def test_margins_that_leave_nothing_are_refused():
  with pytest.raises(ValueError, match='nothing is left'):
    tiles.spans(20, 4, 2)


NETS = {
  'srcnn ×3': models.SRCNN(3, 1, widths=(8, 4)),
  'srcnn ×2': models.SRCNN(2, 1, widths=(8, 4), kernel_sizes=(9, 5, 5)),
  'espcn': models.ESPCN(3, 1, widths=(8, 4), residual=True),
  'srresnet': models.SRResNet(4, 3, blocks=1, width=4),
}


@pytest.mark.parametrize('name', NETS)
def test_tiled_equals_whole_and_a_smaller_margin_does_not(name):
  net = NETS[name]
  picture = np.random.default_rng(0).uniform(size=(39, 58, net.channels)).astype(np.float32)
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8, 8, net.channels)))
  variables = jax.tree.map(lambda x: x + np.float32(0.02), variables)  # no kernel of zeros, no bias of 0
  function = jax.jit(lambda x: net.apply(variables, x))
  whole = function(picture[None])[0]
  assert whole.shape == (39 * net.factor, 58 * net.factor, net.channels)

  def tiled(margin):
    return tiles.apply(function, picture, tile=2 * net.reach + 5, margin=margin, scale=net.factor)

  np.testing.assert_allclose(tiled(net.reach), whole, atol=1e-5)
  assert np.abs(tiled(net.reach - 1) - whole).max() > 1e-4


def test_a_picture_smaller_than_a_tile_is_one_tile():
  picture = np.random.default_rng(0).uniform(size=(7, 30, 2))
  seen = []

  def function(x):
    seen.append(x.shape)
    return np.flip(x, 3)

  np.testing.assert_array_equal(tiles.apply(function, picture, tile=12, margin=2), picture[..., ::-1])
  assert set(seen) == {(1, 7, 12, 2)}
