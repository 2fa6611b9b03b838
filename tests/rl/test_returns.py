"""Advantages against plain loops and by hand; running moments are those of all that was seen, on any number of replicas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
  targets = jnp.array([1.0, 2, 3, 4])
  assert float(returns.explained_variance(targets, targets)) == 1
  assert float(returns.explained_variance(jnp.full(4, 7.0), targets)) == 0
  assert float(returns.explained_variance(targets, jnp.zeros(4))) == 0  # no variance to explain


def test_pieces_are_as_the_whole():
  x = np.random.default_rng(0).normal(3, 2, (60, 4, 5)).astype(np.float32)
  moments = RunningMoments.init((5,))
  for piece in (x[:7], x[7:30], x[30:]):
    moments = moments.update(jnp.asarray(piece))
  flat = x.reshape(-1, 5)
  np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-4)
  np.testing.assert_allclose(moments.variance, flat.var(0), rtol=1e-3)
  np.testing.assert_allclose(moments.count, len(flat), rtol=1e-5)
  standard = moments.standardise(jnp.asarray(flat))
  np.testing.assert_allclose(standard.std(0), 1, rtol=1e-3)


def test_replicas_see_one_another():
  x = np.random.default_rng(0).normal(3, 2, (8, 10, 3)).astype(np.float32)
  update = jax.pmap(RunningMoments.init((3,)).update, collectives.REPLICAS)
  together, alone = update(x), RunningMoments.init((3,)).update(jnp.asarray(x.reshape(-1, 3)))
  for name in ('count', 'mean', 'variance'):
    for replica in range(8):
      np.testing.assert_allclose(getattr(together, name)[replica], getattr(alone, name), rtol=1e-4)
