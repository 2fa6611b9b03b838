"""DDPG, TD3 and SAC on a bandit whose best action is known, with a quadratic for critics; updates and losses against formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from experiments import actor_critic_off_policy
from experiments.actor_critic_off_policy import Config, resolved
from karpjax.models.actor_critic import squashed_sample
from karpjax.program import INITIALISE, REPLAY, ROLLOUT, TrainState, example_keys, step_key
from karpjax.rl import replay, rollout
from karpjax.rl.environment import Box, Environment, TimeStep, time_limit

WORLDS, DISCOUNT, BEST = 4, 0.5, 0.4
BATCH = {'index': np.arange(WORLDS, dtype=np.int32)}


def line(limit=3):
  """-(action - BEST)², wherever one is; a place is drawn at each step; terminated where it is positive, cut after `limit`."""

  def place(key):
    return jax.random.uniform(key, (1,), minval=-1, maxval=0.5)

  def step(key, state, action):
    state = place(key)
    return state, TimeStep(state, -jnp.square(action[0] - BEST), state[0] > 0, jnp.zeros((), bool))

  reset = lambda key: (place(key),) * 2
  return time_limit(Environment('line', reset, step, Box((1,)), Box((1,), -1.0, 1.0), limit))


def actor(params, observation):
  """[batch, outputs], linear."""
  return observation @ params['kernel'] + params['bias']


def critics(params, observation, action):
  """[critics, batch]: each quadratic in the action and linear in the place."""
  terms = jnp.concatenate([action**2, action, observation, jnp.ones_like(action)], -1)
  return params @ terms.T


def configured(**changes):
  given = dict(
    batch_size=WORLDS, train_frequency=2, replay_batch=8 * WORLDS, learning_starts=16, tau=0.1, discount=DISCOUNT,
    entropy=-1.0, smoothing=0.2, smoothing_limit=0.3, exploration=0.3,
  )  # fmt: skip
  return resolved(Config(**given | changes), 1)


def begin(config, rate=0.1, capacity=60):
  drawn = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(drawn.normal(size=shape) * 0.3, jnp.float32)
  outputs = 2 if config.algorithm == 'sac' else 1
  params = {'actor': {'kernel': normal(1, outputs), 'bias': normal(outputs)}}
  if config.algorithm == 'sac':
    params['temperature'] = jnp.log(0.2)
  variables = {'critics': {'params': normal(config.critics, 4)}, 'policy': {'params': params}}
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(9), np.arange(WORLDS))
  environment, both = line(), {'critics': optax.sgd(rate), 'policy': optax.sgd(rate)}
  # targets of their own, so that one taken for the other shows
  target = {
    name: jax.tree.map(lambda x: x + normal(*x.shape), variables[name]['params'])
    for name in actor_critic_off_policy.target_players(config)
  }
  state = TrainState.create(
    jax.random.key(1),
    variables,
    both,
    target=target,
    carried={'worlds': rollout.start(environment, keys)},
    buffers=replay.empty(environment, WORLDS, capacity),
  )
  policy = actor_critic_off_policy.squashed(environment, lambda key: variables, actor, critics, config)
  return state, actor_critic_off_policy.train_step(policy, both, config)


SAC, TD3 = configured(), configured(algorithm='td3')
LEARNT = {'sac': SAC, 'td3': TD3, 'ddpg': configured(algorithm='ddpg', smoothing=0.0, updates=2, microbatches=2)}


@pytest.mark.slow
@pytest.mark.parametrize('name', LEARNT)
def test_the_best_action_is_learnt(name):
  config = LEARNT[name]
  state, step = begin(config)
  state = jax.jit(lambda s: jax.lax.fori_loop(0, 3000, lambda i, s: step(s, BATCH)[0], s))(state)
  places = jnp.array([[-0.9], [-0.3], [0.3]])
  outputs = actor(state.params['policy']['actor'], places)
  best = np.tanh(outputs[:, 0])  # of a squashed Gaussian, of its means
  np.testing.assert_allclose(best, BEST, atol=0.08)
  if name == 'sac':
    noise = jax.random.normal(jax.random.key(0), (3, 4000, 1))
    log_probs = squashed_sample(outputs[:, None], noise)[1]
    np.testing.assert_allclose(-log_probs.mean(1), -1, atol=0.3)  # the entropy asked for


def drawn_examples(state, rings, written):
  """What the first update learns from, in NumPy: transitions by a loop, and the noise of its two actions."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, state.step), REPLAY), 0)

  @jax.jit
  def draw(rings, key):
    places, noise = jax.vmap(jax.random.split, out_axes=1)(example_keys(key, BATCH))
    noise = jax.vmap(lambda key: jax.random.normal(key, (2, 8, 1)), out_axes=1)(noise)
    return replay.uniform(rings, written, places, 8)[0], noise.reshape(2, -1, 1)

  places, noise = jax.device_get(draw(rings, key))
  rows = [(world, place) for world in range(WORLDS) for place in places[world]]
  take = lambda x: np.array([np.asarray(x)[row] for row in rows])
  return {
    'observation': take(rings.observation), 'action': take(rings.action), 'reward': take(rings.reward),
    'next_observation': take(rings.next_observation), 'discount': DISCOUNT * ~take(rings.terminated),
    'noise': noise[0], 'next_noise': noise[1],
  }  # fmt: skip


