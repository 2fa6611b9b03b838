"""A folder of class folders of PNG and JPEG files."""

import functools
from pathlib import Path

import numpy as np

from karpjax.data import image_files, splitting
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError

SPLITS = {'train': ('train',), 'validation': ('validation', 'val', 'valid'), 'test': ('test',)}


def read(name: str, *, seed: int = 0, image_size: int = 0, unlabelled: bool = False) -> Dataset:
  """'folder:PATH': PATH/train/CLASS/* and perhaps PATH/test/CLASS/*, PATH/val/CLASS/* (or validation/); or PATH/CLASS/*.

  Without a test folder PATH/val is the test split; without either, a fifth of each class, drawn by `seed`. Where grey and
  colour images are mixed, all become RGB. With `image_size` each is resized by Pillow's antialiased bilinear filter. Where
  no labels are needed (`unlabelled`), one class is enough, and the images may lie without class folders.

  Raises:
    UsageError: it names the folder or file that is empty, unreadable, at the wrong level, of another size or class.
  """
  path = Path(name.removeprefix('folder:')).expanduser()
  if not path.is_dir():
    raise UsageError(f'{path} is not a folder: dataset=folder:PATH wants one class folder per class in PATH')
  folders = {split: path / n for split, names in SPLITS.items() for n in names if (path / n).is_dir()}
  # a lone folder 'train' of images may be a class
  if 'train' not in folders or (len(folders) == 1 and not any(e.is_dir() for e in _visible(folders['train']))):
    folders = {'train': path}
  parts = {split: _classes(folder, unlabelled) for split, folder in folders.items()}
  _same_classes(path, parts)
  classes = tuple(parts['train'])
  if len(classes) < 2 and not unlabelled:
    raise UsageError(f'{path} has a single class folder, {classes[0]}: classification needs two or more')
  files = {split: [file for files in part.values() for file in files] for split, part in parts.items()}
  size, channels, notes = _survey([file for part in files.values() for file in part], image_size)

  splits = {}
  for split, part in parts.items():
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in part.values()])
    fetch = functools.partial(_fetch, np.array(list(map(str, files[split]))), labels, channels, size)
    splits[split] = Split(len(labels), None, fetch)
    if split == 'train':
      train_labels = labels
  fifth = lambda: splitting.stratified(train_labels, max(round(0.2 * len(train_labels)), 1), seed)
  splits, more = splitting.with_test(name, splits, fifth, f'a fifth of each class, drawn with seed {seed},')
  return Dataset(Spec(name, (*size, channels), classes, 255.0), splits, (*notes, *more))


def _fetch(files, labels, channels, size, indices):
  images = np.stack([image_files.read(file, channels, size) for file in files[indices]])
  return {'image': images, 'label': labels[indices]}


def _visible(path):
  return sorted(entry for entry in path.iterdir() if not entry.name.startswith('.'))


def _is_image(path):
  return path.is_file() and path.suffix.lower() in image_files.SUFFIXES


def _classes(path, unlabelled=False) -> dict[str, list[Path]]:
  """Class name -> its image files, both sorted; of a folder of images alone, where no labels are needed, 'all'."""
  entries = _visible(path)
  if unlabelled and entries and all(map(_is_image, entries)):
    return {'all': entries}
  for stray in filter(_is_image, entries):
    raise UsageError(f'{stray} lies beside the class folders: move it into the folder of its class')
  classes = {entry.name: _visible(entry) for entry in entries if entry.is_dir()}
  if not classes:
    raise UsageError(f'{path} is empty: expected one folder of PNG or JPEG files per class')
  for name, files in classes.items():
    for file in files:
      if file.is_dir():
        raise UsageError(f'{file} is a folder inside the class folder {path / name}: class folders hold images only')
      if not _is_image(file):
        raise UsageError(f'{file} is not a PNG or JPEG file: convert it or move it away')
    if not files:
      raise UsageError(f'class folder {path / name} has no images: remove it, or put PNG or JPEG files in it')
  return classes


def _same_classes(path, parts):
  for split, classes in parts.items():
    if differing := sorted(set(classes) ^ set(parts['train'])):
      raise UsageError(
        f'{path}: train and {split} must have the same class folders; only one has: {", ".join(differing)}'
      )


def _survey(files, image_size) -> tuple[tuple[int, int], int, list[str]]:
  """(height, width), channels and notes for all files, from their headers."""
  import tqdm

  first, counts = {}, {1: 0, 3: 0}  # size -> the first such file; channels -> how many
  for file in tqdm.tqdm(files, desc='reading headers', leave=False, disable=None):
    size, channels = image_files.header(file)
    first.setdefault(size, file)
    counts[channels] += 1
  smallest, largest = min(first), max(first)
  if len(first) > 1 and not image_size:
    shown = ' and '.join(f'{h}×{w} ({first[h, w]})' for h, w in (smallest, largest))
    raise UsageError(f'images of {len(first)} sizes, such as {shown}: give image_size=N to resize all to N×N')
  notes = []
  if counts[1] and counts[3]:
    notes.append(f'{counts[1]:,} of {len(files):,} images are grey: they become RGB, like the others')
  return (image_size, image_size) if image_size else smallest, 3 if counts[3] else 1, notes
