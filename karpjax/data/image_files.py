"""Image files and raw image arrays: found, read, resized, and turned from grey to colour or back."""

import contextlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tqdm
from PIL import Image

from karpjax.data import fingerprint, folders, medical
from karpjax.errors import UsageError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.dcm')
GREY = ('1', 'L', 'LA')  # Pillow's modes of eight bits and fewer
COLOUR = ('P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {  # its values -> how the stored pixels are turned
  2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
LYING = (5, 6, 7, 8)  # those that swap height and width
Headers = Mapping[Path, tuple[tuple[int, int], int]]  # file -> ((height, width), channels)


# ---- folders ----


def split_folders(path: Path) -> dict[str, Path]:
  """`folders.by_split` of the folders PATH/train, PATH/val, PATH/test, as far as they are there; without train {}."""
  if not path.is_dir():
    raise UsageError(f'{path} is not a folder')
  found = folders.by_split(entry for entry in folders.visible(path) if entry.is_dir())
  return found if 'train' in found else {}


def is_image(path: Path) -> bool:
  """Whether it is a file that is called PNG or JPEG."""
  return folders.is_file(path, SUFFIXES)


def files(folder: Path) -> list[Path]:
  """The images of a folder, sorted; a UsageError where it has none, or has something else."""
  entries = folders.visible(folder)
  for entry in entries:
    if not is_image(entry):
      raise UsageError(f'{entry} is not a PNG or JPEG file: convert it or move it away')
  if not entries:
    raise UsageError(f'{folder} has no images: put PNG or JPEG files in it')
  return entries


def headers(files: Iterable[Path]) -> Headers:
  """Sizes (of the upright pictures) and channels of image files, undecoded;
  a UsageError names one that can't be used.
  """
  found = {}
  for file in tqdm.tqdm(files, desc='reading headers', leave=False, disable=None):
    with _opened(file) as image:
      size = image.size if _orientation(image) in LYING else image.size[::-1]
      found[file] = size, 1 if image.mode in GREY else 3
  fingerprint.note(found)
  return found


def check_alike(kinds: Mapping[Path, str], instead: str) -> None:
  """Refuses files of several kinds, {file: what it is}, naming the first and one that differs from it."""
  first = next(iter(kinds))
  for file, kind in kinds.items():
    if kind != kinds[first]:
      raise UsageError(f'{first} {kinds[first]}, {file} {kind}: give {instead} to make all alike')


def common_size(headers: Headers, image_size: int) -> tuple[int, int]:
  """(height, width) of all files, or to which `image_size` resizes them; a UsageError names two files that differ."""
  if image_size:
    return image_size, image_size
  check_alike({file: f'has {size[0]}×{size[1]} pixels' for file, (size, _) in headers.items()}, 'image_size=N')
  return next(iter(headers.values()))[0]


def common_channels(headers: Headers) -> tuple[int, tuple[str, ...]]:
  """Channels of all files, 3 where any has colour; and a note where not all have."""
  depths = [channels for _, channels in headers.values()]
  note = f'{depths.count(1):,} of {len(depths):,} images are grey: they become RGB, like the others'
  return max(depths), (note,) if len(set(depths)) > 1 else ()


# ---- one file ----


def read(path: Path, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
  """A PNG or JPEG file as [height, width, channels] uint8, upright: turned as its EXIF orientation says.

  Args:
    path: of the file, or the open file; a UsageError names it where it can't be read or has more than eight bits a
      channel.
    channels: 1 or 3, to convert to; transparency is dropped.
    size: (height, width) for `fit`; None leaves the file's.
  """
  with _opened(path) as image:
    turn = UPRIGHT.get(_orientation(image))
    pixels = image.convert('L' if channels == 1 else 'RGB')
    pixels = np.asarray(pixels if turn is None else pixels.transpose(turn))
  return fit(pixels.reshape(*pixels.shape[:2], channels), size)


@contextlib.contextmanager
def _opened(path):
  if isinstance(path, str | Path) and Path(path).suffix.lower() == '.dcm':
    yield medical.dicom(path)
    return
  try:
    with Image.open(path, formats=('PNG', 'JPEG')) as image:
      if image.mode not in GREY + COLOUR:
        raise UsageError(f'{path} has pixels of mode {image.mode}; convert it to 8 bits a channel')
      yield image
  except UsageError:
    raise
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise UsageError(f'{path} is not a readable PNG or JPEG file: {" ".join(str(error).split())}') from error


def _orientation(image) -> int:
  """How an opened picture lies, 1 to 8; 1, upright, where it does not say, or says it illegibly."""
  if image.format == 'PNG' and not _png_tells(image.fp):
    return 1  # without decoding, which Pillow would do to be sure
  try:
    return image.getexif().get(ORIENTATION, 1)
  except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
    return 1


def _png_tells(file) -> bool:
  """Whether a PNG file, which stays where it is, has EXIF or XMP in it, before or after the pixels."""
  at = file.tell()
  file.seek(8)
  found = False
  while not found and len(head := file.read(8)) == 8:
    length = int.from_bytes(head[:4], 'big')
    found = head[4:] == b'eXIf' or file.read(min(length, 24)).startswith(
      (b'Raw profile type exif', b'XML:com.adobe.xmp')
    )
    file.seek(4 + length - (0 if found else min(length, 24)), 1)
  file.seek(at)
  return found


def as_pillow(image: np.ndarray) -> Image.Image:
  """[height, width, 1 or 3] uint8 -> Pillow's image."""
  return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def fit(image: np.ndarray, size: tuple[int, int] | None, filter=Image.Resampling.BILINEAR) -> np.ndarray:
  """[height', width', 1 or 3] uint8 -> [height, width, 1 or 3] uint8, by one of Pillow's antialiased filters."""
  if size is None or image.shape[:2] == tuple(size):
    return image
  return np.asarray(as_pillow(image).resize(size[::-1], filter)).reshape(*size, image.shape[-1])


# ---- arrays ----


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
  """Bilinear without antialiasing, as PyTorch's interpolate(mode='bilinear', align_corners=False).

  [n, height', width', channels] of any real type -> [n, height, width, channels] float32.
  """
  images = np.asarray(images, np.float32)
  for axis, new in ((2, width), (1, height)):
    old = images.shape[axis]
    # Pixel i covers [i, i + 1], so its centre i + ½ lies at (i + ½) · old / new; before the first centre lies the edge.
    at = np.maximum((np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5, 0)
    low = np.floor(at).astype(np.int64)
    weight = (at - low).astype(np.float32).reshape(-1, *[1] * (3 - axis))
    low, high = (np.take(images, i, axis) for i in (low, np.minimum(low + 1, old - 1)))
    images = low * (1 - weight) + high * weight
  return images


def recolour(images: np.ndarray, channels: int) -> np.ndarray:
  """[..., 1 or 3] -> [..., channels], the type kept; grey is the luma of ITU-R 601, rounded as in Pillow."""
  if images.shape[-1] == channels:
    return images
  if channels == 3:
    return np.repeat(images, 3, -1)
  if np.issubdtype(images.dtype, np.integer):
    luma = images.astype(np.uint64) @ np.array([19595, 38470, 7471], np.uint64)
    return ((luma + 2**15) >> 16).astype(images.dtype)[..., None]
  return (images @ np.array([0.299, 0.587, 0.114], images.dtype))[..., None]


def convert(shape: tuple[int, int, int], images: np.ndarray) -> np.ndarray:
  """Images [n, ...] resized and recoloured to [n, *shape]; a resized one is float32, between its grey levels too."""
  height, width, channels = shape
  if images.shape[-1] > channels:  # the cheaper order
    images = recolour(images, channels)
  if images.shape[1:3] != (height, width):
    images = resize(images, height, width)
  return recolour(images, channels)
