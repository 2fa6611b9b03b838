"""Frozen networks: the layers whose outputs are features, weights under their published names, and misfits refused."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from experiments import image_classification
from karpjax import features, verbs
from karpjax.data import images
from karpjax.errors import UsageError
from karpjax.models.cnn import CNN
from karpjax.train import weights

DATA = images.load(image_classification.Config())


def test_a_scorer_gives_the_inputs_of_the_last_dense_layer(classifier):
  scorer, test = features.load(classifier, DATA.spec), DATA.splits['test']
  pixels = test.fetch(np.arange(20))['image']
  described, logits = jax.jit(scorer.apply)(jnp.asarray(pixels))
  best, _ = weights.load_checkpoint(classifier)
  params = {n.removeprefix('state/params/'): x for n, x in best.items()}
  product = described @ params['head/logits/kernel'] + params['head/logits/bias']
  np.testing.assert_allclose(product, logits, rtol=1e-4, atol=1e-4)
  assert described.shape == (20, 24) and scorer.classes == 10 and scorer.step > 0
  assert str(scorer) == f'{classifier}, step {scorer.step}, 24 features'
  by_sevens = dataclasses.replace(scorer, batch=7).features(test, np.arange(20))
  np.testing.assert_allclose(by_sevens, described, rtol=1e-5, atol=1e-5)


def test_a_scorer_that_is_half_trained_is_refused(classifier, tmp_path):
  shutil.copytree(classifier, tmp_path / 'half')
  (tmp_path / 'half' / 'summary.json').unlink()
  with pytest.raises(
    UsageError, match=r'scorer=\S*half: its training has not come to its end; python launch.py image_'
  ):
    features.load(str(tmp_path / 'half'), DATA.spec)


def test_by_its_weights_a_scorer_is_known_again(classifier, tmp_path):
  shutil.copytree(classifier, tmp_path / 'other')
  [before], [same] = features.lent(classifier).values(), features.lent(str(tmp_path / 'other')).values()
  assert before == same and features.lent('') == {}
  file = tmp_path / 'net.safetensors'
  told = [
    safetensors.numpy.save_file({'x': np.full(3, x)}, file) or features.lent(f'inception:{file}') for x in (1.0, 2.0)
  ]
  assert told[0] != told[1] and told[0].keys() == told[1].keys() == {f'the weights of scorer=inception:{file}'}


def test_a_scorer_of_other_data_is_refused(classifier, tmp_path):
  spec = dataclasses.replace(DATA.spec, shape=(16, 16, 1))
  with pytest.raises(UsageError, match=r'trained on another shape, \(8, 8, 1\), not \(16, 16, 1\)'):
    features.load(classifier, spec)
  with pytest.raises(UsageError, match=r'scorer=.*is no run'):
    features.load(str(tmp_path), spec)


def test_perceptual_features_are_the_last_convolutions_outputs(classifier):
  extract, run = features.perceptual(classifier, (8, 8, 1)), verbs.Run(classifier)
  pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)
  model, captured = CNN(classes=10, widths=(3, 5), hidden=(24,)), ['intermediates']
  inputs = (pixels - run.spec.mean) / run.spec.std
  see = lambda x: model.apply(run.state.variables(), x, train=False, capture_intermediates=True, mutable=captured)
  _, layers = jax.jit(see)(inputs)
  np.testing.assert_allclose(jax.jit(extract)(pixels), layers['intermediates']['conv2']['__call__'][0], atol=1e-5)
  with pytest.raises(UsageError, match='sees 1 channels, and the net makes 3: colour=y'):
    features.perceptual(classifier, (8, 8, 3))
  with pytest.raises(UsageError, match='does not take images of 20×20×1'):
    features.perceptual(classifier, (20, 20, 1))


def test_vgg19_is_read_from_torchvisions_names(tmp_path):
  """Narrow weights of the same names, against the layers written out."""
  draw, arrays, channels = np.random.default_rng(0), {}, 3
  layers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
  for i in layers:
    arrays[f'features.{i}.weight'] = draw.normal(0, 0.3, (4, channels, 3, 3)).astype(np.float32)
    arrays[f'features.{i}.bias'] = draw.normal(size=4).astype(np.float32)
    channels = 4
  safetensors.numpy.save_file(arrays, tmp_path / 'vgg.safetensors')
  pixels = draw.uniform(size=(2, 32, 48, 1)).astype(np.float32)
  x = (np.repeat(pixels, 3, -1) - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])

  @jax.jit
  def written_out(x):
    for i in layers:
      x = nn.relu(x) if i else x
      x = nn.max_pool(x, (2, 2), (2, 2)) if i in (5, 10, 19, 28) else x
      kernel, bias = (arrays[f'features.{i}.{name}'] for name in ('weight', 'bias'))
      x = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'OIHW', 'NHWC')) + bias
    return x

  x = written_out(x.astype(np.float32))
  extract = features.perceptual(str(tmp_path / 'vgg.safetensors'), (32, 48, 1))
  assert x.shape == (2, 2, 3, 4)
  np.testing.assert_allclose(jax.jit(extract)(pixels), x, rtol=1e-4, atol=1e-4)
  del arrays['features.34.bias']
  safetensors.numpy.save_file(arrays, tmp_path / 'part.safetensors')
  with pytest.raises(UsageError, match=r'features\.34\.bias'):
    features.perceptual(str(tmp_path / 'part.safetensors'), (32, 48, 1))
