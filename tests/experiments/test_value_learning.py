"""Value learning as a user runs it: it learns, goes on to the same bits, and every layout makes the same updates."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import value_learning as experiment
from karpjax import play
from karpjax.errors import UsageError
from karpjax.rl import environments
from karpjax.train import checkpoint, loop

SMALL = dict(
  batch_size=8, train_frequency=4, replay_batch=16, buffer=256, learning_starts=64, target_every=64, widths=(8, 8),
  steps='12', log_every='3', checkpoint_every='5', episodes=4, final_splits=(), tensorboard=False, plots=False,
  steps_per_call='1', exploration_steps=300, seed=5,
)  # fmt: skip
# everything that the state can hold
RAINBOW = dict(double=True, dueling=True, n_step=3, priority=0.6, atoms=11, lowest=0.0, highest=100.0)


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=lambda line: None)


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole') / 'run', **RAINBOW)


def test_going_on_gives_the_same_bits(whole, tmp_path):
  run(tmp_path / 'cut', **RAINBOW, steps='5')
  gone_on = run(tmp_path / 'cut', **RAINBOW)
  one, other = arrays(whole), arrays(gone_on)
  assert any('replay/chance' in name for name in one) and any('collections/target' in name for name in one)
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.slow
def test_vmapped_seeds_are_those_seeds_alone(whole, tmp_path):
  together = run(tmp_path / 'both', **RAINBOW, seeds=2, seed=4)
  assert np.isfinite(whole.numbers['train/td_loss'])  # something was learnt
  for name, x in checkpoint.to_arrays(whole.state.params).items():
    np.testing.assert_allclose(checkpoint.to_arrays(together.state.params)[name][1], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  'layout', [dict(parallel='pmap'), pytest.param(dict(mesh='data:4,fsdp:2'), marks=pytest.mark.slow)]
)
def test_layouts_draw_the_same_batches(layout, whole, tmp_path):
  one, other = arrays(whole), arrays(run(tmp_path / 'run', **RAINBOW, **layout))
  for name in one:
    if 'key' not in name:
      np.testing.assert_allclose(other[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_a_pole_is_balanced_longer_than_by_chance(tmp_path):
  summary = run(
    tmp_path / 'run', batch_size=8, train_frequency=1, replay_batch=64, buffer=10_000, learning_starts=200, widths=(32, 32),
    steps='3000', target_every=400, learning_rate=1e-3, exploration_steps=8000, final_splits=('test',), episodes=20,
    log_every='500', checkpoint_every='0', steps_per_call='500',
  )  # fmt: skip
  assert summary.numbers['test/episode_return'] > 100  # a random policy: about 22
  assert summary.numbers['test/stochastic_episode_return'] != summary.numbers['test/episode_return']


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(environment='cartpol'), 'Did you mean cartpole'),
    (dict(environment='pendulum'), 'its actions are continuous'),
    (dict(learning_starts=300), '--learning_starts=300 is more than --buffer=256'),
    (dict(replay_batch=12), '--replay_batch=12: a multiple of the 8 environments'),
    (dict(buffer=24, learning_starts=8), '--buffer=24: 3 transitions of each environment'),
    (dict(steps='1'), '--steps=1 end before --learning_starts=64'),
    (dict(batch_size=4, parallel='pmap'), 'does not divide over 8 devices'),
    (dict(batch_size=0), '--batch_size=0'),
    (dict(n_step=0), '--n_step=0: at least 1'),
    (dict(tau=1.5), '--tau=1.5: a number from 0 to 1'),
    (dict(atoms=1), 'two that differ'),
    (dict(atoms=5, lowest=3.0, highest=3.0), 'two that differ'),
    (dict(dueling=True, widths=()), 'at least one width'),
    (dict(activation='sigmoid'), 'unknown activation'),
  ],
)
def test_bad_input_is_one_line(given, message, tmp_path):
  with pytest.raises(UsageError, match=message) as error:
    run(tmp_path / 'run', **given)
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_dueling_values_are_the_state_s_and_what_is_over_the_mean():
  settings = experiment.Config(**SMALL | dict(dueling=True))
  environment = environments.make('cartpole')
  init, apply = experiment.build(settings, environment)
  params = init(jax.random.key(0))
  observation = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
  apply = jax.jit(apply)
  values = apply(params, observation)
  # more for all actions' advantages changes nothing, more for the state's value all values
  for stream, changed in (('advantage', values), ('value', values + 3)):
    moved = {**params, stream: {**params[stream], 'bias': params[stream]['bias'] + 3}}
    np.testing.assert_allclose(apply(moved, observation), changed, rtol=1e-4, atol=1e-5)


def test_an_episode_is_played(whole, tmp_path, capsys):
  assert play.main([str(whole.folder), '--seed=3', '--stochastic', f'--output={tmp_path / "a.gif"}']) == 0
  length = int(float(capsys.readouterr().out.split()[1].rstrip(':')))  # each step of a cartpole is worth 1
  with Image.open(tmp_path / 'a.gif') as shown:
    assert 2 <= shown.n_frames <= min(length + 1, 250)
