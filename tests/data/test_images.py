import dataclasses

import numpy as np
import pytest
from PIL import Image

from karpjax import errors
from karpjax.data import image_files, images
from karpjax.data.dataset import Spec

SPEC = Spec('some', (8, 8, 1), ('a', 'b'), 255.0, (0.5,), (0.2,), 10)


def reference(image, height, width):
  """Bilinear interpolation, one output pixel at a time."""
  old_height, old_width, _ = image.shape
  out = np.zeros((height, width, image.shape[2]))
  for y in range(height):
    for x in range(width):
      at_y, at_x = (
        max((i + 0.5) * old / new - 0.5, 0) for i, old, new in ((y, old_height, height), (x, old_width, width))
      )
      y0, x0 = int(at_y), int(at_x)
      y1, x1 = min(y0 + 1, old_height - 1), min(x0 + 1, old_width - 1)
      dy, dx = at_y - y0, at_x - x0
      out[y, x] = (1 - dy) * ((1 - dx) * image[y0, x0] + dx * image[y0, x1]) + dy * (
        (1 - dx) * image[y1, x0] + dx * image[y1, x1]
      )
  return out


@pytest.mark.parametrize('height, width', [(16, 28), (40, 31), (1, 1)])
def test_resize_is_the_loop(height, width):
  batch = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
  got = image_files.resize(batch, height, width)
  assert got.dtype == np.float32
  for one, image in zip(got, batch):
    np.testing.assert_allclose(one, reference(image, height, width), atol=1e-3)


def test_grey_is_pillows_and_back_repeats():
  colour = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  grey = image_files.recolour(colour, 1)
  np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(colour).convert('L')))
  np.testing.assert_array_equal(image_files.recolour(grey, 3), np.repeat(grey, 3, -1))


def test_load_image_gives_a_stored_image_back(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  got = images.load_image(tmp_path / 'a.png', SPEC)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got[..., 0], pixels)


def test_load_image_takes_the_data_sets_way(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  spec = images.conversion(SPEC, 16, 3)
  assert (spec.shape, spec.stored, spec.dtype) == ((16, 16, 3), (8, 8, 1), 'float32')
  expected = image_files.convert((16, 16, 3), pixels[None, ..., None])[0]
  np.testing.assert_array_equal(images.load_image(tmp_path / 'a.png', spec), expected)


def test_load_image_converts_size_colour_and_scale(tmp_path):
  colour = np.zeros((40, 60, 4), np.uint8)
  colour[..., 0] = 255  # red, fully transparent
  Image.fromarray(colour).save(tmp_path / 'a.png')
  got = images.load_image(str(tmp_path / 'a.png'), dataclasses.replace(SPEC, maximum=16.0))
  np.testing.assert_array_equal(got, np.full((8, 8, 1), round(76 / 255 * 16)))  # 0.299 · 255 = 76


def test_load_image_says_what_is_wrong(tmp_path):
  (tmp_path / 'text.png').write_text('no image')
  for name, says in (('text.png', 'is not a readable PNG or JPEG'), ('none.png', 'no such file')):
    with pytest.raises(errors.UsageError, match=f'{name}.*{says}'):
      images.load_image(tmp_path / name, SPEC)
  with pytest.raises(errors.UsageError, match='not images'):
    images.load_image(tmp_path / 'a.png', dataclasses.replace(SPEC, shape=(40, 1)))
