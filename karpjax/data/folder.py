"""A folder of class folders of PNG and JPEG files."""

import functools
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.data import images, splitting
from karpjax.data.dataset import Dataset, Spec, Split

SPLITS = ('train', 'validation', 'test')


def read(name: str, *, seed: int = 0, image_size: int = 0, unlabelled: bool = False) -> Dataset:
  """'folder:PATH': PATH/train/CLASS/*, PATH/test/CLASS/*, perhaps PATH/validation/CLASS/*; or PATH/CLASS/*.

  Without a test folder a fifth of each class becomes the test split, drawn by `seed`. Where grey and colour
  images are mixed, all become RGB. With `image_size` each is resized by Pillow's antialiased bilinear filter.
  Where no labels are needed (`unlabelled`), one class is enough, and the images may lie in PATH itself, or in PATH/train
  and PATH/test.

  Raises:
    UsageError: it names the folder or file that is empty, unreadable, at the wrong level, of another size or
      class.
  """
  path = Path(name.removeprefix('folder:')).expanduser()
  if not path.is_dir():
    raise errors.UsageError(f'{path} is not a folder: --dataset=folder:PATH wants one class folder per class in PATH')
  if (path / 'train').is_dir() and (path / 'test').is_dir():
    parts = {split: _classes(path / split, unlabelled) for split in SPLITS if (path / split).is_dir()}
    _same_classes(path, parts)
  else:
    parts = {'all': _classes(path, unlabelled)}
  classes = tuple(next(iter(parts.values())))
  if len(classes) < 2 and not unlabelled:
    raise errors.UsageError(f'{path} has a single class folder, {classes[0]}: classification needs two or more')
  size, channels, notes = _survey(
    [file for part in parts.values() for files in part.values() for file in files], image_size
  )

  splits = {}
  for split, part in parts.items():
    files = np.array([str(file) for files in part.values() for file in files])
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in part.values()])
    splits[split] = Split(len(files), None, functools.partial(_fetch, files, labels, channels, size))
  if 'all' in splits:
    everything = splits.pop('all')
    train, test = splitting.stratified(labels, max(round(0.2 * len(labels)), 1), seed)
    splits = {'train': everything.select(train), 'test': everything.select(test)}
    notes.append(f'{name}: no train and test folders; a fifth of each class is the test split, drawn with seed {seed}')
  return Dataset(Spec(name, (*size, channels), classes, 255.0, (), (), 0), splits, tuple(notes))


def _fetch(files, labels, channels, size, indices):
  return {
    'image': np.stack([images.read(file, channels, size) for file in files[indices]]),
    'label': labels[indices],
  }


def _visible(path):
  return sorted(entry for entry in path.iterdir() if not entry.name.startswith('.'))


def _classes(path, unlabelled=False) -> dict[str, list[Path]]:
  """Class name -> its image files, both sorted; of a folder of images alone, where no labels are needed, 'all'."""
  entries = _visible(path)
  if unlabelled and entries and all(e.is_file() and e.suffix.lower() in images.SUFFIXES for e in entries):
    return {'all': entries}
  stray = next((e for e in entries if e.is_file() and e.suffix.lower() in images.SUFFIXES), None)
  if stray:
    raise errors.UsageError(f'{stray} lies beside the class folders: move it into the folder of its class')
  folders = [e for e in entries if e.is_dir()]
  if not folders:
    raise errors.UsageError(f'{path} is empty: expected one folder of PNG or JPEG files per class')
  classes = {}
  for folder in folders:
    files = _visible(folder)
    for file in files:
      if file.is_dir():
        raise errors.UsageError(f'{file} is a folder inside the class folder {folder}: class folders hold images only')
      if file.suffix.lower() not in images.SUFFIXES:
        raise errors.UsageError(f'{file} is not a PNG or JPEG file: convert it or move it away')
    if not files:
      raise errors.UsageError(f'class folder {folder} has no images: remove it, or put PNG or JPEG files in it')
    classes[folder.name] = files
  return classes


def _same_classes(path, parts):
  for split, classes in parts.items():
    differing = sorted(set(classes) ^ set(parts['train']))
    if differing:
      raise errors.UsageError(
        f'{path}: train and {split} must have the same class folders; only one has: {", ".join(differing)}'
      )


def _survey(files, image_size) -> tuple[tuple[int, int], int, list[str]]:
  """(height, width), channels and notes for all files, from their headers."""
  import tqdm

  seen = {}  # (size, channels) -> the first such file and how many
  for file in tqdm.tqdm(files, desc='reading headers', leave=False, disable=None):
    found = images.header(file)
    first, count = seen.get(found, (file, 0))
    seen[found] = first, count + 1
  sizes = sorted({size for size, _ in seen})
  if len(sizes) > 1 and not image_size:
    one, other = (next(first for (size, _), (first, _) in seen.items() if size == s) for s in (sizes[0], sizes[-1]))
    raise errors.UsageError(
      f'images of {len(sizes)} sizes, such as {sizes[0][0]}×{sizes[0][1]} ({one}) and '
      f'{sizes[-1][0]}×{sizes[-1][1]} ({other}): give --image_size=N to resize all to N×N'
    )
  counts = {c: sum(n for (_, depth), (_, n) in seen.items() if depth == c) for c in (1, 3)}
  notes = []
  if counts[1] and counts[3]:
    notes.append(f'{counts[1]:,} of {len(files):,} images are grey: they become RGB, like the others')
  return (image_size, image_size) if image_size else sizes[0], 3 if counts[3] else 1, notes
