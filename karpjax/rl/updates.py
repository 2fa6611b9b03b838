"""Updates that a step makes at times, or several times; their metrics are (sum, count) pairs, as of any step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def when(due, work: Callable, before):
  """Work that is not always due.

  Args:
    due: [] bool.
    work: () -> (what becomes of `before`, metrics).
    before: any pytree.

  Returns:
    What `work` gives, or `before` and metrics that count nothing. Not mapped over, only one of the two is computed.
  """
  nothing = lambda: (before, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(work)[1]))
  return jax.lax.cond(due, work, nothing)


def repeat(update: Callable, begun, times: int):
  """update: (carry, i) -> (carry, metrics), `times` after each other: the last carry, and the sums of the metrics."""
  if times == 1:
    return update(begun, 0)
  learnt, metrics = jax.lax.scan(update, begun, jnp.arange(times))
  return learnt, jax.tree.map(lambda x: x.sum(0), metrics)
