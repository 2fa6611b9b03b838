"""Image files and raw image arrays: read, resized, and turned from grey to colour or back."""

from pathlib import Path

import numpy as np

from karpjax.errors import UsageError

SUFFIXES = ('.png', '.jpg', '.jpeg')
GREY = ('1', 'L', 'LA')  # Pillow's modes of eight bits and fewer
COLOUR = ('P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')


def header(path: Path) -> tuple[tuple[int, int], int]:
  """((height, width), channels) of an image file, undecoded; a UsageError names a file that can't be used."""
  with _opened(path) as image:
    return (image.height, image.width), 1 if image.mode in GREY else 3


def read(path: Path, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
  """A PNG or JPEG file as [height, width, channels] uint8.

  Args:
    path: of the file, or the open file.
    channels: 1 or 3, to convert to; transparency is dropped.
    size: (height, width) for `fit`; None leaves the file's.

  Raises:
    UsageError: it names the file, where that can't be read or has more than eight bits a channel.
  """
  with _opened(path) as image:
    try:
      image = image.convert('L' if channels == 1 else 'RGB')
    except _unreadable() as error:
      raise UsageError(f'{path} cannot be decoded: {error}') from error
    return fit(np.asarray(image).reshape(image.height, image.width, channels), size)


def fit(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
  """[height', width', 1 or 3] uint8 -> [height, width, 1 or 3] uint8, by Pillow's antialiased bilinear filter."""
  from PIL import Image

  if size is None or image.shape[:2] == tuple(size):
    return image
  resized = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
  resized = resized.resize((size[1], size[0]), Image.Resampling.BILINEAR)
  return np.asarray(resized).reshape(*size, image.shape[-1])


def _unreadable():
  from PIL import Image

  return (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def _opened(path):
  from PIL import Image

  try:
    image = Image.open(path, formats=('PNG', 'JPEG'))
  except _unreadable() as error:
    raise UsageError(f'{path} is not a readable PNG or JPEG file') from error
  if image.mode not in GREY + COLOUR:
    image.close()
    raise UsageError(f'{path} has pixels of mode {image.mode}; convert it to 8 bits a channel')
  return image


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
