"""How well left-out tokens are guessed."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


def sums(losses, correct, targets, mask) -> dict[str, Any]:
  """What evaluation adds up; masked examples add nothing.

  Args:
    losses: [batch, guesses] float32.
    correct: [batch, guesses] bool.
    targets: [batch, guesses] int32; −1 is not scored.
    mask: [batch] bool, True where the example is real.

  Returns:
    'loss' and 'accuracy', each (sum, count).
  """
  scored = mask[:, None] & (targets >= 0)
  count = scored.sum().astype(jnp.float32)
  return {
    'loss': (jnp.where(scored, losses, 0).sum(), count),
    'accuracy': ((scored & correct).sum().astype(jnp.float32), count),
  }


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """'loss' in nats per token that was left out, 'perplexity', 'accuracy' and 'error'; NaN where there was none."""
  with np.errstate(divide='ignore', invalid='ignore'):
    loss, accuracy = (float(np.float64(sums[name][0]) / np.float64(sums[name][1])) for name in ('loss', 'accuracy'))
  return {'loss': loss, 'perplexity': float(np.exp(loss)), 'accuracy': accuracy, 'error': 1 - accuracy}
