"""The experiment as a user runs it: models, data, prediction, fine-tuning, what a run leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import image_classification as experiment
from karpjax import command_line, config, models, predict
from karpjax.data import dataset
from karpjax.data.dataset import Dataset
from karpjax.train import loop, weights

QUICK = dict(steps='6', batch_size=16, tensorboard=False, plots=False, steps_per_call='3', log_every='2')


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**QUICK | changes, workdir=str(folder)), say=lambda _: None)


def abstract(model, shape, classes=10, **changes):
  """(program, shapes of its state and of a batch) without computing anything."""
  spec = dataset.Spec(
    'none', shape, tuple(map(str, range(classes))), 255.0, (0.5,) * shape[-1], (0.5,) * shape[-1], 100
  )
  settings = config.resolve(experiment.Config(model=model, batch_size=8, **changes), 100)
  program = experiment.program(settings, Dataset(spec, {}))
  batch = {
    'image': jax.ShapeDtypeStruct((8, *shape), jnp.uint8),
    'label': jax.ShapeDtypeStruct((8,), jnp.int32),
    'index': jax.ShapeDtypeStruct((8,), jnp.int32),
  }
  return program, jax.eval_shape(program.init, jax.random.key(0)), batch


SHAPES = {'lenet1989': (16, 16, 1), 'gru': (40, 1), 'resnet18': (64, 64, 3), 'resnet50': (64, 64, 3)}
HEAVY = {'resnet56', 'resnet18', 'resnet50'}


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
@pytest.mark.parametrize(
  'model', [pytest.param(m, marks=pytest.mark.slow if m in HEAVY else ()) for m in models.MODELS]
)
def test_every_program_lowers_for_accelerators(model, platform):
  """Step and evaluation, with XLA's own convolutions."""
  program, state, batch = abstract(model, SHAPES.get(model, (32, 32, 3)))
  text = jax.jit(program.step).trace(state, batch).lower(lowering_platforms=(platform,)).as_text()
  convolves = model not in ('logistic', 'mlp', 'gru', 'lenet1989')
  assert ('stablehlo.convolution' in text) == convolves
  masked = {**batch, 'mask': jax.ShapeDtypeStruct((8,), jnp.bool_)}
  jax.jit(program.evaluate).trace(state, masked, jax.random.key(0)).lower(lowering_platforms=(platform,))


MODELS_TRAINED = {
  'logistic': {},
  'mlp': dict(widths=(32,)),
  'cnn': dict(widths=(8, 8), hidden=(16,), norm='batch', attention='se', dropout=(0.1,)),
  'vgg': dict(widths=(8,), hidden=(16,)),
}


@pytest.mark.parametrize(
  'model', [pytest.param(m, marks=[pytest.mark.slow] if m in ('cnn', 'vgg') else []) for m in MODELS_TRAINED]
)
def test_models_train_on_the_default_data(tmp_path, model):
  numbers = run(tmp_path, model=model, steps='60', learning_rate=0.01, **MODELS_TRAINED[model]).numbers
  assert numbers['train/loss'] < 2.0 and numbers['test/accuracy'] > 0.4
  assert set(numbers) >= {'steps', 'parameters', 'validation/accuracy', 'test/error', 'test/macro_f1', 'seconds'}


