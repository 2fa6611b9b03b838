"""How many steps a call of the compiled program should make: many only where that measures faster than one, because a
loop inside the program can be slower than the dispatch it saves (convolutions on CPU).
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.train import hosts

CALL_SECONDS = 0.25  # what a call of many steps should take: short enough to be stopped, long enough to hide dispatch
LARGEST_CALL = 8192


def choose(carry, steps: int, advance_one: Callable, compile_many: Callable, advance_many: Callable) -> int:
  """Times both on copies of the carry.

  Args:
    carry: on the devices; it is left as it is.
    steps: of the whole run.
    advance_one: (carry, start, stop, fresh) -> carry, a call of one step, compiled already.
    compile_many: (carry, steps) -> None, after which `advance_many` makes up to `steps` in a call.
    advance_many: as `advance_one`.

  Returns:
    the steps of a call; `compile_many` was asked for so many, unless this is 1.
  """
  one = hosts.first_says(_seconds(advance_one, carry, 1))  # all hosts have to choose alike
  if one > CALL_SECONDS / 4 or steps == 1:
    return 1
  in_a_row = max(1, min(steps, 8, int(CALL_SECONDS / one)))  # the first after a copy is slower
  one = hosts.first_says(_seconds(advance_one, carry, 1, calls=in_a_row))
  many = int(min(LARGEST_CALL, steps, 2 ** np.ceil(np.log2(CALL_SECONDS / one) + 2)))
  compile_many(carry, many)
  first = hosts.first_says(_seconds(advance_many, carry, 1, times=1))
  trial = max(1, min(many, int(CALL_SECONDS / first)))
  return many if hosts.first_says(_seconds(advance_many, carry, trial)) < one else 1


def _seconds(advance, carry, steps, times=3, calls=1):
  """Median seconds of a step in so many calls of so many steps, on a copy of the carry: trying changes nothing."""
  measured = []
  for _ in range(times + 1):
    copy = jax.block_until_ready(jax.tree.map(jnp.copy, carry))
    begun = time.perf_counter()
    for start in range(0, calls * steps, steps):
      copy = advance(copy, start, start + steps, False)
    jax.block_until_ready(copy)
    measured.append((time.perf_counter() - begun) / (calls * steps))
  return sorted(measured[1:])[times // 2]
