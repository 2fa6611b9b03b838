"""Rollouts against a plain loop that resets by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl import environments, rollout
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep


def random_act(observation, noise):
  return (noise > 0).astype(jnp.int32)


def keys_of(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def test_a_rollout_is_a_loop_that_resets():
  environment, length, count = environments.make('cartpole'), 80, 3
  keys, noise = keys_of(count), jax.random.normal(jax.random.key(7), (length, count))
  running = rollout.start(environment, keys_of(count, 1))
  after, seen = jax.jit(lambda r: rollout.rollout(environment, random_act, r, keys, noise, length))(running)
  step, reset = jax.jit(environment.step), jax.jit(environment.reset)
  for world in range(count):
    drawn = jax.random.split(keys[world], 2 * length)
    state, observation = reset(keys_of(count, 1)[world])
    total, steps, ends = 0.0, 0, 0
    for t in range(length):
      np.testing.assert_allclose(seen.observation[t, world], observation, rtol=1e-4, atol=1e-5)
      state, reached = step(drawn[t], state, int(noise[t, world] > 0))
      total, steps = total + float(reached.reward), steps + 1
      np.testing.assert_allclose(seen.next_observation[t, world], reached.observation, rtol=1e-4, atol=1e-5)
      assert bool(seen.terminated[t, world]) == bool(reached.terminated)
      assert float(seen.total[t, world]) == total and int(seen.length[t, world]) == steps
      observation = reached.observation
      if reached.terminated | reached.truncated:
        state, observation = reset(drawn[length + t])
        total, steps, ends = 0.0, 0, ends + 1
    assert ends >= 1  # or the test tests no reset
    assert float(after.total[world]) == total and int(after.length[world]) == steps
  sums = rollout.finished(seen)
  assert float(sums['episode_return'][1]) == float(seen.end.sum())
  np.testing.assert_allclose(sums['episode_return'][0], np.asarray(seen.total)[np.asarray(seen.end)].sum())


def test_a_world_does_not_depend_on_how_many_there_are():
  environment, length = environments.make('cartpole'), 60
  noise = jax.random.normal(jax.random.key(7), (length, 5))

  def of(count):
    running = rollout.start(environment, keys_of(count, 1))
    return rollout.rollout(environment, random_act, running, keys_of(count), noise[:, :count], length)[1]

  few, many = of(2), of(5)
  np.testing.assert_allclose(few.observation, many.observation[:, :2], rtol=1e-3, atol=1e-4)  # rounding grows
  np.testing.assert_array_equal(few.end, many.end[:, :2])
  assert few.end.any()


def countdown():
  """Begins at a drawn number of 1 … 6 and is over after so many steps, each rewarded by 1."""

  def step(key, state, action):
    return state - 1, TimeStep(state[None] * 1.0, jnp.ones(()), state <= 1, jnp.zeros((), bool))

  def reset(key):
    state = jax.random.randint(key, (), 1, 7)
    return state, state[None] * 1.0

  return Environment('countdown', reset, step, Box((1,)), Discrete(2), 6)


def test_episodes_stop_each_at_its_own_end():
  keys = keys_of(20)
  act = lambda observation, noise: jnp.zeros(len(observation), jnp.int32)
  ends = rollout.episodes(countdown(), act, keys, lambda keys: jnp.zeros(len(keys)))
  begun = jax.vmap(lambda k: jax.random.randint(k, (), 1, 7))(keys)
  assert len(set(begun.tolist())) > 2
  np.testing.assert_array_equal(ends.total, begun)
  np.testing.assert_array_equal(ends.length, begun)


def test_a_recorded_episode_has_all_its_states():
  act = lambda observation, noise: jnp.zeros(1, jnp.int32)
  states, seen = rollout.record(countdown(), act, jax.random.key(3), lambda keys: jnp.zeros(1))
  end = int(np.argmax(seen.end))
  np.testing.assert_array_equal(states[: end + 2], np.arange(int(states[0]), -1, -1))