@pytest.fixture(scope='module')
def steps():
  """{name: (state, step, the states after one and two more, metrics)}, learning from the second step on."""

  def make(config):
    state, step = begin(config)
    step = jax.jit(step)
    states, metrics = [state], []
    for _ in range(3):
      state, found = step(states[-1], BATCH)
      states, metrics = [*states, state], [*metrics, jax.device_get(found)]
    return states, metrics

  return {'sac': make(SAC), 'td3': make(TD3)}


def values(params, observation, action):
  """[critics, batch], in NumPy."""
  return np.asarray(params) @ np.concatenate([action**2, action, observation, np.ones_like(action)], -1).T


def squash(params, observation, noise):
  """(actions [batch, 1], log π [batch], deviations [batch, 1]) of a squashed Gaussian, in NumPy."""
  mean, log_std = np.split(observation @ np.asarray(params['kernel']) + np.asarray(params['bias']), 2, -1)
  action = np.tanh(mean + np.exp(log_std) * noise)
  log_prob = -(noise**2) / 2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - action**2)
  return action, log_prob[:, 0], np.exp(log_std)


def critics_after(params, batch, target):
  """Gradient descent on ½ Σ (Q - y)², in NumPy."""
  action, observation = batch['action'], batch['observation']
  terms = np.concatenate([action**2, action, observation, np.ones_like(action)], -1)
  return np.asarray(params) - 0.1 * (values(params, observation, action) - target) @ terms / len(target)


def test_an_update_of_sac_is_that_of_its_formulas(steps):
  (_, before, after, _), metrics = steps['sac']
  batch = drawn_examples(before, after.buffers, 4)
  frozen, policy = before.target['critics'], before.params['policy']
  temperature = float(np.exp(policy['temperature']))
  action, log_prob, _ = squash(policy['actor'], batch['next_observation'], batch['next_noise'])
  following = values(frozen, batch['next_observation'], action).min(0) - temperature * log_prob
  target = batch['reward'] + batch['discount'] * following
  critics = critics_after(before.params['critics'], batch, target)
  np.testing.assert_allclose(after.params['critics'], critics, rtol=1e-4, atol=1e-5)
  # the policy by the new critics; d/du of log π is that of -log(1 - tanh² u), 2 tanh u, and d log π / d log σ has -1 more
  observation, noise = batch['observation'], batch['noise']
  action, log_prob, deviation = squash(policy['actor'], observation, noise)
  least = values(critics, observation, action).argmin(0)
  slope = (2 * critics[least, :1] * action + critics[least, 1:2]) * (1 - action**2)
  by_mean = temperature * 2 * action - slope
  by_log_std = by_mean * deviation * noise - temperature
  gradient = np.concatenate([by_mean, by_log_std], -1) / len(noise)  # [batch, 2]
  moved = after.params['policy']
  for name, expected in (('kernel', observation.T @ gradient), ('bias', gradient.sum(0))):
    np.testing.assert_allclose(moved['actor'][name], policy['actor'][name] - 0.1 * expected, rtol=1e-4, atol=1e-5)
  warmer = float(policy['temperature']) + 0.1 * temperature * (log_prob.mean() - 1)
  np.testing.assert_allclose(moved['temperature'], warmer, rtol=1e-4)
  np.testing.assert_allclose(after.target['critics'], 0.9 * frozen + 0.1 * critics, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.divide(*metrics[1]['entropy']), -log_prob.mean(), rtol=1e-4)


def test_updates_of_td3_are_those_of_its_formulas_and_its_policy_waits(steps):
  (_, before, after, _), _ = steps['td3']
  batch = drawn_examples(before, after.buffers, 4)
  target, policy = before.target, before.params['policy']['actor']
  mean = lambda params, x: np.tanh(x @ np.asarray(params['kernel']) + np.asarray(params['bias']))
  action = mean(target['policy']['actor'], batch['next_observation'])
  action = np.clip(action + np.clip(0.2 * batch['next_noise'], -0.3, 0.3), -1, 1)
  following = values(target['critics'], batch['next_observation'], action).min(0)
  critics = critics_after(before.params['critics'], batch, batch['reward'] + batch['discount'] * following)
  np.testing.assert_allclose(after.params['critics'], critics, rtol=1e-4, atol=1e-5)
  # the second step is even, and so the policy's turn, by the first critic
  observation = batch['observation']
  action = mean(policy, observation)
  slope = -(2 * critics[0, 0] * action + critics[0, 1]) * (1 - action**2) / len(action)
  expected = np.asarray(policy['kernel']) - 0.1 * observation.T @ slope
  np.testing.assert_allclose(after.params['policy']['actor']['kernel'], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    after.target['policy']['actor']['kernel'],
    0.9 * target['policy']['actor']['kernel'] + 0.1 * expected, rtol=1e-4, atol=1e-5,
  )  # fmt: skip


