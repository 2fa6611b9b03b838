"""How well left-out tokens are guessed: language models' sums, and how many guesses are right."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from karpjax import program
from karpjax.metrics import language


def sums(logits: jax.Array, losses: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, Any]:
  """What evaluation adds up over batches, replicas and hosts.

  Args:
    logits: [batch, guesses, vocabulary] float32.
    losses: [batch, guesses] float32, in nats.
    targets: [batch, guesses] int32; −1 is not scored.
    mask: [batch] bool, True where the example is real.

  Returns:
    `language.sums`, and 'accuracy': (number right, count of tokens).
  """
  nothing = np.zeros(logits.shape[-1], np.float32)  # a guess is not a text, so it has no bits per character
  right = logits.argmax(-1) == targets
  return {
    **language.sums(losses, targets, mask, nothing),
    'accuracy': program.pair(right, (targets >= 0) & mask[:, None]),
  }


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """'loss' in nats per token that was left out, 'perplexity', 'accuracy' and 'error'; NaN where there was none."""
  right, count = (float(value) for value in sums['accuracy'])
  accuracy = right / count if count else float('nan')
  return {**language.summarise(sums), 'accuracy': accuracy, 'error': 1 - accuracy}
