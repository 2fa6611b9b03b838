"""Rollouts against a plain loop that resets by hand; returns of episodes: each world once, padding never."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.rl import environments, rollout
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, success_from


def random_act(observation, noise):
  return (noise > 0).astype(jnp.int32)


def keys_of(count, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def test_a_rollout_is_a_loop_that_resets():
  environment, length, count = environments.make('cartpole'), 80, 3
  keys, noise = keys_of(count), jax.random.normal(jax.random.key(7), (length, count))
  worlds = rollout.start(environment, keys_of(count, 1))
  after, seen = jax.jit(lambda r: rollout.rollout(environment, random_act, r, keys, noise, length))(worlds)
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
      assert float(seen.episode_return[t, world]) == total and int(seen.episode_length[t, world]) == steps
      observation = reached.observation
      if reached.terminated | reached.truncated:
        state, observation = reset(drawn[length + t])
        total, steps, ends = 0.0, 0, ends + 1
    assert ends >= 1  # or the test tests no reset
    assert float(after.episode_return[world]) == total and int(after.episode_length[world]) == steps
  sums = rollout.finished(seen)
  assert float(sums['episode_return'][1]) == float(seen.done.sum())
  np.testing.assert_allclose(sums['episode_return'][0], np.asarray(seen.episode_return)[np.asarray(seen.done)].sum())


def test_a_world_does_not_depend_on_how_many_there_are():
  environment, length = environments.make('cartpole'), 60
  noise = jax.random.normal(jax.random.key(7), (length, 5))

  def of(count):
    worlds = rollout.start(environment, keys_of(count, 1))
    return rollout.rollout(environment, random_act, worlds, keys_of(count), noise[:, :count], length)[1]

  few, many = of(2), of(5)
  np.testing.assert_allclose(few.observation, many.observation[:, :2], rtol=1e-3, atol=1e-4)  # rounding grows
  np.testing.assert_array_equal(few.done, many.done[:, :2])
  assert few.done.any()


def countdown():
  """Begins at a drawn number of 1 … 6 and is over after so many steps, each rewarded by 1."""

  def step(key, state, action):
    return state - 1, TimeStep(state[None] * 1.0, jnp.ones(()), state <= 1, jnp.zeros((), bool))

  def reset(key):
    state = jax.random.randint(key, (), 1, 7)
    return state, state[None] * 1.0

  return Environment('countdown', reset, step, Box((1,)), Discrete(2), 6)


IDLE = rollout.Policy(countdown(), lambda state, observation, noise: jnp.zeros(len(observation), jnp.int32))


def test_episodes_stop_each_at_its_own_end():
  keys = keys_of(20)
  ends = rollout.episodes(IDLE, None, keys)
  begun = jax.vmap(lambda k: jax.random.randint(k, (), 1, 7))(keys)
  assert len(set(begun.tolist())) > 2
  np.testing.assert_array_equal(ends.episode_return, begun)
  np.testing.assert_array_equal(ends.episode_length, begun)


def test_a_recorded_episode_has_all_its_states():
  states, done, returns = rollout.record(IDLE, None, jax.random.key(3))
  end = int(np.argmax(done))
  np.testing.assert_array_equal(states[: end + 2], np.arange(int(states[0]), -1, -1))
  np.testing.assert_array_equal(returns[: end + 1], np.arange(1, end + 2))


def worth_the_action():
  """The countdown whose steps are worth 1 and the action; an episode of a return of 4 succeeds."""

  def step(key, state, action):
    return state - 1, TimeStep(state[None] * 1.0, 1.0 + action, state <= 1, jnp.zeros((), bool))

  return dataclasses.replace(countdown(), step=step, outcomes=success_from(4))


def test_means_are_over_the_worlds_that_are_no_padding():
  key, worlds = jax.random.key(0), np.array([5, 9, 11, 5])
  batch = {'world': jnp.asarray(worlds), 'index': np.array([0, 1, 2, 0]), 'mask': jnp.array([True, True, True, False])}
  act = lambda state, observation, noise: jnp.full(len(observation), 0 if noise is None else 1, jnp.int32)
  policy = rollout.Policy(worth_the_action(), act, noise=lambda key: 0)
  sums = jax.jit(lambda batch: rollout.evaluate(policy, 5, None, batch, key))(batch)
  numbers = rollout.summarise(jax.device_get(sums))
  lengths = [int(jax.random.randint(jax.random.fold_in(key, w), (), 1, 7)) for w in worlds[:3]]
  assert len(set(lengths)) > 1
  assert numbers['episode_length'] == numbers['stochastic_episode_length'] == pytest.approx(np.mean(lengths))
  assert numbers['episode_return'] == pytest.approx(np.mean(lengths))
  assert numbers['stochastic_episode_return'] == pytest.approx(2 * np.mean(lengths))  # the other action, worth 2
  assert 0 < numbers['success'] < 1 and numbers['success'] == pytest.approx(np.mean(np.array(lengths) >= 4))
  assert numbers['stochastic_success'] == pytest.approx(np.mean(2 * np.array(lengths) >= 4))
  assert numbers['episode_return_deviation'] == pytest.approx(np.std(lengths), rel=1e-4)


def test_the_deviation_of_large_returns_is_not_lost_to_rounding():
  """Returns of 12345 ± 1: their squares differ by less than the spacing of float32."""
  count = 64
  returns = lambda key: 12344.0 + 2 * jax.random.bernoulli(key)

  def step(key, state, action):
    return state, TimeStep(state[None], state, jnp.ones((), bool), jnp.zeros((), bool))

  def reset(key):
    state = returns(key)
    return state, state[None]

  environment = Environment('large', reset, step, Box((1,)), Discrete(2), 1)
  policy = rollout.Policy(environment, lambda state, observation, noise: jnp.zeros(len(observation), jnp.int32))
  evaluate = jax.jit(lambda batch: rollout.evaluate(policy, count, None, batch, jax.random.key(0)))
  batches = [{'world': n, 'index': n, 'mask': np.ones(32, bool)} for n in np.arange(count).reshape(2, 32)]
  sums = jax.tree.map(lambda *x: sum(map(np.asarray, x)), *map(evaluate, batches))
  numbers, seen = rollout.summarise(sums), np.asarray(sums[rollout.RETURNS], np.float64)
  assert set(seen) == {12344.0, 12346.0}
  assert numbers['episode_return_deviation'] == pytest.approx(np.std(seen), rel=1e-12)
  assert numbers['episode_return'] == pytest.approx(seen.mean(), rel=1e-6)
