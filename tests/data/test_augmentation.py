import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import collectives, errors
from karpjax.data import augmentation, transformations

ALL = 'flip,shift:3,rotate:10,jitter:0.4,cutout:4'


@functools.partial(jax.jit, static_argnums=(0, 1))
def keys(n, seed=0):
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


def drawn(function, n):
  """[n, …]: what a function of a key gives for n of them."""
  return np.asarray(jax.jit(jax.vmap(function))(keys(n)))


def augmented(text, *arguments):
  """(images, targets) after the steps of `text`."""
  return jax.jit(functools.partial(augmentation.augment, augmentation.parse(text)))(*arguments)


@pytest.fixture
def images():
  return np.random.default_rng(0).random((8, 12, 10, 3), np.float32)


def test_flip_mirrors_half_of_the_images_and_twice_is_the_identity(images):
  image = images[0]
  flipped, again = drawn(
    lambda key: jnp.stack(
      [transformations.flip(key, image), transformations.flip(key, transformations.flip(key, image))]
    ),
    400,
  ).swapaxes(0, 1)
  mirrored = np.array([np.array_equal(f, image[:, ::-1]) for f in flipped])
  kept = np.array([np.array_equal(f, image) for f in flipped])
  assert (mirrored ^ kept).all()
  assert 150 < mirrored.sum() < 250
  np.testing.assert_array_equal(again, np.broadcast_to(image, again.shape))


@pytest.mark.parametrize(
  'mode, pad, dtype', [('zero', 'constant', np.uint8), ('edge', 'edge', np.float32), ('wrap', 'wrap', np.float32)]
)
def test_translate_is_numpys_padding_and_cropping(images, mode, pad, dtype):
  image = (images[0] * 255).astype(dtype)
  padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), pad)
  translate = jax.jit(transformations.translate, static_argnums=2)
  for down, right in ((-4, -3), (-1, 4), (0, 0), (3, 1)):
    got = translate(image, jnp.array([down, right]), mode)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, padded[4 + down : 16 + down, 4 + right : 14 + right])


def test_shift_draws_every_offset_within_the_limit_and_no_other():
  image = np.arange(81, dtype=np.float32).reshape(9, 9, 1)
  shifted = drawn(lambda key: transformations.shift(key, image, 1.0), 300)
  centres = np.unique(shifted[:, 4, 4, 0])
  np.testing.assert_array_equal(centres, [30, 31, 32, 39, 40, 41, 48, 49, 50])


def test_rotate_by_quarter_turns_is_rot90_and_by_nothing_the_identity():
  image = np.random.default_rng(0).random((9, 9, 2), np.float32)
  rotate = jax.jit(transformations.rotate)
  for turns in range(4):
    got = rotate(image, jnp.float32(turns * np.pi / 2))
    np.testing.assert_allclose(got, np.rot90(image, turns), atol=1e-5)


