"""Pairs: which file is whose twin, which half is which, edges by scikit-image; bad folders refused in one line."""

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data
from skimage import filters

from experiments.image_to_image import Config
from karpjax.data import augmentation, pairs, pictures
from karpjax.errors import UsageError


def load(dataset, **options):
  return pairs.load(Config(dataset=dataset, **{'even_light': 0.0} | options))


def save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def noise(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def folders(root, names=('input', 'target'), splits=('train', 'test'), count=10, size=(16, 12)):
  """Twins, inputs in grey and targets in colour: {(split, name): (input, target)}."""
  made = {}
  for s, split in enumerate(splits):
    for i in range(count):
      pair = noise(100 * s + i, *size), noise(5000 + 100 * s + i, *size, 3)
      for name, pixels in zip(names, pair):
        save(root / split / name / f'{i:03d}.png', pixels)
      made[split, i] = pair
  return made


@pytest.mark.parametrize('names, resident', zip(pairs.TWINS, (2048, 0)))
def test_twins_are_files_of_the_same_name(tmp_path, names, resident):
  made = folders(tmp_path, names)
  data = load(f'pairs:{tmp_path}', validation=2, resident_mb=resident)
  assert data.spec == pairs.Spec(f'pairs:{tmp_path}', (16, 12, 1), (16, 12, 3), 8)
  assert {name: s.size for name, s in data.splits.items()} == {'train': 8, 'test': 10, 'validation': 2}
  assert (data.splits['test'].arrays is None) == (resident == 0)
  batch = data.splits['test'].fetch(np.array([7, 2]))
  np.testing.assert_array_equal(batch['input'][..., 0], [made['test', i][0] for i in (7, 2)])
  np.testing.assert_array_equal(batch['target'], [made['test', i][1] for i in (7, 2)])
  back = load(f'pairs:{tmp_path}', direction='backward', validation=2)
  assert back.spec.input == (16, 12, 3) and back.spec.target == (16, 12, 1)
  np.testing.assert_array_equal(back.splits['test'].fetch(np.array([7, 2]))['input'], batch['target'])
  assert pairs.Spec.from_json(back.spec.to_json()) == back.spec


def test_the_left_half_is_the_input(tmp_path):
  for split, i in (('train', 0), ('train', 1), ('val', 0), ('test', 0)):
    save(tmp_path / split / f'{i}.png', noise(i, 8, 24, 3))
  data = load(f'side_by_side:{tmp_path}')
  assert set(data.splits) == {'train', 'validation', 'test'} and data.spec.input == (8, 12, 3)
  batch = data.splits['train'].fetch(np.array([1]))
  np.testing.assert_array_equal(np.concatenate([batch['input'], batch['target']], 2)[0], noise(1, 8, 24, 3))
  # halves are resized each for itself: a black and a white one stay so
  halves = np.zeros((8, 24), np.uint8)
  halves[:, 12:] = 255
  save(tmp_path / 'train' / '1.png', halves)
  small = load(f'side_by_side:{tmp_path}', image_size=4, channels=1).splits['train'].fetch(np.array([1]))
  assert (small['input'] == 0).all() and (small['target'] == 255).all() and small['input'].shape == (1, 4, 4, 1)


def test_edges_are_scikit_image_s_and_lie_where_the_picture_has_them():
  data = load('edges', image_size=32, even_light=3, resident_mb=0)
  assert data.spec.input == data.spec.target == (32, 32, 1)
  test, camera = data.splits['test'], skimage_data.camera()  # the last picture of the split: 16 × 16 crops
  batch = test.fetch(np.array([test.size - 255]))
  difference = filters.gaussian(camera / 255, 1, mode='nearest') - filters.gaussian(camera / 255, 1.6, mode='nearest')
  strokes = 255 * np.clip(1 + 12 * difference, 0, 1)
  np.testing.assert_allclose(batch['input'][0, ..., 0], strokes[:32, 32:64], atol=0.5 + 1e-6)
  around = filters.gaussian(camera, 3, mode='reflect', preserve_range=True)
  even = np.clip(camera - around + 128, 0, 255)
  np.testing.assert_allclose(batch['target'][0, ..., 0], even[:32, 32:64], atol=0.51)


def test_strokes_lie_on_the_dark_side_of_an_edge():
  step = np.full((16, 16, 3), 40, np.uint8)
  step[:, 8:] = 200
  strokes = pictures.edges(step)[8, :, 0]
  assert strokes[4:8].min() < 150 and (strokes[8:] == 255).all() and (strokes[:3] == 255).all()


def test_even_light_leaves_nothing_of_a_constant_and_zero_leaves_the_picture():
  np.testing.assert_array_equal(pictures.in_even_light(np.full((20, 20, 3), 240, np.uint8), 4), 128)
  picture = noise(0, 8, 8, 1)
  np.testing.assert_array_equal(pictures.in_even_light(picture, 0), picture)


def test_both_images_of_a_pair_move_alike():
  batch = {'input': noise(0, 8, 12, 12, 1), 'target': np.repeat(noise(0, 8, 12, 12, 1), 3, -1), 'index': np.arange(8)}
  steps = augmentation.parse('flip,enlarge:4', pairs.MOVES)
  moved = jax.jit(lambda key, batch: pairs.augment(steps, key, batch))(jax.random.key(0), batch)
  assert moved['input'].shape == (8, 12, 12, 1) and moved['target'].shape == (8, 12, 12, 3)
  assert not np.array_equal(moved['input'], batch['input'])
  np.testing.assert_allclose(moved['target'], np.repeat(moved['input'], 3, -1), atol=1e-3)
  with pytest.raises(UsageError, match='augmentation mixup: here only flip, enlarge'):
    augmentation.parse('flip,mixup:0.2', pairs.MOVES)


def _mix_sizes(root):
  save(root / 'train' / 'input' / '003.png', noise(0, 16, 14))


def _mix_modes(root):
  save(root / 'train' / 'target' / '003.png', noise(0, 16, 12))


def _orphan(root):
  (root / 'test' / 'target' / '007.png').unlink()


def _no_twins(root):
  (root / 'train' / 'target').rename(root / 'train' / 'photos')


@pytest.mark.parametrize(
  'spoil, says',
  [
    (_mix_sizes, r'16×12 pixels.*003.png has 16×14 pixels: give image_size'),
    (_mix_modes, r'target/000.png is RGB, .*target/003.png is grey: give channels'),
    (_orphan, r'test/input/007.png has no twin: there is no .*test/target/007.png'),
    (_no_twins, r'has no folders input and target, nor A and B'),
  ],
)
def test_bad_folders_are_refused_in_one_line(tmp_path, spoil, says):
  folders(tmp_path)
  spoil(tmp_path)
  with pytest.raises(UsageError, match=says) as error:
    load(f'pairs:{tmp_path}')
  assert '\n' not in str(error.value)


def test_mixed_sizes_and_modes_are_taken_where_asked_for(tmp_path):
  folders(tmp_path)
  _mix_sizes(tmp_path)
  _mix_modes(tmp_path)
  data = load(f'pairs:{tmp_path}', image_size=8, channels=3)
  assert data.spec.input == data.spec.target == (8, 8, 3)


@pytest.mark.parametrize(
  'name, says',
  [
    ('pairs', 'pairs:PATH or side_by_side:PATH'),
    ('facades', 'pairs:PATH or side_by_side:PATH'),
    ('side_by_side:/nowhere', 'not a folder'),
    ('pairs:/nowhere', 'not a folder'),
  ],
)
def test_bad_names_are_refused_in_one_line(name, says):
  with pytest.raises(UsageError, match=says) as error:
    load(name)
  assert '\n' not in str(error.value)


def test_an_odd_width_has_no_halves(tmp_path):
  save(tmp_path / 'train' / 'a.png', noise(0, 8, 24))
  save(tmp_path / 'train' / 'b.png', noise(0, 8, 25))
  with pytest.raises(UsageError, match='b.png has 8×25 pixels: an odd width'):
    load(f'side_by_side:{tmp_path}', image_size=8, validation=0.0)
