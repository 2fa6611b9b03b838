"""What a data set is, whatever it was read from, and `load`, which reads one by name.

Random access only: the order of examples is the business of `batches`. Images keep their stored scale (uint8
where they can) until `preprocessing.preprocess` brings them to [0, 1] or another range inside the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from karpjax import errors


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model and a prediction must know of a data set; saved with a run, so predicting needs no data.

  Attributes:
    name: as given to `load`.
    shape: one example's, such as (28, 28, 1), (40, 1) for a series, (10,) for a row of a table.
    classes: names in the order of the labels; () for regression.
    maximum: the raw value that stands for 1.0, such as 255.
    mean, std: of the train split, per channel (the last axis), on the [0, 1] scale.
    examples: size of the train split.
    dtype: of the raw examples: 'uint8', 'uint16' or 'float32'.
    stored: the shape before `image_size` and `channels` were applied; equal to `shape` where neither changed
      it.
  """

  name: str
  shape: tuple[int, ...]
  classes: tuple[str, ...]
  maximum: float
  mean: tuple[float, ...]
  std: tuple[float, ...]
  examples: int
  dtype: str = 'uint8'
  stored: tuple[int, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """A dict that json.dumps takes and `from_json` reads back."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Spec':
    """The inverse of `to_json`."""
    return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})


def take(array, indices):
  """array[indices], on the host or, traced, on the device; indices, of any shape, are within bounds."""
  if isinstance(array, np.ndarray):
    return np.asarray(array[indices])
  return array.at[indices].get(mode='promise_in_bounds')


def rows(arrays, indices):
  """arrays {name: [size, ...]}, indices [n] -> {name: [n, ...]}."""
  return {name: take(array, indices) for name, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples 0 … size - 1, reached by number.

  Attributes:
    size: how many.
    arrays: name -> [size, ...], such as 'image' and 'label' (int32), where they fit in memory; else None.
    fetch: indices [n] -> {name: [n, ...]}, on the host.
    gather: (arrays, indices [n]) -> the same, pure; traced where the arrays live on the device.
    lengths: [size] int, by which --order=bucketed brings examples together; None where all are alike.
  """

  size: int
  arrays: dict[str, np.ndarray] | None
  fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
  gather: Callable[[Any, Any], dict[str, Any]] = rows
  lengths: np.ndarray | None = None

  @classmethod
  def of(cls, **arrays: np.ndarray) -> 'Split':
    """A split that lies in memory: arrays [size, ...]."""
    return cls.made(len(next(iter(arrays.values()))), arrays, rows)

  @classmethod
  def made(cls, size: int, arrays: dict[str, np.ndarray], gather: Callable, lengths=None) -> 'Split':
    """A split whose examples are made of arrays of any shapes when they are asked for, as windows of a text."""
    return cls(size, arrays, functools.partial(gather, arrays), gather, lengths)

  def select(self, indices: np.ndarray) -> 'Split':
    """The examples `indices` [n], in that order."""
    lengths = None if self.lengths is None else self.lengths[indices]
    if self.arrays is not None:
      return dataclasses.replace(Split.of(**self.fetch(indices)), lengths=lengths)
    return Split(len(indices), None, functools.partial(_select, self.fetch, indices), lengths=lengths)

  def change(self, images: Callable[[np.ndarray], np.ndarray]) -> 'Split':
    """`images` [n, ...] -> [n, ...] applied to 'image' whenever examples are fetched."""
    return Split(self.size, None, functools.partial(_change, self.fetch, images))


# Named functions, so that a split can be pickled for the worker processes that decode it.
def _select(fetch, chosen, indices):
  return fetch(chosen[indices])


def _change(fetch, images, indices):
  batch = fetch(indices)
  return {**batch, 'image': images(batch['image'])}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Attributes:
  spec: what the examples are.
  splits: 'train', 'test' and, where there is one, 'validation'.
  notes: lines for start-up to print: what was chosen, and why.
  raw: the same splits as people read them, where `splits` hold them encoded; {} elsewhere.
  """

  spec: Spec
  splits: dict[str, Split]
  notes: tuple[str, ...] = ()
  raw: dict[str, Split] = dataclasses.field(default_factory=dict)


def load(
  name: str,
  *,
  data_dir: str | Path | None = None,
  validation: float = 0.0,
  seed: int = 0,
  image_size: int = 0,
  channels: int = 0,
  subset: str = '',
  resident_bytes: int = 2**31,
  unlabelled: bool = False,
) -> Dataset:
  """The data set `name`, with batches of 'image' (raw) and 'label' (int32).

  Args:
    name: 'digits', 'mnist1d', 'mnist1d_shuffled', 'gaussians25', 'usps', 'folder:PATH', or an image-classification set of
      TensorFlow Datasets that is prepared on this machine, such as 'mnist', 'cifar10:3.0.2',
      'imagenet_v2/topimages'.
    data_dir: where usps.npz (or files/usps.npz) and prepared TFDS sets (or tfds/) are found; by default
      TFDS_DATA_DIR or ~/tensorflow_datasets.
    validation: how much of train becomes the validation split, where the set has none of its own: a fraction
      below 1, or a count.
    seed: of the validation split and of a folder's train/test split.
    image_size: height and width to resize to; 0 leaves the stored size. Images of one size are resized as
      `images.resize` does (bilinear, without antialiasing); photographs of many sizes, and folders, by
      Pillow's antialiased bilinear filter.
    channels: 1 (luma) or 3; 0 leaves them as stored.
    subset: 'TRAIN/TEST:SEED', such as '7291/2007:1337': so many examples, drawn without replacement by that
      seed, as `splitting.subset` does. TFDS's order is not that of MNIST's own files.
    resident_bytes: a set whose splits need no more is held as whole arrays; a larger one is decoded as it is
      fetched.
    unlabelled: whether a folder of images without classes serves as well.

  Raises:
    UsageError: in one line, for whatever is wrong with the name, the files or the arguments. Nothing is
      downloaded.
  """
  from karpjax.data import bundled, folder, images, splitting, tfds

  if image_size < 0:
    raise errors.UsageError(f'--image_size={image_size}: give a size in pixels, or 0 for the stored one')
  if channels not in (0, 1, 3):
    raise errors.UsageError(f'--channels={channels}: give 1 (grey), 3 (RGB), or 0 for as stored')
  data_dir = Path(data_dir).expanduser() if data_dir else None
  if data_dir and not data_dir.is_dir():
    raise errors.UsageError(f'--data_dir={data_dir} is not a folder')

  if name in bundled.SOURCES:
    data = bundled.SOURCES[name](data_dir)
  elif name.startswith('folder:'):
    data = folder.read(name, seed=seed, image_size=image_size, unlabelled=unlabelled)
  else:
    data = tfds.read(name, data_dir, image_size=image_size, resident_bytes=resident_bytes)

  splits, notes = splitting.subset(data.splits, subset)
  splits, more = splitting.hold_out(splits, validation, seed)
  spec, change = images.conversion(data.spec, image_size, channels)
  if change:
    splits = {split: s.change(change) for split, s in splits.items()}
  splits, residency = splitting.settle(name, splits, spec, resident_bytes)
  mean, std = splitting.statistics(splits['train'], spec.maximum)
  spec = dataclasses.replace(spec, mean=mean, std=std, examples=splits['train'].size)
  return Dataset(spec, splits, (*data.notes, *notes, *more, residency))


def configured(config, **options) -> Dataset:
  """`load` by the flags of an experiment on images; `options` are its others."""
  return load(
    config.dataset,
    data_dir=config.data_dir,
    validation=config.validation,
    seed=config.split_seed,
    image_size=config.image_size,
    channels=config.channels,
    subset=config.subset,
    resident_bytes=config.resident_mb * 2**20,
    **options,
  )
