"""The experiment as a user runs it: models, data, prediction, fine-tuning, what a run leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import karpjax
from experiments import image_classification as experiment
from karpjax import command_line, config
from karpjax.commands import use
from karpjax.data.dataset import Dataset, Spec
from karpjax.train import loop, weights

QUICK = dict(steps='6', batch_size=16, tensorboard=False, plots=False, steps_per_call='3', log_every='2')


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**QUICK | changes, workdir=str(folder)), say=lambda _: None)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of two seeds with all that it leaves."""
  folder = tmp_path_factory.mktemp('run')
  options = dict(model='mlp', widths=(16,), steps='30', eval_every='15', seeds=2)
  return run(folder, plots=True, tensorboard=True, **options)


def abstract(model, shape, classes=10, **changes):
  """(program, shapes of its state and of a batch) without computing anything."""
  spec = Spec('none', shape, tuple(map(str, range(classes))), 255.0, (0.5,) * shape[-1], (0.5,) * shape[-1], 100)
  settings = config.resolve(experiment.Config(model=model, batch_size=8, **changes), 100)
  program = experiment.program(settings, Dataset(spec, {}))
  batch = {
    'image': jax.ShapeDtypeStruct((8, *shape), jnp.uint8),
    'label': jax.ShapeDtypeStruct((8,), jnp.int32),
    'index': jax.ShapeDtypeStruct((8,), jnp.int32),
  }
  return program, jax.eval_shape(program.init, jax.random.key(0)), batch


@pytest.mark.parametrize('model, shape', [('cnn', (32, 32, 3)), ('lenet1989', (16, 16, 1))])
def test_step_and_evaluation_lower_for_accelerators(model, shape):
  """With XLA's own convolutions; of all models tests/models shows it."""
  program, state, batch = abstract(model, shape)
  text = jax.jit(program.step).trace(state, batch).lower(lowering_platforms=('tpu', 'cuda')).as_text()
  assert ('stablehlo.convolution' in text) == (model == 'cnn')
  masked = {**batch, 'mask': jax.ShapeDtypeStruct((8,), jnp.bool_)}
  jax.jit(program.evaluate).trace(state, masked, jax.random.key(0)).lower(lowering_platforms=('tpu', 'cuda'))


@pytest.mark.parametrize(
  'model, options',
  [
    ('logistic', {}),
    pytest.param('mlp', dict(widths=(32,)), marks=pytest.mark.slow),
    pytest.param('vit', dict(patch=2, width=16, depth=(1,), hidden=(32,), head='average'), marks=pytest.mark.slow),
    pytest.param('cnn', dict(widths=(8, 8), hidden=(16,), norm='batch', attention='se', dropout=(0.1,)), marks=pytest.mark.slow),
    pytest.param('vgg', dict(widths=(8,), hidden=(16,)), marks=pytest.mark.slow),
  ],
)  # fmt: skip
def test_models_train_on_the_default_data(tmp_path, model, options):
  numbers = run(tmp_path, model=model, steps='60', learning_rate=0.01, **options).numbers
  assert numbers['train/loss'] < 2.0 and numbers['test/accuracy'] > 0.4
  assert set(numbers) >= {'steps', 'parameters', 'validation/accuracy', 'test/error', 'test/macro_f1', 'seconds'}


@pytest.mark.slow
@pytest.mark.parametrize(
  'model, options',
  [('gru', {}), ('cnn', dict(widths=(8, 8), kernel_size=(5, 3), stride=(2,), pool=(1,), hidden=()))],
)
def test_one_dimensional_models_train_on_mnist1d(tmp_path, model, options):
  numbers = run(
    tmp_path, dataset='mnist1d', model=model, steps='200', batch_size=100, learning_rate=0.01, scale='unit', **options
  ).numbers
  assert numbers['test/accuracy'] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize('model', ['resnet20', 'resnet56', 'resnet18', 'resnet50'])