@pytest.mark.parametrize('name', ['sac', 'td3'])
def test_learning_starts_where_it_says(name, steps):
  """At 16 steps of environments, 8 in each step; the third step is odd, and td3's policy and targets wait."""
  states, metrics = steps[name]
  same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
  for t, (before, after) in enumerate(itertools.pairwise(states)):
    learns, follows = t >= 1, t == 1 or (t == 2 and name == 'sac')
    assert float(metrics[t]['critic_loss'][1]) == learns * WORLDS * 8
    assert float(metrics[t]['policy_loss'][1]) == follows * WORLDS * 8
    assert same(before.params['critics'], after.params['critics']) != learns
    assert same(before.params['policy'], after.params['policy']) != follows
    assert same(before.target, after.target) != follows


def test_the_first_actions_are_drawn_evenly_and_later_ones_by_the_policy(steps):
  """Evenly for 16 steps of environments, which are two rollouts; the third is the policy's with noise."""
  (*_, before, after), _ = steps['td3']
  seen = jax.device_get(after.buffers)
  params = before.params['policy']['actor']
  policy = np.tanh(seen.observation[:, :6] @ np.asarray(params['kernel']) + np.asarray(params['bias']))
  even = seen.action[:, :4]
  assert len(np.unique(even)) == 16 and even.min() < -0.6 and even.max() > 0.6
  keys = jax.vmap(jax.random.split)(example_keys(step_key(before, ROLLOUT), BATCH))[:, 1]
  noise = jax.vmap(lambda key: jax.random.normal(key, (2, 1)))(keys)
  np.testing.assert_allclose(seen.action[:, 4:6], np.clip(policy[:, 4:6] + 0.3 * noise, -1, 1), rtol=1e-4, atol=1e-5)
  assert np.abs(even - policy[:, :4]).mean() > 0.3


def test_a_squashed_gaussian_s_density_is_that_of_the_changed_variable():
  """Of one number: the Gaussian's density over the slope of tanh, by finite differences in float64; it sums up to 1."""
  outputs, noise = np.array([0.4, -0.3], np.float32), np.linspace(-4, 4, 2001, dtype=np.float32)[:, None]
  actions, log_probs = squashed_sample(jnp.asarray(outputs), jnp.asarray(noise))
  raw = 0.4 + np.exp(-0.3) * noise[:, 0].astype(np.float64)
  slopes = (np.tanh(raw + 1e-4) - np.tanh(raw - 1e-4)) / 2e-4
  np.testing.assert_allclose(actions[:, 0], np.tanh(raw), rtol=1e-4, atol=1e-6)
  density = stats.norm(0.4, np.exp(-0.3)).pdf(raw) / slopes
  np.testing.assert_allclose(np.exp(log_probs), density, rtol=2e-3)
  np.testing.assert_allclose(np.trapezoid(np.exp(log_probs), actions[:, 0]), 1, atol=2e-3)


def test_a_squashed_gaussian_s_numbers_are_independent_and_finite_far_out():
  one = squashed_sample(jnp.array([0.2, -0.5]), jnp.array([0.7]))[1]
  other = squashed_sample(jnp.array([-1.0, 0.1]), jnp.array([-0.2]))[1]
  both = squashed_sample(jnp.array([0.2, -1.0, -0.5, 0.1]), jnp.array([0.7, -0.2]))[1]
  np.testing.assert_allclose(both, one + other, rtol=1e-6)
  far = lambda outputs: squashed_sample(outputs, jnp.array([3.0]))[1]
  value, gradient = jax.value_and_grad(far)(jnp.array([80.0, 1.0]))
  assert np.isfinite(value) and value > 100 and np.isfinite(gradient).all()  # log(1 - tanh² u) is about -2 u


def test_networks_begin_with_keys_of_their_own_that_no_step_and_no_world_draws_from(monkeypatch):
  seen, key = [], jax.random.key(0)
  agent = actor_critic_off_policy.policy(Config(algorithm='td3'))
  with monkeypatch.context() as patched:
    patched.setattr(nn.Module, 'init', lambda self, key, *_: seen.append(key) or {'params': {}})
    agent.init(key)
  first = jax.random.fold_in(jax.random.fold_in(key, 0), INITIALISE)
  others = [jax.random.fold_in(each, i) for each in (key, first) for i in range(3)]
  assert len(seen) == 2 and len({jax.random.key_data(x).tobytes() for x in (key, first, *seen, *others)}) == 10
