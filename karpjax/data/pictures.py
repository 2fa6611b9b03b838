"""Whole pictures as sources, of any sizes: the bundled ones and folders; and crops of them as examples.

Pictures are divided into splits whole, before anything is cut: no crop of a test picture is like one of training.

The bundled pictures lie in scikit-image and scikit-learn; `BUNDLED` is their fixed division, in which all views of one scene
are on one side:

  train       china, flower, hubble_deep_field, motorcycle (left and right), retina, ihc; in grey brick, grass, gravel, coins,
              moon, page
  validation  chelsea, rocket
  test        astronaut, coffee; in grey camera
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.data import image_files, splitting
from karpjax.data.dataset import Split, take

Pictures = Mapping[str, np.ndarray]  # name -> [height, width, channels] uint8

SPLITS = 'train', 'validation', 'test'
BUNDLED = {
  'train': (
    'china.jpg',
    'flower.jpg',
    'hubble_deep_field.jpg',
    'motorcycle_left.png',
    'motorcycle_right.png',
    'retina.jpg',
    'ihc.png',
    'brick.png',
    'grass.png',
    'gravel.png',
    'coins.png',
    'moon.png',
    'page.png',
  ),
  'validation': ('chelsea.png', 'rocket.jpg'),
  'test': ('astronaut.png', 'coffee.png', 'camera.png'),
}


def read(
  name: str, *, channels: int = 0, validation: float = 0.1, seed: int = 0
) -> tuple[dict[str, Pictures], tuple[str, ...]]:
  """The pictures of each split, and lines for start-up to print.

  Args:
    name: 'bundled'; or 'folder:PATH', PNG and JPEG files in PATH/train, PATH/test and perhaps PATH/validation, else in PATH,
      of which a fifth (at least one) is drawn for test.
    channels: 1 (luma) or 3; 0: 3 where any picture has colour.
    validation: share of a folder's train pictures, or how many, for validation where it has none of its own; 0: none.
    seed: of these draws.

  Returns:
    {'train': …, 'validation': …, 'test': …}, each {name: [height, width, channels] uint8}.

  Raises:
    UsageError: it names the folder or file that is missing, unreadable, no picture, or the only one.
  """
  if channels not in (0, 1, 3):
    raise errors.UsageError(f'--channels={channels}: give 1 (grey), 3 (RGB), or 0 for as stored')
  if name == 'bundled':
    folders = _bundled_folders()
    parts = {split: [_find(file, folders) for file in files] for split, files in BUNDLED.items()}
    notes = []
  elif name.startswith('folder:'):
    parts, notes = _divided(Path(name.removeprefix('folder:')).expanduser(), validation, seed)
  else:
    raise errors.UsageError(f'--dataset={name}: pictures are bundled, or folder:PATH of PNG and JPEG files')
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
    raise errors.UsageError(f'{folder} is not a folder: a folder of PNG or JPEG files is needed')
  found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))
  for entry in found:
    if entry.is_dir() or entry.suffix.lower() not in image_files.SUFFIXES:
      raise errors.UsageError(f'{entry} is not a PNG or JPEG file: convert it or move it away')
  if not found:
    raise errors.UsageError(f'{folder} has no pictures: put PNG or JPEG files in it')
  return found


def _divided(path: Path, validation: float, seed: int) -> tuple[dict[str, list[Path]], list[str]]:
  """{split: files} of a folder, and notes."""
  notes = []
  if (path / 'train').is_dir() and (path / 'test').is_dir():
    parts = {split: files(path / split) for split in SPLITS if (path / split).is_dir()}
  else:
    parts = _held_out({'train': files(path)}, 'test', 0.2, seed)
    notes.append(
      f'{path}: no train and test folders; {len(parts["test"])} pictures are for test, drawn with seed {seed}'
    )
  if 'validation' not in parts and validation:
    parts = _held_out(parts, 'validation', validation, seed)
  return {split: parts[split] for split in SPLITS if split in parts}, notes


def _held_out(parts: dict[str, list[Path]], split: str, share: float, seed: int) -> dict[str, list[Path]]:
  """Takes a share (below 1, but at least one) or a number of the train pictures for another split."""
  found = parts['train']
  count = max(round(share * len(found)), 1) if share < 1 else int(share)
  if not 0 < count < len(found):
    raise errors.UsageError(
      f'{found[0].parent}: {len(found)} pictures for train, of which {count} are to be held out for {split}: '
      'more pictures are needed, or --validation=0'
    )
  order = splitting.permutation(seed, SPLITS.index(split), len(found))
  taken = {found[i] for i in order[:count]}
  return {**parts, 'train': [f for f in found if f not in taken], split: sorted(taken)}


def _bundled_folders() -> list[Path]:
  import importlib.util

  places = {'skimage': 'data', 'sklearn': 'datasets/images'}
  specs = {package: importlib.util.find_spec(package) for package in places}
  return [Path(specs[package].origin).parent / place for package, place in places.items() if specs[package]]


def _find(file: str, folders: Sequence[Path]) -> Path:
  for folder in folders:
    if (folder / file).is_file():
      return folder / file
  raise errors.UsageError(f'the bundled picture {file} is missing: pip install -r requirements.txt')


# ---- crops ----


def crops(
  layers: Mapping[str, Pictures],
  size: int,
  stride: int,
  *,
  scales: Mapping[str, int] | None = None,
  resident_bytes: int = 2**31,
) -> Split:
  """All crops of pictures on a grid, as examples: what is left over at the right and lower edges is in none.

  Args:
    layers: what is cropped alike: {'image': pictures}, or pairs such as {'low': pictures, 'high': pictures}, whose pictures
      have the same names.
    size: height and width of a crop.
    stride: from one crop to the next, down and across.
    scales: of each layer, 1 by default: its pictures, and so its crops, are so many times as large as the grid says.
    resident_bytes: pictures that need no more live on the device, as they are: crops are made when they are asked for.

  Returns:
    Examples {layer: [size · scale, size · scale, channels] uint8, …, 'picture': [] int32, its number in the order of names}.

  Raises:
    UsageError: for a size or stride below 1, or a crop larger than a picture, which it names.
  """
  if size < 1 or stride < 1:
    raise errors.UsageError(f'crops of {size} pixels every {stride}: both must be at least 1')
  scales = {layer: (scales or {}).get(layer, 1) for layer in layers}
  corners = []  # of one picture each: [crops, 2], rows and columns
  for name, picture in next(iter(layers.values())).items():
    height, width = (n // next(iter(scales.values())) for n in picture.shape[:2])
    if size > min(height, width):
      raise errors.UsageError(
        f'a crop of {size}×{size} pixels is larger than {name}, which has {height}×{width}: a smaller one is needed'
      )
    grid = np.meshgrid(*(np.arange(0, n - size + 1, stride) for n in (height, width)), indexing='ij')
    corners.append(np.stack(grid, -1).reshape(-1, 2))
  counts = [len(c) for c in corners]
  arrays = {'picture': np.repeat(np.arange(len(counts), dtype=np.int32), counts)}
  for layer, pictures in layers.items():
    shapes = np.array([p.shape for p in pictures.values()])
    starts = np.cumsum([0, *(shapes[:-1, 0] * shapes[:-1, 1])])  # where each picture begins among all pixels
    first = [s + scales[layer] * (c @ (width, 1)) for s, c, width in zip(starts, corners, shapes[:, 1])]
    arrays |= {
      layer: np.concatenate([p.reshape(-1, p.shape[-1]) for p in pictures.values()]),  # [pixels, channels]
      f'{layer}_first': np.concatenate(first).astype(np.int32),
      f'{layer}_width': np.repeat(shapes[:, 1], counts).astype(np.int32),
    }
  split = Split.made(sum(counts), arrays, functools.partial(_cut, tuple((n, size * s) for n, s in scales.items())))
  if sum(a.nbytes for a in arrays.values()) > resident_bytes:
    return Split(split.size, None, split.fetch)
  return split


def _cut(sides, arrays, numbers):
  """A Split's `gather`: the squares of `sides` pixels, ((layer, side), …), whose first pixels the arrays name."""
  examples = {'picture': take(arrays['picture'], numbers)}
  for layer, side in sides:
    first, width = (take(arrays[f'{layer}_{what}'], numbers)[:, None, None] for what in ('first', 'width'))
    across = np.arange(side, dtype=np.int32)
    examples[layer] = take(arrays[layer], first + width * across[:, None] + across)  # [n, side, side, channels]
  return examples
