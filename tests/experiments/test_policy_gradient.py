"""Policy gradients step by step: updates against what is written out, and policies that remember."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import policy_gradient as experiment
from karpjax import config
from karpjax.program import ROLLOUT, example_keys
from karpjax.rl import environments, ppo, returns, rollout
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, WithMemory
from karpjax.train import checkpoint

SMALL = dict(
  batch_size=8, rollout=16, minibatches=2, epochs=2, widths=(8,), steps='12', episodes=4, schedule='constant'
)
MEMORY = dict(memory='lstm', memory_width=8)
BATCH = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}


def prepared(**changes):
  """(config, program, the state before the first step)."""
  settings = config.resolve(experiment.Config(**SMALL | changes), 8)
  program = experiment.program(settings, experiment.data(settings))
  return settings, program, jax.jit(program.init)(jax.random.key(0))


def test_reinforce_counts_each_episode_to_its_end_and_a_point_ends_the_return():
  """Every step of a cartpole is worth 1: each return is 1, and the loss that of -log ½, since no action is likelier yet."""
  given = dict(algorithm='reinforce', minibatches=None, epochs=None, rollout=None, baseline=False, normalise=False)
  _, program, state = prepared(**given, points=True)
  total, count = jax.jit(program.step)(state, BATCH)[1]['policy_loss']
  # all episodes of a random policy end within 500 steps; the first of each world is what is learnt from
  assert 8 * 9 < float(count) < 8 * 100
  np.testing.assert_allclose(total / count, np.log(2), rtol=0.02)  # whole returns: about ten times as much


def test_reinforce_has_the_moments_of_what_it_learns_from():
  """Neither of the steps behind an episode's end, nor of sums that go on beyond it."""
  given = dict(algorithm='reinforce', minibatches=None, epochs=None, rollout=None)
  settings, program, state = prepared(**given, normalise_observations=True, scale_rewards=True, discount=0.9)
  resolved, policy = experiment.resolved(settings, 500), experiment.policy(settings)
  observations, sums = [], []
  for _ in range(2):
    seen = jax.jit(lambda state: ppo.collect(policy, resolved, state, BATCH)[1])(state)
    lengths = np.asarray(seen.done).argmax(0) + 1
    observations += [np.asarray(seen.observation)[:n, world] for world, n in enumerate(lengths)]
    sums += [(1 - 0.9 ** np.arange(1, n + 1)) / (1 - 0.9) for n in lengths]
    state, _ = jax.jit(program.step)(state, BATCH)
  assert max(map(len, sums)) < 200
  for name, each in (('observation', observations), ('reward', sums)):
    every = np.concatenate(each).astype(np.float64)
    np.testing.assert_allclose(state.moments[name].count, len(every), rtol=1e-4)
    np.testing.assert_allclose(state.moments[name].mean, every.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.moments[name].variance, every.var(0), rtol=1e-3, atol=1e-4)


