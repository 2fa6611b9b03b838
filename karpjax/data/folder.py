"""A folder of class folders of PNG and JPEG files."""

import functools
from pathlib import Path

import numpy as np

from karpjax.data import image_files, splitting
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError


def read(name: str, *, seed: int = 0, image_size: int = 0, unlabelled: bool = False) -> Dataset:
  """'folder:PATH': PATH/train/CLASS/* and perhaps PATH/test/CLASS/*, PATH/val/CLASS/* (or validation/); or PATH/CLASS/*.

  Without a test folder PATH/val is the test split; without either, a fifth of each class, drawn by `seed`. Where grey and
  colour images are mixed, all become RGB. With `image_size` each is resized by Pillow's antialiased bilinear filter. Where
  no labels are needed (`unlabelled`), one class is enough, and the images may lie without class folders.

  Raises:
    UsageError: it names the folder or file that is empty, unreadable, at the wrong level, of another size or class.
  """
  path = Path(name.removeprefix('folder:')).expanduser()
  folders = image_files.split_folders(path)
  # a lone folder 'train' of images may be a class
  if not folders or (len(folders) == 1 and not any(entry.is_dir() for entry in image_files.visible(path / 'train'))):
    folders = {'train': path}
  parts = {split: _classes(folder, unlabelled) for split, folder in folders.items()}
  classes = tuple(parts['train'])
  for split, part in parts.items():
    if differing := sorted({*classes} ^ {*part}):
      others = ', '.join(differing)
      raise UsageError(f'{path}: train and {split} must have the same class folders; only one has: {others}')
  if len(classes) < 2 and not unlabelled:
    raise UsageError(f'{path} has a single class folder, {classes[0]}: classification needs two or more')
  headers = image_files.headers([file for part in parts.values() for files in part.values() for file in files])
  size, (channels, notes) = image_files.common_size(headers, image_size), image_files.common_channels(headers)

  splits, labels = {}, {}
  for split, part in parts.items():
    files = np.array([str(file) for files in part.values() for file in files])
    labels[split] = np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, part.values())))
    splits[split] = Split(len(files), None, functools.partial(_fetch, files, labels[split], channels, size))
  fifth = splitting.stratified(labels['train'], max(round(0.2 * len(labels['train'])), 1), seed)
  splits, more = splitting.with_test(name, splits, fifth, f'a fifth of each class, drawn with seed {seed},')
  return Dataset(Spec(name, (*size, channels), classes, 255.0), splits, (*notes, *more))


def _fetch(files, labels, channels, size, indices):
  images = np.stack([image_files.read(file, channels, size) for file in files[indices]])
  return {'image': images, 'label': labels[indices]}


def _classes(path: Path, unlabelled: bool) -> dict[str, list[Path]]:
  """Class name -> its image files, both sorted; of a folder of images alone, where no labels are needed, 'all'."""
  entries = image_files.visible(path)
  folders = [entry for entry in entries if entry.is_dir()]
  stray = next(filter(image_files.is_image, entries), None)
  if unlabelled and stray and not folders:
    return {'all': image_files.files(path)}
  if stray:
    raise UsageError(f'{stray} lies beside the class folders: move it into the folder of its class')
  if not folders:
    raise UsageError(f'{path} is empty: expected one folder of PNG or JPEG files per class')
  return {folder.name: image_files.files(folder) for folder in folders}
