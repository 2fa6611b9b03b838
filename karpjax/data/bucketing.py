"""One compiled program for batches of different lengths.

Sequences are stored padded to the longest of the set. A step that is `bucketed` looks how long the longest of its batch
is and works on the batch cut to the shortest of a few static lengths that holds it: with batches of similar lengths
(order=bucketed) most of the padding is never computed, and nothing is compiled anew.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import collectives
from karpjax.program import FROZEN


def padded(rows: Sequence[Sequence[int]], length: int, *, fill: int = 0, keep_last: bool = False) -> np.ndarray:
  """Token sequences as one array: what is longer is cut, what is shorter filled up behind.

  Args:
    rows: of tokens.
    length: of the array.
    fill: what stands behind a sequence's end.
    keep_last: whether a sequence that is cut ends with its last token, such as </s>.

  Returns:
    [rows, length] int32.
  """
  tokens = np.full((len(rows), length), fill, np.int32)
  for out, row in zip(tokens, rows):
    out[: min(len(row), length)] = row[:length]
    if keep_last and len(row) > length:
      out[-1] = row[-1]
  return tokens


def edges(lengths: np.ndarray, count: int) -> tuple[int, ...]:
  """The `count` lengths, the last the longest, to which all can be padded with the fewest places; fewer where fewer do.

  Args:
    lengths: [n] int, of the examples.
    count: how many, at least 1.

  Returns:
    Rising lengths.
  """
  values, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
  upto = np.concatenate([[0], np.cumsum(counts)])
  places = lambda i, j: int(values[j] * (upto[j + 1] - upto[i]))  # of a bucket that holds values[i] to values[j]
  # plans[j]: (places, edges) of the j smallest values, in as many buckets at most as there were rounds
  plans = [(0, ()), *[(math.inf, ())] * len(values)]
  for _ in range(count):
    ends = range(len(values))
    plans = [plans[0]] + [
      min((plans[i][0] + places(i, j), (*plans[i][1], int(values[j]))) for i in range(j + 1)) for j in ends
    ]
  return plans[-1][1]


@jax.custom_batching.custom_vmap
def _same(number):
  """The number; under `vmap` over seeds the largest, for all: so that a `switch` on it stays a `switch`."""
  return number


@_same.def_vmap
def _(_size, mapped, number):
  return (number.max() if mapped[0] else number), False


def bucketed(function: Callable, lengths: Sequence[int], padding: Mapping[str, int]) -> Callable:
  """A function of a batch of sequences, worked out on the batch cut to the shortest of the lengths that holds it.

  Args:
    function: (state, batch) -> any pytree whose shapes do not depend on the length.
    lengths: rising; the last holds every batch.
    padding: {name of an array [batch, time]: what stands behind a sequence's end}; the longest of these is measured,
      and all arrays [batch, time, …] of the batch are cut.

  Returns:
    (state, batch) -> the same. Replicas, and seeds under `vmap`, take the length that holds all of theirs.
  """
  if len(lengths) < 2:
    return function

  def cut(batch, length):
    return {name: x if name == FROZEN or x.ndim < 2 else x[:, :length] for name, x in batch.items()}

  def chosen(state, batch):
    longest = jnp.stack([(batch[name] != fill).sum(1).max() for name, fill in padding.items()]).max()
    number = (longest > jnp.array(lengths[:-1])).sum()
    number = _same(collectives.largest(number))
    branches = [lambda state, batch, length=length: function(state, cut(batch, length)) for length in lengths]
    return jax.lax.switch(number, branches, state, batch)

  return chosen
