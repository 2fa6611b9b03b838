"""What transforms the step, all at once: a private student of few bits that is pruned; it runs as all else does."""

import functools

import numpy as np
import pytest

from experiments import image_classification as experiment
from karpjax import verbs
from karpjax.lean import privacy
from karpjax.report import writers
from karpjax.train import checkpoint
from tests import stopped

PLAIN = dict(
  model='mlp', widths=(8,), batch_size=16, steps='8', log_every='4', eval_every='4', checkpoint_every='4',
  checkpoint_seconds=0, learning_rate=0.01, tensorboard=False, plots=False, steps_per_call='3',
)  # fmt: skip
ALL = PLAIN | dict(
  seeds=2, dp_noise=1.0, dp_clip=0.5, order='poisson', quantise='w4', sparsity=0.5, sparsity_until='6',
  sparsity_every='2', dropout=0.3,
)  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that has a teacher."""
  teacher = tmp_path_factory.mktemp('teacher')
  stopped.run(experiment, PLAIN, teacher, say=lambda _: None, steps='4')
  return functools.partial(stopped.run, experiment, ALL | {'teacher': str(teacher)})


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """(the arrays of a run, its folder)."""
  folder = tmp_path_factory.mktemp('whole')
  return checkpoint.to_arrays(run(folder).state), folder


def kernels(arrays):
  return {name: x for name, x in arrays.items() if name.startswith('params/') and name.endswith('/kernel')}


def test_weights_also_the_best_are_pruned_and_of_few_bits_and_epsilon_is_told(whole):
  best = checkpoint.to_arrays({'params': verbs.Run(whole[1], member=1).state.params})
  for kernel in [each for x in kernels(whole[0]).values() for each in x] + [*kernels(best).values()]:
    assert (kernel == 0).mean() >= 0.5
    steps = kernel / np.maximum(np.abs(kernel).max(0) / 7, 1e-30)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
  for row in writers.read_rows(whole[1]):
    examples = round(row['step'] * 16 / row['epoch'])
    assert row['train/epsilon'] == pytest.approx(privacy.epsilon(16 / examples, 1.0, row['step'], 1e-5))


def test_seeds_go_on_to_the_same_bits(whole, run, tmp_path):
  with pytest.raises(SystemExit):
    run(tmp_path, stop_at=4)
  again = checkpoint.to_arrays(run(tmp_path).state)
  assert again.keys() == whole[0].keys()
  assert all(again[name].tobytes() == x.tobytes() for name, x in whole[0].items())


@pytest.mark.parametrize(
  'layout',
  [
    dict(parallel='pmap', microbatches=2),
    pytest.param(dict(mesh='data:2,fsdp:4', resident_mb=0), marks=pytest.mark.slow),
  ],
  ids=' '.join,
)
def test_every_layout_trains_alike(whole, run, tmp_path, layout):
  arrays = checkpoint.to_arrays(run(tmp_path, **layout).state)
  for name, x in whole[0].items():
    if name.startswith('params/'):
      assert np.isclose(arrays[name], x, atol=1e-4).mean() > 0.98, name  # but for roundings
