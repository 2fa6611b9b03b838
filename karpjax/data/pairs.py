"""Pairs of images, an input and its target: twin files, files of both halves, edges and pictures, small pictures and large.

Raw examples are {'input': [height, width, channels] uint8, 'target': [height', width', channels'] uint8}; of crops also 'picture'.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from karpjax.data import augmentation, dataset, image_files, pictures, splitting
from karpjax.data.dataset import Dataset, Split
from karpjax.errors import UsageError

DIRECTIONS = 'forward', 'backward'
TWINS = ('input', 'target'), ('A', 'B')  # folders of files of the same names
SIZE, CHANNELS = 64, 1  # of the crops of `edges`, unless asked for otherwise
BORDER = 1  # pixels at each edge of a small crop, which stand for those of the large one that no metric counts

MOVES = 'flip', 'enlarge', 'shift', 'shift_edge', 'roll', 'rotate'  # augmentations that suit two images alike
Pair = tuple[Path, ...]  # (input, target), or a single file of both


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model must know of pairs; saved with a run.

  Attributes:
    name: as the user gave it.
    input, target: (height, width, channels) of each.
    examples: size of the train split.
    pictures: of how many pictures the crops of the largest split are; 0: they are no crops.
  """

  name: str
  input: tuple[int, int, int]
  target: tuple[int, int, int]
  examples: int
  pictures: int = 0

  to_json = dataset.Spec.to_json
  from_json = classmethod(dataset.Spec.from_json.__func__)


