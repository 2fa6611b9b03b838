"""The benchmark command: its twins are our models, and its table says what was measured."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest

from karpjax.bench import command, measure
from karpjax.bench import setup as setups

pytestmark = pytest.mark.optimised


def setup_of(name, shape=None, classes=None, flags=()):
  """A set-up with other flags, shape and classes."""
  made = measure.read(name, flags)
  changes = {'shape': shape, 'classes': classes}
  return dataclasses.replace(made, **{field: value for field, value in changes.items() if value})


ADAMW = ('--optimiser=adamw', '--learning_rate=0.01', '--weight_decay=0.1')
SMALL = ('--layers=1', '--heads=2', '--width=16')
CASES = {
  **{name: (name, None, None, ('--batch_size=8',)) for name in ('logistic', 'mlp', 'cifar10_cnn')},
  'lecun1989': ('lecun1989',),
  'average': ('cnn224', (12, 12, 1), 10, ('--widths=4', '--optimiser=momentum', '--batch_size=8')),
  'gpt': ('gpt_shakespeare_cpu', (12,), 11, ('--context=12', '--batch_size=4', *SMALL, *ADAMW)),
  'lstm': ('lstm_language', (12,), 11, ('--context=12', '--units=8', '--batch_size=4', *ADAMW)),
  'translation': ('translation', (12,), 40, ('--batch_size=4', '--hidden=24', *SMALL)),
  'dcgan': ('dcgan', None, None, ('--widths=8,4', '--discriminator_widths=4,8', '--batch_size=16')),
  'wgan_gp': (
    'wgan_gp',
    None,
    None,
    ('--widths=8,4', '--discriminator_widths=4,8', '--discriminator_steps=2'),
  ),
  'ppo': ('ppo_cartpole', None, None, ('--rollout=16', '--epochs=2', '--minibatches=2')),
}
SLOW = {name: (name, (32, 32, 3), None, ('--batch_size=8',)) for name in ('resnet20', 'resnet18', 'resnet50', 'vgg')}


@pytest.mark.parametrize('name', ['average', 'gpt', 'lstm', 'translation', 'dcgan', 'ppo'])  # one for each kind of data
def test_our_step_of_a_set_up_is_traced_where_pytorch_is_not(name):
  from karpjax.bench import ours
  from karpjax.train.runner import Runner

  _, program, data, config = ours.prepared(setup_of(*CASES[name]))
  assert Runner(program, data, config).flops > 0


@pytest.mark.parametrize(
  'case',
  [pytest.param(case, id=name) for name, case in CASES.items()]
  + [pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()],
)
def test_the_twin_has_our_first_losses(case, tmp_path):
  pytest.importorskip('torch')
  if case[0] == 'ppo_cartpole':
    pytest.importorskip('gymnasium')
  from karpjax.bench import ours
  from karpjax.bench.torch import training

  setup = setup_of(*case)
  _, first_losses, facts, params = ours.training(setup, steps_per_call='1')
  ours.save(tmp_path / 'weights.npz', setup, params)
  with np.load(tmp_path / 'weights.npz', allow_pickle=False) as file:
    arrays = dict(file)
  expected = first_losses()
  assert len(set(expected)) == len(expected), 'the batches or the weights must change'
  for channels_last, fused in ((False, True), (True, False)):
    step = training.training(setup, arrays, channels_last=channels_last, fused=fused)
    found = [step().item() for _ in expected]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert facts['steps_per_call'] == 1
  assert facts['flops'] > 2 * setup.config['batch_size'] * sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2)


def test_the_twins_two_kinds_of_environments_play_alike():
  """Both are gymnasium's; an end gives the last observation and begins anew at once."""
  pytest.importorskip('torch')
  pytest.importorskip('gymnasium')
  from karpjax.bench.torch import ppo

  for kind in (ppo.OneByOne, ppo.AllAtOnce):
    environments = kind('CartPole-v1', 3)
    observation, ends = environments.reset(), 0
    for t in range(200):
      reached, reward, terminated, truncated, following = environments.step(np.array([1, 1, t % 2]))
      assert (reward == 1).all() and not truncated.any()
      fallen = (np.abs(reached[:, 2]) > 12 * 2 * np.pi / 360) | (np.abs(reached[:, 0]) > 2.4)
      np.testing.assert_array_equal(terminated, fallen)
      assert (np.abs(following[terminated]) <= 0.05).all()
      np.testing.assert_array_equal(following[~terminated], reached[~terminated])
      np.testing.assert_allclose(reached[:, 0], observation[:, 0] + 0.02 * observation[:, 1], rtol=1e-5, atol=1e-6)
      observation, ends = following, ends + terminated.sum()
    assert ends > 30


def test_every_setup_is_json():
  for setup in map(setup_of, setups.NAMES):
    assert setups.from_json(json.loads(json.dumps(dataclasses.asdict(setup)))) == setup


def fake(name, times, losses, **facts):
  facts = {'losses': losses, 'versions': 'none', **facts}
  turns = [{'seconds': t, 'peak': peak, 'memory': 2**20} for t, peak in zip(times, (100e9, 50e9, 200e9))]
  return types.SimpleNamespace(name=name, turns=turns, facts=facts)


