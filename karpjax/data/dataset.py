"""What a data set is, whatever it was read from.

Random access only: the order of examples is the business of `batches`. Examples keep their stored scale (uint8 where
they can) until `Spec.scale` brings them to the model's inside the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

SCALES = 'unit', 'symmetric', 'standard', 'imagenet', 'lite'
IMAGENET = (
  (0.485, 0.456, 0.406),
  (0.229, 0.224, 0.225),
)  # mean and deviation of its colours, as PyTorch's networks have them
ALIGNMENT = 64  # bytes, of what XLA takes as it lies


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model and a prediction must know of a data set; saved with a run, so predicting needs no data.

  Attributes:
    name: as the user gave it.
    shape: one example's, such as (28, 28, 1), (40, 1) for a series, (10,) for a row of a table.
    classes: names in the order of the labels; () for regression.
    maximum: the raw value that stands for 1.0, such as 255.
    mean, std: of the train split, per channel (the last axis), on the [0, 1] scale.
    examples: size of the train split.
    dtype: of the raw examples: 'uint8', 'uint16' or 'float32'.
    stored: the shape before it was resized or recoloured.
    multi_label: whether an example may be of any of the classes, which then are tags: its label is [classes] int8, 1 or 0, or
      -1 where it is not known.
  """

  name: str
  shape: tuple[int, ...]
  classes: tuple[str, ...]
  maximum: float
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  examples: int = 0
  dtype: str = 'uint8'
  stored: tuple[int, ...] = ()
  multi_label: bool = False

  to_json = dataclasses.asdict

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Spec':
    """The inverse of `to_json`, also through JSON's text."""
    return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})

  def scale(self, examples, how: str):
    """Raw examples [batch, …, channels] of any real type -> the same shape, float32; pure.

    Args:
      examples: on the scale of `maximum`.
      how: 'unit': [0, 1]; 'symmetric': [-1, 1]; 'standard': mean 0 and deviation 1 per channel over the train split;
        'imagenet': over ImageNet, for published weights; 'lite': (255 x - 127) / 128 of x in [0, 1], EfficientNet-Lite's.
    """
    unit = examples.astype(jnp.float32) / self.maximum
    if how == 'standard':
      mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
      return (unit - mean) / np.where(std > 0, std, 1)  # a constant channel stays 0
    if how == 'imagenet':
      mean, std = (np.array(x, np.float32) if self.shape[-1] == 3 else np.float32(np.mean(x)) for x in IMAGENET)
      return (unit - mean) / std
    if how == 'lite':
      return (255 * unit - 127) / 128
    return 2 * unit - 1 if how == 'symmetric' else unit


def take(array, indices):
  """array[indices], on the host or, traced, on the device; indices, of any shape, are within bounds."""
  if isinstance(array, np.ndarray):
    return np.asarray(array[indices])
  return array.at[indices].get(mode='promise_in_bounds')


def rows(arrays, indices):
  """arrays {name: [size, ...]}, indices [n] -> {name: [n, ...]}."""
  return {name: take(array, indices) for name, array in arrays.items()}