def test_an_update_of_a2c_is_the_policy_gradient_written_out():
  """On a continuous task, with plain gradient descent: returns by a loop, the loss by the Gaussian's own formula."""
  given = dict(
    algorithm='a2c', environment='pendulum', rollout=6, minibatches=None, epochs=None, optimiser='sgd', epsilon=None,
    clip=0.0, learning_rate=0.01, entropy=0.1, gae=1.0,
  )  # fmt: skip
  settings, program, state = prepared(**given)
  after, _ = jax.jit(program.step)(state, BATCH)

  environment, apply = environments.make('pendulum'), experiment.policy(settings).apply
  keys = example_keys(jax.random.fold_in(jax.random.fold_in(state.key, 0), ROLLOUT), BATCH)
  world, acting, _ = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
  noise = jax.vmap(lambda k: jax.random.normal(k, (6,)))(acting).T[..., None]  # [time, environments, 1]

  def act(observation, noise):
    outputs, _ = apply(state.params, {}, observation)
    return outputs[:, :1] + jnp.exp(outputs[:, 1:]) * noise

  play = jax.jit(lambda worlds: rollout.rollout(environment, act, worlds, world, noise, 6))
  _, seen = play(state.carried['worlds'])
  value = lambda x: apply(state.params, {}, x)[1]
  returns, future = [], value(seen.next_observation[-1])  # no episode ends within six steps
  for t in reversed(range(6)):
    future = seen.reward[t] + 0.99 * future
    returns.insert(0, future)
  returns = jnp.concatenate(returns)
  observation, action = seen.observation.reshape(-1, 3), seen.action.reshape(-1)
  advantages = returns - value(observation)

  def loss(params):
    outputs, values = apply(params, {}, observation)
    mean, log_std = outputs[:, 0], outputs[:, 1]
    log_prob = -0.5 * ((action - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    entropy = log_std + 0.5 * np.log(2 * np.pi * np.e)
    return (-advantages * log_prob + 0.5 * 0.5 * (values - returns) ** 2 - 0.1 * entropy).mean()

  expected = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, jax.jit(jax.grad(loss))(state.params))
  for name, x in checkpoint.to_arrays(expected).items():
    np.testing.assert_allclose(checkpoint.to_arrays(after.params)[name], x, rtol=1e-4, atol=1e-5, err_msg=name)
  assert not np.allclose(after.params['log_std'], state.params['log_std'])


def test_a_policy_that_has_moved_too_far_is_left_alone():
  given = dict(epochs=4, minibatches=1, learning_rate=0.1, schedule='linear')
  _, program, state = prepared(**given, target_kl=1e-4)
  after, metrics = jax.jit(program.step)(state, BATCH)
  # of four updates the second finds that the first went too far, and is not made; the schedule goes on to its end
  assert int(after.opt_state[1].count) == 1 and float(metrics['policy_loss'][1]) == 2 * 128
  assert int(after.opt_state[-1].count) == 4
  kl = float(metrics['kl'][0] / 128)  # of the second alone: before the first the policies are one
  for target, made in ((kl / 1.51, 1), (kl / 1.49, 2)):  # 1.5 times as far is let through
    given['epochs'] = 2
    _, program, _ = prepared(**given, target_kl=target)
    assert int(jax.jit(program.step)(state, BATCH)[0].opt_state[1].count) == made


@pytest.fixture(scope='module')
def remembering():
  """(the policy, a state amid episodes, the Transition of its step, the state after it), by plain gradient descent on A2C's loss."""
  given = dict(
    algorithm='a2c', rollout=24, minibatches=None, epochs=None, optimiser='sgd', epsilon=None, clip=0.0,
    learning_rate=0.01, entropy=0.1, gae=0.9,
  )  # fmt: skip
  settings, program, state = prepared(**MEMORY | given)
  policy, step = experiment.policy(settings), jax.jit(program.step)
  state, resolved = step(state, BATCH)[0], experiment.resolved(settings, 500)
  seen = jax.jit(lambda state: ppo.collect(policy, resolved, state, BATCH)[1])(state)
  assert np.asarray(seen.done)[:-1].any()
  return policy, state, seen, step(state, BATCH)[0]


def step_by_step(apply, params, seen, memory):
  """Outputs and values [time, environments, …], by single steps, with a memory of zeros after each end."""

  def step(memory, now):
    observation, end = now
    outputs, values, memory = apply(params, {}, WithMemory(observation, memory))
    return jax.tree.map(lambda m: jnp.where(end[:, None], 0, m), memory), (outputs, values)

  return jax.lax.scan(step, memory, (seen.observation.value, seen.done))[1]


def test_an_update_recomputes_the_rollouts_log_probabilities(remembering):
  policy, state, seen, _ = remembering
  apply, distribution = policy.apply, policy.distribution
  memory = state.carried['worlds'].observation.memory
  outputs, values = jax.jit(lambda p: step_by_step(apply, p, seen, memory))(state.params)
  assert np.any(memory['actor'][0])
  # the noise made these actions of these outputs, so they are those that acted
  chosen = distribution.log_prob(outputs, seen.action.value)
  examples = ppo.examples(seen, {'log_prob': chosen, 'value': values})
  again, revalued, _ = jax.jit(apply)(state.params, {}, examples['observation'], examples['is_first'])
  recomputed = distribution.log_prob(again, examples['action'])
  np.testing.assert_allclose(recomputed, examples['log_prob'], atol=1e-5)
  np.testing.assert_allclose(revalued, examples['value'], atol=1e-4)
  # a memory that is carried across an end would give others
  carried, *_ = jax.jit(apply)(state.params, {}, examples['observation'], np.zeros_like(examples['is_first']))
  assert np.abs(distribution.log_prob(carried, examples['action']) - recomputed).max() > 1e-4


def test_an_update_with_a_memory_is_the_gradient_through_single_steps(remembering):
  policy, state, seen, after = remembering
  apply, memory = policy.apply, state.carried['worlds'].observation.memory

  def loss(params):
    outputs, values = step_by_step(apply, params, seen, memory)
    following = jax.vmap(lambda observation: apply(params, {}, observation)[1])(seen.next_observation)
    advantages = returns.advantages(
      seen.reward, values, following, seen.terminated, seen.truncated, discount=0.99, gae_lambda=0.9
    )
    advantages, targets = jax.lax.stop_gradient((advantages, advantages + values))
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(outputs), seen.action.value[..., None], -1)[..., 0]
    chances = jax.nn.softmax(outputs)
    entropy = -(chances * jnp.log(chances)).sum(-1)
    return (-advantages * log_probs + 0.5 * 0.5 * (values - targets) ** 2 - 0.1 * entropy).mean()

  expected = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, jax.jit(jax.grad(loss))(state.params))
  for name, x in checkpoint.to_arrays(expected).items():
    np.testing.assert_allclose(checkpoint.to_arrays(after.params)[name], x, rtol=1e-4, atol=1e-5, err_msg=name)
  assert (
    np.abs(after.params['actor_memory']['state_kernel'] - state.params['actor_memory']['state_kernel']).max() > 1e-6
  )


