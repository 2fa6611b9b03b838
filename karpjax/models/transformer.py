"""Transformers: an encoder that reads a whole sequence at once (BERT), guesses at masked tokens,
and what decoders share.
"""

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import axes, options
from karpjax.layers import attention, initialisers, linear
from karpjax.layers.transformer import ACTIVATIONS, POSITIONS, REMATS, Block, Tokens, remat
from karpjax.options import DEEPEST, option


@dataclasses.dataclass(kw_only=True)
class Sizes:
  """The options of all but GPT."""

  layers: int = option(2, 'The number of blocks of an encoder, and of a decoder.', low=1, high=DEEPEST)
  heads: int = option(4, 'The heads of the attention.', low=1)
  head_dim: int = option(0, 'Units of each head; 0: width / heads.', low=0)
  width: int = option(128, 'The width of embeddings and blocks.', low=1)
  hidden: int = option(0, "Units of a block's MLP; 0: four times the width.", low=0)
  positions: str = option('learned', 'The kind of positions; rotary is quicker to learn.', choices=POSITIONS)
  pre_norm: bool = option(False, 'Norms before each part of a block, not after it.')
  activation: str = option('gelu', "The activation of a block's MLP.", choices=ACTIVATIONS)
  dropout: float = option(0.1, 'Dropout rate on the embeddings and on what each part of a block adds.', low=0, below=1)
  attention_dropout: float = option(0.0, 'Dropout rate on the weights of the attention.', low=0, below=1)
  hidden_dropout: float = option(0.0, "Dropout rate on the units of a block's MLP.", low=0, below=1)


class Decoder(nn.Module):
  """Predicts each next token by `tokens`, `drop`, `blocks`, `norm` (or None) and, where it is not `tied`, `head`."""

  def logits(self, x):
    """[batch, time, width] -> [batch, time, vocabulary] float32."""
    x = x if self.norm is None else self.norm(x)
    return self.tokens.logits(x) if self.tied else self.head(x).astype(jnp.float32)

  def read(self, tokens, train: bool, memory=None, memory_mask=None):
    """tokens [batch, time] int32 -> logits [batch, time, vocabulary] float32; the memory is for crossed blocks."""
    x = self.drop(self.tokens(tokens), train=train)  # [batch, time, width]
    for block in self.blocks:
      x = block(x, train, None, memory, memory_mask)
    return self.logits(x)

  def empty(self, batch: int, room: int, kv_heads: int | None = None):
    """The state before the first token, with room for so many."""
    shape = batch, room, kv_heads or self.heads, attention.head_size(self)
    caches = [attention.cache(*shape, self.dtype) for _ in range(self.layers)]
    return {'caches': caches, 'length': jnp.zeros((batch,), jnp.int32)}

  def extend(self, tokens, state, memories=(), memory_mask=None):
    """Tokens [batch, new] int32 behind those of a state -> features [batch, new, width] and the state; memories:
    by block.
    """
    length, caches = state['length'], []
    x = self.tokens(tokens, length[:, None] + jnp.arange(tokens.shape[1]))
    for block, store, memory in itertools.zip_longest(self.blocks, state['caches'], memories):
      x, store = block.step(x, store, length, memory, memory_mask)
      caches.append(store)
    return x, {'caches': caches, 'length': length + tokens.shape[1]}


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
    norm = lambda wanted: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype) if wanted else lambda x: x
    self.first_norm, self.last_norm = norm(self.embedding_norm), norm(self.pre_norm)
    self.drop = linear.Dropout(self.dropout)

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> [batch, time, width]."""
    x = self.drop(self.first_norm(self.tokens(tokens)), train=train)
    mask = (tokens != 0)[:, None, None]  # [batch, 1, 1, time]
    for block in self.blocks:
      x = block(x, train, mask)
    return self.last_norm(x)


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
    init = axes.declare(initialisers.normal(encoder.std), 'io', ('embed', None))
    self.transform = linear.Dense(encoder.width, dtype=encoder.dtype, kernel_init=init)
    self.norm = nn.LayerNorm(epsilon=1e-5, dtype=encoder.dtype)
    zeros = nn.with_partitioning(nn.initializers.zeros, ('vocabulary',))
    self.bias = self.param('bias', zeros, (encoder.vocabulary,))

  def __call__(self, tokens, places=None, *, train: bool = False):
    """tokens [batch, time] int32, places [batch, guesses] int32 (None: all) -> logits [batch, guesses,
    vocabulary] float32.
    """
    x = self.encoder(tokens, train=train)  # [batch, time, width]
    if places is not None:
      x = jnp.take_along_axis(x, places[..., None], 1)  # [batch, guesses, width]
    x = self.norm(nn.gelu(self.transform(x)))
    return self.encoder.tokens.logits(x) + self.bias
