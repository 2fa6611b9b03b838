"""Sets of TensorFlow Datasets, made on disk for a test."""

import pytest


@pytest.fixture
def prepare_tfds(tmp_path):
  """(name, features, {split: [{feature: value}]}) -> the folder of a prepared set of that name."""
  tfds = pytest.importorskip('tensorflow_datasets')

  def prepare(name, features, records):
    features = tfds.features.FeaturesDict(features) if isinstance(features, dict) else features
    methods = {
      'VERSION': tfds.core.Version('1.0.0'),
      'name': name,
      '_info': lambda self: tfds.core.DatasetInfo(builder=self, features=features),
      '_split_generators': lambda self, _: {split: iter(enumerate(rows)) for split, rows in records.items()},
      '_generate_examples': lambda self: None,
      '__module__': __name__,
    }
    builder = type(name.title(), (tfds.core.GeneratorBasedBuilder,), methods)
    builder(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    return str(tmp_path)

  return prepare
