"""A masked language model: an encoder, and guesses at what was left out (Devlin et al. 2019)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import initialisers, linear
from karpjax.models import mlp
from karpjax.models.transformer import Encoder


class MaskedLanguageModel(nn.Module):
  """An encoder, a dense layer with GELU and norm, and logits by the encoder's embeddings and a bias.

  With 30,522 tokens, 512 positions, 12 layers, 12 heads and a width of 768: 109,512,762 params: those of BERT-base (109,514,298) but for
  its embeddings of two segments (1,536).

  Attributes:
    vocabulary, context, layers, heads, width, positions, pre_norm, dropout, std, remat, dtype: as `Encoder`'s, which is the
      submodule 'encoder', so that another model with such a one begins with its weights.
  """

  vocabulary: int
  context: int
  layers: int = 2
  heads: int = 4
  width: int = 128
  positions: str = 'learned'
  pre_norm: bool = False
  dropout: Any = 0.1
  std: float = 0.02
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    mlp.check(layers=self.layers, heads=self.heads, width=self.width, dropout=self.dropout)
    if self.width % self.heads:
      raise errors.UsageError(f'--heads={self.heads} does not divide --width={self.width}')
    self.encoder = Encoder(
      self.vocabulary,
      self.context,
      self.layers,
      self.heads,
      self.width,
      positions=self.positions,
      pre_norm=self.pre_norm,
      dropout=self.dropout,
      std=self.std,
      remat=self.remat,
      dtype=self.dtype,
    )
    init = nn.with_partitioning(initialisers.normal(self.std), ('embed', None))
    self.transform = linear.Dense(self.width, dtype=self.dtype, kernel_init=init)
    self.norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
    self.bias = self.param('bias', nn.with_partitioning(nn.initializers.zeros, ('vocabulary',)), (self.vocabulary,))

  def __call__(self, tokens, places=None, *, train: bool = False):
    """Guesses at the tokens of some places, or of all.

    Args:
      tokens: [batch, time] int32; 0 is padding.
      places: [batch, guesses] int32, or None for all.
      train: whether to drop.

    Returns:
      logits [batch, guesses, vocabulary] float32; without places [batch, time, vocabulary].
    """
    x = self.encoder(tokens, train=train)  # [batch, time, width]
    if places is not None:
      x = jnp.take_along_axis(x, places[..., None], 1)  # [batch, guesses, width]
    x = self.norm(nn.gelu(self.transform(x)))
    return self.encoder.logits(x) + self.bias
