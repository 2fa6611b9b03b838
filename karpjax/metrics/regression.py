"""How well numbers are predicted, as sums over examples."""

import jax.numpy as jnp
import numpy as np

from karpjax.metrics.collect import collect
from karpjax.program import pair


def sums(predictions, targets, losses, batch, examples: int) -> dict:
  """{'loss', 'mse', 'mae'}: (sum, count) over the examples of a batch that count; and 'targets', of all [examples].

  Args:
    predictions, targets, losses: [batch] float32.
    batch: has 'index' and 'mask'.
    examples: size of the largest split; sums of squared targets would lose the variance of large ones.
  """
  difference = predictions - targets
  values = {'loss': losses, 'mse': jnp.square(difference), 'mae': jnp.abs(difference)}
  sums = {name: pair(x, batch['mask']) for name, x in values.items()}
  return sums | {'targets': collect(targets, batch['index'], batch['mask'], examples)}


def summarise(sums: dict) -> dict[str, float]:
  """The means of `sums` and of any other (sum, count), 'rmse' and 'r2'.

  r2 = 1 - residual / total sum of squares, NaN where all targets are equal.
  """
  targets = np.asarray(sums['targets'])[: int(sums['loss'][1])]
  means = {name: float(x[0]) / float(x[1]) for name, x in sums.items() if name != 'targets'}
  variance = np.var(targets, dtype=np.float64)
  r2 = 1 - means['mse'] / variance if variance > 0 else float('nan')
  return {**means, 'rmse': float(np.sqrt(means['mse'])), 'r2': r2}
