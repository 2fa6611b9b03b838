"""A trained Program's predictions over a whole split."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from karpjax.data import batches
from karpjax.data.dataset import Split


def predict_batches(predict: Callable, state, split: Split, *, batch_size: int = 500) -> Iterator[Any]:
  """What a function of examples gives for every example of a split, in order, a batch at a time.

  Args:
    predict: (state, batch, key) -> a pytree of [batch, …], such as a Program's; it is called with key 0.
    state: of one seed.
    split: the examples.
    batch_size: examples in one call; the last batch is filled up, so that one program is compiled.

  Yields:
    A pytree of NumPy arrays [up to batch_size, …].
  """
  call = jax.jit(lambda state, batch: predict(state, batch, jax.random.key(0)))
  for numbers, mask in batches.exact(split.size, min(batch_size, split.size)):
    out = call(state, {**batches.fetch(split, numbers), 'mask': mask})
    yield jax.tree.map(lambda x, mask=mask: np.asarray(x)[mask], out)


def predict_split(predict: Callable, state, split: Split, *, batch_size: int = 500):
  """The same in one piece: a pytree of NumPy arrays [split.size, …]."""
  batches_ = predict_batches(predict, state, split, batch_size=batch_size)
  return jax.tree.map(lambda *parts: np.concatenate(parts), *batches_)


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The function of a verb that looks at each example alone, (state, {name: [examples, …]}) -> outputs in NumPy.

  Attributes:
    predict: (state, batch, key) -> outputs [batch, …]; pure, and what a server compiles.
  """

  predict: Callable

  def __call__(self, state, arrays):
    return predict_split(self.predict, state, Split.of(**arrays))
