import io
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets import features

from karpjax import errors
from karpjax.data import images, tfds
from karpjax.data.speed import Config


def load(name, data_dir, **flags):
  return images.load(Config(dataset=name, data_dir=str(data_dir), **{'validation': 0.0} | flags))


def picture(number, size=(6, 5)):
  return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def png(number, size):
  content = io.BytesIO()
  Image.fromarray(picture(number, size)).save(content, 'PNG')
  return content.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, make_tfds):
  """TFDS sets of random pictures: example i is `picture(i)` and has label i % 3."""
  folder = tmp_path_factory.mktemp('tfds')

  def prepare(name, splits, shape=(6, 5, 3), sizes=((6, 5),), label_of=lambda number: number % 3):
    label = features.ClassLabel(names=['red', 'green', 'blue'])
    row = lambda number: {'image': io.BytesIO(png(number, sizes[number % len(sizes)])), 'label': label_of(number)}
    records = {split: map(row, numbers) for split, numbers in splits.items()}
    make_tfds(folder, name, {'image': features.Image(shape=shape), 'label': label}, records)

  prepare('paints', {'train': range(20), 'test': range(20, 26)})
  prepare('photographs', {'train': range(10)}, shape=(None, None, 3), sizes=((6, 5), (40, 30)))
  label_of = lambda number: -1 if number >= 24 else number % 3
  prepare('hidden', {'train': range(20), 'validation': range(20, 24), 'test': range(24, 30)}, label_of=label_of)
  prepare('nameless', {'train': range(20)}, label_of=lambda number: -1)
  prepare('halves', {'train': range(8), 'validation': range(8, 12)})
  return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('KARPJAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def pictures(split):
  """The sorted numbers of the pictures a split holds; each picture must have its own label."""
  known = {picture(number).tobytes(): number for number in range(30)}
  numbers = [known[image.tobytes()] for image in split.arrays['image']]
  assert [number % 3 for number in numbers] == split.arrays['label'].tolist()
  return sorted(numbers)


def test_a_prepared_set_is_read_whole(folder):
  data = load('paints', data_dir=folder)
  assert data.spec.classes == ('red', 'green', 'blue') and data.spec.shape == (6, 5, 3)
  assert pictures(data.splits['train']) == list(range(20))
  assert pictures(data.splits['test']) == list(range(20, 26))
  assert 'kept on the device' in data.notes[-1]
  for name in ('paints:1.0.0', 'paints'):  # by version, and in DATA_DIR/tfds
    parent = folder.parent / 'above'
    parent.mkdir(exist_ok=True)
    if not (parent / 'tfds').exists():
      (parent / 'tfds').symlink_to(folder)
    assert tfds.opened(name, parent)[0].version == '1.0.0'


def test_streaming_gives_the_same_examples(folder):
  resident = load('paints', data_dir=folder)
  streamed = load('paints', data_dir=folder, resident_mb=0)
  assert streamed.splits['train'].arrays is None and 'streamed' in streamed.notes[-1]
  numbers = np.array([7, 0, 19, 7])
  for key, values in streamed.splits['train'].fetch(numbers).items():
    np.testing.assert_array_equal(values, resident.splits['train'].arrays[key][numbers])


def test_the_second_load_decodes_nothing_and_a_changed_or_broken_cache_is_not_used(folder, cache, monkeypatch):
  first = load('paints', data_dir=folder).splits['train'].fetch(np.arange(20))
  assert len(list(cache.iterdir())) == 2  # train and test, and nothing temporary
  with monkeypatch.context() as patched:
    patched.setattr(tfds, '_fetch', lambda *_: pytest.fail('decoded again'))
    again = load('paints', data_dir=folder).splits['train'].arrays
  np.testing.assert_array_equal(again['image'], first['image'])

  broken = next(cache.glob('*train*'))
  broken.write_bytes(broken.read_bytes()[:200])
  restored = load('paints', data_dir=folder).splits['train'].arrays
  np.testing.assert_array_equal(restored['image'], first['image'])
  assert broken.stat().st_size > 200

  record = next((folder / 'paints' / '1.0.0').glob('*train*record*'))
  os.utime(record, (1, 1))
  load('paints', data_dir=folder)
  assert len(list(cache.iterdir())) == 3


def test_an_unwritable_cache_is_done_without(folder, cache):
  cache.write_text('a file where the folder should be')
  assert pictures(load('paints', data_dir=folder).splits['train']) == list(range(20))


def test_a_set_without_a_test_split_uses_validation_or_a_fifth_of_train(folder):
  halves = load('halves', data_dir=folder)
  assert pictures(halves.splits['test']) == [8, 9, 10, 11] and halves.notes[0].startswith(
    "test: the set's validation split"
  )
  photographs = load('photographs', data_dir=folder, image_size=8)
  assert {k: s.size for k, s in photographs.splits.items()} == {'train': 8, 'test': 2}
  assert photographs.spec.shape == (8, 8, 3)
  expected = Image.fromarray(picture(1, (40, 30))).resize((8, 8), Image.Resampling.BILINEAR)
  both = np.concatenate([s.arrays['image'] for s in photographs.splits.values()])
  assert any(np.array_equal(image, np.asarray(expected)) for image in both)


@pytest.mark.parametrize('resident_mb', [2048, 0])
def test_a_split_whose_labels_are_hidden_is_left_out_and_said(folder, resident_mb):
  """As ImageNet's test split: its validation split is what is tested on, whether it is in memory or streamed."""
  data = load('hidden', data_dir=folder, resident_mb=resident_mb)
  assert data.notes[0] == 'test: its labels are hidden (−1), so that it is left out'
  assert {name: s.size for name, s in data.splits.items()} == {'train': 20, 'test': 4}
  assert sorted(data.splits['test'].fetch(np.arange(4))['label']) == [0, 1, 2, 2]


@pytest.mark.parametrize('resident_mb', [0, 2048])
def test_hidden_labels_of_train_are_refused_where_they_are_needed(folder, resident_mb):
  with pytest.raises(errors.UsageError, match='nameless: train has the label -1'):
    load('nameless', data_dir=folder, resident_mb=resident_mb)
  settings = Config(dataset='nameless', data_dir=str(folder), validation=0.0, resident_mb=resident_mb)
  assert images.load(settings, unlabelled=True).splits['train'].size == 16  # a fifth is for test


def test_images_of_many_sizes_want_image_size(folder):
  with pytest.raises(errors.UsageError, match='photographs has images of many sizes: give image_size'):
    load('photographs', data_dir=folder)


def test_labels_beyond_the_classes_are_refused(folder, monkeypatch):
  fetch = tfds._fetch
  monkeypatch.setattr(tfds, '_fetch', lambda *a: {**fetch(*a), 'label': np.full(len(a[-1]), -1, np.int32)})
  with pytest.raises(errors.UsageError, match='train has the label -1'):
    load('paints', data_dir=folder)


def test_missing_or_foreign_record_files_are_named(folder, tmp_path):
  shutil.copytree(folder / 'paints', tmp_path / 'paints')
  next((tmp_path / 'paints' / '1.0.0').glob('*test*record*')).unlink()
  with pytest.raises(errors.UsageError, match=r'test.*array_record.* is missing; prepare it with'):
    load('paints', data_dir=tmp_path)
  info = tmp_path / 'paints' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(errors.UsageError, match=r'holds tfrecord files; prepare it with.*--file_format=array_record'):
    load('paints', data_dir=tmp_path)


@pytest.mark.parametrize(
  'name, says',
  [
    ('cifar10', r'cifar10 is not prepared in .*nothing is downloaded.*tfds build cifar10 --file_format=array_record'),
    ('paints:9.9.9', r'paints:9.9.9 is not prepared in .*prepared there: paints:1.0.0'),
    ('cifra10', 'Did you mean cifar10'),
    ('digit', 'Did you mean digits'),
    ('qqqqqqqq', 'Known: digits, mnist1d'),
    ('', 'unknown data set'),
  ],
)
def test_a_set_that_is_not_there_is_refused_within_seconds(folder, name, says):
  start = time.monotonic()
  with pytest.raises(errors.UsageError, match=says) as error:
    load(name, data_dir=folder)
  assert time.monotonic() - start < 20 and '\n' not in str(error.value)


def test_mnist_is_the_known_one(shared_data):
  """Its test split, streamed: 10,000 images, the class counts of the original, and no TensorFlow."""
  data = load('mnist', data_dir=shared_data, resident_mb=1)
  assert {k: s.size for k, s in data.splits.items()} == {'train': 60000, 'test': 10000}
  assert data.spec.shape == (28, 28, 1) and data.spec.mean[0] == pytest.approx(0.1307, abs=0.005)
  labels = data.splits['test'].fetch(np.arange(2000))['label']
  counts = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
  np.testing.assert_allclose(np.bincount(labels) / 2000, counts / 10000, atol=0.03)
  assert 'tensorflow' not in sys.modules


def test_text_is_not_an_image_set(shared_data):
  with pytest.raises(errors.UsageError, match='tiny_shakespeare has features text; expected an image and its label'):
    load('tiny_shakespeare', data_dir=shared_data)


def test_importing_the_data_modules_imports_nothing_heavy():
  heavy = ('tensorflow_datasets', 'tensorflow', 'sklearn', 'mnist1d', 'matplotlib', 'grain')
  code = (
    'import sys\n'
    'from karpjax.data import augmentation, bundled, dataset, images, tables, tfds\n'
    f'assert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=os.path.dirname(__file__) + '/../..')
