"""Policy gradients as a user runs them: they learn, go on to the same bits, and every layout makes the same updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import policy_gradient as experiment
from karpjax import config, play
from karpjax.errors import UsageError
from karpjax.program import ROLLOUT, example_keys
from karpjax.rl import environments, returns, rollout
from karpjax.rl import policy_gradient as methods
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep
from karpjax.train import checkpoint, loop

SMALL = dict(
  batch_size=8, rollout=16, minibatches=2, epochs=2, widths=(8,), steps='12', log_every='3', checkpoint_every='5',
  episodes=4, final_splits=(), tensorboard=False, plots=False, steps_per_call='1', schedule='constant',
)  # fmt: skip


EVERYTHING = dict(scale_rewards=True, normalise_observations=True)  # that the state can hold


MEMORY = dict(memory='lstm', memory_width=8)


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=lambda line: None)


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of twelve updates."""
  return run(tmp_path_factory.mktemp('whole') / 'run', **EVERYTHING)


def test_going_on_gives_the_same_bits(whole, tmp_path):
  run(tmp_path / 'cut', **EVERYTHING, steps='5')
  gone_on = run(tmp_path / 'cut', **EVERYTHING)
  one, other = arrays(whole), arrays(gone_on)
  assert any('running' in name for name in one) and any('collections/observation' in name for name in one)
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name


def test_vmapped_seeds_are_those_seeds_alone(tmp_path):
  together = run(tmp_path / 'both', **EVERYTHING, seeds=2, steps='3', seed=4)
  alone = run(tmp_path / 'alone', **EVERYTHING, steps='3', seed=5)
  for name, x in checkpoint.to_arrays(alone.state.params).items():
    np.testing.assert_allclose(checkpoint.to_arrays(together.state.params)[name][1], x, rtol=1e-4, atol=1e-5)


# with one epoch of one minibatch no shuffle tells layouts apart: the same gradients
UNSHUFFLED = dict(steps='3', minibatches=1, epochs=1, normalise_observations=True, scale_rewards=True)


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory):
  return run(tmp_path_factory.mktemp('alone') / 'run', **UNSHUFFLED)


