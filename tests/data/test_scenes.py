import zlib

import numpy as np
import pytest

from karpjax.data import scenes

SOME = [(split, number) for split in scenes.SIZES for number in range(60)]


@pytest.fixture(scope='module')
def made():
  return {key: scenes.scene(0, *key) for key in SOME}


def test_a_scene_is_a_function_of_seed_split_and_number(made):
  for key in SOME[::40]:
    again = scenes.scene(0, *key)
    assert all((again[name] == made[key][name]).all() for name in again)
  others = [scenes.scene(*key)['image'] for key in [(1, 'train', 0), (0, 'test', 0), (0, 'train', 1)]]
  assert all((other != made['train', 0]['image']).any() for other in others)
  assert zlib.crc32(made['train', 0]['mask'].tobytes()) == 2914314697  # of any machine


def test_boxes_classes_and_tags_tell_what_the_mask_shows(made):
  for scene in made.values():
    count = (scene['class'] >= 0).sum()
    assert 1 <= count <= scenes.MOST and not scene['boxes'][count:].any() and (scene['class'][count:] == -1).all()
    shown = {*np.unique(scene['mask'])} - {0}
    assert shown == {x + 1 for x in scene['class'][:count]} == {1 + i for i in np.flatnonzero(scene['tags'][:4])}
    inside = np.zeros_like(scene['mask'], bool)
    for top, left, bottom, right in scene['boxes'][:count].astype(int):
      assert 0 <= top < bottom <= scenes.SIZE and 0 <= left < right <= scenes.SIZE
      inside[top:bottom, left:right] = True
    assert not scene['mask'][~inside].any()
    assert scene['tags'][4:10].any() and scene['tags'][10:].any()


def test_a_lone_shape_has_the_area_and_the_colour_that_geometry_says():
  draw = np.random.default_rng(0)
  for shape, area in enumerate([np.pi, 2, 3 * 3**0.5 / 4, 1.1226]):  # of radius 1; the last of a pentagram
    covered = [scenes._covered(scenes.Thing(shape, 0, 0, *draw.uniform(31, 33, 2), 28.0, 1.0)).sum() for _ in range(20)]
    assert np.mean(covered) == pytest.approx(area * 28**2, rel=0.01)


def test_of_each_shape_enough_is_seen():
  for number in range(40):
    things, seen = scenes._layout(scenes._generator(0, 'train', number, 0), 'train')
    whole = [scenes._covered(thing).sum() for thing in things]
    assert (seen.sum((1, 2)) >= scenes.VISIBLE * np.array(whole)).all() and seen.sum(0).max() == 1


def test_two_pairs_of_shape_and_colour_are_in_one_split_alone():
  for split in scenes.SIZES:
    for number in range(60):
      pairs = [kind[:2] for kind in scenes._kinds(scenes._generator(0, split, number, 0), split)]
      assert any(pair in scenes.UNSEEN for pair in pairs) == (split == 'compositional')


def test_captions_are_true():
  for number in range(60):
    things, _ = scenes._layout(scenes._generator(0, 'test', number, 0), 'test')
    named = {scenes._named(thing): thing for thing in things}
    said = scenes.captions(0, 'test', number)
    assert said == scenes.captions(0, 'test', number) and len(said) == 5
    for text in said:
      assert any(name in text for name in named)
      for words, key in (('left of', 'x'), ('above', 'y'), ('right of', 'x'), ('below', 'y')):
        before, found, after = text.partition(f' {words} ')
        if found and len(named) == len(things):
          one = max(named, key=lambda name: before.rfind(name))
          other = next(name for name in named if after.startswith(name))
          first, second = (getattr(named[name], key) for name in (one, other))
          assert (first < second) == (words in ('left of', 'above')), text


def test_as_data_they_are_pictures_with_tags(tmp_path, monkeypatch):
  monkeypatch.setenv('KARPJAX_CACHE', str(tmp_path))
  monkeypatch.setattr(scenes, 'SIZES', {'train': 8, 'validation': 2, 'test': 2, 'compositional': 2})
  data = scenes.tagged()
  assert data.spec.multi_label and data.spec.classes == scenes.TAGS
  first = data.splits['train'].fetch(np.arange(8))
  assert (first['image'][3] == scenes.scene(0, 'train', 3)['image']).all()
  assert (first['label'] == np.stack([scenes.scene(0, 'train', i)['tags'] for i in range(8)])).all()
  [damaged] = tmp_path.glob('scenes-0-train-*.npz')
  damaged.write_bytes(damaged.read_bytes()[:-40])
  assert (scenes.tagged().splits['train'].column('image') == first['image']).all()
