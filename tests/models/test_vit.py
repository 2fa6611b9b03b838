"""The Vision Transformer: published sizes, and what tokens and positions mean."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors
from karpjax.models.vit import ViT


def count(shape, classes, **sizes):
  params = jax.eval_shape(ViT(classes, **sizes).init, jax.random.key(0), jnp.zeros((1, *shape)))['params']
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
  'sizes, expected',
  [
    # torchvision's vit_b_16, vit_b_32, vit_l_16; table 1 of the paper: 86 M and 307 M
    (dict(patch=16, width=768, depth=12, heads=12), 86_567_656),
    (dict(patch=32, width=768, depth=12, heads=12), 88_224_232),
    (dict(patch=16, width=1024, depth=24, heads=16), 304_326_632),
  ],
)
def test_parameter_counts_are_torchvisions(sizes, expected):
  assert count((224, 224, 3), 1000, **sizes) == expected


def test_parameter_count_in_closed_form():
  """Of a block: four projections, an MLP, two norms; an average needs neither the token nor its position."""
  d, h, tokens = 8, 20, 4
  block = 4 * (d * d + d) + (d * h + h) + (h * d + d) + 2 * 2 * d
  rest = (4 * 4 * 1 * d + d) + tokens * d + 2 * d + (d * 10 + 10)
  sizes = dict(patch=4, width=d, depth=3, heads=2, hidden=h)
  assert count((8, 8, 1), 10, head='average', **sizes) == 3 * block + rest
  assert count((8, 8, 1), 10, head='token', **sizes) == 3 * block + rest + 2 * d


@pytest.fixture(scope='module')
def model():
  """A model whose params are all drawn, jitted, and images."""
  module = ViT(5, patch=2, width=8, depth=2, heads=2)
  x = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))['params']
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda p: np.asarray(p) + rng.normal(0, 0.2, p.shape).astype(np.float32), params)
  apply = jax.jit(lambda params, x: module.apply({'params': params}, x))
  return module, params, apply, x


def test_patches_exchanged_with_their_positions_change_nothing(model):
  _, params, apply, x = model
  exchanged = x.copy()
  exchanged[:, :2, :2], exchanged[:, 2:, 4:] = x[:, 2:, 4:], x[:, :2, :2]  # patches 0 and 5 of 2 × 3
  positions = params['positions'].copy()
  positions[[1, 6]] = positions[[6, 1]]  # the token comes first
  logits = apply(params, x)
  np.testing.assert_allclose(apply({**params, 'positions': positions}, exchanged), logits, atol=1e-5)
  assert np.abs(apply(params, exchanged) - logits).max() > 1e-3


def test_the_first_block_equals_numpy(model):
  """The embeddings by a loop over patches; with the blocks' outputs silenced, the logits are those of the token alone."""
  module, params, _, x = model
  silent = jax.tree_util.tree_map_with_path(
    lambda path, p: p * (0 if path[0].key.startswith('block') and path[1].key in ('down', 'attention') else 1), params
  )
  see = lambda params: module.apply({'params': params}, x, capture_intermediates=True, mutable=['intermediates'])
  logits, seen = jax.jit(see)(silent)
  embedded = np.asarray(seen['intermediates']['patches']['__call__'][0])
  for i in range(2):
    for j in range(3):
      patch = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(3, 8)
      expected = patch @ params['patches']['kernel'] + params['patches']['bias']
      np.testing.assert_allclose(embedded[:, 3 * i + j], expected, atol=1e-5)
  token = params['token'] + params['positions'][0]
  normed = (token - token.mean()) / np.sqrt(token.var() + 1e-6) * params['norm']['scale'] + params['norm']['bias']
  expected = normed @ params['logits']['kernel'] + params['logits']['bias']
  np.testing.assert_allclose(logits, np.tile(expected, (3, 1)), atol=1e-5)


def test_a_new_model_knows_nothing():
  x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
  module = ViT(10, width=8, depth=1)
  np.testing.assert_array_equal(jax.jit(lambda k: module.init_with_output(k, x)[0])(jax.random.key(0)), 0)


def test_patches_that_do_not_fill_the_image_are_refused():
  with pytest.raises(errors.UsageError, match='patch=4 does not divide an image of 8x10x1'):
    jax.eval_shape(ViT(10).init, jax.random.key(0), jnp.zeros((1, 8, 10, 1)))
