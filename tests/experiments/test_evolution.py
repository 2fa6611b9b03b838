"""Evolution strategies as a user runs them: they go on to the same bits, and every layout makes the same updates."""

import numpy as np
import pytest
from PIL import Image

from experiments import evolution as experiment
from karpjax import play
from karpjax.errors import UsageError
from karpjax.train import checkpoint, loop

SMALL = dict(
  batch_size=8, worlds=2, widths=(8,), steps='6', log_every='3', checkpoint_every='3', episodes=4,
  final_splits=('test',), tensorboard=False, plots=False, steps_per_call='1', seed=5,
)  # fmt: skip


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=lambda line: None)


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp('whole') / 'run')


def test_going_on_gives_the_same_bits(whole, tmp_path):
  run(tmp_path / 'cut', steps='3')
  one, other = arrays(whole), arrays(run(tmp_path / 'cut'))
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.slow
def test_vmapped_seeds_are_those_seeds_alone(whole, tmp_path):
  together = run(tmp_path / 'both', seeds=2, seed=4)
  for name, x in checkpoint.to_arrays(whole.state.params).items():
    np.testing.assert_allclose(checkpoint.to_arrays(together.state.params)[name][1], x, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('layout', [dict(parallel='pmap'), dict(mesh='data:4,fsdp:2')])
def test_layouts_make_the_same_updates(layout, whole, tmp_path):
  spread = run(tmp_path / 'run', **layout)
  one, other = arrays(whole), arrays(spread)
  for name in one:
    if 'key' not in name:
      np.testing.assert_allclose(other[name], one[name], rtol=2e-3, atol=2e-4, err_msg=name)
  assert spread.numbers['train/episode_return'] == pytest.approx(whole.numbers['train/episode_return'], rel=1e-3)


def test_there_is_no_stochastic_policy_to_report(whole):
  assert whole.numbers['test/episode_return'] == whole.numbers['test/episode_length']  # a cartpole's
  assert not [name for name in whole.numbers if 'stochastic' in name]


@pytest.mark.slow
def test_a_pole_is_balanced(tmp_path):
  summary = run(
    tmp_path / 'run', batch_size=32, worlds=1, steps='60', episodes=20, log_every='20', checkpoint_every='0',
    steps_per_call='20',
  )  # fmt: skip
  assert summary.numbers['test/episode_return'] > 150  # a random policy: about 22


@pytest.mark.slow
def test_continuous_actions_are_within_their_bounds(tmp_path):
  summary = run(tmp_path / 'run', environment='pendulum', steps='2', checkpoint_every='0')
  assert -1800 < summary.numbers['test/episode_return'] < -200


@pytest.mark.parametrize(
  'given, message',
  [
    (dict(environment='cartpol'), 'Did you mean cartpole'),
    (dict(batch_size=4, parallel='pmap'), 'does not divide over 8 devices'),
    (dict(batch_size=0), '--batch_size=0'),
    (dict(worlds=0), '--worlds=0: at least 1'),
    (dict(deviation=0.0), '--deviation=0.0: a positive number'),
    (dict(deviation=float('nan')), '--deviation=nan'),
    (dict(microbatches=3), '--microbatches=3 does not divide'),
    (dict(activation='sigmoid'), 'unknown activation'),
  ],
)
def test_bad_input_is_one_line(given, message, tmp_path):
  with pytest.raises(UsageError, match=message) as error:
    run(tmp_path / 'run', **given)
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_an_episode_is_played(whole, tmp_path, capsys):
  assert play.main([str(whole.folder), '--seed=3', f'--output={tmp_path / "a.gif"}']) == 0
  length = int(float(capsys.readouterr().out.split()[1].rstrip(':')))  # each step of a cartpole is worth 1
  with Image.open(tmp_path / 'a.gif') as shown:
    assert 2 <= shown.n_frames <= min(length + 1, 250)