def aligned(array: np.ndarray) -> np.ndarray:
  """The same array at a multiple of 64 bytes, where a CPU's device reads it in place instead of a copy of its own."""
  if array.dtype.hasobject or array.ctypes.data % ALIGNMENT == 0:
    return array
  room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
  start = -room.ctypes.data % ALIGNMENT
  placed = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
  placed[...] = array
  return placed


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples 0 … size - 1, reached by number.

  Attributes:
    size: how many.
    arrays: name -> [size, ...], such as 'image' and 'label' (int32), where they fit in memory; else None.
    fetch: indices [n] -> {name: [n, ...]}, on the host.
    gather: (arrays, indices [n]) -> the same, pure; traced where the arrays live on the device.
    lengths: [size] int, by which order=bucketed brings examples together; None where all are alike.
  """

  size: int
  arrays: dict[str, np.ndarray] | None
  fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
  gather: Callable[[Any, Any], dict[str, Any]] = rows
  lengths: np.ndarray | None = None

  @classmethod
  def of(cls, **arrays: np.ndarray) -> 'Split':
    """A split that lies in memory: arrays [size, ...]."""
    return cls.lazy(len(next(iter(arrays.values()))), arrays, rows)

  @classmethod
  def lazy(cls, size: int, arrays: dict[str, np.ndarray], gather: Callable, lengths=None) -> 'Split':
    """A split whose examples are made of arrays of any shapes when they are asked for, as windows of a text."""
    arrays = {name: aligned(array) for name, array in arrays.items()}
    return cls(size, arrays, functools.partial(gather, arrays), gather, lengths)

  def column(self, name: str) -> np.ndarray:
    """[size, …]: one of the arrays, of all examples, such as 'label'."""
    return self.fetch(np.arange(self.size))[name] if self.arrays is None else self.arrays[name]

  def select(self, indices: np.ndarray) -> 'Split':
    """The examples `indices` [n], in that order."""
    lengths = None if self.lengths is None else self.lengths[indices]
    if self.arrays is not None:
      return dataclasses.replace(Split.of(**self.fetch(indices)), lengths=lengths)
    return Split(len(indices), None, lambda numbers: self.fetch(indices[numbers]), lengths=lengths)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Attributes:
  spec: what the examples are.
  splits: 'train', 'test' and, where there is one, 'validation'.
  notes: lines for start-up to print: what was chosen, and why.
  raw: the same splits as people read them, where `splits` hold them encoded; {} elsewhere.
  files: of those that were read, as far as is known, what `fingerprint.described` keeps.
  """

  spec: Spec
  splits: dict[str, Split]
  notes: tuple[str, ...] = ()
  raw: dict[str, Split] = dataclasses.field(default_factory=dict)
  files: Mapping[str, list] = dataclasses.field(default_factory=dict)

  def reported(self, last: bool = False) -> tuple[str, Split]:
    """The split that reports show, and its name: validation, else train; the `last` one test,
    before which none reads that.
    """
    names = ('test', 'validation', 'train') if last else ('validation', 'train')
    return next((name, self.splits[name]) for name in names if name in self.splits)


def listed(names: Sequence[str], most: int = 8) -> str:
  """'a, b, c', of many the first ones and how many more."""
  more = f' and {len(names) - most:,} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def rare_classes(data: Dataset) -> tuple[str, ...]:
  """Lines on classes of which train has a single example, or none where another split has some; of splits in memory."""
  classes, counts = getattr(data.spec, 'classes', ()), {}
  for split, s in data.splits.items() if classes else ():
    labels = next((s.arrays[name] for name in ('label', 'target', 'targets') if name in (s.arrays or {})), None)
    if labels is not None and np.issubdtype(labels.dtype, np.integer):
      tags = getattr(data.spec, 'multi_label', False)
      counts[split] = (
        (labels == 1).sum(0) if tags else np.bincount(labels[labels >= 0].reshape(-1), minlength=len(classes))
      )
  if 'train' not in counts:
    return ()
  named = lambda chosen: [classes[i] for i in np.flatnonzero(chosen)]
  lines, train = [], counts.pop('train')
  if single := named(train == 1):
    lines.append(f'train has one example alone of {len(single):,} of {len(classes):,} classes: {listed(single)}')
  for split, count in counts.items():
    if unknown := named((train == 0) & (count > 0)):
      lines.append(f'{split} has {len(unknown):,} of {len(classes):,} classes that train has not: {listed(unknown)}')
  return tuple(lines)


def seen_in_train(data: Dataset) -> tuple[str, ...]:
  """Lines on texts of other splits that are in train too, word for word."""
  columns = lambda split: [x for x in split.arrays.values() if x.dtype == object]
  return repeated({split: [*zip(*columns(s))] for split, s in data.raw.items() if isinstance(s, Split)}, 'texts')


def repeated(found: Mapping[str, Sequence], what: str) -> tuple[str, ...]:
  """Lines on examples {split: hashable ones} of other splits that are in train too."""
  train, others = set(found.get('train', ())), {split: each for split, each in found.items() if split != 'train'}
  again = {split: sum(x in train for x in each) for split, each in others.items()}
  about = lambda count, size: f'{count:,} of its {size:,} {what} ({count / size:.1%}) are in train too'
  return tuple(f'{split}: {about(count, len(others[split]))}' for split, count in again.items() if count)
