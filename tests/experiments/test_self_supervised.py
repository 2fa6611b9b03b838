"""Learning without labels: each method learns, in every layout, goes on to the bit, and lends its trunk."""

import jax
import numpy as np
import pytest
from PIL import Image

import karpjax
from experiments import image_classification
from experiments import self_supervised as experiment
from karpjax.errors import UsageError
from karpjax.train import checkpoint, loop
from karpjax.train.prepare import prepare
from tests import stopped

RUN = dict(
  model='mlp', widths=(32,), projection=(16, 8), batch_size=64, steps='6', eval_every='3', checkpoint_every='3', log_every='3',
  checkpoint_seconds=0, steps_per_call='3', tensorboard=False, plots=False, learning_rate=0.01, subset='600/100:0',
)  # fmt: skip
PLAIN = dict(projection=(128, 64))  # the default, which a method without a projection does not read
VIT = dict(**PLAIN, model='vit', widths=None, patch=2, width=32, depth=1, heads=2, decoder=(32, 1))


def run(folder, stop_at=0, **changes):
  return stopped.run(experiment, RUN, folder, stop_at, **changes)


@pytest.fixture(scope='module')
def learnt(tmp_path_factory):
  return run(tmp_path_factory.mktemp('run'), steps='120', steps_per_call='40', eval_every='60', plots=True)


def test_it_learns_what_labels_would_tell(learnt):
  numbers = learnt.numbers
  assert numbers['test/knn_accuracy'] > 0.85 and numbers['test/linear_accuracy'] > 0.85
  assert numbers['test/spread'] > 0.7 and numbers['test/effective_rank'] > 3
  assert {'features', 'neighbours', 'views'} <= {p.stem for p in (learnt.folder / 'plots').glob('*.png')}


def test_its_trunk_is_what_a_classifier_begins_with(learnt, tmp_path):
  flags = dict(model='mlp', widths=(32,), steps='30', batch_size=64, plots=False, tensorboard=False, learning_rate=0.03)
  flags |= dict(init_from=str(learnt.folder), freeze=('trunk',), subset='600/100:0', log_every='0')
  probe = loop.run(
    image_classification, image_classification.Config(**flags, workdir=str(tmp_path)), say=lambda _: None
  )
  best = karpjax.open(learnt.folder).state.params['trunk']['hidden1']['kernel']
  np.testing.assert_array_equal(probe.state.params['hidden1']['kernel'], best)
  assert probe.numbers['test/accuracy'] > 0.8


def test_embed_gives_the_features_of_files(learnt, tmp_path):
  Image.new('L', (8, 8), 90).save(tmp_path / 'a.png')
  [answer] = karpjax.open(learnt.folder).embed([str(tmp_path / 'a.png')])
  assert len(answer['features']) == 32 and np.isfinite(answer['features']).all()


@pytest.mark.parametrize('method, more', [
  pytest.param('byol', {}, marks=pytest.mark.slow),
  pytest.param('barlow', {}, marks=pytest.mark.slow),
  pytest.param('rotation', PLAIN, marks=pytest.mark.slow),
  ('mae', VIT),
])  # fmt: skip
def test_every_method_goes_on_to_the_bit(tmp_path, method, more):
  more = dict(more, method=method, steps='9')
  whole = run(tmp_path / 'whole', **more)
  stopped.goes_on_to(checkpoint.to_arrays(whole.state), run, tmp_path / 'parts', 3, **more)
  assert np.isfinite(whole.numbers['train/loss']) and 0 <= whole.numbers['test/knn_accuracy'] <= 1


@pytest.mark.slow
@pytest.mark.parametrize('method', experiment.METHODS)
@pytest.mark.parametrize('layout', [dict(parallel='pmap'), dict(mesh='data:8'), dict(seeds=2)])
def test_every_layout_learns_as_one_device(tmp_path, method, layout):
  more = {'mae': VIT, 'rotation': PLAIN}.get(method, {})
  alone, other = (
    run(tmp_path / 'a', method=method, **more).numbers,
    run(tmp_path / 'b', method=method, **more, **layout).numbers,
  )
  first = lambda x: x['values'][0] if isinstance(x, dict) else x
  for name in ('train/loss', 'test/spread', 'test/effective_rank'):
    assert first(other[name]) == pytest.approx(first(alone[name]), rel=2e-3), name


@pytest.mark.slow
def test_series_are_learnt_from_by_views_of_their_own(tmp_path):
  augment = 'detrend,cycle:10,slope:0.04,offset:0.3'
  series = dict(
    dataset='mnist1d', augment=augment, subset='', model='cnn', widths=(8, 8), kernel_size=(5, 3), stride=2, padding='1'
  )
  numbers = run(tmp_path, **series | dict(pool=1, hidden=(), steps='300', steps_per_call='100', eval_every='0')).numbers
  assert numbers['test/linear_accuracy'] > 0.5


def test_byol_s_target_is_an_average_of_what_learns():
  program, data, _ = prepare(experiment, experiment.Config(**RUN | dict(method='byol', target_decay=0.5)))
  before = jax.jit(program.init)(jax.random.key(0))
  batch = {**data.splits['train'].fetch(np.arange(64)), 'index': np.arange(64)}
  after, _ = jax.jit(program.step)(before, batch)
  expected = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, before.params, after.params)  # the cosine begins at the flag
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.target, expected)


@pytest.mark.parametrize('changes, says', [
  (dict(method='mae'), 'method=mae is of model=vit, not mlp'),
  (dict(method='rotation', dataset='mnist1d', subset=''), 'method=rotation is of square images'),
  (dict(method='byol', projection=()), 'method=byol needs a projection'),
  (dict(dp_noise=1.0, dp_accept_shuffle=True, projection_norm=False), 'dp_noise: the loss of method=simclr is of a whole batch'),
  (dict(augment='detrend'), 'augmentation detrend is for series'),
  (dict(masked=0.5), 'masked'),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(changes, says):
  with pytest.raises(UsageError, match=says):
    loop.run(experiment, experiment.Config(**RUN | changes, workdir=''), say=str)
