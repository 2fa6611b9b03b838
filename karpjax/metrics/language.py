"""How well tokens are predicted: sums on the device, and what they come to on the host."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import program


def sums(losses: jax.Array, targets: jax.Array, mask: jax.Array, characters: np.ndarray) -> dict[str, Any]:
  """What evaluation adds up over batches, replicas and hosts.

  Args:
    losses: [batch, time] float32, in nats.
    targets: [batch, time] int32; negative ones are not scored.
    mask: [batch] bool, True where the example is real.
    characters: [vocabulary] float32, how many characters each token stands for; all 0 where that is unknown.

  Returns:
    'loss': (sum, count of tokens); 'characters': (sum of losses, count of characters), float32 scalars.
  """
  scored = (targets >= 0) & mask[:, None]
  loss, count = program.pair(losses, scored)
  read = jnp.where(scored, jnp.asarray(characters)[jnp.maximum(targets, 0)], 0).sum()
  return {'loss': (loss, count), 'characters': (loss, read)}


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """'loss' (nats a token), 'perplexity' (a token) and, where characters are known, 'bits_per_character'."""
  loss, count = (float(value) for value in sums['loss'])
  nats = loss / count if count else math.nan
  numbers = {'loss': nats, 'perplexity': math.exp(nats) if nats < 700 else math.inf}
  total, characters = (float(value) for value in sums['characters'])
  if characters:
    numbers['bits_per_character'] = total / characters / math.log(2)
  return numbers
