"""Every model of every experiment learns by its defaults: on real data that they were not chosen on, in a short run.

It must do better, by a margin, than a guess that is named. Those of reinforcement learning have rows of experiments/papers.
"""

import gzip
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gan, image_to_image
from karpjax import models
from karpjax.metrics import distribution
from karpjax.models import gan as gan_models
from karpjax.models import language, seq2seq, super_resolution, tagging
from karpjax.models import text as text_models
from karpjax.report import writers
from karpjax.train import loop
from karpjax.train.prepare import prepare

pytestmark = pytest.mark.slow
STEPS = {'bigram': 400, 'counts': 1, 'resnet18': 40, 'resnet50': 40, 'resnet56': 40, 'resnet20': 80, 'vgg': 60}
SLOW = ('gru', 'resnet50')  # of which so few steps show a beginning
PAIRS, WORDS = 20_000, 13  # of a translator: sentences, and their words at the most


@pytest.fixture(scope='module')
def files(shared_data, tmp_path_factory):
  """{what: a path, or where a data_dir is} of real data."""
  found, folder = shared_data / 'files', tmp_path_factory.mktemp('real')
  sides = [
    gzip.decompress((found / f'multi30k/train.{side}.gz').read_bytes()).decode().splitlines() for side in ('de', 'en')
  ]
  pairs = [pair for pair in zip(*sides) if max(len(text.split()) for text in pair) <= WORDS][:PAIRS]
  for side, lines in zip(('de', 'en'), zip(*pairs)):
    (folder / f'my.{side}').write_text('\n'.join(lines))
  (folder / 'text').mkdir()
  (folder / 'text' / 'captions.txt').write_text('\n'.join(sides[1]))
  (folder / 'tags').mkdir()
  for split in ('train', 'valid', 'test'):
    words, tags = ((found / 'snips' / split / f'seq.{x}').read_text().splitlines() for x in ('in', 'out'))
    both = zip((line.split() for line in words), (line.split() for line in tags))
    lines = ['\n'.join(f'{word} {tag}' for word, tag in zip(*each)) + '\n' for each in both]
    (folder / 'tags' / f'{split}.txt').write_text('\n'.join(lines))
  return {'made': folder, 'found': found, 'tfds': shared_data / 'tfds'}