def result(their_losses=(2.0, 1.0)):
  facts = dict(flops=5e9, parameters=7, compile_seconds=3.0, steps_per_call=1)
  ours = fake('ours', [0.1, 0.2, 0.2], (2.0, 1.0), **facts)
  theirs = fake('PyTorch', [0.3, 0.3, 0.5], their_losses, threads=2, channels_last=True, fused=False)
  wholes = [{'seconds': s, 'memory': m * 2**20} for s, m in ((5.0, 300), (9.0, 340), (6.0, 320))]
  rows = [measure.row(ours, ours, wholes), measure.row(theirs, ours)]
  return {'setup': dataclasses.asdict(setup_of('mlp')), 'machine': 'a machine', 'lacks': {}, 'rows': rows}


def test_the_ratio_is_that_of_medians_with_the_quartiles_of_turns():
  ours, theirs = result()['rows']
  assert (ours['seconds'], theirs['seconds']) == (0.2, 0.3)
  assert theirs['ratio'] == pytest.approx(1.5)
  assert theirs['ratio_quartiles'] == pytest.approx((1.5, 3))  # of 3, 1.5 and 2.5
  assert ours['share_of_peak'] == pytest.approx(5e9 / 0.2 / 100e9)
  assert theirs['share_of_peak'] == pytest.approx(5e9 / 0.3 / 100e9)
  assert (ours['all_in'], ours['memory']) == (6.0, 340 * 2**20)
  assert (theirs['all_in'], theirs['memory']) == (None, 2**20)  # of the worker
  table = measure.report('mlp', result())
  assert 'ours is 1.50 times as fast as PyTorch (quartiles of turns 1.5 – 3)' in table
  assert '2 threads, channels last' in table and 'a process that makes 1,000 steps' in table
  assert table.startswith('a machine; a matmul of 2048 × 2048: 100 GFLOP/s in ours, 100 GFLOP/s in PyTorch\n')


@pytest.mark.parametrize(
  'theirs, expected', [((2.0, 1.0), 0.0), ((2.0, 1.1), 0.1), ((float('nan'), 1.0), float('inf'))]
)
def test_disagreement_of_first_losses(theirs, expected):
  assert measure.disagreement(result(their_losses=theirs)['rows']) == pytest.approx(expected)


def test_losses_that_differ_are_an_error(monkeypatch, capsys):
  monkeypatch.setattr(measure, 'measure', lambda setup, flags: result(their_losses=(2.0, 1.001)))
  assert command.main(['mlp']) == 1
  assert 'THE FIRST LOSSES DIFFER' in capsys.readouterr().err


def test_workers_take_turns_and_a_dead_one_says_why(tmp_path, monkeypatch):
  (tmp_path / 'counting.py').write_text(
    'from karpjax.bench import worker\n'
    'worker.step_seconds = lambda run: 0.1\n'
    'def run(steps): assert steps == 10\n'
    'worker.serve(lambda job: ({"name": job["name"]}, run, lambda: print("noise")))\n'
  )
  (tmp_path / 'dying.py').write_text('raise SystemExit("out of luck")\n')
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  worker = measure.Worker(tmp_path, 'counter', sys.executable, 'counting', {'name': 'seven'})
  worker.turn(1.0)
  worker.turn(1.0)
  worker.close()
  assert worker.facts == {'name': 'seven', 'step_seconds': 0.1}
  assert len(worker.turns) == 2 and worker.turns[-1]['memory'] > 2**20
  assert worker.process.returncode == 0
  with pytest.raises(RuntimeError, match='dier stopped: out of luck'):
    measure.Worker(tmp_path, 'dier', sys.executable, 'dying', {})


@pytest.mark.parametrize(
  'argv, said',
  [
    (['resnet2'], 'Did you mean resnet'),
    (['mlp', '--round=3'], 'rounds'),
    (['mlp', '--rounds=0'], '--rounds'),
    (['mlp', '--torch_python=/nowhere/python'], '--torch_python=/nowhere/python cannot be run'),
    (['mlp', '--json=/nowhere/result.json'], 'no such folder'),
    (['all', '--only=mlp', '--rounds=6'], '--rounds=6: a recorded row needs at least 7'),
    (['all', '--only=ml'], '--only'),
    (['start', '--only=defaults'], 'Did you mean default'),
    (['start', '--torch_python=/nowhere/python'], 'cannot be run'),
  ],
)
def test_bad_input_is_one_line_and_exit_2(argv, said, capsys):
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path, capsys):
  flags = ['--batch_size=4', '--rounds=2', '--round_seconds=0.05', '--starts=1', f'--json={tmp_path / "result.json"}']
  assert command.main(['logistic', *flags, '--seeds=2', '--steps_per_call=3']) == 0
  rows = json.loads((tmp_path / 'result.json').read_text())['rows']
  names = [row['name'] for row in rows if row['name'] != 'PyTorch']
  assert names == ['ours', 'ours, 2 seeds', 'ours, 3 a call']
  assert rows[2]['steps_per_call'] == 3 and rows[2]['losses'] == pytest.approx(rows[0]['losses'], rel=1e-5)
  assert np.shape(rows[1]['losses']) == (len(rows[0]['losses']), 2)
  assert rows[0]['all_in'] > 0
  assert 'of peak' in capsys.readouterr().out
