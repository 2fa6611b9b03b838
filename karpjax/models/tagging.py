"""A tagger of words: word embeddings and spelling, LSTMs that read both ways, and tags on their own or in a chain.

Ma & Hovy 2016, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF".
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax.layers import convolution, crf, initialisers, linear, recurrence
from karpjax.losses import language as losses
from karpjax.options import option


def _uniform(key, shape):
  """U(-b, b) with b = sqrt(3 / width): variance 1 / width (Ma & Hovy, section 3.1)."""
  return initialisers.uniform(1.0)(key, shape) * (3 / shape[-1]) ** 0.5


class Spelling(nn.Module):
  """A convolution over a word's characters and its maximum over the word (section 2.1). Character 0 is padding."""

  alphabet: int
  embedding: int = 30
  filters: int = 30
  window: int = 3
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, characters, *, train: bool):
    """characters: [words, C] int -> [words, filters] of `dtype`; 0 for a word without characters."""
    table = self.param('table', _uniform, (self.alphabet, self.embedding))
    real = (characters > 0)[..., None]
    x = linear.Lookup('characters')(table, characters.astype(jnp.int32)).astype(self.dtype)  # [words, C, embedding]
    x = jnp.where(real, linear.Dropout(self.dropout)(x, train=train), 0)
    x = convolution.Conv(self.filters, (self.window,), dtype=self.dtype, name='filters')(x)  # [words, C, filters]
    return jnp.where(real.any(1), jnp.where(real, x, -jnp.inf).max(1), 0)


class Tagger(nn.Module):
  """Embeddings and spelling of words, LSTMs that read them both ways, and a score for each tag. Word 0 is padding."""

  words: int
  alphabet: int  # characters, 0 padding
  tags: int
  chain: bool = False  # whether the tags form a conditional random field
  embedding: int = option(100, 'Size of the word vectors.', low=1)
  character_embedding: int = option(30, 'Size of the character vectors.', low=1)
  filters: int = option(30, 'Filters of the convolution over characters; 0: no spelling.', low=0)
  window: int = option(3, 'Characters under a filter.', low=1, high=2**12)
  units: tuple[int, ...] = option((100,), 'Units of each LSTM layer, for each direction.', low=1, least=1)
  dropout: float = option(0.5, "Dropout rate on each layer's input.", low=0, below=1)
  dtype: Any = jnp.float32  # of the matmuls; states and scores stay float32

  @nn.compact
  def __call__(self, tokens, characters, *, train: bool = False):
    """Scores the tags of sentences; what comes after a sentence's end changes nothing.

    Args:
      tokens: [batch, time] int32, 0 behind the end.
      characters: [batch, time, C] int, 0 behind a word's end.
      train: whether dropout is on.

    Returns:
      emissions [batch, time, tags] float32, and the `crf.Chain`, or None.
    """
    table = self.param('table', _uniform, (self.words, self.embedding))
    x = linear.Lookup()(table, tokens).astype(self.dtype)  # [batch, time, embedding]
    if self.filters:
      sizes = self.alphabet, self.character_embedding, self.filters, self.window, self.dropout, self.dtype
      each = characters.reshape(-1, characters.shape[-1])  # [batch * time, C]
      each = Spelling(*sizes, name='spelling')(each, train=train)  # [batch * time, filters]
      x = jnp.concatenate([x, each.reshape(*tokens.shape, -1)], -1)  # [batch, time, embedding + filters]
    x = linear.Dropout(self.dropout)(x, train=train)
    lstm = recurrence.Stack(self.units, 'lstm', True, self.dropout, self.dtype, name='lstm')
    x, _ = lstm(x, mask=tokens > 0, train=train)  # [batch, time, 2 * units]
    x = linear.Dropout(self.dropout)(x, train=train)
    emissions = linear.Head(self.tags, dtype=self.dtype, name='emissions')(x).astype(jnp.float32)
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


def logits(emissions, chain: crf.Chain | None, mask):
  """[batch, time, tags], whose softmax is the probability of each word's tag: of a chain its marginal's logarithm."""
  if chain is None:
    return emissions
  # the gradient of the logarithm of a partition function
  marginals = jax.grad(lambda scores: crf.log_partition(chain, scores, mask).sum())(emissions)
  return jnp.log(jnp.maximum(marginals, 1e-30))


def decode(emissions, chain: crf.Chain | None, mask):
  """The most probable tags, [batch, time] int32, −1 where `mask` [batch, time] is False."""
  if chain is not None:
    return crf.viterbi(chain, emissions, mask)[0]
  return jnp.where(mask, emissions.argmax(-1).astype(jnp.int32), -1)


MODELS = {'bilstm': Tagger, 'bilstm_crf': functools.partial(Tagger, chain=True)}
