import gc
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from experiments import image_classification
from karpjax import errors
from karpjax.data import images
from karpjax.data.speed import Config
from karpjax.train import prepare


def write(path, value, *, size=(6, 5), mode='RGB'):
  """An image of one value, `size` [height, width]."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = size if mode in ('L', 'I;16') else (*size, 3)
  Image.fromarray(np.full(shape, value, np.uint16 if mode == 'I;16' else np.uint8)).save(path)


@pytest.fixture
def split_folder(tmp_path):
  """Class folders under train and test; each image's value is 10 · class + its number, plus 100 in test."""
  for split, first, count in (('train', 0, 4), ('test', 100, 2)):
    for label, name in enumerate(('cat', 'dog', 'eel')):
      for number in range(count):
        write(tmp_path / split / name / f'{number}.png', first + 10 * label + number)
  (tmp_path / 'train' / 'cat' / '.DS_Store').write_text('')
  (tmp_path / 'README.txt').write_text('about')
  return tmp_path


def load(folder, **flags):
  return images.load(Config(dataset=f'folder:{folder}', **{'validation': 0.0} | flags))


def test_split_folders_are_read_with_their_labels(split_folder):
  data = load(split_folder)
  assert data.spec.classes == ('cat', 'dog', 'eel') and data.spec.shape == (6, 5, 3)
  train, test = (data.splits[s].arrays for s in ('train', 'test'))
  assert train['image'][:, 2, 3, 1].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
  assert train['label'].tolist() == [0] * 4 + [1] * 4 + [2] * 4 and train['label'].dtype == np.int32
  assert test['image'][:, 0, 0, 0].tolist() == [100, 101, 110, 111, 120, 121]


def test_class_folders_alone_are_split_by_class_and_seed(tmp_path):
  for label, name in enumerate('ab'):
    for number in range(10):
      write(tmp_path / name / f'{number}.png', 100 * label + number)
  draws = []
  for seed in (0, 0, 1):
    data = load(tmp_path, split_seed=seed)
    train, test = (data.splits[s].arrays for s in ('train', 'test'))
    assert np.bincount(train['label']).tolist() == [8, 8] and np.bincount(test['label']).tolist() == [2, 2]
    for part in (train, test):
      np.testing.assert_array_equal(part['image'][:, 0, 0, 0] // 100, part['label'])
    values = np.concatenate([p['image'][:, 0, 0, 0] for p in (train, test)])
    assert sorted(values) == [*range(10), *range(100, 110)]
    draws.append(values.tolist())
  assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize('others', [(), ('val',), ('val', 'test')])
def test_a_train_folder_alone_or_with_val_or_with_both(split_folder, others):
  """Without test/ the validation folder is the test split; without either a fifth of each class is."""
  shutil.move(split_folder / 'test', split_folder / 'val')
  if 'test' in others:
    shutil.copytree(split_folder / 'val', split_folder / 'test')
  if not others:
    shutil.rmtree(split_folder / 'val')
  data = load(split_folder)
  sizes = {name: split.size for name, split in data.splits.items()}
  assert (
    sizes
    == {
      (): {'train': 10, 'test': 2},
      ('val',): {'train': 12, 'test': 6},
      ('val', 'test'): {'train': 12, 'validation': 6, 'test': 6},
    }[others]
  )
  assert data.spec.classes == ('cat', 'dog', 'eel') and data.notes[0].startswith('test: ') == ('test' not in others)


def test_train_may_be_the_name_of_a_class(tmp_path):
  for name in ('train', 'lorry'):
    for number in range(5):
      write(tmp_path / name / f'{number}.png', number)
  assert load(tmp_path).spec.classes == ('lorry', 'train')


def test_mixed_grey_and_colour_become_colour_and_grey_stays_grey(split_folder):
  write(split_folder / 'train' / 'cat' / '0.png', 7, mode='L')
  data = load(split_folder)
  assert data.spec.shape == (6, 5, 3) and '1 of 18 images are grey' in data.notes[0]
  np.testing.assert_array_equal(data.splits['train'].arrays['image'][0], 7)
  for path in split_folder.glob('*/*/*.png'):
    write(path, 9, mode='L')
  assert load(split_folder).spec.shape == (6, 5, 1)


def test_image_size_is_pillows_antialiased_filter_and_predictions_take_the_same_way(split_folder):
  photograph = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
  path = split_folder / 'train' / 'cat' / '0.png'
  Image.fromarray(photograph).save(path)
  data = load(split_folder, image_size=8)
  expected = np.asarray(Image.fromarray(photograph).resize((8, 8), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(data.splits['train'].arrays['image'][0], expected)
  np.testing.assert_array_equal(images.load_image(path, data.spec), expected)


def mislabelled(folder):
  (folder / 'test' / 'eel').rename(folder / 'test' / 'eal')


def nested(folder):
  write(folder / 'train' / 'cat' / 'more' / 'a.png', 0)


def emptied(folder):
  for path in (folder / 'train' / 'dog').iterdir():
    path.unlink()


def cut(folder):
  path = folder / 'train' / 'dog' / '1.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:90])


@pytest.mark.parametrize(
  'spoil, says',
  [
    (mislabelled, r'train and test must have the same class folders.*eal, eel'),
    (nested, r'cat/more is not a PNG or JPEG file'),
    (emptied, r'train/dog has no images'),
    (cut, r'dog/1\.png is not a readable PNG or JPEG file: '),
    (lambda f: (f / 'train/cat/1.png').write_text('x'), r'cat/1\.png is not a readable'),
    (lambda f: (f / 'train/cat/notes.txt').write_text('x'), r'notes\.txt is not a PNG or JPEG'),
    (lambda f: write(f / 'train/stray.png', 0), r'stray\.png lies beside the class folders'),
    (
      lambda f: write(f / 'train/cat/1.png', 0, size=(9, 9)),
      r'0\.png has 6×5 pixels, .*cat/1\.png has 9×9 pixels: give image_size=N',
    ),
    (lambda f: write(f / 'train/cat/1.png', 0, mode='I;16'), r'cat/1\.png has pixels of mode I;16'),
  ],
)
def test_a_faulty_folder_is_refused_by_name(split_folder, spoil, says):
  load(split_folder)
  spoil(split_folder)
  with pytest.raises(errors.UsageError, match=says) as error:
    load(split_folder)
  assert '\n' not in str(error.value)


def test_a_folder_that_is_absent_empty_or_of_one_class_is_refused(tmp_path):
  with pytest.raises(errors.UsageError, match='none is not a folder'):
    load(tmp_path / 'none')
  with pytest.raises(errors.UsageError, match='is empty'):
    load(tmp_path)
  write(tmp_path / 'cat' / 'a.png', 0)
  with pytest.raises(errors.UsageError, match='single class folder, cat'):
    load(tmp_path)


def test_a_streamed_folder_holds_hardly_more_of_a_picture_than_its_name(tmp_path):
  held = []
  for last in (1_500, 3_500):
    for name in 'ab':
      write(tmp_path / name / 'first.png', 0)
      for number in range(len(os.listdir(tmp_path / name)) - 1, last // 2):
        os.link(tmp_path / name / 'first.png', tmp_path / name / f'{number:06}.png')
    tracemalloc.start()
    data = prepare.read_data(image_classification, Config(dataset=f'folder:{tmp_path}', resident_mb=0))
    gc.collect()
    held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert data.splits['train'].arrays is None
  assert (held[1] - held[0]) / 2_000 < len(f'{tmp_path}/a/000000.png') + 100
