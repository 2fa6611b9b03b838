"""Running statistics are those of all that was seen, on any number of replicas."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import collectives
from karpjax.rl import statistics


def test_pieces_are_as_the_whole():
  x = np.random.default_rng(0).normal(3, 2, (60, 4, 5)).astype(np.float32)
  running = statistics.empty((5,))
  for piece in (x[:7], x[7:30], x[30:]):
    running = statistics.update(running, jnp.asarray(piece))
  flat = x.reshape(-1, 5)
  np.testing.assert_allclose(running.mean, flat.mean(0), rtol=1e-4)
  np.testing.assert_allclose(running.variance, flat.var(0), rtol=1e-3)
  np.testing.assert_allclose(running.count, len(flat), rtol=1e-5)
  standard = statistics.standardise(running, jnp.asarray(flat))
  np.testing.assert_allclose(standard.std(0), 1, rtol=1e-3)


def test_replicas_see_one_another():
  x = np.random.default_rng(0).normal(3, 2, (8, 10, 3)).astype(np.float32)
  update = jax.pmap(lambda x: statistics.update(statistics.empty((3,)), x), collectives.REPLICAS)
  together, alone = update(x), statistics.update(statistics.empty((3,)), jnp.asarray(x.reshape(-1, 3)))
  for name in ('count', 'mean', 'variance'):
    for replica in range(8):
      np.testing.assert_allclose(getattr(together, name)[replica], getattr(alone, name), rtol=1e-4)
