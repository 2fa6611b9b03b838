"""The same numbers as Linen's initialisers."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from karpjax.layers import initialisers


@pytest.mark.parametrize(
  'mode, shape, distribution',
  [('fan_in', (20, 30), 'normal'), ('fan_out', (3, 3, 4, 8), 'truncated_normal'), ('fan_avg', (5, 2, 7), 'uniform')],
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
