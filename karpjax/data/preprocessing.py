"""From raw examples to what a model sees; pure, and cheap enough to stand inside the step."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import errors
from karpjax.data.dataset import Spec

WAYS = ('unit', 'symmetric', 'standard')


def preprocess(images: jax.Array, spec: Spec, how: str) -> jax.Array:
  """[batch, ..., channels] of any real type, on the scale of spec.maximum -> the same shape, float32.

  Args:
    images: raw examples.
    spec: its maximum, mean and std are used.
    how: 'unit': [0, 1]. 'symmetric': [-1, 1]. 'standard': less the train split's mean, divided by its
      standard deviation, per channel; a constant channel becomes 0.

  Raises:
    UsageError: for another `how`.
  """
  if how not in WAYS:
    raise errors.UsageError(f'unknown preprocessing {how!r}.{errors.nearest(how, WAYS)}')
  unit = images.astype(jnp.float32) / spec.maximum
  if how == 'unit':
    return unit
  if how == 'symmetric':
    return 2 * unit - 1
  std = np.array(spec.std, np.float32)
  return (unit - np.array(spec.mean, np.float32)) / np.where(std > 0, std, 1)
