"""A Transformer that reads a whole sequence at once (BERT), and its guesses at masked tokens."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import options
from karpjax.layers import initialisers, linear
from karpjax.layers.transformer import ACTIVATIONS, POSITIONS, REMATS, Block, Tokens, remat
from karpjax.options import option


@dataclasses.dataclass(kw_only=True)
class Sizes:
  """The options of all but GPT."""

  layers: int = option(2, 'The number of blocks of an encoder, and of a decoder.', low=1)
  heads: int = option(4, 'The heads of the attention.', low=1)
  width: int = option(128, 'The width of embeddings and blocks.', low=1)
  hidden: int = option(0, "Units of a block's MLP; 0: four times the width.", low=0)
  positions: str = option('learned', 'The kind of positions; rotary is quicker to learn.', choices=POSITIONS)
  pre_norm: bool = option(False, 'Norms before each part of a block, not after it.')
  activation: str = option('gelu', "The activation of a block's MLP.", choices=ACTIVATIONS)
  dropout: float = option(0.1, 'Dropout rate on the embeddings and on what each part of a block adds.', low=0, below=1)


class Encoder(Sizes, nn.Module):
  """Reads a whole sequence at once (Devlin et al. 2019 with their defaults; Vaswani et al. 2017). Token 0 is padding.

  Attributes:
    vocabulary, context: as `Tokens`'; `scaled` too.
    embedding_norm: whether the embeddings are normalised.
    dtype: of the computation.
  """

  vocabulary: int
  context: int
  std: float = option(
    0.02, "The deviation of kernels at the start; 0.02 suits large widths, 1 / √width small ones; 0: Xavier's.", low=0
  )
  remat: str = option('none', 'What of a block the backward pass computes anew.', choices=REMATS)
  scaled: bool = False
  embedding_norm: bool = True
  dtype: Any = jnp.float32

  def setup(self):
    self.tokens = Tokens(**options.shared(Tokens, self, std=0.02 if self.std else self.width**-0.5))
    block = functools.partial(remat(Block, self.remat), **options.shared(Block, self))
    rotary = self.positions == 'rotary'
    self.blocks = [block(causal=False, rotary=rotary, out_std=self.std) for _ in range(self.layers)]
    norm = lambda: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
    self.first_norm = norm() if self.embedding_norm else None
    self.last_norm = norm() if self.pre_norm else None
    self.drop = linear.Dropout(self.dropout)

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> [batch, time, width]."""
    x = self.tokens(tokens)
    x = self.drop(self.first_norm(x) if self.embedding_norm else x, train=train)
    mask = (tokens != 0)[:, None, None]  # [batch, 1, 1, time]
    for block in self.blocks:
      x = block(x, train, mask)
    return self.last_norm(x) if self.pre_norm else x

  def logits(self, x):
    """[batch, time, width] -> [batch, time, vocabulary] float32, by the embeddings."""
    return self.tokens.logits(x)


class MaskedLanguageModel(nn.Module):
  """An encoder, a dense layer with GELU and norm, and logits by the encoder's embeddings and a bias.

  With 30,522 tokens, 512 positions, 12 layers, 12 heads and a width of 768: 109,512,762 params: those of BERT-base
  (109,514,298) but for its embeddings of two segments (1,536).

  Attributes:
    encoder: whose weights another model with an encoder of that name can begin with.
  """

  encoder: Encoder

  def setup(self):
    encoder = self.encoder
    init = nn.with_partitioning(initialisers.normal(encoder.std), ('embed', None))
    self.transform = linear.Dense(encoder.width, dtype=encoder.dtype, kernel_init=init)
    self.norm = nn.LayerNorm(epsilon=1e-5, dtype=encoder.dtype)
    zeros = nn.with_partitioning(nn.initializers.zeros, ('vocabulary',))
    self.bias = self.param('bias', zeros, (encoder.vocabulary,))

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
