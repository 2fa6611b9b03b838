"""Whole pictures of any sizes, bundled ones and folders of files, and crops of them as examples.

Pictures are divided into splits whole, before anything is cut: no crop of a test picture is like one of training.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import image_files, splitting
from karpjax.data.dataset import Split, take
from karpjax.errors import UsageError

Pictures = Mapping[str, np.ndarray]  # name -> [height, width, channels] uint8

FOLDERS = {'train': ('train',), 'validation': ('validation', 'val'), 'test': ('test',)}
BUNDLED = {  # a fixed division, in which all views of one scene are on one side
  'train': 'china.jpg flower.jpg hubble_deep_field.jpg motorcycle_left.png motorcycle_right.png retina.jpg ihc.png '
  'brick.png grass.png gravel.png coins.png moon.png page.png',
  'validation': 'chelsea.png rocket.jpg',
  'test': 'astronaut.png coffee.png camera.png',
}
PACKAGES = {'skimage': 'data', 'sklearn': 'datasets/images'}  # which bundle them, and where


def read(name: str, channels: int, validation: float, seed: int) -> tuple[dict[str, Pictures], tuple[str, ...]]:
  """The pictures of each split, and notes.

  Args:
    name: 'bundled'; or 'folder:PATH', PNG and JPEG files in folders as `divided` finds them.
    channels: 1 (luma) or 3; 0: 3 where any picture has colour.
    validation, seed: see `divided`.

  Raises:
    UsageError: it names the folder or file that is missing, unreadable, no picture, or the only one.
  """
  notes = []
  if name == 'bundled':
    parts = {split: [_bundled(file) for file in names.split()] for split, names in BUNDLED.items()}
  elif name.startswith('folder:'):
    path = Path(name.removeprefix('folder:')).expanduser()
    parts, notes = divided(path, files, validation, seed, {'test': 2, 'validation': 1})
  else:
    raise UsageError(f'dataset={name}: pictures are bundled, or folder:PATH of PNG and JPEG files')
  depths = [image_files.header(file)[1] for files in parts.values() for file in files]
  if not channels:
    channels = max(depths)
    if len(set(depths)) > 1:
      notes.append(f'{name}: {depths.count(1)} of {len(depths)} pictures are grey: they become RGB, like the others')
  splits = {split: {file.name: image_files.read(file, channels) for file in files} for split, files in parts.items()}
  counts = ', '.join(f'{len(files)} {split}' for split, files in parts.items())
  return splits, (*notes, f'{name}: {counts} pictures')


def files(folder: Path) -> list[Path]:
  """The PNG and JPEG files of a folder, sorted.

  Raises:
    UsageError: where it is no folder, has none, or has something else.
  """
  if not folder.is_dir():
    raise UsageError(f'{folder} is not a folder: a folder of PNG or JPEG files is needed')
  entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))
  for entry in entries:
    if entry.is_dir() or entry.suffix.lower() not in image_files.SUFFIXES:
      raise UsageError(f'{entry} is not a PNG or JPEG file: convert it or move it away')
  if not entries:
    raise UsageError(f'{folder} has no pictures: put PNG or JPEG files in it')
  return entries


def divided(
  path: Path, find: Callable[[Path], list], validation: float, seed: int, purposes: Mapping[str, int]
) -> tuple[dict[str, list], list[str]]:
  """{split: what `find` finds in its folder}, and notes.

  The folders are PATH/train, PATH/test and PATH/validation (or val). Without PATH/train all is in PATH; without PATH/test a
  fifth of train is drawn for it.

  Args:
    path: the folder of folders.
    find: a folder -> a list of files, or of pairs of files.
    validation: fraction (at least one) or number of train's drawn for validation where there is no such folder; 0: none.
    seed, purposes: of the draws.
  """
  folders = {split: path / n for split, names in FOLDERS.items() for n in names if (path / n).is_dir()}
  parts, notes = (
    {split: find(folder) for split, folder in (folders if 'train' in folders else {'train': path}).items()},
    [],
  )
  for split, fraction in (('test', 0.2), ('validation', validation)):
    if split in parts or not fraction:
      continue
    whole = parts['train']
    count = max(round(fraction * len(whole)), 1) if fraction < 1 else int(fraction)
    if not 0 < count < len(whole):
      raise UsageError(
        f'{path}: {len(whole)} for train, of which {count} are to be held out for {split}: more are needed, or validation=0'
      )
    rest, held_out = splitting.drawn(len(whole), count, seed, purposes[split])
    parts |= {'train': [whole[i] for i in rest], split: [whole[i] for i in held_out]}
    notes.append(f'{path}: no {split} folder; {count} of {len(whole)} are for {split}, drawn with seed {seed}')
  return {split: parts[split] for split in FOLDERS if split in parts}, notes


def _bundled(file: str) -> Path:
  for package, place in PACKAGES.items():
    spec = importlib.util.find_spec(package)
    if spec and (path := Path(spec.origin).parent / place / file).is_file():
      return path
  raise UsageError(f'the bundled picture {file} is missing: pip install -r requirements.txt')


# ---- crops ----


def crops(pictures: Mapping[str, Pictures], size: int, stride: int, *, resident_bytes: int = 2**31) -> Split:
  """All crops of pictures on a grid, as examples: what is left over at the right and lower edges is in none.

  Args:
    pictures: {name: {layer: picture}}, what is cropped alike. Layers may be so many times as large as the first one, and then
      so are their crops.
    size: height and width of a crop of the first layer.
    stride: from one crop to the next, down and across.
    resident_bytes: pictures that need no more live on the device, as they are: crops are made when they are asked for.

  Returns:
    Examples {layer: [size · scale, size · scale, channels] uint8, …, 'picture': [] int32, its number in the order of names}.

  Raises:
    UsageError: for a crop larger than a picture, which it names.
  """
  layers = next(iter(pictures.values()))
  first = next(iter(layers))
  corners = []  # of one picture each: [crops, 2], rows and columns
  for name, picture in pictures.items():
    height, width = picture[first].shape[:2]
    if size > min(height, width):
      raise UsageError(
        f'a crop of {size}×{size} pixels is larger than {name}, which has {height}×{width}: a smaller one is needed'
      )
    grid = np.meshgrid(*(np.arange(0, n - size + 1, stride) for n in (height, width)), indexing='ij')
    corners.append(np.stack(grid, -1).reshape(-1, 2))
  counts = [len(c) for c in corners]
  arrays, sides = {'picture': np.repeat(np.arange(len(counts), dtype=np.int32), counts)}, []
  for layer in layers:
    scale = layers[layer].shape[0] // layers[first].shape[0]
    shapes = np.array([p[layer].shape for p in pictures.values()])
    starts = np.cumsum([0, *(shapes[:-1, 0] * shapes[:-1, 1])])  # where each picture begins among all pixels
    firsts = [s + scale * (c @ (width, 1)) for s, c, width in zip(starts, corners, shapes[:, 1])]
    arrays |= {
      layer: np.concatenate(
        [p[layer].reshape(-1, p[layer].shape[-1]) for p in pictures.values()]
      ),  # [pixels, channels]
      f'{layer}_first': np.concatenate(firsts).astype(np.int32),
      f'{layer}_width': np.repeat(shapes[:, 1], counts).astype(np.int32),
    }
    sides.append((layer, size * scale))
  split = Split.lazy(sum(counts), arrays, functools.partial(_cut, tuple(sides)))
  if sum(a.nbytes for a in arrays.values()) > resident_bytes:
    return Split(split.size, None, split.fetch)
  return split


def _cut(sides: Sequence[tuple[str, int]], arrays, numbers):
  """A Split's `gather`: the squares of `sides` pixels, ((layer, side), …), whose first pixels the arrays name."""
  examples = {'picture': take(arrays['picture'], numbers)}
  for layer, side in sides:
    first, width = (take(arrays[f'{layer}_{what}'], numbers)[:, None, None] for what in ('first', 'width'))
    across = np.arange(side, dtype=np.int32)
    examples[layer] = take(arrays[layer], first + width * across[:, None] + across)  # [n, side, side, channels]
  return examples


# ---- pictures of pictures ----

EDGES = 12  # how much darker than the paper a stroke is, for a difference of Gaussians of 1


def edges(picture: np.ndarray) -> np.ndarray:
  """A picture's edges as strokes on their dark sides, on white paper: [height, width, 1 or 3] -> [height, width, 1] uint8.

  Where scikit-image's difference of Gaussians, of 1 and 1.6 pixels (Marr & Hildreth 1980), is negative. A gradient's strength
  would not tell which side is the darker one.
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
  """A picture made small, [height // factor, width // factor, channels] uint8; and the picture cut to `factor` times that.

  By Pillow's bicubic filter (Keys 1981, a = -½) widened by the factor, which is MATLAB's imresize but for the outermost pixels,
  and rounded to 8 bits.
  """
  from PIL import Image

  height, width = (n // factor for n in picture.shape[:2])
  picture = picture[: height * factor, : width * factor]
  image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
  small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
  return small.reshape(height, width, -1), picture
