"""Pairs of images: what is given and what is to be made of it, from twin files, from files of both halves, or edges and pictures.

Raw examples are {'input': [height, width, channels] uint8, 'target': the same size, its own channels}.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from karpjax import errors
from karpjax.data import augmentation, dataset, image_files, pictures, splitting
from karpjax.data.dataset import Dataset, Split

DIRECTIONS = 'forward', 'backward'
TWINS = ('input', 'target'), ('A', 'B')  # folders of files of the same names
SPLITS = {'train': ('train',), 'validation': ('validation', 'val'), 'test': ('test',)}  # and their folders
SIZE, CHANNELS = 64, 1  # of `edges`, unless asked for otherwise
EDGES = 12  # how much darker than the paper a stroke is, for a difference of Gaussians of 1

MOVES = 'flip', 'enlarge', 'shift', 'shift_edge', 'roll', 'rotate'  # augmentations that suit two images alike

Pair = tuple[Path, ...]  # (input, target), or a single file of both


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a model must know of pairs; saved with a run.

  Attributes:
    name: as given to `load`.
    input, target: (height, width, channels) of each; height and width are the same.
    examples: size of the train split.
  """

  name: str
  input: tuple[int, int, int]
  target: tuple[int, int, int]
  examples: int

  to_json = dataset.Spec.to_json
  from_json = classmethod(dataset.Spec.from_json.__func__)


def load(
  name: str,
  *,
  image_size: int = 0,
  channels: int = 0,
  direction: str = 'forward',
  even_light: float = 0,
  validation: float = 0.1,
  seed: int = 0,
  resident_bytes: int = 2**31,
) -> Dataset:
  """Pairs by name.

  Args:
    name: 'edges': the bundled pictures in crops, input their edges; or 'edges:PATH': a folder's. 'pairs:PATH': files of the same
      names in PATH/train/input and PATH/train/target, or in folders A and B, and so for test and validation (or val).
      'side_by_side:PATH': files in PATH/train, …, whose left half is the input. Without PATH/train all this is looked for in PATH.
      Without PATH/test a fifth of train is drawn for it.
    image_size: height and width of the crops, 0: 64; of files, to which they are resized, 0: as stored.
    channels: 1 (luma) or 3, of both images, but edges have one; 0: as stored, of edges' targets 1.
    even_light: of edges: pictures in `even_light` of so many pixels; 0: as they are.
    direction: 'backward' makes inputs of targets.
    validation: share or number of train pairs (of 'edges:PATH': of pictures) for validation where there is no such folder.
    seed: of these draws.
    resident_bytes: a set that needs no more lives on the device.

  Raises:
    UsageError: for a bad name, size or number; a folder or file that is missing, unreadable, of another size or mode, or has
      no twin; a side-by-side image of odd width; a crop larger than a picture.
  """
  if not 0 <= even_light < 1000:
    raise errors.UsageError(f'--even_light={even_light}: pixels from 0, for none, to 1000 are needed')
  errors.choose('direction', direction, dict.fromkeys(DIRECTIONS))
  if image_size < 0:
    raise errors.UsageError(f'--image_size={image_size}: give a size in pixels, or 0 for the default one')
  if channels not in (0, 1, 3):
    raise errors.UsageError(f'--channels={channels}: give 1 (grey), 3 (RGB), or 0 for the default')
  sides = ('input', 'target') if direction == 'forward' else ('target', 'input')
  kind, _, path = name.partition(':')
  if kind == 'edges':
    source = f'folder:{path}' if path else 'bundled'
    parts, notes = pictures.read(source, channels=channels or CHANNELS, validation=validation, seed=seed)
    size, splits = image_size or SIZE, {}
    for split, part in parts.items():
      drawn = {name: edges(picture) for name, picture in part.items()}
      lit = {name: in_even_light(picture, even_light) if even_light else picture for name, picture in part.items()}
      layers = dict(zip(sides, (drawn, lit)))
      stride = max(1, size // 2) if split == 'train' else size
      splits[split] = pictures.crops(layers, size, stride, resident_bytes=resident_bytes)
  elif kind in ('pairs', 'side_by_side') and path:
    splits, notes = _folders(kind, Path(path).expanduser(), sides, image_size, channels, validation, seed)
    need = sum(s.size for s in splits.values()) * sum(x.nbytes for x in splits['train'].fetch(np.arange(1)).values())
    if need <= resident_bytes:
      splits = {split: splitting.materialise(s, f'{name} {split}') for split, s in splits.items()}
  else:
    raise errors.UsageError(f'--dataset={name}: pairs are edges, edges:PATH, pairs:PATH or side_by_side:PATH')
  example = splits['train'].fetch(np.arange(1))
  spec = Spec(name, example['input'].shape[1:], example['target'].shape[1:], splits['train'].size)
  shapes = ' -> '.join('×'.join(map(str, shape)) for shape in (spec.input, spec.target))
  sizes = ', '.join(f'{s.size:,} {split}' for split, s in splits.items())
  where = 'on the device' if splits['train'].arrays is not None else 'streamed from the host'
  return Dataset(spec, splits, (*notes, f'{name}: {sizes} pairs of {shapes}, {where}'))


def edges(picture: np.ndarray) -> np.ndarray:
  """A picture's edges as strokes on their dark sides, on white paper: [height, width, 1 or 3] -> [height, width, 1] uint8.

  Where scikit-image's difference of Gaussians, of 1 and 1.6 pixels (Marr & Hildreth 1980), is negative. A gradient's strength
  would not tell which side is the darker one.
  """
  from skimage import filters

  difference = filters.difference_of_gaussians(image_files.recolour(picture, 1)[..., 0] / 255, 1)
  return np.rint(255 * np.clip(1 + EDGES * difference, 0, 1)).astype(np.uint8)[..., None]


def in_even_light(picture: np.ndarray, sigma: float) -> np.ndarray:
  """A picture [height, width, channels] uint8 less its mean around each place, plus mid-grey: what edges can tell of it.

  How bright a place is that has no edges is not told by them.

  Args:
    picture: what is lit.
    sigma: of the Gaussian mean, in pixels.
  """
  from scipy import ndimage

  picture = picture.astype(np.float32)
  around = ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode='reflect')
  return np.clip(np.rint(picture - around + 128), 0, 255).astype(np.uint8)