@pytest.mark.parametrize(
  'model, options',
  [
    pytest.param('gru', {}, marks=pytest.mark.slow),
    pytest.param(
      'cnn', dict(widths=(8, 8), kernel_size=(5, 3), stride=(2,), pool=(1,), hidden=()), marks=pytest.mark.slow
    ),
  ],
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


def test_what_a_run_leaves(tmp_path):
  run(tmp_path, model='mlp', widths=(16,), plots=True, tensorboard=True, seeds=2, eval_every='3')
  for name in (
    'config.json',
    'metrics.jsonl',
    'metrics.csv',
    'summary.json',
    'index.html',
    'report.txt',
    'tensorboard',
    'checkpoints',
  ):
    assert (tmp_path / name).exists(), name
  plots = {p.stem for p in (tmp_path / 'plots').glob('*.png')}
  assert plots >= {
    'curve_loss',
    'curve_accuracy',
    'confusion_matrix',
    'reliability_diagram',
    'worst_mistakes',
    'saliency',
  }, plots
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert (
    stored['flags']['seeds'] == 2 and stored['versions']['jax'] == jax.__version__ and stored['compiled']['flops'] > 0
  )
  summary = json.loads((tmp_path / 'summary.json').read_text())
  accuracy = summary['test/accuracy']
  assert len(accuracy['values']) == 2 and accuracy['mean'] == pytest.approx(np.mean(accuracy['values']))
  # Every test example was counted once: 360 of them.
  assert all(abs(360 * x - round(360 * x)) < 1e-9 for x in accuracy['values'])


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
  run(
    tmp_path / 'run',
    dataset=f'folder:{folder_of_images}',
    image_size=8,
    model='mlp',
    widths=(16,),
    steps='80',
    learning_rate=0.01,
  )
  some = tmp_path / 'some.png'
  (folder_of_images / 'test' / 'green' / '3.png').rename(some)
  (folder_of_images).rename(tmp_path / 'gone')
  assert predict.main([str(tmp_path / 'run'), str(some)]) == 0
  line = capsys.readouterr().out.strip().splitlines()[-1]
  assert line.startswith(f'{some}  green 0.9') or line.startswith(f'{some}  green 1.0')
  assert predict.main([str(tmp_path / 'run'), str(tmp_path / 'nothing.png')]) == 2
  assert predict.main([str(tmp_path / 'norun'), str(some)]) == 2
  assert 'holds no run' in capsys.readouterr().err


def test_prediction_is_that_of_the_best_checkpoint(tmp_path):
  summary = run(tmp_path, model='mlp', widths=(8,), steps='30', eval_every='5', seeds=2)
  best, meta = weights.newest(tmp_path)
  assert meta['step'] == meta['best']['step']
  _, state, _ = predict.load(tmp_path)
  np.testing.assert_array_equal(state.params['logits']['kernel'], best['state/params/logits/kernel'][0])
  assert int(state.step) <= int(summary.state.step)


def test_init_from_matches_what_fits_and_says_the_rest(tmp_path):
  import safetensors.numpy

  first = run(tmp_path / 'first', model='mlp', widths=(16,))
  said = []
  settings = experiment.Config(**QUICK | dict(model='mlp', widths=(16, 16), steps='1', learning_rate=1e-9, workdir=str(tmp_path / 'second')),
                               init_from=str(tmp_path / 'first'))  # fmt: skip
  second = loop.run(experiment, settings, say=said.append)
  np.testing.assert_allclose(
    second.state.params['hidden1']['kernel'], first.state.params['hidden1']['kernel'], atol=1e-6
  )
  rows = {line.split()[0]: line for line in said if line.startswith('params/')}
  assert 'matched' in rows['params/hidden1/kernel'] and 'new' in rows['params/hidden2/kernel']
  weights = {'params.hidden1.kernel': np.ones((64, 16), np.float32), 'params.other': np.zeros(3, np.float32)}
  safetensors.numpy.save_file(weights, tmp_path / 'w.safetensors')
  third = run(
    tmp_path / 'third',
    model='mlp',
    widths=(16,),
    steps='1',
    learning_rate=1e-9,
    seeds=2,
    init_from=str(tmp_path / 'w.safetensors'),
  )
  np.testing.assert_allclose(third.state.params['hidden1']['kernel'], np.ones((2, 64, 16)), atol=1e-6)


def test_mnist_from_a_prepared_set(tmp_path, shared_data):
  numbers = run(
    tmp_path, dataset='mnist', data_dir=str(shared_data), subset='2000/500:0', model='mlp', steps='150', batch_size=64
  ).numbers
  assert numbers['test/accuracy'] > 0.75


@pytest.mark.slow
def test_the_default_command_reads_digits(tmp_path):
  assert loop.run(experiment, experiment.Config(workdir=str(tmp_path))).numbers['test/accuracy'] >= 0.975


@pytest.mark.slow
def test_lenet_1989_on_the_zip_code_digits(tmp_path, shared_data):
  flags = [
    '--flagfile=experiments/papers/lecun1989.flags',
    f'--data_dir={shared_data}',
    '--seeds=1',
    f'--workdir={tmp_path}',
    '--noplots',
  ]
  numbers = loop.run(experiment, command_line.parse(experiment.Config, flags)).numbers
  assert 0.045 < numbers['test/error'] < 0.065 and numbers['train/error'] < 0.008
