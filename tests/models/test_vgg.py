import math

import jax
import jax.numpy as jnp
import pytest

from karpjax import models


@pytest.mark.parametrize(
  'depth, expected',
  [((1, 1, 2, 2, 2), 132_863_336), ((2, 2, 3, 3, 3), 138_357_544), ((2, 2, 4, 4, 4), 143_667_240)],
)
def test_configurations_a_d_and_e_have_torchvisions_parameter_counts(depth, expected):
  """torchvision's vgg11, vgg16, vgg19 (Simonyan & Zisserman 2015, table 2: 133, 138 and 144 million)."""
  options = {'widths': (64, 128, 256, 512, 512), 'depth': depth, 'hidden': (4096, 4096), 'norm': 'none'}
  module = models.build('vgg', shape=(224, 224, 3), classes=1000, dtype=jnp.float32, options=options)
  params = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 224, 224, 3)))['params']
  assert sum(math.prod(a.shape) for a in jax.tree.leaves(params)) == expected


def test_the_default_has_two_convolutions_in_each_of_three_blocks():
  options = models.options('vgg')
  assert (options['depth'], options['widths'], options['norm']) == (2, (64, 128, 256), 'batch')
