"""Off-policy actor-critic methods as a user runs them: they go on to the same bits, and every layout makes the same updates."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import actor_critic_off_policy as experiment
from karpjax import play
from karpjax.errors import UsageError
from karpjax.rl import environments
from karpjax.train import checkpoint, loop

SMALL = dict(
  batch_size=8, train_frequency=4, replay_batch=16, buffer=256, learning_starts=64, tau=0.1, widths=(8, 8), steps='12',
  log_every='3', checkpoint_every='5', episodes=4, final_splits=(), tensorboard=False, plots=False, steps_per_call='1',
  seed=5,
)  # fmt: skip


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=lambda line: None)


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole') / 'run')


def test_going_on_gives_the_same_bits(whole, tmp_path):
  run(tmp_path / 'cut', steps='5')
  gone_on = run(tmp_path / 'cut')
  one, other = arrays(whole), arrays(gone_on)
  assert any('replay/action' in name for name in one) and any('target/critics' in name for name in one)
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.slow
def test_vmapped_seeds_are_those_seeds_alone(whole, tmp_path):
  together = run(tmp_path / 'both', seeds=2, seed=4)
  assert np.isfinite(whole.numbers['train/critic_loss']) and np.isfinite(whole.numbers['train/policy_loss'])
  for name, x in checkpoint.to_arrays(whole.state.params).items():
    np.testing.assert_allclose(checkpoint.to_arrays(together.state.params)[name][1], x, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('layout', [dict(parallel='pmap'), dict(mesh='data:4,fsdp:2')])
def test_layouts_make_the_same_updates(layout, whole, tmp_path):
  one, other = arrays(whole), arrays(run(tmp_path / 'run', **layout))
  for name in one:
    if 'key' not in name:
      np.testing.assert_allclose(other[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('algorithm', ['td3', 'ddpg'])
def test_the_other_algorithms_under_pmap_and_cut(algorithm, tmp_path):
  """The delayed policy, whose turn depends on the step, with several updates and microbatches."""
  given = dict(algorithm=algorithm, updates=3, microbatches=2)
  one = run(tmp_path / 'whole', **given)
  run(tmp_path / 'cut', **given, steps='5')
  other, spread = (
    run(tmp_path / 'cut', **given),
    run(tmp_path / 'pmap', **given | dict(microbatches=1), parallel='pmap'),
  )
  one, other, spread = map(arrays, (one, other, spread))
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name
    if 'key' not in name:
      np.testing.assert_allclose(spread[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('algorithm', ['sac', 'td3', 'ddpg'])
def test_a_pendulum_is_swung_up(algorithm, tmp_path):
  summary = run(
    tmp_path / 'run', algorithm=algorithm, batch_size=4, train_frequency=1, replay_batch=128, buffer=20_000,
    learning_starts=1000, widths=(64, 64), steps='5000', updates=2, final_splits=('test',), episodes=20, tau=0.005,
    log_every='1000', checkpoint_every='0', steps_per_call='500', exploration=0.2,
  )  # fmt: skip
  assert summary.numbers['test/episode_return'] > -400  # a random policy: about -1200
  assert summary.numbers['test/stochastic_episode_return'] != summary.numbers['test/episode_return']


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(environment='pendulm'), 'Did you mean pendulum'),
    (dict(environment='cartpole'), 'its actions are discrete'),
    (dict(learning_starts=300), '--learning_starts=300 is more than --buffer=256'),
    (dict(replay_batch=12), '--replay_batch=12: a multiple of the 8 environments'),
    (dict(buffer=24, learning_starts=8), '--buffer=24: 3 transitions of each environment hold no --train_frequency=4'),
    (dict(steps='1'), '--steps=1 end before --learning_starts=64'),
    (dict(batch_size=4, parallel='pmap'), 'does not divide over 8 devices'),
    (dict(batch_size=0), '--batch_size=0'),
    (dict(critics=0), '--critics=0: at least 1'),
    (dict(algorithm='td3', smoothing=-0.1), '--smoothing=-0.1: at least 0'),
    (dict(exploration=float('nan')), '--exploration=nan'),
    (dict(tau=1.5), '--tau=1.5: a number from 0 to 1'),
    (dict(temperature=0.0), '--temperature=0.0: a positive number'),
    (dict(policy_rate=-1.0), '--policy_rate=-1.0: a positive number'),
    (dict(widths=(8, 0)), 'widths'),
    (dict(activation='sigmoid'), 'unknown activation'),
  ],
)
def test_bad_input_is_one_line(given, message, tmp_path):
  with pytest.raises(UsageError, match=message) as error:
    run(tmp_path / 'run', **given)
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_twin_critics_have_params_of_their_own_and_each_is_one_critic(whole):
  settings = experiment.Config(**SMALL)
  environment = experiment.scale_action(environments.make('pendulum'))
  _, actor, critics = experiment.build(settings, environment)
  params = jax.device_get(whole.state.params)
  observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  action = np.tanh(observation[:, :1])
  values = np.asarray(jax.jit(critics)(params['critics'], observation, action))
  assert jax.eval_shape(actor, params['policy']['actor'], observation).shape == (5, 2) and values.shape == (2, 5)
  for i in range(2):  # by hand, with this critic's params
    h = np.concatenate([observation, action], -1)
    for layer in ('critic1', 'critic2'):
      h = np.maximum(h @ params['critics'][layer]['kernel'][i] + params['critics'][layer]['bias'][i], 0)
    value = h @ params['critics']['value']['kernel'][i] + params['critics']['value']['bias'][i]
    np.testing.assert_allclose(values[i], value[:, 0], rtol=1e-4, atol=1e-5)
  assert np.abs(values[0] - values[1]).min() > 1e-3


def test_an_episode_is_played(whole, tmp_path, capsys):
  assert play.main([str(whole.folder), '--seed=3', '--stochastic', f'--output={tmp_path / "a.gif"}']) == 0
  assert -2000 < float(capsys.readouterr().out.split()[1].rstrip(':')) < -1
  with Image.open(tmp_path / 'a.gif') as shown:
    assert 100 < shown.n_frames <= 201  # of 200 steps; frames that are alike may be one
