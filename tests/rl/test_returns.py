"""Advantages against plain loops and by hand; running moments are those of all that was seen, on any number of replicas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import explained_variance_score

from karpjax import collectives
from karpjax.rl import returns
from karpjax.rl.returns import RunningMoments


def drawn(time=40, width=3, seed=0):
  generator = np.random.default_rng(seed)
  terminated = generator.random((time, width)) < 0.1
  truncated = (generator.random((time, width)) < 0.1) & ~terminated
  rewards, values, next_values = generator.normal(size=(3, time, width)).astype(np.float32)
  # where an episode goes on, the next state's value is that of the state that follows
  going_on = ~(terminated | truncated)[:-1]
  next_values[:-1] = np.where(going_on, values[1:], next_values[:-1])
  return rewards, values, next_values, terminated, truncated


def test_advantages_by_hand():
  # γ = ½, λ = ½. Step 1 is truncated: its end is worth 8. Step 2 terminates: its end is worth nothing.
  got = returns.advantages(
    rewards=jnp.array([1.0, 1, 1]), values=jnp.array([2.0, 4, 6]), next_values=jnp.array([4.0, 8, 100]),
    terminated=jnp.array([False, False, True]), truncated=jnp.array([False, True, False]), discount=0.5, gae_lambda=0.5,
  )  # fmt: skip
  # errors: 1 + 2 - 2 = 1; 1 + 4 - 4 = 1; 1 - 6 = -5; only step 0 is followed by a step of its episode
  np.testing.assert_allclose(got, [1.25, 1, -5])


@pytest.mark.parametrize('decay', [0.0, 0.9, 1.0])
def test_advantages_are_those_of_a_plain_loop(decay):
  rewards, values, next_values, terminated, truncated = drawn()
  got = returns.advantages(
    *map(jnp.asarray, (rewards, values, next_values, terminated, truncated)), discount=0.97, gae_lambda=decay
  )
  for column in range(rewards.shape[1]):
    for t in range(len(rewards)):
      total, weight = 0.0, 1.0
      for l in range(t, len(rewards)):
        beyond = 0.0 if terminated[l, column] else next_values[l, column]
        total += weight * (rewards[l, column] + 0.97 * beyond - values[l, column])
        weight *= 0.97 * decay
        if terminated[l, column] or truncated[l, column]:
          break
      np.testing.assert_allclose(got[t, column], total, rtol=2e-4, atol=2e-5)


def test_explained_variance():
  targets, all_of_them = jnp.array([1.0, 2, 3, 4]), np.ones(4, bool)
  assert float(returns.explained_variance(targets, targets, all_of_them)) == 1
  assert float(returns.explained_variance(jnp.full(4, 7.0), targets, all_of_them)) == 0
  assert float(returns.explained_variance(targets, jnp.zeros(4), all_of_them)) == 0  # no variance to explain


def test_explained_variance_is_of_what_counts_on_all_replicas():
  """Each replica's targets have a mean of their own, which is variance too."""
  draw = np.random.default_rng(0)
  targets = (draw.normal(size=(8, 20, 3)) + np.arange(8)[:, None, None]).astype(np.float32)
  values, mask = targets + draw.normal(size=targets.shape).astype(np.float32), draw.random(targets.shape) < 0.3
  together = jax.pmap(returns.explained_variance, collectives.REPLICAS)(values, np.where(mask, targets, 99), mask)
  np.testing.assert_allclose(together, explained_variance_score(targets[mask], values[mask]), rtol=1e-5)


@pytest.mark.parametrize('mean', [3, 1e4])
def test_pieces_are_as_the_whole(mean):
  draw = np.random.default_rng(0)
  x, mask = draw.normal(mean, 2, (60, 4, 5)).astype(np.float32), draw.random((60, 4)) < 0.5
  moments = RunningMoments.init((5,))
  for piece in (slice(7), slice(7, 30), slice(30, None)):
    moments = moments.update(jnp.asarray(x[piece]), mask[piece])
  flat = x[mask]
  np.testing.assert_allclose(moments.mean, flat.mean(0, float), rtol=1e-5)
  np.testing.assert_allclose(moments.variance, flat.var(0, float), rtol=1e-3)
  np.testing.assert_allclose(moments.count, len(flat), rtol=1e-5)
  standard = moments.standardise(jnp.asarray(flat))
  np.testing.assert_allclose(standard.std(0), 1, rtol=1e-3)


def test_replicas_see_one_another():
  x = np.random.default_rng(0).normal(3, 2, (8, 10, 3)).astype(np.float32)
  update = jax.pmap(RunningMoments.init((3,)).update, collectives.REPLICAS)
  mask = np.random.default_rng(1).random((8, 10)) < 0.5  # not as many of each replica
  together, alone = update(x, mask), RunningMoments.init((3,)).update(jnp.asarray(x[mask]), np.ones(mask.sum(), bool))
  for name in ('count', 'mean', 'variance'):
    for replica in range(8):
      np.testing.assert_allclose(getattr(together, name)[replica], getattr(alone, name), rtol=1e-4)


def test_what_is_nan_behind_an_end_stays_there():
  rewards, zeros, ends = np.array([1.0, 2.0, np.nan]), np.zeros(3), np.array([False, True, False])
  found = returns.advantages(rewards, zeros, zeros, ends, ~ends & False, discount=0.5, gae_lambda=1.0)
  np.testing.assert_allclose(found[:2], [2.0, 2.0])
