"""Random data in the shapes of the benchmark's set-ups."""

import numpy as np

from karpjax.bench.setup import Setup
from karpjax.data import dataset, language, text, tokenisers
from karpjax.rl import agents


def images(setup: Setup, config) -> dataset.Dataset:
  """Images, as many as make epochs of a usual length but no more than 32 MB, since a twin holds no more."""
  random = np.random.default_rng(0)
  size = max(10 * config.batch_size, min(8192, 2**25 // int(np.prod(setup.shape))))
  arrays = {
    'image': random.integers(0, 256, (size, *setup.shape), dtype=np.uint8),
    'label': random.integers(0, setup.classes, size, dtype=np.int32),
  }
  half, names = (0.5,) * setup.shape[-1], tuple(map(str, range(setup.classes)))
  return dataset.Dataset(
    dataset.Spec('random', setup.shape, names, 255.0, half, half, size), {'train': dataset.Split.of(**arrays)}
  )


def _vocabulary(setup: Setup) -> tokenisers.Tokeniser:
  return tokenisers.Tokeniser('characters', tuple(chr(0x4E00 + i) for i in range(setup.classes)))


def tokens(setup: Setup, config) -> dataset.Dataset:
  """A running text."""
  drawn = np.random.default_rng(0).integers(0, setup.classes, 200_000)
  split = language.windowed(drawn, setup.shape[0], overlap=None)
  spec = text.TextSpec('random', split.size, {'text': _vocabulary(setup)}, {'text': setup.shape[0]})
  return dataset.Dataset(spec, {'train': split})


def pairs(setup: Setup, config) -> dataset.Dataset:
  """Sources and targets, each of half to all of the length, with padding behind."""
  random, length, size = np.random.default_rng(0), setup.shape[0], 20 * config.batch_size

  def side():
    real = np.arange(length) < random.integers(length // 2, length + 1, (size, 1))
    return np.where(real, random.integers(1, setup.classes, (size, length), dtype=np.int32), 0)

  source, target = side(), side()
  before = np.concatenate([np.ones((size, 1), np.int32), target[:, :-1]], 1)
  arrays = {'source': source, 'target_in': before, 'targets': np.where(target, target, -1)}
  both = lambda x: {'source': x, 'target': x}
  spec = text.TextSpec('random', size, both(_vocabulary(setup)), both(length))
  return dataset.Dataset(spec, {'train': dataset.Split.of(**arrays, reference=np.arange(size, dtype=np.int32))})


DATA = {
  'image_classification': images,
  'gan': images,
  'language_model': tokens,
  'translation': pairs,
  'policy_gradient': lambda setup, config: agents.data(config),
}