def test_rotate_is_scipys_bilinear_rotation_away_from_the_border():
  from scipy import ndimage

  y, x = np.mgrid[:20, :16].astype(np.float32)
  image = np.stack([np.sin(y / 3) + np.cos(x / 2), y * x], -1)
  expected = ndimage.rotate(image, 17, reshape=False, order=1)
  got = jax.jit(transformations.rotate)(image, jnp.float32(np.radians(17)))
  np.testing.assert_allclose(got[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-3)


def test_jitter_is_brightness_then_contrast_then_saturation(images):
  image, key = images[0], jax.random.key(3)
  brightness, contrast, saturation = np.asarray(jax.random.uniform(key, (3,), minval=0.6, maxval=1.4))
  luma = np.array([0.299, 0.587, 0.114])
  expected = image * brightness
  expected = expected * contrast + (expected @ luma).mean() * (1 - contrast)
  expected = expected * saturation + (expected @ luma)[..., None] * (1 - saturation)
  jittered = jax.jit(transformations.jitter)(key, image, 0.4)
  np.testing.assert_allclose(jittered, expected, atol=1e-5)


def test_cutout_blanks_one_square_that_the_border_clips():
  image = jnp.ones((10, 10, 2))
  blank = 1 - drawn(lambda key: transformations.cutout(key, image, 4.0), 500)
  areas = blank[..., 0].sum((1, 2))
  assert set(areas) <= {h * w for h in (2, 3, 4) for w in (2, 3, 4)}
  assert (areas == 16).mean() == pytest.approx(0.49, abs=0.08)  # centres 2 … 8 of 0 … 9, in both directions
  for mask in blank[:50, ..., 0]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def check_mixed(mixed, targets):
  """That targets add up to one, are of an example and the next one, and weigh as the pixels do."""
  own = np.eye(len(targets))
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(mixed, targets, atol=1e-5)
  assert targets[(own + np.roll(own, -1, 0)) == 0].max() == 0


@pytest.fixture
def drawn_alphas(monkeypatch):
  """What is asked of Beta distributions, which are uniform here: as Beta(1, 1) is, and much faster to compile."""
  asked = []
  monkeypatch.setattr(jax.random, 'beta', lambda key, a, b: asked.append((a, b)) or jax.random.uniform(key))
  return asked


def test_cutmix_weighs_as_the_pixels_do(drawn_alphas):
  n = 16
  images = jnp.broadcast_to(jnp.eye(n)[:, None, None], (n, 12, 12, n))  # image i is 1 in channel i only
  mixed, targets = map(np.asarray, augmented('cutmix:1.5', keys(n), images, jnp.eye(n)))
  check_mixed(mixed.mean((1, 2)), targets)
  assert 0 < 1 - np.diag(targets).mean() < 1 and drawn_alphas == [(1.5, 1.5)]


def test_mixup_weighs_as_the_pixels_do(drawn_alphas):
  n = 500
  images = jnp.eye(n).reshape(n, 1, 1, n)
  mixed, targets = map(np.asarray, augmented('mixup:0.4', keys(n), images, jnp.eye(n)))
  check_mixed(mixed[:, 0, 0], targets)
  assert np.diag(targets).mean() == pytest.approx(0.5, abs=0.06) and drawn_alphas == [(0.4, 0.4)]


def test_an_example_draws_the_same_in_another_batch(images):
  apply = jax.jit(lambda keys, images: augmentation.augment(augmentation.parse(ALL), keys, images, None)[0])
  whole, numbers = apply(keys(8), images), np.array([3, 4, 4, 3, 0, 4, 3, 3])
  np.testing.assert_allclose(apply(keys(8)[numbers], images[numbers]), whole[numbers], atol=1e-5)
  assert np.abs(apply(keys(8, seed=1), images) - whole).max() > 0.1


@pytest.mark.slow
def test_the_result_does_not_depend_on_how_many_devices_share_the_batch(images):
  steps = augmentation.parse('flip,shift:3,rotate:10,mixup:0.4,cutmix:1')

  def apply(data, images, targets):
    return augmentation.augment(steps, jax.random.wrap_key_data(data), images, targets)

  arguments = jax.random.key_data(keys(8)), jnp.asarray(images), jnp.eye(8)
  alone = jax.jit(apply)(*arguments)
  split = [x.reshape(4, 2, *x.shape[1:]) for x in arguments]
  shared = jax.pmap(apply, axis_name=collectives.REPLICAS)(*split)
  for one, many in zip(alone, shared):
    np.testing.assert_allclose(many.reshape(one.shape), one, atol=1e-5)


def test_moving_and_blanking_keeps_uint8():
  step = functools.partial(augmentation.augment, augmentation.parse('flip,shift:2,roll:1,cutout:4'))
  raw, _ = jax.eval_shape(step, keys(8), jax.ShapeDtypeStruct((8, 12, 10, 3), jnp.uint8), None)
  assert raw.dtype == jnp.uint8


def test_parse_reads_what_it_says():
  steps = augmentation.parse('flip, shift:4,mixup:0.2')
  assert steps == (('flip', 0), ('shift', 4), ('mixup', 0.2))
  assert augmentation.parse('') == ()


@pytest.mark.parametrize(
  'text, says',
  [
    ('flop', 'Did you mean flip'),
    ('cutmax:1', 'Did you mean cutmix'),
    ('shift', 'shift:N'),
    ('shift:1.5', 'whole pixels'),
    ('shift:-1', 'above 0'),
    ('flip:2', 'takes no amount'),
    ('rotate:nan', 'degrees'),
    ('jitter:2', 'at most 1'),
    ('mixup:inf', 'alpha'),
  ],
)
def test_a_wrong_augmentation_is_refused_in_one_line(text, says):
  with pytest.raises(errors.UsageError, match=says) as error:
    augmentation.parse(text)
  assert '\n' not in str(error.value)


def test_series_and_small_images_are_refused():
  with pytest.raises(errors.UsageError, match='for images'):
    augmentation.augment(augmentation.parse('flip'), keys(2), jnp.zeros((2, 40, 1)), None)
  with pytest.raises(errors.UsageError, match='too much for images of 8×8'):
    augmentation.augment(augmentation.parse('cutout:8'), keys(2), jnp.zeros((2, 8, 8, 1)), None)


def test_enlarge_is_a_crop_of_the_resized_image_at_every_place(images):
  image = images[0]
  large = jax.image.resize(image, (14, 12, 3), 'bilinear')
  crops = np.stack([large[i : i + 12, j : j + 10] for i in range(3) for j in range(3)])
  enlarged = drawn(lambda key: transformations.enlarge(key, image, 2.0), 100)
  distances = np.abs(enlarged[:, None] - crops).max((2, 3, 4))  # [draws, places]
  assert (distances.min(1) < 1e-6).all() and set(distances.argmin(1)) == set(range(9))
