"""Sets of TensorFlow Datasets, made on disk for a test."""

import functools

import pytest


@pytest.fixture(scope='session')
def make_tfds():
  """(folder, name, features, {split: rows of {feature: value}}) -> prepares a set of that name there, of version 1.0.0."""
  tfds = pytest.importorskip('tensorflow_datasets')

  def make(folder, name, features, records):
    features = tfds.features.FeaturesDict(features) if isinstance(features, dict) else features
    methods = {
      'VERSION': tfds.core.Version('1.0.0'),
      'name': name,
      '_info': lambda self: tfds.core.DatasetInfo(builder=self, features=features),
      '_split_generators': lambda self, _: {split: enumerate(rows) for split, rows in records.items()},
      '_generate_examples': lambda self: None,
      '__module__': __name__,
    }
    builder = type(name.title(), (tfds.core.GeneratorBasedBuilder,), methods)
    builder(data_dir=folder, file_format='array_record').download_and_prepare()

  return make


@pytest.fixture
def prepare_tfds(tmp_path, make_tfds):
  return functools.partial(make_tfds, tmp_path)
