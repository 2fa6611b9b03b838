"""Which examples belong to which split, and whether a split is held whole or decoded as it is fetched."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tqdm

from karpjax.data.dataset import Split
from karpjax.errors import UsageError

MEGABYTE = 2**20
CHUNK, SAMPLE = 512, 4096  # examples decoded at once; of which mean and deviation are taken
VALUES = 2**23  # of which this is done at once: as float64 they take 64 MB


def permutation(seed: int, purpose: int, size: int) -> np.ndarray:
  """[size] int64, drawn from (seed, purpose). It sorts Philox's own bits, the same in every NumPy."""
  bits = np.random.Philox(key=np.array([seed % 2**64, purpose], np.uint64)).random_raw(size)
  return np.argsort(bits, kind='stable')


def sample(size: int, count: int) -> np.ndarray:
  """[count] of the numbers below `size`, or all in a drawn order where there are fewer: always the same draw.

  What stands for a split is drawn: its first examples may all be of one class.
  """
  return permutation(0, 5, size)[:count]


def stratified(labels: np.ndarray, test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Example numbers of train and test, [n - test] and [test], each shuffled; every class gives the same share, rounded.

  What rounding leaves over goes to the classes with the largest remainders. `labels` are [n] int.
  """
  order = permutation(seed, 0, len(labels))
  classes, counts = np.unique(labels, return_counts=True)
  quotas = counts * test / len(labels)
  taken = np.floor(quotas).astype(int)
  taken[np.argsort(taken - quotas, kind='stable')[: test - taken.sum()]] += 1
  chosen = np.concatenate([order[labels[order] == label][:count] for label, count in zip(classes, taken)])
  in_test = np.isin(order, chosen)
  return order[~in_test], order[in_test]


def subset(splits: dict[str, Split], text: str) -> tuple[dict[str, Split], tuple[str, ...]]:
  """Train and test cut down to 'TRAIN/TEST:SEED' examples, in the order drawn; '' cuts nothing.

  Drawn by NumPy's legacy generator, train first, so that subsets published as `np.random.seed(SEED)` and
  `np.random.permutation(size)[:count]` are drawn alike.
  """
  if not text:
    return splits, ()
  parsed = re.fullmatch(r'(\d+)/(\d+):(\d+)', text)
  if not parsed or int(parsed[3]) >= 2**32:
    raise UsageError(f'subset={text!r}: write TRAIN/TEST:SEED, such as 7291/2007:1337, SEED below {2**32:,}')
  train, test, seed = map(int, parsed.groups())
  splits, random = dict(splits), np.random.RandomState(seed)
  for split, count in {'train': train, 'test': test}.items():
    size = splits[split].size
    if not 1 <= count <= size:
      raise UsageError(f'subset={text}: {count} {split} examples asked for; the set has {size:,}')
    splits[split] = splits[split].select(random.permutation(size)[:count])
  return splits, (f'subset: {train:,} train and {test:,} test examples, drawn with seed {seed}',)


def counts(
  asked: Mapping[str, float], size: int, unit: str = 'examples', *, least: int = 0, rounding: Callable = round
) -> list[int]:
  """How many of train's `size` each split is to take.

  Args:
    asked: {split: a fraction of `size` below 1, or a whole number}; 0 is nothing.
    unit: what they are, in a message.
    least: of what a fraction may come to, by `rounding`.

  Raises:
    UsageError: for what is neither, or where a split, or train, would be left without any.
  """
  for split, amount in asked.items():
    if not 0 <= amount < math.inf or (amount > 1 and amount != int(amount)):
      raise UsageError(f'{split}={amount:g}: give a fraction below 1, or a whole number')
  numbers = [max(least, rounding(x * size)) if 0 < x < 1 else int(x) for x in asked.values()]
  if sum(numbers) >= size or any(x and not count for x, count in zip(asked.values(), numbers)):
    given = ' and '.join(f'{split}={amount:g}' for split, amount in asked.items() if amount)
    raise UsageError(f'{given} of {size:,} {unit}: leave at least one on each side')
  return numbers


def hold_out(
  splits: dict[str, Split],
  amount: float,
  seed: int,
  *,
  split: str = 'validation',
  purpose: int = 2,
  labels=None,
  least: int = 0,
) -> tuple[dict[str, Split], tuple[str, ...]]:
  """The splits with one that is taken from train, where the set has none such; and a note.

  Args:
    amount, least: as for `counts`; 0 takes nothing.
    seed, purpose: of the draw.
    labels: of train, [n] int, where every class is to give the same share.
  """
  size = splits['train'].size
  if not amount:
    return splits, ()
  if split in splits:
    return splits, (f"{split}: the set's own split, {splits[split].size:,} examples; none is taken from train",)
  [count] = counts({split: amount}, size, least=least)
  order = permutation(seed, purpose, size)
  parts = stratified(labels, count, seed) if labels is not None else (np.sort(order[count:]), np.sort(order[:count]))
  rest, held_out = map(splits['train'].select, parts)
  note = f'{split}: {count:,} of the {size:,} train examples, drawn with seed {seed}'
  return {**splits, 'train': rest, split: held_out}, (note,)


def labelled(
  name: str, splits: dict[str, Split], labels: Mapping[str, Sequence[int]], *, needed: bool = True
) -> tuple[dict[str, Split], tuple[str, ...]]:
  """The splits without those whose labels are hidden, as of a competition's test split: all −1; and notes that say so.

  Args:
    labels: some of each split, drawn, or all; none where a split has no labels.
    needed: whether train has to have labels; a UsageError where it has not.
  """
  hidden = [split for split, few in labels.items() if len(few) and (np.asarray(few) == -1).all()]
  if 'train' in hidden and needed:
    raise UsageError(f'{name}: train has the label -1, as where labels are hidden; there is nothing to learn from')
  out = [split for split in hidden if split != 'train']
  notes = tuple(f'{split}: its labels are hidden (−1), so that it is left out' for split in out)
  return {split: s for split, s in splits.items() if split not in out}, notes


def with_test(splits: dict[str, Split], count: int, seed: int, **draw) -> tuple[dict[str, Split], tuple[str, ...]]:
  """The splits with a 'test': the validation split where the set has one, else `hold_out`'s; and a note."""
  if 'test' in splits:
    return splits, ()
  if 'validation' in splits:
    note = "test: the set's validation split, since it has no test split"
    return {'train': splits['train'], 'test': splits['validation']}, (note,)
  return hold_out(splits, count, seed, split='test', **draw)


def settle(
  name: str, splits: dict[str, Split], resident_bytes: int, classes: Sequence[str] = ()
) -> tuple[dict[str, Split], str]:
  """Whole arrays for all splits where they need at most `resident_bytes`, else none; and which, in words.

  Raises:
    UsageError: as `check_labels`, of splits that are in memory.
  """
  example = [x[0] for _, x in sorted(splits['train'].fetch(np.zeros(1, int)).items()) if x.ndim > 1]
  need = sum(s.size for s in splits.values()) * sum(x.nbytes for x in example) / MEGABYTE
  sizes = ', '.join(f'{s.size:,} {split}' for split, s in splits.items())
  shapes = ' -> '.join('×'.join(map(str, x.shape)) for x in example)
  limit = f'the {resident_bytes / MEGABYTE:,.0f} MB of resident_mb'
  note = f'{name}: {sizes} examples of {shapes} {example[0].dtype}, {need:,.1f} MB decoded'
  if need * MEGABYTE > resident_bytes:
    check_labels(name, splits, classes)
    streamed = {split: Split(s.size, None, s.fetch) for split, s in splits.items()}
    return streamed, f'{note}, streamed from the host (over {limit})'
  whole = {split: materialise(s, f'{name} {split}') for split, s in splits.items()}
  check_labels(name, whole, classes)
  return whole, f'{note}, kept on the device (under {limit})'


def check_labels(name: str, splits: dict[str, Split], classes: Sequence[str]) -> None:
  """Raises UsageError where a 'label' in memory is not the number of one of the classes; () are none to look for."""
  for split, s in splits.items():
    labels = s.arrays['label'] if classes and s.arrays and 'label' in s.arrays else np.zeros(0, int)
    for wrong in labels[(labels < 0) | (labels >= len(classes))][:1]:
      raise UsageError(f'{name}: {split} has the label {wrong}; there are {len(classes)} classes, from 0')


def materialise(split: Split, title: str) -> Split:
  """All of a split as whole arrays, fetched CHUNK examples at once, with a progress bar on a terminal."""
  if split.arrays is not None:
    return split
  arrays = {}
  for start in tqdm.trange(0, split.size, CHUNK, desc=title, unit_scale=CHUNK, leave=False, disable=None):
    for name, values in split.fetch(np.arange(start, min(start + CHUNK, split.size))).items():
      if not start:
        arrays[name] = np.empty((split.size, *values.shape[1:]), values.dtype)
      arrays[name][start : start + len(values)] = values
  return Split.of(**arrays)


def statistics(split: Split, maximum: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel on the [0, 1] scale, of at most SAMPLE examples spread over the split.

  The same examples whether the set is resident or streamed: how it is read must not change what is learnt.
  """
  numbers = np.unique(np.linspace(0, split.size - 1, SAMPLE).astype(np.int64))
  shape, total, squares = split.fetch(numbers[:1])['image'].shape[1:], 0.0, 0.0
  count = max(1, min(2048, VALUES // math.prod(shape)))
  for start in range(0, len(numbers), count):  # [n, ..., channels] -> [n · positions, channels]
    images = split.fetch(numbers[start : start + count])['image']
    values = np.asarray(images, np.float32).reshape(-1, shape[-1]) / maximum
    total = total + values.sum(0, dtype=np.float64)
    squares = squares + np.square(values, dtype=np.float64).sum(0)  # or a channel nearly constant has another variance
  mean, mean_square = (x / (len(numbers) * math.prod(shape[:-1])) for x in (total, squares))
  std = np.sqrt(np.maximum(mean_square - mean**2, 0))
  return tuple(map(float, mean)), tuple(map(float, std))
