"""Which examples a step sees: arithmetic on (seed, step), done on the host.

Training runs through an endless sequence of epochs, each a permutation of the train split; step t takes positions
t·batch_size … (t+1)·batch_size − 1 of it. Nothing of it needs saving: a resume goes on at t.
"""

import functools
from collections.abc import Iterator

import numpy as np

from karpjax.data.dataset import Split


@functools.lru_cache(maxsize=64)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of one epoch: [size] int32, from NumPy's counter-based Philox generator keyed by (seed, epoch)."""
  generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
  return generator.permutation(size).astype(np.int32)


def indices(seed: int, start: int, steps: int, *, batch_size: int, size: int, order: str = 'reshuffle') -> np.ndarray:
  """The example numbers of steps start … start + steps − 1.

  Args:
    seed: of the order.
    start: the first step.
    steps: how many.
    batch_size: examples a step.
    size: of the train split.
    order: 'reshuffle' each epoch, 'shuffle' once, 'stored', or 'streams': the set is cut into `batch_size` runs of
      neighbours, and each place of a batch goes through one of them; what does not divide is left out.

  Returns:
    [steps, batch_size] int32.
  """
  if order == 'streams':
    length = size // batch_size
    return ((np.arange(start, start + steps)[:, None] % length) + np.arange(batch_size) * length).astype(np.int32)
  positions = np.arange(start * batch_size, (start + steps) * batch_size)
  epochs, within = np.divmod(positions, size)
  if order == 'stored':
    return within.astype(np.int32).reshape(steps, batch_size)
  numbers = np.empty(len(positions), np.int32)
  for epoch in range(epochs[0], epochs[-1] + 1):
    here = epochs == epoch
    numbers[here] = permutation(seed, epoch if order == 'reshuffle' else 0, size)[within[here]]
  return numbers.reshape(steps, batch_size)


def exact(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Every example once: (indices [batch] int32, mask [batch] bool); the last batch is padded with example 0, masked."""
  for start in range(0, size, batch_size):
    numbers = np.arange(start, start + batch_size)
    mask = numbers < size
    yield np.where(mask, numbers, 0).astype(np.int32), mask


def fetch(split: Split, numbers: np.ndarray) -> dict[str, np.ndarray]:
  """The batch of these examples, on the host: numbers [...] -> each [..., *example], and 'index'."""
  flat = split.fetch(numbers.reshape(-1))
  batch = {name: array.reshape(*numbers.shape, *array.shape[1:]) for name, array in flat.items()}
  return {**batch, 'index': numbers}


class _Fetch:
  """step -> its batch; a class, since grain's worker processes need to pickle it."""

  def __init__(self, split, numbers):
    self.split, self.numbers = split, numbers

  def __call__(self, t):
    return fetch(self.split, self.numbers(t))


def stream(split: Split, numbers, start: int, stop: int, *, workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
  """The batches of steps start … stop − 1, decoded ahead by grain's threads, or `workers` processes.

  Args:
    split: what `fetch` reads.
    numbers: step -> example numbers, any shape; picklable if there are worker processes.
    start, stop: the range of steps.
    workers: processes; 0 decodes in threads of this one.
  """
  import grain

  batches = grain.MapDataset.range(start, stop).map(_Fetch(split, numbers))
  if workers:
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own there; ours live elsewhere
    iterator = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    )
  else:
    iterator = batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
  return iter(iterator)
