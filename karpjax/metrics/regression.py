"""How well numbers are predicted, as sums over examples."""

import jax.numpy as jnp
import numpy as np

from karpjax.program import pair


def sums(predictions, targets, losses, mask) -> dict:
  """{'loss', 'mse', 'mae', 'target', 'target_squared'}: (sum, count) over the examples of a batch that count.

  Args:
    predictions, targets, losses: [batch] float32.
    mask: [batch] bool.
  """
  difference = predictions - targets
  values = {'loss': losses, 'mse': jnp.square(difference), 'mae': jnp.abs(difference)}
  values |= {'target': targets, 'target_squared': jnp.square(targets)}
  return {name: pair(x, mask) for name, x in values.items()}


def summarise(sums: dict) -> dict[str, float]:
  """The means of `sums` and of any other (sum, count), 'rmse' and 'r2'.

  r2 = 1 - residual / total sum of squares, NaN where all targets are equal.
  """
  means = {name: float(total) / float(count) for name, (total, count) in sums.items()}
  variance = means.pop('target_squared') - means.pop('target') ** 2
  r2 = 1 - means['mse'] / variance if variance > 0 else float('nan')
  return {**means, 'rmse': float(np.sqrt(means['mse'])), 'r2': r2}
