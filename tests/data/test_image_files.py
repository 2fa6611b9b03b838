import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from karpjax.data import image_files, images, pictures
from karpjax.data.dataset import Spec
from karpjax.data.speed import Config

PICTURE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def lying(path, orientation, kind, picture=PICTURE):
  """A picture that says how it lies: as JPEG, as PNG, or as PNG that says so behind its pixels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  exif = Image.Exif()
  exif[image_files.ORIENTATION] = orientation
  late = kind == 'late.png'
  Image.fromarray(picture).save(path, **({} if late else {'exif': exif}))
  if late:
    data, body = path.read_bytes(), b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
    chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    path.write_bytes(data[:-12] + chunk + data[-12:])  # before IEND
  return path


@pytest.mark.parametrize('kind', ['a.png', 'a.jpg', 'late.png'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_picture_is_upright_as_pillow_turns_it(tmp_path, orientation, kind):
  path = lying(tmp_path / kind, orientation, kind)
  upright = ImageOps.exif_transpose(Image.open(path))
  right = np.asarray(upright.convert('RGB'))
  np.testing.assert_array_equal(image_files.read(path, 3), right)
  assert image_files.headers([path])[path] == (right.shape[:2], 3)
  assert image_files.read(path, 1).shape == (*right.shape[:2], 1)


def test_a_picture_without_orientation_or_with_one_that_is_illegible_stays(tmp_path):
  for name, extra in {
    'a.png': {},
    'b.png': {'exif': b'Exif\0\0nonsense'},
    'c.png': {'exif': b'MM\0*\0\0\0\x08\xff\xff'},
  }.items():
    Image.fromarray(PICTURE).save(tmp_path / name, **extra)
    np.testing.assert_array_equal(image_files.read(tmp_path / name, 3), PICTURE)
    assert image_files.headers([tmp_path / name])[tmp_path / name] == ((6, 4), 3)


def test_sets_predictions_and_whole_pictures_see_them_upright(tmp_path):
  """The picture lies in files whose pixels, turned as they say, are all the same."""
  for split in ('train', 'test'):
    for label in 'ab':
      for orientation, turn in {1: 0, 6: 1, 8: -1, 3: 2}.items():
        picture = np.ascontiguousarray(np.rot90(PICTURE, turn))
        path = lying(tmp_path / 'set' / split / label / f'{orientation}.png', orientation, 'png', picture)
  data = images.load(Config(dataset=f'folder:{tmp_path / "set"}', validation=0.0))
  assert data.spec.shape == PICTURE.shape
  assert (data.splits['train'].column('image') == PICTURE).all()
  np.testing.assert_array_equal(images.load_image(path, Spec('a', PICTURE.shape, ('a', 'b'), 255.0)), PICTURE)
  whole, _ = pictures.read(f'folder:{tmp_path / "set" / "train" / "a"}', 0, 0.0, 0)
  assert all((picture == PICTURE).all() for split in whole.values() for picture in split.values())
