"""Pictures are divided whole, read as they are, and cut where the grid says."""

import numpy as np
import pytest
from PIL import Image

from karpjax.data import pictures
from karpjax.errors import UsageError


def read(name, channels=0, validation=0.1, seed=0):
  return pictures.read(name, channels, validation, seed)


def write(folder, **colours):
  """Files NAME.png of 20×30 pixels, with noise in them; a number is a grey."""
  folder.mkdir(parents=True, exist_ok=True)
  draw = np.random.default_rng(0)
  for name, colour in colours.items():
    noise = draw.integers(0, 20, (20, 30, *np.shape(colour)))
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / f'{name}.png')


def test_bundled_pictures_are_those_named_and_views_of_a_scene_stay_together():
  splits, notes = read('bundled')
  assert {split: ' '.join(each) for split, each in splits.items()} == pictures.BUNDLED
  assert splits['test']['astronaut.png'].shape == (512, 512, 3)
  from skimage import data
  from sklearn import datasets

  np.testing.assert_array_equal(splits['test']['astronaut.png'], data.astronaut())
  np.testing.assert_array_equal(splits['train']['flower.jpg'], datasets.load_sample_image('flower.jpg'))
  np.testing.assert_array_equal(splits['test']['camera.png'], np.repeat(data.camera()[..., None], 3, -1))
  assert '7 of 18 images are grey' in notes[0]
  names = [name for each in splits.values() for name in each]
  assert len(set(names)) == len(names) == 18
  scenes = {split: {name.split('_')[0] for name in each} for split, each in splits.items()}
  assert not scenes['train'] & scenes['test'] and not scenes['validation'] & (scenes['train'] | scenes['test'])


def test_a_folder_is_divided_by_picture_and_always_alike(tmp_path):
  write(tmp_path, **{f'p{i}': (10 * i, 0, 0) for i in range(10)})
  splits, notes = read(f'folder:{tmp_path}', seed=3)
  sizes = {split: len(each) for split, each in splits.items()}
  assert sizes == {'train': 7, 'validation': 1, 'test': 2}
  assert sorted(name for each in splits.values() for name in each) == sorted(f'p{i}.png' for i in range(10))
  again, _ = read(f'folder:{tmp_path}', seed=3)
  assert {s: list(e) for s, e in again.items()} == {s: list(e) for s, e in splits.items()}
  others = [read(f'folder:{tmp_path}', seed=seed)[0]['test'].keys() for seed in range(6)]
  assert len(set(map(tuple, others))) > 1
  assert notes[0] == 'test: 2 of the 10 train examples, drawn with seed 3'
  assert 'validation' not in read(f'folder:{tmp_path}', validation=0)[0]


def test_a_folders_own_splits_are_kept_and_grey_among_colour_is_said(tmp_path):
  write(tmp_path / 'train', a=(9, 9, 9), b=200)
  write(tmp_path / 'test', c=(0, 0, 99))
  splits, notes = read(f'folder:{tmp_path}', validation=0)
  assert list(splits['train']) == ['a.png', 'b.png'] and list(splits['test']) == ['c.png']
  assert splits['train']['b.png'].shape == (20, 30, 3) and '1 of 3 images are grey: they become RGB' in notes[0]
  grey, notes = read(f'folder:{tmp_path}', validation=0, channels=1)
  assert grey['test']['c.png'].shape == (20, 30, 1) and not any('grey' in note for note in notes)


def test_crops_are_the_squares_of_the_grid_in_every_layer():
  draw = np.random.default_rng(0)
  low = {'a': draw.integers(0, 256, (7, 9, 3), np.uint8), 'b': draw.integers(0, 256, (5, 4, 3), np.uint8)}
  high = {name: np.repeat(np.repeat(x, 2, 0), 2, 1) for name, x in low.items()}
  both = {name: {'low': x, 'high': high[name]} for name, x in low.items()}
  split = pictures.crops(both, 4, 3)
  expected = [
    (n, r, c) for n, x in low.items() for r in range(0, x.shape[0] - 3, 3) for c in range(0, x.shape[1] - 3, 3)
  ]
  assert split.size == len(expected) == 2 * 2 + 1
  rows = split.fetch(np.arange(split.size))
  for i, (name, r, c) in enumerate(expected):
    np.testing.assert_array_equal(rows['low'][i], low[name][r : r + 4, c : c + 4])
    np.testing.assert_array_equal(rows['high'][i], high[name][2 * r : 2 * r + 8, 2 * c : 2 * c + 8])
    assert rows['picture'][i] == list(low).index(name)
  for name, x in split.fetch(np.array([4, 1])).items():
    np.testing.assert_array_equal(x, rows[name][[4, 1]])


def test_each_pixel_is_in_the_part_of_one_tile_and_has_its_neighbours_around_it():
  draw = np.random.default_rng(0)
  low = {'a': draw.integers(1, 256, (7, 9, 3), np.uint8), 'b': draw.integers(1, 256, (3, 4, 3), np.uint8)}
  both = {name: {'low': x, 'high': x.repeat(2, 0).repeat(2, 1)} for name, x in low.items()}
  split = pictures.tiles(both, 4, 2)
  assert split.size == 2 * 3 + 1
  rows = split.fetch(np.arange(split.size))
  assert rows['low'].shape == (7, 8, 8, 3) and rows['high'].shape == (7, 16, 16, 3)
  seen = {name: np.zeros(x.shape[:2], int) for name, x in low.items()}
  for i, number in enumerate(rows['picture']):
    name = list(low)[number]
    (top, bottom), (left, right) = rows['whole'][i]
    assert (bottom - top, right - left) == low[name].shape[:2]
    for row in range(8):
      for column in range(8):
        inside = top <= row < bottom and left <= column < right
        expected = low[name][row - top, column - left] if inside else np.zeros(3)
        np.testing.assert_array_equal(rows['low'][i, row, column], expected)
        counted = all(first <= n < end for n, (first, end) in zip((row, column), rows['part'][i]))
        assert not counted or (inside and 2 <= row < 6 and 2 <= column < 6)
        if counted:
          seen[name][row - top, column - left] += 1
    np.testing.assert_array_equal(rows['high'][i], rows['low'][i].repeat(2, 0).repeat(2, 1))
  assert all((each == 1).all() for each in seen.values())


def test_a_crop_larger_than_a_picture_is_refused_by_name():
  image = {name: {'image': np.zeros((40, width, 1), np.uint8)} for name, width in (('fits.png', 40), ('small.png', 32))}
  with pytest.raises(UsageError, match=r'33×33 pixels is larger than small\.png, which has 40×32'):
    pictures.crops(image, 33, 8)
  assert pictures.crops(image, 32, 8).size == 4 + 2


def test_bad_folders_get_a_line(tmp_path):
  (tmp_path / 'empty').mkdir()
  write(tmp_path / 'one', a=5)
  for name, message in {
    'bundeled': 'bundled, or folder:PATH',
    f'folder:{tmp_path}/nowhere': 'is not a folder',
    f'folder:{tmp_path}/empty': 'has no images',
    f'folder:{tmp_path}/one': 'test=0.2 of 1 examples: leave at least one on each side',
  }.items():
    with pytest.raises(UsageError, match=message) as error:
      read(name)
    assert '\n' not in str(error.value)
