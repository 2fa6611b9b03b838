"""Sets of images (or signals, or points) with a label each, by name: what the flags of experiments on them choose."""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from karpjax import config as configs
from karpjax.data import bundled, image_files, image_tags, medical, published, scenes, splitting, tfds
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.data.folders import visible
from karpjax.errors import UsageError

SOURCES = {**bundled.SOURCES, 'scenes': scenes.tagged}


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of experiments on images."""

  dataset: str = configs.flag(
    'digits',
    f'{", ".join((*SOURCES, "usps"))}, folder:PATH, tags:FILE.csv, flickr8k, medmnist:FILE.npz, or mnist, cifar10, …: as published, or of TFDS.',
    path=True,
  )
  image_size: int = configs.flag(0, 'Resize to this height and width; 0: as stored.', low=0, high=2**14)
  channels: int = configs.flag(0, '1: grey, 3: colour; 0: as stored.', choices=(0, 1, 3))
  subset: str = configs.flag('', 'TRAIN/TEST:SEED draws so many examples of each split, as 7291/2007:1337.')


def load(config, *, unlabelled: bool = False, tags: bool = False) -> Dataset:
  """The data set that a config names, with batches of 'image' (raw) and 'label' (int32).

  Sets that need no more than `resident_mb` are held as whole arrays; larger ones are decoded as they are fetched.

  Args:
    config: a `config.Train` with `Flags`.
    unlabelled: whether a folder of images without classes serves as well.
    tags: whether a set of tags serves, see `Spec.multi_label`; without labels, it does anyway.

  Raises:
    UsageError: in one line, for whatever is wrong with the name, the files or the flags. Nothing is downloaded.
  """
  name, size, resident_bytes = config.dataset, config.image_size, config.resident_mb * 2**20
  if name in SOURCES:
    data = SOURCES[name]()
  elif name.startswith('folder:'):
    place = Path(config.data_dir) if config.data_dir else None
    data = read_folder(name, seed=config.split_seed, image_size=size, unlabelled=unlabelled, place=place)
  elif name.startswith('medmnist:'):
    data = medical.medmnist(Path(name.removeprefix('medmnist:')))
  elif name.startswith(('tags:', 'flickr8k')):
    data = image_tags.read(name, config.data_dir, seed=config.split_seed, image_size=size)
  else:
    data = _in_data_dir(config, image_size=size, resident_bytes=resident_bytes, unlabelled=unlabelled)

  if data.spec.multi_label and not tags:
    data = _untagged(data, unlabelled)
  splits, subset = splitting.subset(data.splits, config.subset)
  splits, held_out = splitting.hold_out(splits, config.validation, config.split_seed)
  spec = conversion(data.spec, size, config.channels)
  if spec.shape != spec.stored:
    splits = {split: _converted(s, spec.shape) for split, s in splits.items()}
  checked = () if unlabelled or spec.multi_label else spec.classes
  splits, residency = splitting.settle(name, splits, resident_bytes, checked)
  mean, std = splitting.statistics(splits['train'], spec.maximum)
  spec = dataclasses.replace(spec, mean=mean, std=std, examples=splits['train'].size)
  return Dataset(spec, splits, (*data.notes, *subset, *held_out, residency))


def _in_data_dir(config, **options) -> Dataset:
  """A set that lies in `data_dir` as published, or as TFDS has prepared it; `options` are `tfds.read`'s."""
  name, data_dir = config.dataset, Path(config.data_dir) if config.data_dir else None
  if data_dir and not data_dir.is_dir():
    raise UsageError(f'data_dir={data_dir} is not a folder')
  if name == 'usps':
    return bundled.usps(data_dir or Path())
  if data_dir and (
    file := next((f for f in (data_dir / f'{name}.npz', data_dir / 'files' / f'{name}.npz') if f.is_file()), None)
  ):
    return medical.medmnist(file)
  return (data_dir and published.read(name, data_dir)) or tfds.read(name, data_dir, **options)


def _untagged(data: Dataset, unlabelled: bool) -> Dataset:
  """The same images, all of one class."""
  if not unlabelled:
    raise UsageError(
      f'dataset={data.spec.name} has tags, of which an image has any number; a class for each is needed here'
    )
  spec = dataclasses.replace(data.spec, classes=('all',), multi_label=False)
  plain = lambda split: Split.of(image=split.column('image'), label=np.zeros(split.size, np.int32))
  return dataclasses.replace(data, spec=spec, splits={name: plain(split) for name, split in data.splits.items()})


