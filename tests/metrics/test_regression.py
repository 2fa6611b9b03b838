"""Regression's numbers, against scikit-learn's."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from karpjax.metrics import regression


@pytest.mark.parametrize(('level', 'scale'), [(0.0, 1.0), (12345.0, 1.0), (1e6, 2.0)])
def test_r2_is_scikit_learns_also_of_targets_far_from_zero(level, scale):
  random = np.random.default_rng(0)
  targets = (level + scale * random.standard_normal(90)).astype(np.float32)
  predictions = (targets + 0.5 * scale * random.standard_normal(90)).astype(np.float32)

  def sums(rows, mask):
    x, y = jnp.asarray(predictions[rows]), jnp.asarray(targets[rows])
    return regression.sums(x, y, (x - y) ** 2, {'index': rows, 'mask': mask}, 120)

  parts = sums(np.arange(60), np.ones(60, bool)), sums(np.r_[60:90, np.zeros(30, int)], np.arange(60) < 30)
  added = {
    n: tuple(map(sum, zip(a, b))) if n != 'targets' else a + b for (n, a), b in zip(parts[0].items(), parts[1].values())
  }
  numbers = regression.summarise(added)
  assert numbers['r2'] == pytest.approx(
    sklearn.metrics.r2_score(targets.astype(float), predictions.astype(float)), abs=1e-5
  )
  assert numbers['mse'] == pytest.approx(sklearn.metrics.mean_squared_error(targets, predictions), rel=1e-5)


def test_r2_of_equal_targets_is_nan():
  one = jnp.full(3, 1e6)
  added = regression.sums(one + 1, one, jnp.ones(3), {'index': np.arange(3), 'mask': np.ones(3, bool)}, 3)
  assert np.isnan(regression.summarise(added)['r2'])