def load(config) -> Dataset:
  """The pairs that a config names.

  Args:
    config: a `config.Train` with `dataset`, 'edges' (of the bundled pictures, or 'edges:PATH' of a folder's), in crops; or
      'pairs:PATH', files of the same names in PATH/train/input and PATH/train/target, or in folders A and B; or
      'side_by_side:PATH', files in PATH/train, … whose left half is the input; the folders are those of `pictures.divided`.
      Also with `image_size`, `channels`, `direction` and `even_light`.

  Raises:
    UsageError: for a bad name; a folder or file that is missing, unreadable, of another size or mode, or has no twin; a
      side-by-side image of odd width; a crop larger than a picture.
  """
  sides = ('input', 'target') if config.direction == 'forward' else ('target', 'input')
  kind, _, path = config.dataset.partition(':')
  if kind == 'edges':
    source, size = f'folder:{path}' if path else 'bundled', config.image_size or SIZE
    parts, notes = pictures.read(source, config.channels or CHANNELS, config.validation, config.split_seed)
    pair = lambda picture: (pictures.edges(picture), pictures.in_even_light(picture, config.even_light))
    return _crops(config, parts, notes, sides, pair, size, max(1, size // 2), size)
  if kind not in ('pairs', 'side_by_side') or not path:
    raise UsageError(f'dataset={config.dataset}: pairs are edges, edges:PATH, pairs:PATH or side_by_side:PATH')
  find, path = _twins if kind == 'pairs' else _side_by_side, Path(path).expanduser()
  parts, notes = pictures.divided(path, find, config.validation, config.split_seed, {'test': 1, 'validation': 2})
  size, depths = _survey([pair for part in parts.values() for pair in part], config.image_size, config.channels)
  fetch = functools.partial(_fetch, sides=sides, size=size, channels=depths)
  splits = {split: Split(len(part), None, functools.partial(fetch, part)) for split, part in parts.items()}
  need = sum(s.size for s in splits.values()) * sum(x.nbytes for x in splits['train'].fetch(np.arange(1)).values())
  if need <= config.resident_mb * 2**20:
    splits = {split: splitting.materialise(s, f'{config.dataset} {split}') for split, s in splits.items()}
  return _dataset(config.dataset, splits, notes)


def load_low_resolution(config) -> Dataset:
  """Crops of pictures made small, and of the pictures; `raw` holds them whole.

  Args:
    config: a `config.Train` with `dataset` and `channels`, see `pictures.read`; `factor`; `crop`, in pixels of the small
      picture, of all splits (held-out crops overlap by twice BORDER, which metrics leave out); `stride`, from one train crop
      to the next, 0: half of a crop.
  """
  parts, notes = pictures.read(config.dataset, config.channels, config.validation, config.split_seed)
  pair = functools.partial(pictures.shrunk, factor=config.factor)
  stride = config.stride or max(config.crop // 2, 1)
  return _crops(config, parts, notes, ('input', 'target'), pair, config.crop, stride, config.crop - 2 * BORDER)


def _crops(config, parts, notes, sides, pair: Callable, size: int, stride: int, held_out_stride: int) -> Dataset:
  """Crops of pairs of whole pictures, which `pair` makes of a picture each."""
  raw = {split: {name: dict(zip(sides, pair(x))) for name, x in part.items()} for split, part in parts.items()}
  crops = functools.partial(pictures.crops, size=size, resident_bytes=config.resident_mb * 2**20)
  strides = {split: stride if split == 'train' else held_out_stride for split in raw}
  splits = {split: crops(part, stride=strides[split]) for split, part in raw.items()}
  return _dataset(config.dataset, splits, notes, raw)


def _dataset(name: str, splits: dict[str, Split], notes: Iterable[str], raw=None) -> Dataset:
  example, raw = splits['train'].fetch(np.arange(1)), raw or {}
  shapes = [example[side].shape[1:] for side in ('input', 'target')]
  spec = Spec(name, *shapes, splits['train'].size, max(map(len, raw.values()), default=0))
  sizes = ', '.join(f'{s.size:,} {split}' for split, s in splits.items())
  where = 'on the device' if splits['train'].arrays is not None else 'streamed from the host'
  note = f'{name}: {sizes} pairs of {" -> ".join("×".join(map(str, shape)) for shape in shapes)}, {where}'
  return Dataset(spec, splits, (*notes, note), raw)


# ---- in the step ----


def augment(steps: Sequence[augmentation.Step], keys, batch: Mapping) -> dict:
  """The batch with input and target [batch, height, width, channels] moved alike, by the keys [batch]."""
  channels = batch['input'].shape[-1]
  both, _ = augmentation.augment(steps, keys, jnp.concatenate([batch['input'], batch['target']], -1), None)
  return {**batch, 'input': both[..., :channels], 'target': both[..., channels:]}


# ---- folders of pairs ----


def _twins(folder: Path) -> list[Pair]:
  """Files of the same names in two folders.

  Raises:
    UsageError: where the folders are missing, or a file has no twin.
  """
  names = next((names for names in TWINS if all((folder / name).is_dir() for name in names)), None)
  if names is None and not folder.is_dir():
    raise UsageError(f'{folder} is not a folder')
  if names is None:
    raise UsageError(f'{folder} has no folders input and target, nor A and B: pairs are files of the same names')
  inputs, targets = ({file.name: file for file in pictures.files(folder / name)} for name in names)
  for file in [*inputs.values(), *targets.values()]:
    other = folder / names[file.parent.name == names[0]]
    if not (file.name in inputs and file.name in targets):
      raise UsageError(f'{file} has no twin: there is no {other / file.name}')
  return [(inputs[name], targets[name]) for name in inputs]


def _side_by_side(folder: Path) -> list[Pair]:
  return [(file,) for file in pictures.files(folder)]


def _survey(pairs: Sequence[Pair], image_size: int, channels: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """((height, width), (input's channels, target's)), from the files' headers.

  Raises:
    UsageError: it names two files that differ, or a file of odd width.
  """
  headers = {file: image_files.header(file) for pair in pairs for file in pair}
  halves = len(pairs[0]) == 1
  for file, ((height, width), _) in headers.items():
    if halves and width % 2:
      raise UsageError(f'{file} has {height}×{width} pixels: an odd width has no two halves')
  (height, width), _ = headers[pairs[0][0]]
  if not image_size:
    _alike({file: '×'.join(map(str, size)) for file, (size, _) in headers.items()}, 'pixels', 'image_size=N')
  depths = []
  for side in zip(*pairs):
    if not channels:
      _alike({file: {1: 'grey', 3: 'RGB'}[headers[file][1]] for file in side}, 'pictures', 'channels=1 or 3')
    depths.append(channels or headers[side[0]][1])
  size = (image_size, image_size) if image_size else (height, width // 2 if halves else width)
  return size, (depths[0], depths[-1])


def _alike(kinds: Mapping[Path, str], what: str, instead: str):
  """Raises UsageError, naming the first file and the first that differs from it."""
  (first, kind), *rest = kinds.items()
  for file, other in rest:
    if other != kind:
      raise UsageError(f'{first} has {kind} {what}, {file} has {other}: give {instead} to make all alike')


def _fetch(pairs, indices: Iterable[int], *, sides, size, channels) -> dict[str, np.ndarray]:
  """The pairs of these numbers, decoded: {side: [n, *size, channels] uint8}."""
  rows = [_decoded(pairs[i], size, channels) for i in np.asarray(indices)]
  return {side: np.stack(column) for side, column in zip(sides, zip(*rows))}


def _decoded(pair: Pair, size, channels) -> tuple[np.ndarray, np.ndarray]:
  if len(pair) == 2:
    return tuple(image_files.read(file, depth, size) for file, depth in zip(pair, channels))
  whole = image_files.read(pair[0], channels[0])
  middle = whole.shape[1] // 2
  return image_files.fit(whole[:, :middle], size), image_files.fit(whole[:, middle:], size)
