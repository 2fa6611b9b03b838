"""Signs of collapse, a walk between latents and the nearest examples, against made samples and plain NumPy."""

import functools

import numpy as np
import pytest

from karpjax.data import bundled
from karpjax.features import Scorer
from karpjax.report import samples

DIGITS = bundled.digits()
IMAGES = DIGITS.splits['train'].arrays['image'].astype(np.float32)
GRID = bundled.gaussians25()
MODES = bundled.GRID, bundled.GRID_STD


def rows(real, fake, count=samples.LAST):
  names = [f'train/discriminator_accuracy_on_{kind}' for kind in ('real', 'fake')]
  return [{'step': i, names[0]: real, names[1]: fake} for i in range(count)]


def warnings(real, fake, history=(), modes=None):
  return samples.collapse(history, None, real, fake, modes=modes)['warnings']


@pytest.mark.filterwarnings('ignore:invalid value')
def test_samples_that_are_not_finite_are_no_good_sign():
  fake = IMAGES[200:400].astype(np.float32)
  fake[7] = np.nan
  assert any('NaN or infinity' in line for line in warnings(IMAGES[:200], fake))


def test_nothing_to_warn_of():
  healthy = rows(0.8, 0.7)
  assert warnings(IMAGES[:200], IMAGES[200:400], healthy) == []
  points = GRID.splits['train'].arrays['image']
  assert warnings(points[:500], points[500:1000], modes=MODES) == []


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
  lines = warnings(IMAGES[:200], IMAGES[200:400], history)
  assert len(lines) == warned and all('the discriminator was right in over 99 %' in line for line in lines)


def test_samples_that_are_all_alike():
  fake = IMAGES[:1] + np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype(np.float32)
  (line,) = warnings(IMAGES[:200], fake)
  assert 'the generator makes few kinds' in line
  found = samples.collapse((), None, IMAGES[:200], fake)['diversity']
  assert found['fake'] == pytest.approx(np.sqrt(2 * 64), rel=0.05)


def test_modes_that_are_left_out():
  points, labels = (GRID.splits['train'].arrays[n] for n in ('image', 'label'))
  few = points[np.isin(labels, np.arange(0, 24, 2))][:500]  # twelve modes, spread over the grid
  (line,) = warnings(points[:500], few, modes=MODES)
  assert line.startswith('12 of 25 modes are among 500 samples')
  more = points[np.isin(labels, np.arange(0, 25, 2))][:500]
  assert warnings(points[:500], more, modes=MODES) == []


def test_classes_that_are_left_out():
  scorer = functools.partial(Scorer, 'runs/scorer', 1, 10, 64)
  # its features are pixels, and it takes each image for the class of its number modulo `kinds`
  for kinds, warned in ((4, True), (5, False)):
    apply = lambda x, kinds=kinds: (x.reshape(len(x), -1), np.eye(10)[np.arange(len(x)) % kinds])
    found = samples.collapse((), scorer(apply), IMAGES[:200], IMAGES[200:400], classes=DIGITS.spec.classes)
    assert bool(found['warnings']) == warned and found['covered'] == {'classes': kinds, 'of': 10}
    assert found['class_shares']['0'] == 1 / kinds and found['class_shares']['9'] == 0
    # where samples are asked for by class, their classes say nothing
    assert samples.collapse((), scorer(apply), IMAGES[:200], IMAGES[200:400])['warnings'] == []


def test_a_scorer_without_classes_says_nothing_of_them():
  scorer = Scorer('inception', None, 0, 64, lambda x: (x.reshape(len(x), -1), None), batch=32)
  found = samples.collapse((), scorer, IMAGES[:200], IMAGES[200:400], classes=DIGITS.spec.classes)
  assert found == samples.collapse((), None, IMAGES[:200], IMAGES[200:400]) and 'covered' not in found


def test_slerp_is_a_walk_on_the_circle():
  a, b = np.array([[2.0, 0, 0]]), np.array([[0, 3.0, 0]])
  path = samples.slerp(a, b, np.linspace(0, 1, 3))
  assert path.shape == (1, 3, 3)
  middle = 2.5 * np.array([np.sqrt(0.5), np.sqrt(0.5), 0])
  np.testing.assert_allclose(path[0], [a[0], middle, b[0]], atol=1e-6)


def test_neighbours_are_the_nearest_in_order():
  draw = np.random.default_rng(0)
  points, others = draw.normal(size=(5, 3)), draw.normal(size=(40, 3))
  distances = np.linalg.norm(points[:, None] - others, axis=-1)
  np.testing.assert_array_equal(samples.neighbours(points, others, 4), np.argsort(distances, axis=1)[:, :4])


def test_a_walk_between_latents_on_one_line_stays_on_it():
  for a, b in (([[0.5]], [[-1.0]]), ([[1.0, 2.0]], [[2.0, 4.0]]), ([[1.0, 2.0]], [[1.0, 2.0]])):
    a, b = np.array(a), np.array(b)
    np.testing.assert_allclose(samples.slerp(a, b, np.linspace(0, 1, 3))[0], [a[0], (a[0] + b[0]) / 2, b[0]], atol=1e-6)


def test_neighbours_far_from_0_are_told_apart():
  draw = np.random.default_rng(0)
  others = (1000 + 0.1 * draw.normal(size=(60, 100))).astype(np.float32)
  points = (others[:4] + 0.05 * draw.normal(size=(4, 100))).astype(np.float32)
  distances = np.linalg.norm(points[:, None].astype(float) - others, axis=-1)
  np.testing.assert_array_equal(samples.neighbours(points, others, 3), np.argsort(distances, axis=1)[:, :3])
