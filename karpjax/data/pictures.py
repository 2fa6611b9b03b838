"""Whole pictures of any sizes, bundled ones and folders of files, and crops of them as examples.

Pictures are divided into splits whole, before anything is cut: no crop of a test picture is like one of training.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from karpjax import paths
from karpjax.data import image_files, splitting
from karpjax.data.dataset import Split
from karpjax.errors import UsageError

Pictures = Mapping[str, np.ndarray]  # name -> [height, width, channels] uint8

BUNDLED = {  # a fixed division, in which all views of one scene are on one side
  'train': 'china.jpg flower.jpg hubble_deep_field.jpg motorcycle_left.png motorcycle_right.png retina.jpg ihc.png '
  'brick.png grass.png gravel.png coins.png moon.png page.png',
  'validation': 'chelsea.png rocket.jpg',
  'test': 'astronaut.png coffee.png camera.png',
}
PACKAGES = {'skimage': 'data', 'sklearn': 'datasets/images'}  # which bundle them, and where


def read(name: str, channels: int, validation: float, seed: int) -> tuple[dict[str, Pictures], tuple[str, ...]]:
  """The pictures of each split, and notes; a UsageError names the folder or file that won't do.

  Args:
    name: 'bundled'; or 'folder:PATH', PNG and JPEG files in folders as `divided` finds them.
    channels: 1 (luma) or 3; 0: 3 where any picture has colour.
    validation, seed: see `divided`.
  """
  kind, _, path = name.partition(':')
  if name == 'bundled':
    parts, notes = {split: [_bundled(file) for file in names.split()] for split, names in BUNDLED.items()}, ()
  elif kind == 'folder':
    parts, notes = divided(path, image_files.files, validation, seed, {'test': 2, 'validation': 1})
  else:
    raise UsageError(f'dataset={name}: pictures are bundled, or folder:PATH of PNG and JPEG files')
  headers = image_files.headers([file for files in parts.values() for file in files])
  if not channels:
    channels, more = image_files.common_channels(headers)
    notes += more
  splits = {split: {file.name: image_files.read(file, channels) for file in files} for split, files in parts.items()}
  counts = ', '.join(f'{len(files)} {split}' for split, files in parts.items())
  return splits, (*notes, f'{name}: {counts} pictures')


def divided(
  path: str, find: Callable[[Path], list], validation: float, seed: int, purposes: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """{split: what `find` finds in its folder}, and notes.

  The folders are those of `image_files.split_folders`. Without PATH/train all is in PATH; without PATH/test a fifth of
  train is drawn for it.

  Args:
    find: a folder -> a list of files, or of pairs of files.
    validation: fraction (at least one) or number of train's drawn for validation where there is no such folder; 0:
      none.
    seed, purposes: of the draws.
  """
  folder, notes = Path(path), ()
  folders = image_files.split_folders(folder) or {'train': folder}
  splits = {split: Split.of(files=np.array(find(folder))) for split, folder in folders.items()}
  for split, amount in (('test', 0.2), ('validation', validation)):
    if split not in splits:
      splits, note = splitting.hold_out(splits, amount, seed, split=split, purpose=purposes[split], least=1)
      notes += note
  return {split: s.column('files') for split, s in splits.items()}, notes


def _bundled(file: str) -> Path:
  for package, place in PACKAGES.items():
    if path := paths.in_package(package, f'{place}/{file}'):
      return path
  raise UsageError(f'the bundled picture {file} is missing: pip install -r requirements.txt')


def crops(pictures: Mapping[str, Pictures], size: int, stride: int) -> Split:
  """All crops of pictures on a grid, cut when asked for: what is left over at the right and lower edges is in none.

  Args:
    pictures: {name: {layer: picture}}, what is cropped alike. Layers may be so many times as large as the first one,
      and then so are their crops.
    size: height and width of a crop of the first layer; a UsageError names a picture that is smaller.
    stride: from one crop to the next, down and across.

  Returns:
    Examples {layer: [size · scale, size · scale, channels] uint8, …, 'picture': [] int32, its number in the order of
    names}.
  """
  corners = []  # of one picture each: [crops, 3], its number, rows and columns
  for number, (name, layers) in enumerate(pictures.items()):
    height, width = next(iter(layers.values())).shape[:2]
    if size > min(height, width):
      raise UsageError(f'a crop of {size}×{size} pixels is larger than {name}, which has {height}×{width}')
    grid = np.meshgrid(number, *(np.arange(0, n - size + 1, stride) for n in (height, width)), indexing='ij')
    corners.append(np.stack(grid, -1).reshape(-1, 3))
  corners = np.concatenate(corners).astype(np.int32)
  return Split(len(corners), None, functools.partial(_cut, list(pictures.values()), corners, size))


def _cut(pictures: Sequence[Pictures], corners: np.ndarray, size: int, indices):
  crops = {layer: [] for layer in pictures[0]}
  for number, *corner in corners[indices].tolist():
    layers = pictures[number]
    across = len(next(iter(layers.values())))
    for layer, x in layers.items():
      row, column, side = (n * (len(x) // across) for n in (*corner, size))
      crops[layer].append(x[row : row + side, column : column + side])
  return {'picture': corners[indices, 0], **{layer: np.stack(each) for layer, each in crops.items()}}


def tiles(pictures: Mapping[str, Pictures], size: int, margin: int) -> Split:
  """Whole pictures of any sizes as examples of one, cut when asked for: each pixel is in the part of one tile.

  Args:
    pictures: as of `crops`.
    size: height and width of a tile's part of the first layer.
    margin: how much of the picture is around it, in pixels of that layer; beyond the picture's edges is 0.

  Returns:
    Examples {layer: [(size + 2 margin) · scale, …, channels] uint8, …, 'picture': [] int32, 'whole', 'part': [2, 2]
    int32: from which to which row, and column, of the first layer the picture lies, and the tile's part of it}.
  """
  corners = []
  for number, layers in enumerate(pictures.values()):
    grid = np.meshgrid(number, *(np.arange(0, n, size) for n in next(iter(layers.values())).shape[:2]), indexing='ij')
    corners.append(np.stack(grid, -1).reshape(-1, 3))
  corners = np.concatenate(corners).astype(np.int32)
  return Split(len(corners), None, functools.partial(_tiled, list(pictures.values()), corners, size, margin))


def _tiled(pictures: Sequence[Pictures], corners: np.ndarray, size: int, margin: int, indices):
  rows = {layer: [] for layer in pictures[0]} | {'whole': [], 'part': []}
  for number, *corner in corners[indices].tolist():
    layers = pictures[number]
    extent = np.array(next(iter(layers.values())).shape[:2])
    start = np.array(corner) - margin
    whole = np.stack([-start, extent - start], -1).astype(np.int32)
    for layer, x in layers.items():
      scale, side = len(x) // extent[0], size + 2 * margin
      to, end = np.clip(whole, 0, side).T * scale
      first, last = to + start * scale, end + start * scale
      tile = np.zeros((side * scale, side * scale, x.shape[-1]), x.dtype)
      tile[to[0] : end[0], to[1] : end[1]] = x[first[0] : last[0], first[1] : last[1]]
      rows[layer].append(tile)
    rows['whole'].append(whole)
    rows['part'].append(np.clip(whole, margin, margin + size))
  return {'picture': corners[indices, 0], **{name: np.stack(each) for name, each in rows.items()}}


# ---- pictures of pictures ----

EDGES = 12  # how much darker than the paper a stroke is, for a difference of Gaussians of 1


def edges(picture: np.ndarray) -> np.ndarray:
  """A picture's edges as strokes on their dark sides, on white paper: [height, width, 1 or 3] -> [height, width, 1]
  uint8.

  Where scikit-image's difference of Gaussians, of 1 and 1.6 pixels (Marr & Hildreth 1980), is negative. A gradient's
  strength would not tell which side is the darker one.
  """
  from skimage import filters

  difference = filters.difference_of_gaussians(image_files.recolour(picture, 1)[..., 0] / 255, 1)
  return np.rint(255 * np.clip(1 + EDGES * difference, 0, 1)).astype(np.uint8)[..., None]


def in_even_light(picture: np.ndarray, sigma: float) -> np.ndarray:
  """A picture less its Gaussian mean of `sigma` pixels, plus mid-grey: what edges can tell of it; for 0 the picture."""
  from scipy import ndimage

  if not sigma:
    return picture
  picture = picture.astype(np.float32)
  around = ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode='reflect')
  return np.clip(np.rint(picture - around + 128), 0, 255).astype(np.uint8)


def shrunk(picture: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
  """A picture made small, [height // factor, width // factor, channels] uint8; and the picture cut to `factor` times
  that.

  By Pillow's bicubic filter (Keys 1981, a = -½) widened by the factor, which is MATLAB's imresize but for the outermost
  pixels, and rounded to 8 bits.
  """
  height, width = (n // factor for n in picture.shape[:2])
  picture = picture[: height * factor, : width * factor]
  return image_files.fit(picture, (height, width), Image.Resampling.BICUBIC), picture
