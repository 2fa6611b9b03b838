"""The watch for collapse warns of each sign and of nothing else; paths between latents; animations of runs that went back."""

import functools

import numpy as np
import pytest
from PIL import Image

from karpjax.data import bundled
from karpjax.report import animation, gan
from karpjax.scorer import Scorer

DIGITS = bundled.digits()
SPEC, IMAGES = DIGITS.spec, DIGITS.splits['train'].arrays['image'].astype(np.float32)
GRID = bundled.gaussians25()


def rows(real, fake, count=gan.LAST):
  return [{'step': i, 'train/discriminator_accuracy_on_real': real, 'train/discriminator_accuracy_on_fake': fake} for i in range(count)]  # fmt: skip


def warnings(spec, real, fake, history=()):
  return gan.watch(spec, None, real, fake, False, history)['warnings']


def test_nothing_to_warn_of():
  healthy = rows(0.8, 0.7)
  assert warnings(SPEC, IMAGES[:200], IMAGES[200:400], healthy) == []
  points = GRID.splits['train'].arrays['image']
  assert warnings(GRID.spec, points[:500], points[500:1000]) == []


@pytest.mark.parametrize(
  'history, warned',
  [
    (rows(0.995, 0.999), True),
    (rows([0.995, 0.1], [1.0, 0.1]), True),  # of several seeds, the first
    (rows(1.0, 0.98), False),
    (rows(1.0, 1.0)[1:], False),  # not yet for long
    ([*rows(0.5, 0.5), *rows(1.0, 1.0)], True),
    ([*rows(1.0, 1.0), {'step': 9, 'train/discriminator_accuracy_on_real': 0.9, 'train/discriminator_accuracy_on_fake': 1.0}], False),
  ],
)  # fmt: skip
def test_a_discriminator_that_is_always_right(history, warned):
  lines = warnings(SPEC, IMAGES[:200], IMAGES[200:400], history)
  assert len(lines) == warned and all('the discriminator was right in over 99 %' in line for line in lines)


def test_samples_that_are_all_alike():
  fake = IMAGES[:1] + np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype(np.float32)
  (line,) = warnings(SPEC, IMAGES[:200], fake)
  assert 'the generator makes few kinds' in line
  found = gan.watch(SPEC, None, IMAGES[:200], fake, False, ())['diversity']
  assert found['fake'] == pytest.approx(np.sqrt(2 * 64), rel=0.05)


def test_modes_that_are_left_out():
  points, labels = (GRID.splits['train'].arrays[n] for n in ('image', 'label'))
  few = points[np.isin(labels, np.arange(0, 24, 2))][:500]  # twelve modes, spread over the grid
  (line,) = warnings(GRID.spec, points[:500], few)
  assert line.startswith('12 of 25 modes are among 500 samples')
  more = points[np.isin(labels, np.arange(0, 25, 2))][:500]
  assert warnings(GRID.spec, points[:500], more) == []


def test_classes_that_are_left_out():
  scorer = functools.partial(Scorer, 'runs/scorer', 1, 10, 64)
  # its features are pixels, and it takes each image for the class of its number modulo `kinds`
  for kinds, warned in ((4, True), (5, False)):
    apply = lambda x, kinds=kinds: (x.reshape(len(x), -1), np.eye(10)[np.arange(len(x)) % kinds])
    found = gan.watch(SPEC, scorer(apply), IMAGES[:200], IMAGES[200:400], False, ())
    assert bool(found['warnings']) == warned and found['covered'] == {'classes': kinds, 'of': 10}
    assert found['class_shares']['0'] == 1 / kinds and found['class_shares']['9'] == 0
    # where samples are asked for by class, their classes say nothing
    assert gan.watch(SPEC, scorer(apply), IMAGES[:200], IMAGES[200:400], True, ())['warnings'] == []


def test_a_scorer_without_classes_says_nothing_of_them(tmp_path):
  scorer = Scorer('inception', None, 0, 64, lambda x: (x.reshape(len(x), -1), None), batch=32)
  found = gan.watch(SPEC, scorer, IMAGES[:200], IMAGES[200:400], False, ())
  assert found == gan.watch(SPEC, None, IMAGES[:200], IMAGES[200:400], False, ()) and 'covered' not in found
  (tmp_path / 'plots').mkdir()
  for conditional in (False, True):
    gan.once(
      SPEC, scorer, DIGITS.splits['train'], lambda labels, **_: IMAGES[: len(labels)], 3, conditional, tmp_path, ''
    )
    drawn = {picture.stem for picture in (tmp_path / 'plots').glob('*.png')}
    wanted = {'interpolation', 'nearest_training_examples'} | ({'samples_by_class'} if conditional else set())
    assert drawn == wanted


def test_slerp_is_a_walk_on_the_circle():
  a, b = np.array([[2.0, 0, 0]]), np.array([[0, 3.0, 0]])
  path = gan.slerp(a, b, np.linspace(0, 1, 3))
  assert path.shape == (1, 3, 3)
  middle = 2.5 * np.array([np.sqrt(0.5), np.sqrt(0.5), 0])
  np.testing.assert_allclose(path[0], [a[0], middle, b[0]], atol=1e-6)


def test_neighbours_are_the_nearest_in_order():
  draw = np.random.default_rng(0)
  points, others = draw.normal(size=(5, 3)), draw.normal(size=(40, 3))
  distances = np.linalg.norm(points[:, None] - others, axis=-1)
  np.testing.assert_array_equal(gan.neighbours(points, others, 4), np.argsort(distances, axis=1)[:, :4])


def test_an_animation_forgets_frames_of_steps_to_come(tmp_path):
  (tmp_path / 'plots').mkdir()
  for t in (100, 200, 300, 150):
    picture = tmp_path / 'plots' / 'samples.png'
    Image.fromarray(np.full((6, 6), t % 251, np.uint8)).save(picture)
    animation.over_time(picture, t, tmp_path)
  assert sorted(p.stem for p in (tmp_path / 'frames').iterdir()) == ['00000100', '00000150']
  with Image.open(tmp_path / 'plots' / 'samples_over_time.gif') as shown:
    assert shown.n_frames == 2
    shown.seek(1)
    assert np.asarray(shown.convert('L')).max() == 150
