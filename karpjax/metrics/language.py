"""How well tokens are predicted: sums on the device, and what they come to on the host."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from karpjax.program import divide, pair


def sums(losses: jax.Array, targets: jax.Array, mask: jax.Array, characters=None, right=None, *, of_bytes=None):
  """What evaluation adds up over batches, replicas and hosts.

  Args:
    losses: [batch, time] float32, in nats.
    targets: [batch, time] int32; negative ones are not scored.
    mask: [batch] bool, True where the example is real.
    characters: [vocabulary] float32, how many characters each token stands for; all 0 or None where that is unknown.
    right: [batch, time] bool, which guesses are right, or None.
    of_bytes: [vocabulary] float32, how many bytes of UTF-8, as `characters`.

  Returns:
    'loss': (sum, count of tokens), 'characters' and 'bytes': (sum of losses, count of these) and 'accuracy': (number
    right, count of tokens), float32 scalars; all but the first only where they are known.
  """
  scored = (targets >= 0) & mask[:, None]
  parts = {'loss': pair(losses, scored)}
  for name, counts in (('characters', characters), ('bytes', of_bytes)):
    if counts is not None:
      read = jnp.where(scored, jnp.asarray(counts)[jnp.maximum(targets, 0)], 0).sum()
      parts[name] = (parts['loss'][0], read)
  if right is not None:
    parts['accuracy'] = pair(right, scored)
  return parts


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
  """'loss' (nats a token), 'perplexity' (a token), and, where known, 'bits_per_character', 'bits_per_byte',
  'accuracy' and 'error'.
  """
  ratios = divide(sums)
  nats = ratios['loss']
  numbers = {'loss': nats, 'perplexity': math.exp(nats) if nats < 700 else math.inf}
  for name, unit in (('characters', 'character'), ('bytes', 'byte')):
    if math.isfinite(ratio := ratios.get(name, math.nan)):  # where they are not known there are 0
      numbers[f'bits_per_{unit}'] = ratio / math.log(2)
  if 'accuracy' in ratios:
    numbers |= {'accuracy': ratios['accuracy'], 'error': 1 - ratios['accuracy']}
  return numbers
