"""A trained Program's predictions over a whole split."""

import jax
import numpy as np

from karpjax.data import batches
from karpjax.data.dataset import Split


def predict_split(program, state, split: Split, *, batch_size: int = 500, function=None):
  """What a Program predicts for every example of a split, in order.

  Args:
    program: its `predict` is called, with key 0.
    state: of one seed.
    split: the examples.
    batch_size: examples in one call; the last batch is filled up, so that one program is compiled.
    function: (state, batch, key) -> a pytree of [batch, …], instead of `program.predict`.

  Returns:
    A pytree of NumPy arrays [split.size, …].
  """
  function = function or program.predict
  call = jax.jit(lambda state, batch: function(state, batch, jax.random.key(0)))
  rows = []
  for numbers, mask in batches.exact(split.size, min(batch_size, split.size)):
    out = call(state, {**batches.fetch(split, numbers), 'mask': mask})
    rows.append(jax.tree.map(lambda x: np.asarray(x)[mask], out))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
