"""Policy gradients as a user runs them: they learn, go on to the same bits, and every layout makes the same updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import policy_gradient as experiment
from karpjax import checkpoint, config, play
from karpjax.errors import UsageError
from karpjax.program import ROLLOUT, example_keys
from karpjax.rl import environments, rollout

SMALL = dict(
  batch_size=8, rollout=16, minibatches=2, epochs=2, widths=(8,), steps='12', log_every='3', checkpoint_every='5',
  episodes=4, final_splits=(), tensorboard=False, plots=False, steps_per_call='1', schedule='constant',
)  # fmt: skip


EVERYTHING = dict(scale_rewards=True, normalise_observations=True)  # that the state can hold


def run(folder, **changes):
  return experiment.run(experiment.Config(**SMALL | changes, workdir=str(folder)), say=lambda line: None)


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
  program = experiment.program(settings, worlds.spec)
  state = jax.jit(program.init)(jax.random.key(0))
  batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
  _, metrics = jax.jit(program.step)(state, batch)
  # all episodes of a random policy end within 500 steps; the first of each world is what is learnt from
  assert 8 * 9 < float(metrics['policy_loss'][1]) < 8 * 100


def test_an_update_of_a2c_is_the_policy_gradient_written_out():
  """On a continuous task, with plain gradient descent: returns by a loop, the loss by the Gaussian's own formula."""
  given = dict(
    algorithm='a2c', environment='pendulum', rollout=6, minibatches=None, epochs=None, optimiser='sgd', epsilon=None,
    clip=0.0, learning_rate=0.01, entropy=0.1, gae=1.0,
  )  # fmt: skip
  settings = config.resolve(experiment.Config(**SMALL | given), 8)
  program = experiment.program(settings, experiment.data(settings).spec)
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
  _, seen = play(state.per_example['running'])
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
    program = experiment.program(settings, worlds.spec)
    state = jax.jit(program.init)(jax.random.key(0))
    batch = {'world': np.arange(8, dtype=np.int32), 'index': np.arange(8, dtype=np.int32)}
    after, metrics = jax.jit(program.step)(state, batch)
    return int(after.opt_state[1].count), float(metrics['policy_loss'][1])

  assert updates() == (4, 4 * 128)
  count, seen = updates(target_kl=1e-4)
  assert count == 2 and seen == 2 * 128  # the second update finds that the first went too far, and is the last


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(environment='cartpol'), 'Did you mean cartpole'),
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


def test_an_episode_is_played(whole, tmp_path, capsys):
  folder = str(whole.folder)
  assert play.main([folder, '--seed=3', f'--output={tmp_path / "a.gif"}']) == 0
  length = int(float(capsys.readouterr().out.split()[1].rstrip(':')))  # each step of a cartpole is worth 1
  with Image.open(tmp_path / 'a.gif') as shown:
    assert 2 <= shown.n_frames <= min(length + 1, 250)
  assert play.main([folder, '--output=a.png']) == 2 and 'ends in .gif' in capsys.readouterr().err
  assert play.main([str(tmp_path)]) == 2 and 'holds no run' in capsys.readouterr().err
