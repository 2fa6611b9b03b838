"""Transformers: a decoder (GPT) and an encoder (BERT), of the blocks of `layers.transformer`."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import attention, initialisers, linear, rematerialisation
from karpjax.layers.dropout import Dropout
from karpjax.layers.transformer import Block, Tokens


class GPT(nn.Module):
  """Predicts each next token (Radford et al. 2019). With 50,257 tokens, a context of 1,024, 12 layers, 12 heads and a
  width of 768: 124,439,808 params, tied.

  Attributes:
    vocabulary, context, width, positions: as `Tokens`'.
    layers: of blocks.
    heads, kv_heads, bias, dropout, implementation: as `Block`'s; dropout is on the embeddings too.
    std: of the kernels at the start; those that end a part have std / √(2 layers). GPT-2's is 0.02, for widths of 768 and
      more; 1 / √width is better for small ones.
    tied: whether logits are by the embeddings.
    remat: what of a block the backward pass computes anew, as `rematerialisation.remat`'s.
    dtype: of the computation; params and logits are float32.
  """

  vocabulary: int
  context: int
  layers: int = 4
  heads: int = 4
  width: int = 128
  kv_heads: int | None = None
  positions: str = 'learned'
  bias: bool = True
  dropout: Any = 0.0
  std: float = 0.02
  tied: bool = True
  remat: str = 'none'
  implementation: str | None = None
  dtype: Any = jnp.float32

  def setup(self):
    self.tokens = Tokens(self.vocabulary, self.context, self.width, self.positions, dtype=self.dtype)
    block = rematerialisation.remat(Block, self.remat)
    self.blocks = [
      block(
        self.width,
        self.heads,
        self.kv_heads,
        rotary=self.positions == 'rotary',
        bias=self.bias,
        dropout=self.dropout,
        std=self.std,
        out_std=self.std * (2 * self.layers) ** -0.5,
        implementation=self.implementation,
        dtype=self.dtype,
      )
      for _ in range(self.layers)
    ]
    self.norm, self.drop = nn.LayerNorm(epsilon=1e-5, use_bias=self.bias, dtype=self.dtype), Dropout(self.dropout)
    if not self.tied:
      init = nn.with_partitioning(initialisers.normal(0.02), ('embed', 'vocabulary'))
      self.head = linear.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, kernel_init=init)

  def _logits(self, x):
    x = self.norm(x)
    return self.tokens.logits(x) if self.tied else self.head(x).astype(jnp.float32)

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    x = self.drop(self.tokens(tokens), train=train)
    for block in self.blocks:
      x = block(x, train)
    return self._logits(x)

  def initial(self, batch: int, room: int = 0):
    """The state of `step` before the first token: with room for so many tokens, or for `context`."""
    size, kv = self.width // self.heads, self.kv_heads or self.heads
    caches = [attention.cache(batch, room or self.context, kv, size, self.dtype) for _ in range(self.layers)]
    return {'caches': caches, 'length': jnp.zeros((batch,), jnp.int32)}

  def begin(self, tokens, length):
    """The state after a prompt, whatever its length, by one program.

    Args:
      tokens: [batch, up to context] int32, of which the first `length` are the prompt.
      length: [batch] int32, at least 1.

    Returns:
      logits [batch, vocabulary] float32 of what follows, and the state.
    """
    x, caches, state = self.tokens(tokens), [], self.initial(*tokens.shape)
    for block, store in zip(self.blocks, state['caches']):
      x, store = block.step(x, store, state['length'])  # what is behind the prompt is never seen, and overwritten
      caches.append(attention.enlarge(store, self.context))
    last = jnp.take_along_axis(x, (length - 1)[:, None, None], 1)
    return self._logits(last)[:, 0], {'caches': caches, 'length': length}

  def step(self, tokens, state):
    """Tokens [batch, new] behind those of a state -> logits [batch, vocabulary] float32 of what follows, and the state."""
    length, caches = state['length'], []
    x = self.tokens(tokens, length[:, None] + jnp.arange(tokens.shape[1]))
    for block, store in zip(self.blocks, state['caches']):
      x, store = block.step(x, store, length)
      caches.append(store)
    return self._logits(x[:, -1:])[:, 0], {'caches': caches, 'length': length + tokens.shape[1]}


class Encoder(nn.Module):
  """Reads a whole sequence at once (Devlin et al. 2019 with their defaults; Vaswani et al. 2017). Token 0 is padding.

  Attributes:
    vocabulary, context, width, positions, scaled: as `Tokens`'.
    layers: of blocks.
    heads, hidden, pre_norm, activation, dropout: as `Block`'s.
    std: of the kernels at the start; BERT's is 0.02, for widths of 768 and more; 1 / √width is better for small ones. 0:
      Xavier's draw, and embeddings with a deviation of 1 / √width instead of 0.02.
    embedding_norm: whether the embeddings are normalised.
    remat, dtype: as `GPT`'s.
  """

  vocabulary: int
  context: int
  layers: int = 2
  heads: int = 4
  width: int = 128
  hidden: int = 0
  positions: str = 'learned'
  scaled: bool = False
  pre_norm: bool = False
  activation: str = 'gelu'
  dropout: Any = 0.1
  std: float = 0.02
  embedding_norm: bool = True
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    std = 0.02 if self.std else self.width**-0.5
    self.tokens = Tokens(self.vocabulary, self.context, self.width, self.positions, self.scaled, std, self.dtype)
    block = rematerialisation.remat(Block, self.remat)
    self.blocks = [
      block(
        self.width,
        self.heads,
        hidden=self.hidden,
        causal=False,
        pre_norm=self.pre_norm,
        rotary=self.positions == 'rotary',
        activation=self.activation,
        dropout=self.dropout,
        std=self.std,
        out_std=self.std,
        dtype=self.dtype,
      )
      for _ in range(self.layers)
    ]
    norm = lambda: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
    self.first_norm = norm() if self.embedding_norm else None
    self.last_norm = norm() if self.pre_norm else None
    self.drop = Dropout(self.dropout)

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
