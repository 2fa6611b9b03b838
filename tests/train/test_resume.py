"""Interrupted and continued gives the same bits as never interrupted, on each path; and one path gives the numbers of another."""

import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from experiments import image_classification as experiment
from karpjax.report import writers
from karpjax.train import checkpoint, loop, runtime

SMALL = dict(
  model='mlp', widths=(16,), norm='batch', dropout=(0.1,), augment='shift:1', batch_size=16, steps='47', log_every='10',
  eval_every='15', checkpoint_every='20', checkpoint_seconds=0, learning_rate=0.01, ema=0.9, tensorboard=False, plots=False, steps_per_call='7',
)  # fmt: skip
PATHS = {
  'one step per call': dict(steps_per_call='1'),
  'many steps per call': {},
  'seeds': dict(seeds=3),
  'pmap': dict(parallel='pmap'),
  'seeds under pmap': dict(seeds=2, parallel='pmap'),
  'seeds over devices': dict(seeds=4, parallel='seeds'),
  'streamed': dict(resident_mb=0),
  'microbatches': dict(microbatches=4),
}
SHARES = ('input_share', 'step_share', 'evaluation_share', 'logging_share', 'saving_share')
TIMES = ('seconds', 'compile_seconds', 'steps_per_second', *SHARES)


def run(folder, stop_at=(), **changes):
  """Trains; sends itself SIGTERM when the rows of the steps `stop_at` are printed."""
  stops = [f'step {t}/' for t in stop_at]

  def say(line):
    if any(line.startswith(stop) for stop in stops):
      os.kill(os.getpid(), signal.SIGTERM)

  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=say)


def rows(folder):
  return [{n: x for n, x in row.items() if n not in TIMES} for row in map(json.loads, open(folder / writers.METRICS))]


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


def assert_same_bits(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), name


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(a run of many steps a call that nothing interrupts, its folder)."""
  folder = tmp_path_factory.mktemp('whole')
  return run(folder), folder


TAKE_LONG = (
  'pmap',
  'seeds under pmap',
  'microbatches',
  'one step per call',
  'seeds over devices',
)  # each of the others has part of them


@pytest.mark.parametrize(
  'path', [pytest.param(path, marks=[pytest.mark.slow] if path in TAKE_LONG else []) for path in PATHS]
)
def test_interrupted_and_continued_gives_the_same_bits(tmp_path, path, request):
  folder = tmp_path / 'whole'
  whole, folder = (run(folder, **PATHS[path]), folder) if PATHS[path] else request.getfixturevalue('whole')
  # Rows of evaluations are always printed; the calls end at multiples of 7, so the stops fall between all other events.
  for stop in (15, 30) if path == 'many steps per call' else (15,):
    with pytest.raises(SystemExit) as stopped:
      run(tmp_path / 'parts', stop_at=(stop,), **PATHS[path])
    assert stopped.value.code == 128 + signal.SIGTERM
  parts = run(tmp_path / 'parts', **PATHS[path])
  assert_same_bits(arrays(whole), arrays(parts))
  assert rows(folder) == rows(tmp_path / 'parts')
  numbers = [{n: x for n, x in s.numbers.items() if n not in TIMES} for s in (whole, parts)]
  assert numbers[0] == numbers[1]
  if path == 'seeds':  # the step counter is not mapped over them
    assert parts.state.step.shape == () and parts.state.nonfinite_step.shape == (3,)
    assert jax.random.key_data(parts.state.key).shape == (3, 2)
    first, second, _ = parts.state.params['logits']['kernel']
    assert not np.array_equal(first, second)


def test_calls_of_any_length_give_the_same_bits(tmp_path, whole):
  assert_same_bits(arrays(whole[0]), arrays(run(tmp_path / 'again', steps_per_call='100')))


@pytest.mark.slow
def test_one_of_several_seeds_is_that_seed_alone(tmp_path):
  short = dict(steps='3', optimiser='sgd', learning_rate=0.1)
  several = run(tmp_path / 'several', seeds=3, **short)
  for s in range(3):
    alone = arrays(run(tmp_path / str(s), seed=s, **short))
    for name, x in alone.items():
      there = arrays(several)[name] if name == 'step' else arrays(several)[name][s]
      if x.dtype == np.uint32:
        assert np.array_equal(x, there)
      else:
        np.testing.assert_allclose(there, x, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_seeds_in_turn_are_those_at_once(tmp_path, monkeypatch):
  short = dict(seeds=2, optimiser='sgd', learning_rate=0.1, steps='6')
  at_once = arrays(run(tmp_path / 'at_once', **short))
  monkeypatch.setattr(runtime, 'prefer_sequential_seeds', lambda flops, convolves: True)
  whole = arrays(run(tmp_path / 'whole', **short))
  for name, x in at_once.items():
    np.testing.assert_allclose(whole[name], x, atol=1e-5, err_msg=name)


PLAIN = dict(dropout=(0.0,), steps='3', optimiser='sgd', learning_rate=0.1)


@pytest.fixture(scope='module')
def many_steps(tmp_path_factory):
  """norm -> (arrays of a short run of many steps a call, its folder), trained once."""

  @functools.cache
  def trained(norm):
    folder = tmp_path_factory.mktemp(norm)
    return arrays(run(folder, **PLAIN, norm=norm)), folder

  return trained


@pytest.mark.slow
@pytest.mark.parametrize('path', ['pmap', 'streamed', 'microbatches', 'one step per call'])
def test_paths_agree(tmp_path, path, many_steps):
  """Dropout masks differ between layouts, and batch norm's moments between microbatches: both are off."""
  norm = 'none' if path == 'microbatches' else 'batch'
  (a, folder), b = many_steps(norm), arrays(run(tmp_path, **PLAIN, norm=norm, **PATHS[path]))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(b[name], a[name], atol=1e-5, err_msg=name)
  for x, y in zip(rows(folder), rows(tmp_path), strict=True):
    for name in x:
      np.testing.assert_allclose(y[name], x[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_goes_on_under_another_layout(tmp_path):
  """One checkpoint format, whatever ran the program; test_mesh has one without an interruption that is always run."""
  plain = dict(dropout=(0.0,), optimiser='sgd', learning_rate=0.1)
  whole = arrays(run(tmp_path / 'whole', **plain))
  with pytest.raises(SystemExit):
    run(tmp_path / 'moved', stop_at=(15,), parallel='pmap', **plain)
  moved = arrays(run(tmp_path / 'moved', **plain))
  for name in whole:
    np.testing.assert_allclose(moved[name], whole[name], atol=1e-4, err_msg=name)


def test_a_finished_run_says_so_and_more_steps_go_on(tmp_path, whole):
  first = run(tmp_path / 'run', steps='30')
  before = (tmp_path / 'run' / writers.METRICS).read_bytes()
  again = run(tmp_path / 'run', steps='30')
  assert again.numbers == json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert (tmp_path / 'run' / writers.METRICS).read_bytes() == before
  more = run(tmp_path / 'run', steps='47')
  assert_same_bits(arrays(more), arrays(whole[0]))
  assert not np.array_equal(arrays(more)['params/logits/kernel'], arrays(first)['params/logits/kernel'])
