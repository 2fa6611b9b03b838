"""The same numbers as Linen's initialisers."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from karpjax.layers import initialisers


@pytest.mark.parametrize('shape', [(20, 30), (3, 3, 8, 16), (5, 2, 7)])
@pytest.mark.parametrize('mode', ['fan_in', 'fan_out'])
@pytest.mark.parametrize('distribution', ['truncated_normal', 'normal', 'uniform'])
def test_equal_to_linen(shape, mode, distribution):
  key = jax.random.key(1)
  ours = initialisers.variance_scaling(2.0, mode, distribution)(key, shape)
  theirs = nn.initializers.variance_scaling(2.0, mode, distribution)(key, shape)
  np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-7)


def test_normal_is_equal_to_linen():
  key = jax.random.key(1)
  theirs = nn.initializers.normal(0.02)(key, (3, 3, 8, 16))
  np.testing.assert_allclose(initialisers.normal(0.02)(key, (3, 3, 8, 16)), theirs, rtol=2e-6, atol=1e-7)