def cue() -> Environment:
  """±1 is seen at first and 0 afterwards; the third action is rewarded by 1 where it tells which it was."""

  def reset(key):
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    return (sign, jnp.zeros((), jnp.int32)), sign[None]

  def step(key, state, action):
    sign, t = state
    over = t == 2
    reward = jnp.where(over & ((action == 1) == (sign > 0)), 1.0, 0.0)
    return (sign, t + 1), TimeStep(jnp.zeros(1), reward, over, jnp.zeros((), bool))

  return Environment('cue', reset, step, Box((1,), -1.0, 1.0), Discrete(2), 3, shortest=3)


@pytest.mark.slow
def test_only_a_policy_with_a_memory_remembers_the_cue(monkeypatch):
  monkeypatch.setitem(environments.ENVIRONMENTS, 'cue', cue)

  def learnt(memory):
    given = dict(
      environment='cue', episodes=400, batch_size=32, rollout=12, learning_rate=0.01, memory=memory, memory_width=8
    )
    settings = config.resolve(experiment.Config(**SMALL | given), 32)
    program = experiment.program(settings, experiment.data(settings))
    batch = {'world': np.arange(32, dtype=np.int32), 'index': np.arange(32, dtype=np.int32)}
    train = lambda state: jax.lax.scan(lambda s, _: (program.step(s, batch)[0], None), state, None, length=60)[0]
    state = jax.jit(lambda key: train(program.init(key)))(jax.random.key(0))
    worlds = {'world': np.arange(1000, 1400, dtype=np.int32), 'index': np.arange(400), 'mask': np.ones(400, bool)}
    return program.summarise(jax.device_get(jax.jit(program.evaluate)(state, worlds, jax.random.key(1))))

  assert learnt('lstm')['episode_return'] > 0.95
  assert learnt('none')['episode_return'] < 0.6  # half of the cues, whatever it does; the deviation is 0.025
