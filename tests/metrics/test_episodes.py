"""Returns of episodes: each world once, padding never."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.metrics import episodes
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, reaching


def countdown():
  """Begins at a drawn number of 1 … 6 and is over after so many steps; a step is worth 1 and the action."""

  def step(key, state, action):
    return state - 1, TimeStep(state[None] * 1.0, 1.0 + action, state <= 1, jnp.zeros((), bool))

  def reset(key):
    state = jax.random.randint(key, (), 1, 7)
    return state, state[None] * 1.0

  return Environment('countdown', reset, step, Box((1,)), Discrete(2), 6, outcomes=reaching(4))


def acting(state, greedy):
  return lambda observation, noise: jnp.full(len(observation), 0 if greedy else 1, jnp.int32)


def test_means_are_over_the_worlds_that_are_no_padding():
  key, worlds = jax.random.key(0), np.array([5, 9, 11, 5])
  batch = {'world': jnp.asarray(worlds), 'mask': jnp.array([True, True, True, False])}
  sums = jax.jit(lambda batch: episodes.evaluate(countdown(), acting, lambda keys: 0, None, batch, key))(batch)
  numbers = episodes.summarise(jax.device_get(sums))
  lengths = [int(jax.random.randint(jax.random.fold_in(key, w), (), 1, 7)) for w in worlds[:3]]
  assert len(set(lengths)) > 1
  assert numbers['episode_length'] == numbers['stochastic_episode_length'] == pytest.approx(np.mean(lengths))
  assert numbers['episode_return'] == pytest.approx(np.mean(lengths))
  assert numbers['stochastic_episode_return'] == pytest.approx(2 * np.mean(lengths))  # the other action, worth 2
  assert 0 < numbers['success'] < 1 and numbers['success'] == pytest.approx(np.mean(np.array(lengths) >= 4))
  assert numbers['stochastic_success'] == pytest.approx(np.mean(2 * np.array(lengths) >= 4))
  assert numbers['episode_return_deviation'] == pytest.approx(np.std(lengths), rel=1e-4)
