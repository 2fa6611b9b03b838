"""Evolution strategies: ranks against scipy, gradients of functions that are known, and a population over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from experiments import evolution
from experiments.evolution import Config
from karpjax import collectives
from karpjax.program import PERTURB, TrainState, example_keys, step_key
from karpjax.rl import rollout
from karpjax.rl.environment import Box, Environment, TimeStep

PAIRS, SIZE = 16, 3
BATCH = {'index': np.arange(PAIRS, dtype=np.int32)}
BEST = np.array([0.5, -1.0, 2.0], np.float32)
START = np.array([1.0, 1.0, 1.0], np.float32)


def bowl():
  """An episode of one step, whose reward is -|action - BEST|², and its own world's luck."""

  def reset(key):
    luck = 10 * jax.random.normal(key, (1,))
    return luck, luck

  def step(key, luck, action):
    reward = -jnp.square(action - BEST).sum() + luck[0]
    return luck, TimeStep(luck, reward, jnp.ones((), bool), jnp.zeros((), bool))

  return Environment('bowl', reset, step, Box((1,)), Box((SIZE,)), 1)


def begin(**changes):
  """(state, step): the params are the action."""
  optimiser = optax.sgd(0.1)
  act = lambda state, observation, noise: jnp.broadcast_to(state.params['action'], (len(observation), SIZE))
  step = evolution.train_step(rollout.Policy(bowl(), act), optimiser, Config(**dict(deviation=0.2, worlds=2) | changes))
  return TrainState.create(jax.random.key(3), {'params': {'action': jnp.asarray(START)}}, optimiser), step


def noise_of(state):
  return np.asarray(
    jax.vmap(lambda key: jax.random.normal(key, (SIZE,)))(example_keys(step_key(state, PERTURB), BATCH))
  )


def test_centred_ranks_are_scipy_s_and_equal_values_share_theirs():
  drawn = np.random.default_rng(0)
  for population in (drawn.normal(size=40), drawn.integers(0, 6, 40).astype(float), np.ones(7)):
    ranks = evolution.centred_ranks(jnp.asarray(population), jnp.asarray(population))
    expected = (stats.rankdata(population) - 1) / (len(population) - 1) - 0.5
    np.testing.assert_allclose(ranks, expected, atol=1e-6)
  hand = evolution.centred_ranks(jnp.array([5.0, 1.0]), jnp.array([1.0, 5.0, 3.0]))
  np.testing.assert_allclose(hand, [0.5, -0.5])


def test_the_estimate_points_along_the_gradient_of_a_quadratic():
  """With a matrix between its numbers; exact for pairs: (f⁺ - f⁻) / 2σ = ε · gradient, so E[ε εᵀ] = 1 is all that is drawn."""
  drawn = np.random.default_rng(0)
  matrix = drawn.normal(size=(5, 5))
  matrix, at = -(matrix @ matrix.T) - np.eye(5), drawn.normal(size=5)
  value = lambda x: 0.5 * (x @ matrix * x).sum(-1)
  noise, gradient = drawn.normal(size=(20_000, 5)), matrix @ at
  pairs = np.stack([value(at + 0.3 * noise), value(at - 0.3 * noise)], 1)
  estimate = np.asarray(evolution.estimate(jnp.asarray(noise), jnp.asarray(pairs), 0.3, len(noise)))
  np.testing.assert_allclose(estimate, (noise @ gradient) @ noise / len(noise), rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(estimate, gradient, rtol=0.05, atol=0.1 * np.linalg.norm(gradient))
  ranked = evolution.centred_ranks(jnp.asarray(pairs[:1000]), jnp.asarray(pairs[:1000].reshape(-1)))
  direction = np.asarray(evolution.estimate(jnp.asarray(noise[:1000]), ranked, 0.3, 1000))
  assert direction @ gradient / np.linalg.norm(direction) / np.linalg.norm(gradient) > 0.97


@pytest.mark.parametrize('ranked', [False, True])
def test_an_update_is_that_of_the_formula_and_luck_is_no_difference(ranked):
  """Both of a pair play in the same worlds: what these give and take cancels in a difference of returns."""
  state, step = begin(ranked=ranked)
  after, metrics = jax.jit(step)(state, BATCH)
  noise = noise_of(state)
  assert len(np.unique(noise)) == noise.size
  value = lambda x: -np.square(x - BEST).sum(-1)
  pairs = np.stack([value(START + 0.2 * noise), value(START - 0.2 * noise)], 1)
  if ranked:  # among others' luck, only what is within a pair is known of its ranks
    moved = np.asarray(after.params['action']) - START
    assert moved @ (BEST - START) > 0
  else:
    gradient = (pairs[:, 0] - pairs[:, 1]) @ noise / (2 * PAIRS * 0.2)
    np.testing.assert_allclose(after.params['action'], START + 0.1 * gradient, rtol=1e-4, atol=1e-4)
  assert float(metrics['episode_return'][1]) == 2 * 2 * PAIRS and float(metrics['episode_length'][0]) == 4 * PAIRS


def test_two_devices_and_parts_make_the_update_of_one():
  state, step = begin()
  one, metrics = jax.jit(step)(state, BATCH)
  spread = jax.pmap(step, collectives.REPLICAS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2])
  many, shared = spread(state, {'index': BATCH['index'].reshape(2, -1)})
  np.testing.assert_allclose(many.params['action'], one.params['action'], rtol=1e-5)
  for name, pair in metrics.items():
    np.testing.assert_allclose(np.divide(*shared[name]), np.divide(*pair), rtol=1e-4, err_msg=name)
  _, step = begin(microbatches=4)
  parted, _ = jax.jit(step)(state, BATCH)
  np.testing.assert_allclose(parted.params['action'], one.params['action'], rtol=1e-5)


@pytest.mark.slow
def test_the_best_action_is_found():
  state, step = begin(worlds=1)
  state = jax.jit(lambda s: jax.lax.fori_loop(0, 300, lambda i, s: step(s, BATCH)[0], s))(state)
  assert np.abs(np.asarray(state.params['action']) - BEST).max() < 0.35
