"""How well tokens are predicted: sums on the device, and what they come to on the host."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.program import divide, pair


def sums(losses: jax.Array, targets: jax.Array, mask: jax.Array, characters: np.ndarray | None = None, right=None):
  """What evaluation adds up over batches, replicas and hosts.

  Args:
    losses: [batch, time] float32, in nats.
    targets: [batch, time] int32; negative ones are not scored.
    mask: [batch] bool, True where the example is real.
    characters: [vocabulary] float32, how many characters each token stands for; all 0 or None where that is unknown.
    right: [batch, time] bool, which guesses are right, or None.

  Returns:
    'loss': (sum, count of tokens), 'characters': (sum of losses, count of characters) and 'accuracy': (number right, count of
    tokens), float32 scalars; the last two only where they are known.
  """
  scored = (targets >= 0) & mask[:, None]
  parts = {'loss': pair(losses, scored)}
  if characters is not None:
    read = jnp.where(scored, jnp.asarray(characters)[jnp.maximum(targets, 0)], 0).sum()
    parts['characters'] = (parts['loss'][0], read)
  if right is not None:
    parts['accuracy'] = pair(right, scored)
  return parts


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """'loss' (nats a token), 'perplexity' (a token), and, where known, 'bits_per_character', 'accuracy' and 'error'."""
  ratios = divide(sums)
  nats, characters = ratios['loss'], ratios.get('characters', math.nan)
  numbers = {'loss': nats, 'perplexity': math.exp(nats) if nats < 700 else math.inf}
  if math.isfinite(characters):  # where they are not known there are 0
    numbers['bits_per_character'] = characters / math.log(2)
  if 'accuracy' in ratios:
    numbers |= {'accuracy': ratios['accuracy'], 'error': 1 - ratios['accuracy']}
  return numbers