@pytest.mark.parametrize(
  'layout', [dict(parallel='pmap'), pytest.param(dict(mesh='data:4,fsdp:2'), marks=pytest.mark.slow)]
)
def test_layouts_roll_out_the_same_worlds(layout, on_one_device, tmp_path):
  one, other = arrays(on_one_device), arrays(run(tmp_path / 'run', **UNSHUFFLED, **layout))
  for name in one:
    if 'key' not in name:
      np.testing.assert_allclose(other[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_ppo_learns_to_balance(tmp_path):
  summary = run(
    tmp_path / 'run', batch_size=16, rollout=64, minibatches=4, epochs=4, widths=(32,), steps='60', learning_rate=3e-3,
    final_splits=('test',), episodes=20, schedule='linear',
  )  # fmt: skip
  assert summary.numbers['test/episode_return'] > 150  # a random policy: about 22


def test_reinforce_counts_each_episode_to_its_end_and_no_further():
  settings = config.resolve(
    experiment.Config(**SMALL | dict(algorithm='reinforce', rollout=None, minibatches=None, epochs=None)), 8
  )
  worlds = experiment.data(settings)
  program = experiment.program(settings, worlds)
  state = jax.jit(program.init)(jax.random.key(0))
  batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
  _, metrics = jax.jit(program.step)(state, batch)
  # all episodes of a random policy end within 500 steps; the first of each world is what is learnt from
  assert 8 * 9 < float(metrics['policy_loss'][1]) < 8 * 100


def test_a_point_ends_the_return():
  """Every step of a cartpole is worth 1: each return is 1, and the loss that of -log ½, since no action is likelier yet."""
  given = dict(algorithm='reinforce', minibatches=None, epochs=None, rollout=None, baseline=False, normalise=False)
  settings = config.resolve(experiment.Config(**SMALL | given, points=True), 8)
  program = experiment.program(settings, experiment.data(settings))
  batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
  total, count = jax.jit(program.step)(jax.jit(program.init)(jax.random.key(0)), batch)[1]['policy_loss']
  np.testing.assert_allclose(total / count, np.log(2), rtol=0.02)  # whole returns: about ten times as much


def test_an_update_of_a2c_is_the_policy_gradient_written_out():
  """On a continuous task, with plain gradient descent: returns by a loop, the loss by the Gaussian's own formula."""
  given = dict(
    algorithm='a2c', environment='pendulum', rollout=6, minibatches=None, epochs=None, optimiser='sgd', epsilon=None,
    clip=0.0, learning_rate=0.01, entropy=0.1, gae=1.0,
  )  # fmt: skip
  settings = config.resolve(experiment.Config(**SMALL | given), 8)
  program = experiment.program(settings, experiment.data(settings))
  state = jax.jit(program.init)(jax.random.key(0))
  batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
  after, _ = jax.jit(program.step)(state, batch)

  environment = environments.make('pendulum')
  _, _, apply = experiment.build(settings, environment)
  keys = example_keys(jax.random.fold_in(jax.random.fold_in(state.key, 0), ROLLOUT), batch)
  world, acting, _ = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
  noise = jax.vmap(lambda k: jax.random.normal(k, (6,)))(acting).T[..., None]  # [time, environments, 1]

  def act(observation, noise):
    outputs, _ = apply(state.params, observation)
    return outputs[:, :1] + jnp.exp(outputs[:, 1:]) * noise

  play = jax.jit(lambda running: rollout.rollout(environment, act, running, world, noise, 6))
  _, seen = play(state.carried['running'])
  value = lambda x: apply(state.params, x)[1]
  returns, future = [], value(seen.next_observation[-1])  # no episode ends within six steps
  for t in reversed(range(6)):
    future = seen.reward[t] + 0.99 * future
    returns.insert(0, future)
  returns = jnp.concatenate(returns)
  observation, action = seen.observation.reshape(-1, 3), seen.action.reshape(-1)
  advantages = returns - value(observation)

  def loss(params):
    outputs, values = apply(params, observation)
    mean, log_std = outputs[:, 0], outputs[:, 1]
    log_prob = -0.5 * ((action - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    entropy = log_std + 0.5 * np.log(2 * np.pi * np.e)
    return (-advantages * log_prob + 0.5 * 0.5 * (values - returns) ** 2 - 0.1 * entropy).mean()

  expected = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, jax.jit(jax.grad(loss))(state.params))
  for name, x in checkpoint.to_arrays(expected).items():
    np.testing.assert_allclose(checkpoint.to_arrays(after.params)[name], x, rtol=1e-4, atol=1e-5, err_msg=name)
  assert not np.allclose(after.params['log_std'], state.params['log_std'])


def test_a_policy_that_has_moved_too_far_is_left_alone():
  given = SMALL | dict(epochs=4, minibatches=1, learning_rate=0.1)
  worlds = experiment.data(experiment.Config(**given))

  def updates(**changes):
    settings = config.resolve(experiment.Config(**given | changes), 8)
    program = experiment.program(settings, worlds)
    state = jax.jit(program.init)(jax.random.key(0))
    batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
    after, metrics = jax.jit(program.step)(state, batch)
    return int(after.opt_state[1].count), float(metrics['policy_loss'][1])

  assert updates() == (4, 4 * 128)
  count, seen = updates(target_kl=1e-4)
  assert count == 2 and seen == 2 * 128  # the second update finds that the first went too far, and is the last


@pytest.fixture(scope='module')
def remembering(tmp_path_factory):
  """A run of six updates of a policy with a memory."""
  return run(tmp_path_factory.mktemp('remembering') / 'run', **EVERYTHING, **MEMORY, steps='6', checkpoint_every='3')


def test_a_memory_goes_on_to_the_same_bits(remembering, tmp_path):
  run(tmp_path / 'cut', **EVERYTHING, **MEMORY, steps='3', checkpoint_every='3')
  one, other = (
    arrays(remembering),
    arrays(run(tmp_path / 'cut', **EVERYTHING, **MEMORY, steps='6', checkpoint_every='3')),
  )
  held = [x for name, x in one.items() if 'running' in name and 'memory' in name]
  assert [x.shape for x in held] == [(8, 8)] * 4 and all(np.any(x) for x in held)  # of actor and critic, h and c
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name


def test_vmapped_seeds_have_memories_of_their_own(tmp_path):
  together = run(tmp_path / 'both', **MEMORY, seeds=2, steps='2', seed=4)
  alone = run(tmp_path / 'alone', **MEMORY, steps='2', seed=5)
  both = arrays(together)
  for name, x in arrays(alone).items():
    if 'params' in name or 'memory' in name:
      np.testing.assert_allclose(both[name][1], x, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('layout', [dict(parallel='pmap'), dict(mesh='data:4,fsdp:2'), dict(microbatches=4)])
def test_layouts_remember_the_same(layout, tmp_path):
  given = UNSHUFFLED | MEMORY
  one, other = arrays(run(tmp_path / 'one', **given)), arrays(run(tmp_path / 'run', **given, **layout))
  for name in one:
    if 'key' not in name:
      np.testing.assert_allclose(other[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)


def with_memory(**changes):
  """Settings, program, and the state and the batch of a second step, whose rollout begins amid episodes."""
  settings = config.resolve(experiment.Config(**SMALL | MEMORY | changes), 8)
  program = experiment.program(settings, experiment.data(settings))
  batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
  step = jax.jit(program.step)
  return settings, step, step(jax.jit(program.init)(jax.random.key(0)), batch)[0], batch


def step_by_step(apply, params, seen, memory):
  """Outputs and values [time, environments, …], by single steps, with a memory of zeros after each end."""

  def step(memory, now):
    observation, end = now
    outputs, values, memory = apply(params, methods.Recalled(observation, memory))
    return jax.tree.map(lambda m: jnp.where(end[:, None], 0, m), memory), (outputs, values)

  return jax.lax.scan(step, memory, (seen.observation.value, seen.end))[1]


def rolled_out(settings, state, batch):
  """(apply, distribution, the Transition) of a state's next step."""
  environment, method = experiment.world(settings), experiment.method(settings, 500)
  distribution, _, apply = experiment.build(settings, environment)
  play = jax.jit(lambda state: methods.rollout(environment, apply, distribution, method, state, batch)[1])
  return apply, distribution, play(state)


def test_an_update_recomputes_the_rollouts_log_probabilities():
  settings, _, state, batch = with_memory(rollout=40)
  apply, distribution, seen = rolled_out(settings, state, batch)
  memory = state.carried['running'].observation.memory
  outputs, values = jax.jit(lambda p: step_by_step(apply, p, seen, memory))(state.params)
  assert np.asarray(seen.end)[:-1].any() and np.any(memory['actor'][0])
  # the noise made these actions of these outputs, so they are those that acted
  chosen = distribution.log_prob(outputs, seen.action.value)
  examples = methods.examples_of(seen, {'log_prob': chosen, 'value': values})
  again, revalued, _ = jax.jit(apply)(state.params, examples['observation'], examples['fresh'])
  recomputed = distribution.log_prob(again, examples['action'])
  np.testing.assert_allclose(recomputed, examples['log_prob'], atol=1e-5)
  np.testing.assert_allclose(revalued, examples['value'], atol=1e-4)
  # a memory that is carried across an end would give others
  carried, *_ = jax.jit(apply)(state.params, examples['observation'], np.zeros_like(examples['fresh']))
  assert np.abs(distribution.log_prob(carried, examples['action']) - recomputed).max() > 1e-4


def test_an_update_with_a_memory_is_the_gradient_through_single_steps():
  given = dict(
    algorithm='a2c', rollout=24, minibatches=None, epochs=None, optimiser='sgd', epsilon=None, clip=0.0,
    learning_rate=0.01, entropy=0.1, gae=0.9,
  )  # fmt: skip
  settings, step, state, batch = with_memory(**given)
  after, _ = step(state, batch)
  apply, _, seen = rolled_out(settings, state, batch)
  memory = state.carried['running'].observation.memory
  assert np.asarray(seen.end)[:-1].any()

  def loss(params):
    outputs, values = step_by_step(apply, params, seen, memory)
    following = jax.vmap(lambda observation: apply(params, observation)[1])(seen.next_observation)
    advantages = returns.advantages(
      seen.reward, values, following, seen.terminated, seen.truncated, discount=0.99, decay=0.9
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


def test_only_a_policy_with_a_memory_remembers_the_cue(monkeypatch):
  monkeypatch.setitem(environments.ENVIRONMENTS, 'cue', cue)

  def learnt(memory):
    given = dict(environment='cue', batch_size=32, rollout=12, learning_rate=0.01, memory=memory, memory_width=8)
    settings = config.resolve(experiment.Config(**SMALL | given), 32)
    program = experiment.program(settings, experiment.data(settings))
    batch = {'world': np.arange(32, dtype=np.int32), 'index': np.arange(32, dtype=np.int32)}
    train = lambda state: jax.lax.scan(lambda s, _: (program.step(s, batch)[0], None), state, None, length=60)[0]
    state = jax.jit(lambda key: train(program.init(key)))(jax.random.key(0))
    worlds = {'world': np.arange(1000, 1400, dtype=np.int32), 'mask': np.ones(400, bool)}
    return program.summarise(jax.device_get(jax.jit(program.evaluate)(state, worlds, jax.random.key(1))))

  assert learnt('lstm')['episode_return'] > 0.95
  assert learnt('none')['episode_return'] < 0.6  # half of the cues, whatever it does; the deviation is 0.025


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(environment='cartpol'), 'Did you mean cartpole'),
    (dict(MEMORY, minibatches=3), 'cannot be cut into 3 minibatches, and a memory needs whole rollouts'),
    (dict(memory='lstn'), 'Did you mean lstm'),
    (dict(MEMORY, memory_width=0), '--memory_width=0'),
    (dict(minibatches=3), 'cannot be cut into 3 minibatches'),
    (dict(batch_size=0), '--batch_size=0'),
    (dict(algorithm='reinforce', rollout=10), 'whole episodes'),
    (dict(batch_size=4, parallel='pmap'), 'does not divide over 8 devices'),
    (dict(epochs=0), '--epochs=0'),
    (dict(activation='sigmoid'), 'unknown activation'),
  ],
)
def test_bad_input_is_one_line(given, message, tmp_path):
  with pytest.raises(UsageError, match=message) as error:
    run(tmp_path / 'run', **given)
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_an_episode_is_played_with_a_memory(remembering, tmp_path, capsys):
  assert play.main([str(remembering.folder), '--stochastic', f'--output={tmp_path / "a.gif"}']) == 0
  length = int(float(capsys.readouterr().out.split()[1].rstrip(':')))
  with Image.open(tmp_path / 'a.gif') as shown:
    assert 2 <= shown.n_frames <= min(length + 1, 250)


def test_an_episode_is_played(whole, tmp_path, capsys):
  folder = str(whole.folder)
  assert play.main([folder, '--seed=3', f'--output={tmp_path / "a.gif"}']) == 0
  length = int(float(capsys.readouterr().out.split()[1].rstrip(':')))  # each step of a cartpole is worth 1
  with Image.open(tmp_path / 'a.gif') as shown:
    assert 2 <= shown.n_frames <= min(length + 1, 250)
  assert play.main([folder, '--output=a.png']) == 2 and 'ends in .gif' in capsys.readouterr().err
  assert play.main([str(tmp_path)]) == 2 and 'holds no run' in capsys.readouterr().err