# ---- in the step ----


def moves(text: str) -> tuple[augmentation.Step, ...]:
  """`augmentation.parse` of what suits two images alike.

  Raises:
    UsageError: as `augmentation.parse`'s, and for a step that is none of MOVES.
  """
  return augmentation.parse(text, MOVES)


def augment(steps: Sequence[augmentation.Step], keys, batch: Mapping) -> dict:
  """The batch with input and target [batch, height, width, channels] moved alike, by the keys [batch]."""
  channels = batch['input'].shape[-1]
  both, _ = augmentation.augment(steps, keys, jnp.concatenate([batch['input'], batch['target']], -1), None)
  return {**batch, 'input': both[..., :channels], 'target': both[..., channels:]}


def symmetric(images):
  """Raw images […] of 0 … 255 -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1


# ---- folders of pairs ----


def _folders(kind, path, sides, image_size, channels, validation, seed) -> tuple[dict[str, Split], tuple[str, ...]]:
  """Splits that decode what they are asked for, and notes."""
  found = {split: next((path / f for f in folders if (path / f).is_dir()), None) for split, folders in SPLITS.items()}
  found = {split: folder for split, folder in found.items() if folder} if found['train'] else {'train': path}
  find = _twins if kind == 'pairs' else _side_by_side
  pairs = {split: find(folder) for split, folder in found.items()}
  everything = [pair for part in pairs.values() for pair in part]
  size, depths = _survey(everything, image_size, channels)
  fetch = functools.partial(_fetch, sides=sides, size=size, channels=depths)
  splits = {split: Split(len(part), None, functools.partial(fetch, part)) for split, part in pairs.items()}
  notes = ()
  if 'test' not in splits:
    count, train = max(round(splits['train'].size / 5), 1), splits['train']
    if count >= train.size:
      raise errors.UsageError(f'{found["train"]} has {train.size} pairs: too few for train and test')
    order = splitting.permutation(seed, 1, train.size)
    splits |= {'train': train.select(np.sort(order[count:])), 'test': train.select(np.sort(order[:count]))}
    notes = (f'{path}: no test folder; {count:,} of the pairs are for test, drawn with seed {seed}',)
  splits, more = splitting.hold_out(splits, validation, seed)
  return splits, (*notes, *more)


def _twins(folder: Path) -> list[Pair]:
  """Files of the same names in two folders.

  Raises:
    UsageError: where the folders are missing, or a file has no twin.
  """
  names = next((names for names in TWINS if all((folder / name).is_dir() for name in names)), None)
  if names is None:
    raise errors.UsageError(f'{folder} has no folders input and target, nor A and B: pairs are files of the same names')
  inputs, targets = ({file.name: file for file in pictures.files(folder / name)} for name in names)
  for file in [*inputs.values(), *targets.values()]:
    other = folder / names[file.parent.name == names[0]]
    if not (file.name in inputs and file.name in targets):
      raise errors.UsageError(f'{file} has no twin: there is no {other / file.name}')
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
      raise errors.UsageError(f'{file} has {height}×{width} pixels: an odd width has no two halves')
  (height, width), _ = headers[pairs[0][0]]
  if not image_size:
    _alike({file: '×'.join(map(str, size)) for file, (size, _) in headers.items()}, 'pixels', '--image_size=N')
  depths = []
  for side in zip(*pairs):
    if not channels:
      _alike({file: {1: 'grey', 3: 'RGB'}[headers[file][1]] for file in side}, 'pictures', '--channels=1 or 3')
    depths.append(channels or headers[side[0]][1])
  size = (image_size, image_size) if image_size else (height, width // 2 if halves else width)
  return size, (depths[0], depths[-1])


def _alike(kinds: Mapping[Path, str], what: str, instead: str):
  """Raises UsageError, naming the first file and the first that differs from it."""
  (first, kind), *rest = kinds.items()
  for file, other in rest:
    if other != kind:
      raise errors.UsageError(f'{first} has {kind} {what}, {file} has {other}: give {instead} to make all alike')


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
