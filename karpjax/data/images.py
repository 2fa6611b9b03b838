"""Image files and raw image arrays: read, resized, and turned from grey to colour or back."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.data.dataset import Spec

SUFFIXES = ('.png', '.jpg', '.jpeg')
GREY, COLOUR = (
  ('1', 'L', 'LA'),
  ('P', 'RGB', 'RGBA', 'CMYK', 'YCbCr'),
)  # Pillow's modes of eight bits and fewer


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
  """Bilinear without antialiasing, as PyTorch's interpolate(mode='bilinear', align_corners=False).

  Args:
    images: [n, height', width', channels] of any real type.
    height, width: to come to.

  Returns:
    [n, height, width, channels] float32.
  """

  def taps(old, new):
    # Pixel i covers [i, i + 1], so its centre i + ½ lies at (i + ½) · old / new; before the first centre lies
    # the edge.
    at = np.maximum((np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5, 0)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)

  images = np.asarray(images, np.float32)
  low, high, weight = taps(images.shape[2], width)
  weight = weight[:, None]
  images = images[:, :, low] * (1 - weight) + images[:, :, high] * weight  # [n, height', width, channels]
  low, high, weight = taps(images.shape[1], height)
  weight = weight[:, None, None]
  return images[:, low] * (1 - weight) + images[:, high] * weight  # [n, height, width, channels]


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


def conversion(spec: Spec, image_size: int, channels: int) -> tuple[Spec, Callable | None]:
  """The Spec after `image_size` and `channels` (0: as stored), and what makes images [n, ...] so, or None.

  A resized image is float32, still on the scale of `maximum`: the values between two grey levels are kept.
  """
  spec = dataclasses.replace(spec, stored=spec.shape)
  if not image_size and not channels:
    return spec, None
  if len(spec.shape) != 3:
    flag = '--image_size' if image_size else '--channels'
    raise errors.UsageError(f'{flag} is for images; an example of {spec.name} has shape {spec.shape}')
  height, width, depth = spec.shape
  shape = (image_size or height, image_size or width, channels or depth)
  if shape == spec.shape:
    return spec, None
  dtype = spec.dtype if shape[:2] == (height, width) else 'float32'
  return dataclasses.replace(spec, shape=shape, dtype=dtype), functools.partial(_convert, shape)


def _convert(shape, images):
  height, width, channels = shape
  if images.shape[-1] > channels:  # the cheaper order
    images = recolour(images, channels)
  if images.shape[1:3] != (height, width):
    images = resize(images, height, width)
  return recolour(images, channels)


def header(path: Path) -> tuple[tuple[int, int], int]:
  """((height, width), channels) of an image file, undecoded; a UsageError names a file that can't be used."""
  with _opened(path) as image:
    return (image.height, image.width), 1 if image.mode in GREY else 3


def read(path: Path, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
  """A PNG or JPEG file as [height, width, channels] uint8.

  Args:
    path: of the file.
    channels: 1 or 3, to convert to; transparency is dropped.
    size: (height, width) to resize to, by Pillow's antialiased bilinear filter, since photographs shrink
      much; None leaves the file's.

  Raises:
    UsageError: it names the file, where that can't be read or has more than eight bits a channel.
  """
  with _opened(path) as image:
    try:
      image = image.convert('L' if channels == 1 else 'RGB')
    except _unreadable() as error:
      raise errors.UsageError(f'{path} cannot be decoded: {error}') from error
    return fit(np.asarray(image).reshape(image.height, image.width, channels), size)


def fit(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
  """[height', width', 1 or 3] uint8 -> [height, width, 1 or 3] uint8, by Pillow's antialiased filter."""
  from PIL import Image

  if size is None or image.shape[:2] == tuple(size):
    return image
  resized = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
  resized = resized.resize((size[1], size[0]), Image.Resampling.BILINEAR)
  return np.asarray(resized).reshape(*size, image.shape[-1])


def load_image(path: str | Path, spec: Spec) -> np.ndarray:
  """An image file as one raw example of a data set: [*spec.shape], spec.dtype, on the scale of spec.maximum.

  It takes the way the data set took: first to the stored size and channels (by Pillow's antialiased filter,
  where it has another size), then to `image_size` and `channels` as given to `load`.

  Raises:
    UsageError: where the file can't be read, or the data set isn't one of images.
  """
  if len(spec.shape) != 3:
    raise errors.UsageError(f'{path}: the model was trained on {spec.name}, whose examples are not images')
  path = Path(path).expanduser()
  if not path.is_file():
    raise errors.UsageError(f'{path}: no such file')
  stored = spec.stored or spec.shape
  image = read(path, stored[-1], stored[:2])
  if spec.maximum != 255:
    scaled = image * np.float32(spec.maximum / 255)
    image = scaled if spec.dtype == 'float32' else np.rint(scaled)
  return _convert(spec.shape, image[None])[0].astype(spec.dtype)


def _unreadable():
  from PIL import Image

  return (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def _opened(path):
  from PIL import Image

  try:
    image = Image.open(path, formats=('PNG', 'JPEG'))
  except _unreadable() as error:
    raise errors.UsageError(f'{path} is not a readable PNG or JPEG file') from error
  if image.mode not in GREY + COLOUR:
    image.close()
    raise errors.UsageError(f'{path} has pixels of mode {image.mode}; convert it to 8 bits a channel')
  return image