def trained(experiment: str, tmp_path, steps: int = 150, **flags):
  """(Program, the last row of training metrics, Summary) of a run by defaults, but for its length and these flags."""
  module = importlib.import_module(f'experiments.{experiment}')
  own = dict(
    steps=str(steps), log_every=str(max(1, steps // 5)), eval_every='0', checkpoint_every='0', report_every='0'
  )
  quiet = dict(plots=False, tensorboard=False, eval_splits=(), workdir=str(tmp_path))
  config = module.Config(**{'final_splits': ('validation',), **own, **quiet, **flags})
  said = []
  program, *bound = prepare(module, config)
  summary = loop.train(program, *bound, experiment=experiment, say=said.append)
  assert not [line for line in said if 'no better than' in line], said
  row = [row for row in writers.read_rows(tmp_path) if 'train/loss' in row or 'train/generator_loss' in row][-1]
  return program, row, summary


def digits(files) -> dict:
  return dict(dataset='mnist', data_dir=str(files['tfds']), subset='3000/500:1')


def beats_guess(found, margin=0.9):
  """Under so much of the loss of a guess by frequencies: the unigram entropy of tokens, each pixel's own grey value."""
  program, row, _ = found
  assert row['train/loss'] < margin * program.uninformed_loss, (row, program.uninformed_loss)


@pytest.mark.parametrize('model', language.MODELS)
def test_language_models_beat_the_unigram_entropy(model, files, tmp_path):
  beats_guess(
    trained('language_model', tmp_path, STEPS.get(model, 120), model=model, dataset=f'text:{files["made"] / "text"}')
  )


def test_a_masked_language_model_beats_the_unigram_entropy(files, tmp_path):
  beats_guess(trained('masked_language_model', tmp_path, 600, dataset=f'text:{files["made"] / "text"}'), 0.95)


@pytest.mark.parametrize('model', seq2seq.MODELS)
def test_translators_beat_the_unigram_entropy(model, files, tmp_path):
  """Those of the README's command, its transformer well within 300 steps."""
  dataset = f'files:{files["made"] / "my.de"},{files["made"] / "my.en"}'
  steps, margin = (300, 0.75) if model == 'transformer' else (120, 0.9)
  beats_guess(trained('translation', tmp_path, steps, model=model, dataset=dataset, final_splits=()), margin)


@pytest.mark.parametrize('model', text_models.MODELS)
def test_text_classifiers_beat_the_largest_class(model, files, tmp_path):
  dataset = dict(dataset=str(files['found'] / 'banking77' / 'train.csv'), columns=('text', 'category'))
  found = trained('text_classification', tmp_path, model=model, baseline=False, **dataset)
  beats_guess(found)
  assert found[2].numbers['validation/accuracy'] > 10 * 0.0187  # that of the largest of 77 classes: 187 of 10,003


@pytest.mark.parametrize('model', tagging.MODELS)
def test_taggers_beat_the_commonest_tag(model, files, tmp_path):
  found = trained('token_classification', tmp_path, model=model, dataset=f'conll:{files["made"] / "tags"}')
  beats_guess(found)
  assert found[2].numbers['validation/f1'] > 0.3  # of entities; O everywhere finds none


@pytest.mark.parametrize('model', models.MODELS)
def test_image_classifiers_beat_the_largest_class(model, files, tmp_path):
  own = (
    dict(dataset='mnist1d') if model == 'gru' else digits(files) | dict(image_size=16 if model == 'lenet1989' else 0)
  )
  found = trained('image_classification', tmp_path, STEPS.get(model, 150), model=model, **own)
  beats_guess(found)
  assert found[2].numbers['validation/accuracy'] > (0.2 if model in SLOW else 0.4)  # each class is a tenth


@pytest.mark.parametrize('model', ['linear', 'mlp'])
@pytest.mark.parametrize('dataset', ['diabetes', 'breast_cancer'])
def test_regression_beats_the_mean_and_the_larger_class(dataset, model, tmp_path):
  beats_guess(trained('regression', tmp_path, 300, model=model, dataset=dataset), 0.7)


@pytest.mark.parametrize('model', super_resolution.MODELS)
def test_super_resolution_beats_bicubic(model, files, tmp_path):
  small = dict(blocks=4, crop=16, batch_size=8) if model == 'srresnet' else {}
  folder = f'folder:{files["found"] / "style"}'
  numbers = trained('super_resolution', tmp_path, model=model, dataset=folder, **small)[2].numbers
  assert numbers['validation/psnr'] > numbers['validation/bicubic_psnr'] + 0.1


def test_image_to_image_beats_the_source_copied_and_a_uniform_grey(files, tmp_path):
  flags = dict(dataset=f'edges:{files["found"] / "style"}', validation=0.1)
  numbers = trained('image_to_image', tmp_path, 500, **flags)[2].numbers
  pairs = image_to_image.data(image_to_image.Config(**flags)).splits['validation']
  source, target = (pairs.column(name) / 255 for name in ('input', 'target'))
  assert numbers['validation/l1'] < 0.5 * np.abs(source - target).mean()
  assert numbers['validation/l1'] < 0.96 * np.abs(np.median(target) - target).mean()


def test_a_vae_beats_each_pixels_own_grey_value(files, tmp_path):
  beats_guess(trained('vae', tmp_path, 200, **digits(files)))


@pytest.mark.parametrize('model', gan_models.GENERATORS)
def test_gans_come_closer_to_the_data_than_an_untrained_generator(model, files, tmp_path):
  """By the Fréchet distance of pixels, of 500 samples."""
  small = dict(widths=(32, 16), batch_size=16) if model == 'sngan' else {}
  real = gan.data(gan.Config(**digits(files))).splits['train'].column('image')[:500]
  batch, distances = {'index': jnp.arange(500), 'label': jnp.zeros(500, jnp.int32)}, []
  for steps in (1, 200):
    program, _, summary = trained(
      'gan', tmp_path / str(steps), steps, model=model, final_splits=(), **digits(files), **small
    )
    fake = jax.jit(program.predict)(summary.state, batch, jax.random.key(0))
    distances.append(distribution.frechet_distance(*(np.reshape(x, (500, -1)) / 255 for x in (real, fake))))
  assert distances[1] < 0.7 * distances[0]
