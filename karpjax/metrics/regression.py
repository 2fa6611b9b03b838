"""How well numbers are predicted, as sums over examples."""

import jax.numpy as jnp
import numpy as np


def sums(predictions, targets, losses, mask) -> dict:
  """Sums over the examples of a batch that count.

  Args:
    predictions, targets: [batch] float32.
    losses: [batch] float32.
    mask: [batch] bool.

  Returns:
    {'loss': (sum, count), 'squared', 'absolute', 'target', 'target_squared'}: float32 scalars.
  """
  weights = mask.astype(jnp.float32)
  total = lambda values: (values * weights).sum()
  return {
    'loss': (total(losses), weights.sum()),
    'squared': total(jnp.square(predictions - targets)),
    'absolute': total(jnp.abs(predictions - targets)),
    'target': total(targets),
    'target_squared': total(jnp.square(targets)),
  }


def summarise(sums: dict) -> dict[str, float]:
  """{'loss', 'mse', 'rmse', 'mae', 'r2'} and any other (sum, count) there is; r2 = 1 - residual / total sum of squares, NaN where all targets are equal."""
  loss, count = (float(x) for x in sums['loss'])
  squared, absolute, target, target_squared = (
    float(sums[name]) for name in ('squared', 'absolute', 'target', 'target_squared')
  )
  spread = target_squared - target**2 / count
  others = {name: float(x[0] / x[1]) for name, x in sums.items() if name != 'loss' and isinstance(x, tuple)}
  return {
    'loss': loss / count,
    'mse': squared / count,
    'rmse': float(np.sqrt(squared / count)),
    'mae': absolute / count,
    'r2': 1 - squared / spread if spread > 0 else float('nan'),
    **others,
  }
