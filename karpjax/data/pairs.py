"""Pairs of images, an input and its target: twin files, files of both halves, edges and pictures, small pictures and
large.

Raw examples are {'input': [height, width, channels] uint8, 'target': [height', width', channels'] uint8}; of crops also
'picture'.
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
from karpjax.program import example_keys

DIRECTIONS = 'forward', 'backward'
SIDES = 'input', 'target'
TWINS = SIDES, ('A', 'B')  # folders of files of the same names
SIZE, CHANNELS = 64, 1  # of the crops of `edges`, unless asked for otherwise

MOVES = 'flip', 'enlarge', 'shift', 'shift_edge', 'roll', 'rotate'  # augmentations that suit two images alike


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
    config: a `config.Train` with `dataset`, 'edges' (of the bundled pictures, or 'edges:PATH' of a folder's), in crops;
      or 'pairs:PATH', files of the same names in PATH/train/input and PATH/train/target, or in folders A and B; or
      'side_by_side:PATH', files in PATH/train, … whose left half is the input; the folders are those of
      `pictures.divided`. Also with `image_size`, `channels`, `direction` and `even_light`.

  Raises:
    UsageError: for a bad name; a folder or file that is missing, unreadable, of another size or mode, or has no twin; a
      side-by-side image of odd width; a crop larger than a picture.
  """
  sides = SIDES if config.direction == 'forward' else SIDES[::-1]
  kind, _, path = config.dataset.partition(':')
  if kind == 'edges':
    source, size = f'folder:{path}' if path else 'bundled', config.image_size or SIZE
    parts, notes = pictures.read(source, config.channels or CHANNELS, config.validation, config.split_seed)
    pair = lambda picture: (pictures.edges(picture), pictures.in_even_light(picture, config.even_light))
    return _crops(config, parts, notes, sides, pair, size, max(1, size // 2), size)
  if kind not in ('pairs', 'side_by_side') or not path:
    raise UsageError(f'dataset={config.dataset}: pairs are edges, edges:PATH, pairs:PATH or side_by_side:PATH')
  find = _twins if kind == 'pairs' else lambda folder: [(file,) for file in image_files.files(folder)]
  parts, notes = pictures.divided(path, find, config.validation, config.split_seed, {'test': 1, 'validation': 2})
  size, depths = _survey(np.concatenate(list(parts.values())), config.image_size, config.channels)
  fetch = functools.partial(_fetch, sides, size, depths)
  splits = {split: Split(len(part), None, functools.partial(fetch, part)) for split, part in parts.items()}
  return _dataset(config, splits, notes)


def load_low_resolution(config, *, least: int, margin: int, most: int) -> Dataset:
  """Pictures made small, and the pictures: train in crops, other splits whole, in tiles; `raw` holds all whole.

  Args:
    config: a `config.Train` with `dataset` and `channels`, see `pictures.read`; `factor`; `crop`, in pixels of the
      small picture, of train; `stride`, from one train crop to the next, 0: half of a crop.
    least: height and width at the least of a small picture that is held out.
    margin: of a tile, see `pictures.tiles`; its part is a few crops across.
    most: pixels of a small picture beyond which that gets no more.

  Raises:
    UsageError: which names a picture that is too small.
  """
  parts, notes = pictures.read(config.dataset, config.channels, config.validation, config.split_seed)
  for split, part in parts.items():
    if flat := [name for name, picture in part.items() if (picture == picture[:1, :1]).all()]:
      about = f'{split}: {len(flat)} of {len(part)} pictures are of one colour, whose PSNR is infinite'
      notes += (f'{about}; its means leave them out: {dataset.listed(flat)}',)
  pair = functools.partial(pictures.shrunk, factor=config.factor)
  raw = {split: {name: dict(zip(SIDES, pair(x))) for name, x in part.items()} for split, part in parts.items()}
  train, stride, held_out = raw['train'], config.stride or max(config.crop // 2, 1), {**raw}
  del held_out['train']
  sizes = {name: x['input'].shape[:2] for part in held_out.values() for name, x in part.items()}
  for name, size in sizes.items():
    if min(size) < least:
      raise UsageError(
        f'{name} made small has {"×".join(map(str, size))} pixels: at least {least} are needed, for SSIM'
      )
  across = -(-min(max(map(max, sizes.values()), default=1), most) // config.crop)
  tiles = {split: pictures.tiles(part, across * config.crop, margin) for split, part in held_out.items()}
  notes += tuple(f'{split}: {len(raw[split])} pictures whole, in {x.size} tiles' for split, x in tiles.items())
  return _dataset(config, {'train': pictures.crops(train, config.crop, stride)}, notes, raw, tiles)


def _crops(config, parts, notes, sides, pair: Callable, size: int, stride: int, held_out_stride: int) -> Dataset:
  """Crops of pairs of whole pictures, which `pair` makes of a picture each."""
  raw = {split: {name: dict(zip(sides, pair(x))) for name, x in part.items()} for split, part in parts.items()}
  strides = {split: stride if split == 'train' else held_out_stride for split in raw}
  for split in [split for split in raw if split != 'train']:
    shapes = np.array([next(iter(x.values())).shape[:2] for x in raw[split].values()])
    covered = ((shapes - size) // held_out_stride * held_out_stride + size).prod(1).sum() / shapes.prod(1).sum()
    notes += (f'{split}: what is measured are crops of {size}×{size}, which are {covered:.1%} of its pictures',)
  splits = {split: pictures.crops(part, size, strides[split]) for split, part in raw.items()}
  return _dataset(config, splits, notes, raw)


def _dataset(
  config, splits: dict[str, Split], notes: Iterable[str], raw: Mapping | None = None, streamed=()
) -> Dataset:
  splits, note = splitting.settle(config.dataset, splits, config.resident_mb * 2**20)
  shapes = [splits['train'].fetch(np.zeros(1, int))[side].shape[1:] for side in SIDES]
  spec = Spec(config.dataset, *shapes, splits['train'].size, max(map(len, (raw or {}).values()), default=0))
  return Dataset(spec, splits | dict(streamed), (*notes, note), raw or {})


# ---- in the step ----


def augment(steps: Sequence[augmentation.Step], key, batch: Mapping) -> dict:
  """The batch with input and target [batch, height, width, channels] moved alike, each example by its own key."""
  channels, both = batch['input'].shape[-1], jnp.concatenate([batch['input'], batch['target']], -1)
  both, _ = augmentation.augment(steps, example_keys(key, batch), both, None)
  return {**batch, 'input': both[..., :channels], 'target': both[..., channels:]}


# ---- folders of pairs ----


def _twins(folder: Path) -> list[tuple[Path, Path]]:
  """Files of the same names in two folders; a UsageError where the folders are missing, or a file has no twin."""
  names = next((names for names in TWINS if all((folder / name).is_dir() for name in names)), None)
  if names is None:
    raise UsageError(f'{folder} has no folders input and target, nor A and B: pairs are files of the same names')
  inputs, targets = ({file.name: file for file in image_files.files(folder / name)} for name in names)
  for name in sorted({*inputs} ^ {*targets}):
    there, absent = names if name in inputs else names[::-1]
    raise UsageError(f'{folder / there / name} has no twin: there is no {folder / absent / name}')
  return [(inputs[name], targets[name]) for name in inputs]


def _survey(pairs: np.ndarray, image_size: int, channels: int) -> tuple[tuple[int, int], list[int]]:
  """((height, width), channels of input and target) of files [n, 2], or [n, 1] of halves, from their headers."""
  headers = image_files.headers(pairs.reshape(-1))
  height, width = image_files.common_size(headers, image_size)
  if pairs.shape[1] == 1:
    for file, (size, _) in headers.items():
      if size[1] % 2:
        raise UsageError(f'{file} has {"×".join(map(str, size))} pixels: an odd width has no two halves')
    width = image_size or width // 2
  depths = [channels or headers[file][1] for file in pairs[0]]
  for side in pairs.T if not channels else ():
    image_files.check_alike({file: {1: 'is grey', 3: 'is RGB'}[headers[file][1]] for file in side}, 'channels=1 or 3')
  return (height, width), [depths[0], depths[-1]]


def _fetch(sides, size, channels, pairs, indices) -> dict[str, np.ndarray]:
  """The pairs of these numbers, decoded: {side: [n, *size, channels] uint8}."""
  rows = [_decoded(pairs[i], size, channels) for i in indices]
  return {side: np.stack(column) for side, column in zip(sides, zip(*rows))}


def _decoded(pair: Sequence[Path], size, channels) -> list[np.ndarray]:
  if len(pair) == 2:
    return [image_files.read(file, depth, size) for file, depth in zip(pair, channels)]
  halves = np.split(image_files.read(pair[0], channels[0]), 2, axis=1)
  return [image_files.fit(np.ascontiguousarray(half), size) for half in halves]
