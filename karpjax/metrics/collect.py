"""Rows of every example, gathered by the sums of an evaluation."""

import jax
import jax.numpy as jnp


def collect(rows, index, mask, examples: int):
  """Puts each example's row into a place of its own, so that sums over batches, replicas and hosts are all the rows.

  Args:
    rows: a pytree of [batch, …].
    index: [batch] int32 in [0, examples): whose rows they are. Several rows of one index are added up.
    mask: [batch] bool; False adds nothing.
    examples: how many there are, at most.

  Returns:
    The same tree of [examples, …]; zeros where there is no row.
  """

  def gather(x):
    real = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))
    return jnp.zeros((examples, *x.shape[1:]), real.dtype).at[index].add(real)

  return jax.tree.map(gather, rows)


def evaluated(config, splits) -> int:
  """The size of the largest split that a run evaluates, for `collect`; 1 where there is none."""
  names = {*config.eval_splits, *config.final_splits}
  return max((split.size for name, split in splits.items() if name in names), default=1)
