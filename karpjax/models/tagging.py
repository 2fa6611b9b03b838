"""A tagger of words: what they are and how they are spelt, read both ways, and tags on their own or in a chain.

Ma & Hovy 2016, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF".
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import convolution, crf, initialisers, linear, recurrence
from karpjax.layers.dropout import Dropout
from karpjax.losses import language as losses
from karpjax.models import mlp

MODELS = {'bilstm': False, 'bilstm_crf': True}  # name -> whether the tags are a chain


def _uniform(key, shape):
  """U(-b, b) with b = sqrt(3 / width): variance 1 / width (Ma & Hovy, section 3.1)."""
  return initialisers.uniform(1.0)(key, shape) * (3 / shape[-1]) ** 0.5


class Spelling(nn.Module):
  """A convolution over a word's characters and its maximum over all places (section 2.1).

  Attributes:
    alphabet: how many characters there are; 0 is padding.
    embedding: numbers for each character.
    filters: outputs.
    window: characters that a filter sees.
    dropout: rate on the characters' embeddings.
    dtype: of the computation.
  """

  alphabet: int
  embedding: int = 30
  filters: int = 30
  window: int = 3
  dropout: Any = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, characters, *, train: bool):
    """characters: [words, C] int -> [words, filters] of `dtype`; 0 for a word without characters."""
    table = self.param('table', _uniform, (self.alphabet, self.embedding))
    there = (characters > 0)[..., None]
    x = Dropout(self.dropout)(
      table[characters.astype(jnp.int32)].astype(self.dtype), train=train
    )  # [words, C, embedding]
    x = jnp.where(there, x, 0)
    x = convolution.Conv(self.filters, (self.window,), dtype=self.dtype, name='filters')(x)  # [words, C, filters]
    return jnp.where(there.any(1), jnp.where(there, x, -jnp.inf).max(1), 0)


class Tagger(nn.Module):
  """Embeddings and spelling of words, an LSTM read both ways, and a score for each tag.

  Attributes:
    words: how many words there are; 0 is padding.
    alphabet: how many characters there are; 0 is padding.
    tags: outputs.
    chain: whether the tags form a conditional random field.
    embedding: numbers for each word.
    character_embedding, filters, window: as Spelling's; 0 filters leave the spelling out.
    units: of each LSTM layer, for each direction.
    dropout: rate on the inputs of the convolution, of each LSTM layer and of the last layer.
    dtype: of the matmuls; states and scores stay float32.
  """

  words: int
  alphabet: int
  tags: int
  chain: bool = False
  embedding: int = 100
  character_embedding: int = 30
  filters: int = 30
  window: int = 3
  units: tuple[int, ...] = (100,)
  dropout: Any = 0.5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens, characters, *, train: bool = False):
    """Scores the tags of sentences; what comes after a sentence's end changes nothing.

    Args:
      tokens: [batch, time] int32, 0 behind the end.
      characters: [batch, time, C] int, 0 behind a word's end.
      train: whether to drop.

    Returns:
      emissions [batch, time, tags] float32, and the `crf.Chain`, or None.
    """
    mlp.check(embedding=self.embedding, character_embedding=self.character_embedding, filters=self.filters or 1)
    mlp.check(window=self.window, units=self.units, dropout=self.dropout)
    table = self.param('table', _uniform, (self.words, self.embedding))
    x = table[tokens].astype(self.dtype)  # [batch, time, embedding]
    if self.filters:
      spelling = Spelling(
        self.alphabet, self.character_embedding, self.filters, self.window, self.dropout, self.dtype, name='spelling'
      )
      each = spelling(characters.reshape(-1, characters.shape[-1]), train=train)  # [batch * time, filters]
      x = jnp.concatenate([x, each.reshape(*tokens.shape, -1)], -1)  # [batch, time, embedding + filters]
    x = Dropout(self.dropout)(x, train=train)
    lstm = recurrence.Stack(self.units, 'lstm', True, self.dropout, self.dtype, name='lstm')
    x, _ = lstm(x, mask=tokens > 0, train=train)  # [batch, time, 2 * units]
    x = Dropout(self.dropout)(x, train=train)
    emissions = linear.Dense(self.tags, dtype=self.dtype, name='emissions')(x).astype(jnp.float32)
    return emissions, crf.ChainScores(self.tags, name='chain')() if self.chain else None


def log_likelihood(emissions, chain: crf.Chain | None, targets):
  """log p(targets) of each sentence.

  Args:
    emissions, chain: as `Tagger` gives them.
    targets: [batch, time] int32; −1 behind a sentence's end.

  Returns:
    [batch] float32.
  """
  mask = targets >= 0
  if chain is not None:
    return jnp.where(mask.any(1), crf.log_likelihood(chain, emissions, targets, mask), 0)
  return -losses.cross_entropy(emissions, targets).sum(1)


def decode(emissions, chain: crf.Chain | None, mask):
  """The most probable tags, [batch, time] int32, −1 where `mask` [batch, time] is False."""
  if chain is not None:
    return crf.viterbi(chain, emissions, mask)[0]
  return jnp.where(mask, emissions.argmax(-1).astype(jnp.int32), -1)
