"""Which examples a step sees: arithmetic on (seed, step), done on the host.

Training runs through an endless sequence of epochs, each a permutation of the train split; step t takes positions
t·batch_size … (t+1)·batch_size − 1 of it. A resume goes on at t, so nothing needs saving.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from karpjax.data.dataset import Split


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of one epoch: [size] int32, from NumPy's counter-based Philox generator keyed by (seed, epoch)."""
  return _orders(seed, size)(epoch)


@functools.lru_cache(maxsize=64)
def _orders(seed: int, size: int) -> Callable[[int], np.ndarray]:
  """(epoch) -> its permutation; of each seed's the latest are kept, for long runs have many."""

  @functools.lru_cache(maxsize=4)
  def order(epoch):
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(size).astype(np.int32)

  return order


def by_length(lengths: np.ndarray, batch_size: int) -> Callable[[int, int], np.ndarray]:
  """Epochs whose batches are of similar lengths, in a drawn order: what `indices` takes as an order.

  An epoch's examples are sorted by length, similar ones in a drawn order, and cut into batches, which are shuffled.
  Where a batch straddles two epochs, the end of the one and the beginning of the other are taken from the same drawn
  quantile of lengths, so that this batch is like the others.

  Returns:
    (seed, epoch) -> [size] int32, a permutation.
  """
  lengths, size = np.asarray(lengths), len(lengths)

  def take_out(ordered, count, seed, epoch):
    """`count` neighbours at a quantile that is drawn for an epoch, and the others."""
    drawn = np.random.Philox(key=np.array([seed, epoch + _QUANTILE], np.uint64)).random_raw() / 2**64
    start = int(drawn * (len(ordered) - count + 1))
    return ordered[start : start + count], np.delete(ordered, np.s_[start : start + count])

  @functools.lru_cache(maxsize=8)
  def epoch_order(seed, epoch):
    drawn = permutation(seed, epoch, size)
    # stretched by up to a tenth, so that batches have other members each epoch where hardly two lengths are equal
    stretched = lengths[drawn] * (1 + 0.1 * np.arange(size) / size)
    left = drawn[np.argsort(stretched, kind='stable')]
    head = -epoch * size % batch_size  # what the last epoch's last batch lacks
    first, left = take_out(left, head, seed, epoch)
    last, left = take_out(left, (size - head) % batch_size, seed, epoch + 1)
    whole = left.reshape(-1, batch_size)
    whole = whole[permutation(seed, epoch + _BATCHES, len(whole))]
    return np.concatenate([first, whole.reshape(-1), last])

  return epoch_order


def most_drawn(batch_size: int, size: int) -> int:
  """How many examples `poisson` draws at the most: six standard deviations more than expected, and up to a multiple of 16."""
  most = batch_size + 6 * math.sqrt(batch_size * (1 - batch_size / size))
  return min(size, 16 * math.ceil(most / 16))


def poisson(seed: int, t: int, batch_size: int, size: int) -> np.ndarray:
  """A batch that each of `size` examples joins by itself with probability batch_size / size.

  Returns:
    [most_drawn] int32: examples' numbers and, behind them, numbers below 0, as `padded` takes them.
  """
  generator = np.random.Generator(np.random.Philox(key=np.array([seed, t + _DRAWN], np.uint64)))
  count, numbers = generator.binomial(size, batch_size / size), np.full(most_drawn(batch_size, size), -1, np.int32)
  kept = count if count <= len(numbers) else len(numbers) - 1
  numbers[:kept] = generator.choice(size, kept, replace=False, shuffle=False)
  numbers[kept:] -= count - kept
  return numbers


def rows(batch_size: int, size: int, order: str | Callable, parts: int) -> int:
  """How many rows a batch has that is cut into so many parts."""
  return -(-most_drawn(batch_size, size) // parts) * parts if order == 'poisson' else batch_size


def filled(numbers: np.ndarray, count: int) -> np.ndarray:
  """Batches of numbers [..., rows] -> [..., count]; behind them stand no examples."""
  more = [(0, 0)] * (numbers.ndim - 1) + [(0, count - numbers.shape[-1])]
  return np.pad(numbers, more, constant_values=-1) if count > numbers.shape[-1] else numbers


def padded(split: Split) -> Split:
  """The split, of which numbers below 0 are no examples, but rows that 'mask' says are none.

  Each of −1 − k says that k examples were left out of the batch, which is its 'left_out'.
  """

  def masked(take):
    def taken(*arrays_and_numbers):
      *arrays, numbers = arrays_and_numbers
      index = numbers.clip(0)
      return {**take(*arrays, index), 'index': index, 'mask': numbers >= 0, 'left_out': (-1 - numbers).clip(0)}

    return taken

  return dataclasses.replace(split, fetch=masked(split.fetch), gather=masked(split.gather))


_BATCHES, _QUANTILE, _DRAWN = 2**40, 2**41, 2**42  # added to the epoch: other draws than that of its examples


def indices(
  seed: int, start: int, steps: int, *, batch_size: int, size: int, order: str | Callable = 'reshuffle'
) -> np.ndarray:
  """The example numbers of steps start … start + steps − 1 over `size` examples, [steps, rows] int32.

  Args:
    order: 'reshuffle' each epoch, 'shuffle' once, 'stored', or 'streams': the set is cut into `batch_size` runs of
      neighbours, and each place of a batch goes through one of them; what does not divide is left out. Or a function
      (seed, epoch) -> the order of an epoch. There are batch_size rows; or 'poisson', whose batches are as `poisson`
      draws them.
  """
  if order == 'poisson':
    return np.stack([poisson(seed, t, batch_size, size) for t in range(start, start + steps)])
  if order == 'streams':
    length = size // batch_size
    return ((np.arange(start, start + steps)[:, None] % length) + np.arange(batch_size) * length).astype(np.int32)
  epochs, within = np.divmod(np.arange(start * batch_size, (start + steps) * batch_size), size)
  if order == 'stored':
    return within.astype(np.int32).reshape(steps, batch_size)
  draw = order if callable(order) else lambda seed, epoch: permutation(seed, epoch * (order == 'reshuffle'), size)
  each = [draw(seed, epoch)[within[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
  return np.concatenate(each).reshape(steps, batch_size)


def exact(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Every example once: (indices [batch] int32, mask [batch] bool); the last batch is padded with example 0, masked."""
  for start in range(0, size, batch_size):
    numbers = np.arange(start, start + batch_size, dtype=np.int32)
    yield np.where(numbers < size, numbers, 0), numbers < size


def fetch(split: Split, numbers: np.ndarray) -> dict[str, np.ndarray]:
  """The batch of these examples, on the host: numbers [...] -> each [..., *example], and 'index'."""
  flat = split.fetch(numbers.reshape(-1))
  batch = {name: array.reshape(*numbers.shape, *array.shape[1:]) for name, array in flat.items()}
  return {'index': numbers, **batch}


def stream(split: Split, numbers, start: int, stop: int, *, workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
  """The batches of steps start … stop − 1, decoded ahead by grain's threads, or `workers` processes.

  Args:
    numbers: step -> example numbers, of any shape.
  """
  import grain

  batches = grain.MapDataset.range(start, stop).map(lambda t: fetch(split, numbers(t)))
  if workers:
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own there; ours live elsewhere
    ahead = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(ahead)
  else:
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
  iterator = iter(batches)
  try:
    yield from iterator
  finally:
    iterator.close()  # ends processes, and gives back what they have decoded ahead, also where a file could not be read