def test_residual_networks_take_small_images(tmp_path, model):
  assert np.isfinite(run(tmp_path, model=model).numbers['test/loss'])


@pytest.mark.slow
def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32(tmp_path):
  program, state, batch = abstract('cnn', (16, 16, 3), dtype='bfloat16', norm='batch', widths=(8,), hidden=(8,))
  new, metrics = jax.eval_shape(program.step, state, batch)
  floats = [x for x in jax.tree.leaves((new, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in floats} == {jnp.dtype('float32')}
  assert jax.eval_shape(program.predict, state, batch, jax.random.key(0)).dtype == jnp.float32
  text = jax.jit(program.step).lower(state, batch).as_text()
  assert 'xbf16>' in text
  plain, *_ = abstract('cnn', (16, 16, 3), norm='batch', widths=(8,), hidden=(8,))
  assert 'xbf16>' not in jax.jit(plain.step).lower(state, batch).as_text()
  assert np.isfinite(run(tmp_path, dtype='bfloat16', widths=(8,), hidden=(8,), norm='batch').numbers['train/loss'])


FILES = [
  'config.json',
  'metrics.jsonl',
  'metrics.csv',
  'summary.json',
  'index.html',
  'report.txt',
  'tensorboard',
  'checkpoints',
]
PLOTS = ['curve_loss', 'curve_accuracy', 'confusion_matrix', 'reliability_diagram', 'worst_mistakes', 'saliency']


def test_what_a_run_leaves(trained):
  assert all((trained.folder / name).exists() for name in FILES)
  assert {p.stem for p in (trained.folder / 'plots').glob('*.png')} >= set(PLOTS)
  stored = json.loads((trained.folder / 'config.json').read_text())
  assert stored['flags']['seeds'] == 2 and stored['versions']['jax'] == jax.__version__
  assert stored['compiled']['flops'] > 0
  accuracy = json.loads((trained.folder / 'summary.json').read_text())['test/accuracy']
  assert len(accuracy['values']) == 2 and accuracy['mean'] == pytest.approx(np.mean(accuracy['values']))
  # Every test example was counted once: 360 of them.
  assert all(abs(360 * x - round(360 * x)) < 1e-9 for x in accuracy['values'])


def test_an_open_run_is_that_of_the_best_checkpoint(trained):
  best, meta = weights.load_checkpoint(trained.folder)
  assert meta['step'] == meta['best']['step']
  opened = karpjax.open(trained.folder)
  np.testing.assert_array_equal(opened.state.params['logits']['kernel'], best['state/params/logits/kernel'][0])
  assert opened.step == meta['step'] <= int(trained.state.step)


@pytest.fixture
def folder_of_images(tmp_path):
  from PIL import Image

  draw = np.random.default_rng(0)
  for split, count in (('train', 40), ('test', 10)):
    for name, colour in (('red', (200, 30, 30)), ('green', (30, 200, 30)), ('blue', (30, 30, 200))):
      place = tmp_path / 'images' / split / name
      place.mkdir(parents=True)
      for i in range(count):
        pixels = np.clip(np.array(colour) + draw.integers(-30, 30, (12, 10, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f'{i}.png')
  return tmp_path / 'images'


def test_a_folder_of_images_is_learnt_and_predicted_without_the_folder(tmp_path, folder_of_images, capsys):
  options = dict(image_size=8, model='mlp', widths=(8,), steps='60', learning_rate=0.02, steps_per_call='20')
  run(tmp_path / 'run', dataset=f'folder:{folder_of_images}', **options)
  some = tmp_path / 'some.png'
  (folder_of_images / 'test' / 'green' / '3.png').rename(some)
  (folder_of_images).rename(tmp_path / 'gone')
  assert use.main('predict', [str(tmp_path / 'run'), str(some), '--top=1']) == 0
  line = capsys.readouterr().out.strip()
  assert line.startswith((f'{some}  green 0.9', f'{some}  green 1.0'))
  assert use.main('predict', [str(tmp_path / 'run'), str(tmp_path / 'nothing.png')]) == 2
  assert use.main('predict', [str(tmp_path / 'norun'), str(some)]) == 2
  assert 'no such folder' in capsys.readouterr().err


def test_init_from_matches_what_fits_and_says_the_rest(tmp_path, trained):
  """Of several seeds the first; of a file, all seeds get the same."""
  import safetensors.numpy

  short = dict(model='mlp', steps='1', learning_rate=1e-9, eval_splits=(), final_splits=())
  said, first = [], karpjax.open(trained.folder).state.params['hidden1']['kernel']
  settings = QUICK | short | dict(widths=(16, 16), workdir=str(tmp_path / 'second'), init_from=str(trained.folder))
  second = loop.run(experiment, experiment.Config(**settings), say=said.append)
  np.testing.assert_allclose(second.state.params['hidden1']['kernel'], first, atol=1e-6)
  rows = {line.split()[0]: line for line in said if line.startswith('params/')}
  assert 'matched' in rows['params/hidden1/kernel'] and 'new' in rows['params/hidden2/kernel']
  arrays = {'params.hidden1.kernel': np.ones((64, 16), np.float32), 'params.other': np.zeros(3, np.float32)}
  safetensors.numpy.save_file(arrays, tmp_path / 'w.safetensors')
  third, _ = weights.replace_weights(trained.state, weights.read(str(tmp_path / 'w.safetensors')))
  np.testing.assert_array_equal(third.params['hidden1']['kernel'], np.ones((2, 64, 16)))


@pytest.mark.slow
def test_mnist_from_a_prepared_set(tmp_path, shared_data):
  options = dict(subset='2000/500:0', model='mlp', steps='150', batch_size=64)
  assert run(tmp_path, dataset='mnist', data_dir=str(shared_data), **options).numbers['test/accuracy'] > 0.75


@pytest.mark.slow
def test_the_default_command_reads_digits(tmp_path):
  assert loop.run(experiment, experiment.Config(workdir=str(tmp_path))).numbers['test/accuracy'] >= 0.975


@pytest.mark.slow
def test_lenet_1989_on_the_zip_code_digits(tmp_path, shared_data):
  flags = ['--flagfile=experiments/papers/lecun1989.flags', f'--data_dir={shared_data}', '--seeds=1', '--noplots']
  settings = command_line.parse(experiment.Config, [*flags, f'--workdir={tmp_path}'])
  numbers = loop.run(experiment, settings).numbers
  assert 0.045 < numbers['test/error'] < 0.065 and numbers['train/error'] < 0.008


def test_areas_under_curves_with_intervals_and_a_threshold_of_validation(tmp_path):
  arrays = {}
  for split, size in (('train', 200), ('val', 60), ('test', 80)):
    labels = np.arange(size) % 2
    noise = np.random.default_rng(size).normal(size=(size, 6, 6))
    arrays[f'{split}_images'] = np.clip(110 + 40 * noise + 20 * labels[:, None, None], 0, 255).astype(np.uint8)
    arrays[f'{split}_labels'] = labels[:, None].astype(np.uint8)
  np.savez(tmp_path / 'breastmnist.npz', **arrays)
  flags = dict(
    dataset=f'medmnist:{tmp_path}/breastmnist.npz', model='logistic', auc=True, class_weights='balanced', plots=True
  )
  done = run(tmp_path / 'run', steps='60', learning_rate=0.02, select='-validation/auc', **flags)
  assert done.numbers['test/auc'] > 0.9 and 'best/test/auc' in done.numbers
  found = json.loads((tmp_path / 'run' / 'roc.json').read_text())
  assert (
    found['auc'] == pytest.approx(done.numbers['test/auc'])
    and found['interval'][0] <= found['auc'] <= found['interval'][1]
  )
  assert 'validation' in found['threshold']['chosen'] and 0 < found['threshold']['value'] < 1
  assert (tmp_path / 'run' / 'plots' / 'roc.png').exists()
