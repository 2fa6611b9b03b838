"""The same numbers as Linen's initialisers."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from karpjax.layers import initialisers

MODES, SHAPES = ('fan_in', 'fan_out', 'fan_avg'), ((20, 30), (3, 3, 8, 16), (5, 2, 7))
DISTRIBUTIONS = ('truncated_normal', 'normal', 'uniform')


@pytest.mark.parametrize(  # each pair of two of the three, once
  'mode, shape, distribution',
  [(MODES[(i + j) % 3], SHAPES[i], DISTRIBUTIONS[j]) for i in range(3) for j in range(3)],
)
def test_equal_to_linen(mode, shape, distribution):
  key = jax.random.key(1)
  ours = initialisers.variance_scaling(2.0, mode, distribution)(key, shape)
  theirs = nn.initializers.variance_scaling(2.0, mode, distribution)(key, shape)
  np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-7)


def test_normal_is_equal_to_linen():
  key = jax.random.key(1)
  theirs = nn.initializers.normal(0.02)(key, (3, 3, 8, 16))
  np.testing.assert_allclose(initialisers.normal(0.02)(key, (3, 3, 8, 16)), theirs, rtol=2e-6, atol=1e-7)


def test_uniform_is_drawn_as_jax_draws_it():
  key = jax.random.key(1)
  theirs = jax.random.uniform(key, (2, 5, 12), minval=-0.25, maxval=0.25)
  np.testing.assert_array_equal(initialisers.uniform(0.25)(key, (2, 5, 12)), theirs)