def _converted(split: Split, shape) -> Split:
  images = lambda image, **others: {'image': image_files.convert(shape, image), **others}
  return Split(split.size, None, lambda indices: images(**split.fetch(indices)))


def conversion(spec: Spec, image_size: int, channels: int) -> Spec:
  """The Spec of the same set at `image_size` and `channels` (0: as stored)."""
  spec = dataclasses.replace(spec, stored=spec.shape)
  if not image_size and not channels:
    return spec
  if len(spec.shape) != 3:
    option = f'image_size={image_size}' if image_size else f'channels={channels}'
    raise UsageError(f'{option} is for images; an example of {spec.name} has shape {spec.shape}')
  height, width, depth = spec.shape
  shape = (image_size or height, image_size or width, channels or depth)
  return dataclasses.replace(spec, shape=shape, dtype=spec.dtype if shape[:2] == (height, width) else 'float32')


def load_image(path, spec: Spec) -> np.ndarray:
  """An image file, its path or open, as one raw example: [*spec.shape], spec.dtype, on the scale of spec.maximum.

  It takes the way the data set took: first to the stored size and channels (by Pillow's antialiased filter, where it has
  another size), then to the chosen ones.
  """
  if len(spec.shape) != 3:
    raise UsageError(f'{path}: the model was trained on {spec.name}, whose examples are not images')
  stored = spec.stored or spec.shape
  if isinstance(path, str | Path) and not Path(path).is_file():
    raise UsageError(f'{path}: no such file')
  image = image_files.read(path, stored[-1], stored[:2])
  if spec.maximum != 255:
    scaled = image * np.float32(spec.maximum / 255)
    image = scaled if spec.dtype == 'float32' else np.rint(scaled)
  return image_files.convert(spec.shape, image[None])[0].astype(spec.dtype)


# ---- a folder of class folders ----


def read_folder(
  name: str, *, seed: int = 0, image_size: int = 0, unlabelled: bool = False, place: Path | None = None
) -> Dataset:
  """'folder:PATH': PATH/train/CLASS/* and perhaps PATH/test/CLASS/*, PATH/val/CLASS/* (or validation/); or PATH/CLASS/*.

  Without a test folder PATH/val is the test split; without either, a fifth of each class, drawn by `seed`. Where grey and
  colour images are mixed, all become RGB. With `image_size` each is resized by Pillow's antialiased bilinear filter. Where
  no labels are needed (`unlabelled`), one class is enough, and the images may lie without class folders. PATH may lie in the
  folder `place`.

  Raises:
    UsageError: it names the folder or file that is empty, unreadable, at the wrong level, of another size or class.
  """
  path = Path(name.removeprefix('folder:'))
  path = place / path if place and not path.exists() and (place / path).is_dir() else path
  folders = image_files.split_folders(path)
  # a lone folder 'train' of images may be a class
  if not folders or (len(folders) == 1 and not any(entry.is_dir() for entry in visible(folders['train']))):
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
    files = np.array([os.fsencode(file) for files in part.values() for file in files])  # a quarter of what text takes
    labels[split] = np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, part.values())))
    splits[split] = Split(len(files), None, functools.partial(_fetch, files, labels[split], channels, size))
  splits, more = splitting.with_test(splits, max(round(0.2 * len(labels['train'])), 1), seed, labels=labels['train'])
  return Dataset(Spec(name, (*size, channels), classes, 255.0), splits, (*notes, *more))


def _fetch(files, labels, channels, size, indices):
  images = np.stack([image_files.read(os.fsdecode(file), channels, size) for file in files[indices]])
  return {'image': images, 'label': labels[indices]}


def _classes(path: Path, unlabelled: bool) -> dict[str, list[Path]]:
  """Class name -> its image files, both sorted; of a folder of images alone, where no labels are needed, 'all'."""
  entries = visible(path)
  folders = [entry for entry in entries if entry.is_dir()]
  stray = next(filter(image_files.is_image, entries), None)
  if unlabelled and stray and not folders:
    return {'all': image_files.files(path)}
  if stray:
    raise UsageError(f'{stray} lies beside the class folders: move it into the folder of its class')
  if not folders:
    raise UsageError(f'{path} is empty: expected one folder of PNG or JPEG files per class')
  return {folder.name: image_files.files(folder) for folder in folders}
