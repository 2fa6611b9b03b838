"""A trained Program's predictions over a whole split."""

from collections.abc import Callable

import jax
import numpy as np

from karpjax.data import batches
from karpjax.data.dataset import Split


def predict_split(predict: Callable, state, split: Split, *, batch_size: int = 500):
  """What a function of examples gives for every example of a split, in order.

  Args:
    predict: (state, batch, key) -> a pytree of [batch, …], such as a Program's; it is called with key 0.
    state: of one seed.
    split: the examples.
    batch_size: examples in one call; the last batch is filled up, so that one program is compiled.

  Returns:
    A pytree of NumPy arrays [split.size, …].
  """
  call = jax.jit(lambda state, batch: predict(state, batch, jax.random.key(0)))
  rows = []
  for numbers, mask in batches.exact(split.size, min(batch_size, split.size)):
    out = call(state, {**batches.fetch(split, numbers), 'mask': mask})
    rows.append(jax.tree.map(lambda x: np.asarray(x)[mask], out))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
