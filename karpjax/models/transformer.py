"""Transformers: one block, and what is built of it: a decoder (GPT), an encoder (BERT), and both (translation)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import attention, rematerialisation
from karpjax.layers.dropout import Dropout

ACTIVATIONS = {'gelu': nn.gelu, 'relu': nn.relu, 'silu': nn.silu}
POSITIONS = ('learned', 'sinusoidal', 'rotary', 'none')


class Block(nn.Module):
  """Attention, attention to a memory if it is `crossed`, and an MLP, each added to its input (Vaswani et al. 2017).

  Attributes:
    width: of input and output.
    heads, kv_heads, rotary, bias, implementation: as `MultiHeadAttention`'s.
    hidden: units of the MLP; 0: four times the width.
    causal: whether a token sees no later one.
    crossed: whether it attends to a memory.
    pre_norm: norms before each part (Radford et al. 2019), or after its sum (2017).
    activation: a key of ACTIVATIONS.
    dropout: rate on what each part adds.
    std, out_std: of the kernels at the start, and of those that end a part; 0: Xavier's draw.
    dtype: of the matmuls and the output.
  """

  width: int
  heads: int
  kv_heads: int | None = None
  hidden: int = 0
  causal: bool = True
  crossed: bool = False
  pre_norm: bool = True
  rotary: bool = False
  bias: bool = True
  activation: str = 'gelu'
  dropout: Any = 0.0
  std: float = 0.02
  out_std: float = 0.02
  epsilon: float = 1e-5
  implementation: str | None = None
  dtype: Any = jnp.float32

  def setup(self):
    def attends(rotary):
      return attention.MultiHeadAttention(
        self.width,
        self.heads,
        self.kv_heads,
        rotary,
        self.bias,
        self.std,
        self.out_std,
        self.implementation,
        self.dtype,
      )

    norm = lambda: nn.LayerNorm(epsilon=self.epsilon, use_bias=self.bias, dtype=self.dtype)
    self.attention, self.attention_norm = attends(self.rotary), norm()
    if self.crossed:
      self.cross, self.cross_norm = attends(False), norm()
    init = lambda std: attention.normal(std) if std else nn.initializers.xavier_uniform()
    dense = lambda units, std, *names: nn.Dense(
      units, use_bias=self.bias, dtype=self.dtype, kernel_init=nn.with_partitioning(init(std), names)
    )
    self.up = dense(self.hidden or 4 * self.width, self.std, 'embed', 'hidden')
    self.down = dense(self.width, self.out_std, 'hidden', 'embed')
    self.mlp_norm, self.drop = norm(), Dropout(self.dropout)

  def _add(self, x, norm, part: Callable, train):
    if self.pre_norm:
      return x + self.drop(part(norm(x)), train=train)
    return norm(x + self.drop(part(x), train=train))

  def _mlp(self, x):
    return self.down(ACTIVATIONS[self.activation](self.up(x)))

  def __call__(self, x, train: bool, mask=None, memory=None, memory_mask=None):
    """x: [batch, time, width] -> the same.

    Args:
      x: the sequence.
      train: whether units are dropped.
      mask: [batch, 1, time or 1, time] bool, as `attend`'s.
      memory: [batch, places, width], for a crossed block.
      memory_mask: [batch, 1, 1, places] bool.
    """
    x = self._add(x, self.attention_norm, lambda x: self.attention(x, mask=mask, causal=self.causal), train)
    if self.crossed:
      cross = lambda x: self.cross(x, keys_values=self.cross.keys_values(memory), mask=memory_mask)
      x = self._add(x, self.cross_norm, cross, train)
    return self._add(x, self.mlp_norm, self._mlp, train)

  def remember(self, memory):
    """Keys and values of a memory, for `step`."""
    return self.cross.keys_values(memory)

  def step(self, x, store, length, memory=None, memory_mask=None):
    """New tokens behind those of a cache.

    Args:
      x: [batch, new, width].
      store: as `attention.cache`'s.
      length: [batch] int32, of the tokens in it.
      memory: keys and values from `remember`.
      memory_mask: [batch, 1, 1, places] bool.

    Returns:
      [batch, new, width], and the cache with the new tokens.
    """
    kept = {}
    positions = length[:, None] + jnp.arange(x.shape[1])  # [batch, new]
    places = jnp.arange(store['key'].shape[1])
    mask = (places <= positions[..., None])[:, None]  # [batch, 1, new, places]

    def cached(x):
      kept.update(attention.write(store, *self.attention.keys_values(x, positions), length))
      return self.attention(x, keys_values=(kept['key'], kept['value']), mask=mask, positions=positions)

    x = self._add(x, self.attention_norm, cached, False)
    if self.crossed:
      x = self._add(x, self.cross_norm, lambda x: self.cross(x, keys_values=memory, mask=memory_mask), False)
    return self._add(x, self.mlp_norm, self._mlp, False), kept


class Tokens(nn.Module):
  """Embeddings of tokens and their positions, and the logits of what comes next.

  Params: 'embedding' [vocabulary, width] and, of learned positions, 'positions' [context, width].

  Attributes:
    vocabulary: how many tokens.
    context: the largest number of positions.
    width: of the embeddings.
    positions: one of POSITIONS; rotary ones are turned in the attention.
    scaled: whether embeddings are multiplied by √width (Vaswani et al. 2017, section 3.4).
    std: of the params at the start.
    dtype: of the output.
  """

  vocabulary: int
  context: int
  width: int
  positions: str = 'learned'
  scaled: bool = False
  std: float = 0.02
  dtype: Any = jnp.float32

  def setup(self):
    if self.positions not in POSITIONS:
      raise errors.UsageError(f'unknown positions {self.positions!r}.{errors.nearest(self.positions, POSITIONS)}')
    init = attention.normal(self.std)
    self.embedding = self.param(
      'embedding', nn.with_partitioning(init, ('vocabulary', 'embed')), (self.vocabulary, self.width)
    )
    if self.positions == 'learned':
      named = nn.with_partitioning(init, (None, 'embed'))
      self.places = self.param('positions', named, (self.context, self.width))

  def __call__(self, tokens, at=None):
    """tokens [batch, time], at [time] or [batch, time] int32 (None: 0, 1, …) -> [batch, time, width]."""
    if tokens.shape[1] > self.context:
      raise errors.UsageError(f'{tokens.shape[1]} tokens are more than the {self.context} positions of this model')
    at = jnp.arange(tokens.shape[1]) if at is None else at
    x = self.embedding.astype(self.dtype)[tokens]
    if self.scaled:
      x = x * self.width**0.5
    if self.positions == 'learned':
      x = x + self.places.astype(self.dtype)[at]
    elif self.positions == 'sinusoidal':
      x = x + attention.sinusoids(at, self.width).astype(self.dtype)
    return x

  def logits(self, x):
    """[batch, time, width] -> [batch, time, vocabulary] float32, by the embeddings themselves (Press & Wolf 2017)."""
    return (x @ self.embedding.astype(self.dtype).T).astype(jnp.float32)


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
      init = nn.with_partitioning(attention.normal(0.02), ('embed', 'vocabulary'))
      self.head = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, kernel_init=init)

  def _logits(self, x):
    x = self.norm(x)
    return self.tokens.logits(x) if self.tied else self.head(x).astype(jnp.float32)

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    x = self.drop(self.tokens(tokens), train=train)
    for block in self.blocks:
      x = block(x, train)
    return self._logits(x)

  def initial(self, batch: int):
    """The state of `step` before the first token: room for `context` tokens."""
    size, kv = self.width // self.heads, self.kv_heads or self.heads
    room = [attention.cache(batch, self.context, kv, size, self.dtype) for _ in range(self.layers)]
    return {'caches': room, 'length': jnp.zeros((batch,), jnp.int32)}

  def begin(self, tokens, length):
    """The state after a prompt, whatever its length, by one program.

    Args:
      tokens: [batch, context] int32, of which the first `length` are the prompt.
      length: [batch] int32, at least 1.

    Returns:
      logits [batch, vocabulary] float32 of what follows, and the state.
    """
    x, caches, state = self.tokens(tokens), [], self.initial(tokens.shape[0])
    for block, store in zip(self.blocks, state['caches']):
      x, store = block.step(x, store, state['length'])  # what is behind the prompt is never seen, and overwritten
      caches.append(store)
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


class Seq2SeqTransformer(nn.Module):
  """Encoder and decoder (Vaswani et al. 2017). Token 0 is padding in both.

  Attributes:
    source_vocabulary, vocabulary: how many tokens of the source and of the target.
    source_context, context: the largest numbers of positions.
    layers: of blocks, in each of the two.
    heads, width, hidden, positions, pre_norm, activation, dropout: as `Encoder`'s.
    tied: whether logits are by the target's embeddings.
    dtype: of the computation.
  """

  source_vocabulary: int
  vocabulary: int
  source_context: int
  context: int
  layers: int = 3
  heads: int = 8
  width: int = 256
  hidden: int = 512
  positions: str = 'learned'
  pre_norm: bool = False
  activation: str = 'relu'
  dropout: Any = 0.1
  tied: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    self.encoder = Encoder(
      self.source_vocabulary,
      self.source_context,
      self.layers,
      self.heads,
      self.width,
      self.hidden,
      self.positions,
      scaled=True,
      pre_norm=self.pre_norm,
      activation=self.activation,
      dropout=self.dropout,
      std=0,
      embedding_norm=False,
      dtype=self.dtype,
    )
    self.tokens = Tokens(self.vocabulary, self.context, self.width, self.positions, True, self.width**-0.5, self.dtype)
    self.blocks = [
      Block(
        self.width,
        self.heads,
        hidden=self.hidden,
        crossed=True,
        pre_norm=self.pre_norm,
        rotary=self.positions == 'rotary',
        activation=self.activation,
        dropout=self.dropout,
        std=0,
        out_std=0,
        dtype=self.dtype,
      )
      for _ in range(self.layers)
    ]
    self.drop = Dropout(self.dropout)
    self.norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype) if self.pre_norm else None
    if not self.tied:
      init = nn.with_partitioning(nn.initializers.xavier_uniform(), ('embed', 'vocabulary'))
      self.head = nn.Dense(self.vocabulary, dtype=self.dtype, kernel_init=init)

  def _logits(self, x):
    x = self.norm(x) if self.pre_norm else x
    return self.tokens.logits(x) if self.tied else self.head(x).astype(jnp.float32)

  def __call__(self, source, target_in, *, train: bool = False):
    """source [batch, places], target_in [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    memory, seen = self.encoder(source, train=train), (source != 0)[:, None, None]
    x = self.drop(self.tokens(target_in), train=train)
    for block in self.blocks:
      x = block(x, train, None, memory, seen)  # causal: no target sees the padding behind it
    return self._logits(x)

  def encode(self, source, steps: int):
    """The state of `step` before the first token, with room for `steps` tokens: every leaf is [batch, …]."""
    memory, batch = self.encoder(source), source.shape[0]
    size = self.width // self.heads
    return {
      'memory': [block.remember(memory) for block in self.blocks],
      'seen': source != 0,
      'caches': [attention.cache(batch, steps, self.heads, size, self.dtype) for _ in self.blocks],
      'length': jnp.zeros((batch,), jnp.int32),
    }

  def step(self, tokens, state):
    """tokens [batch] int32 behind those of a state -> logits [batch, vocabulary] float32 of what follows, and the state."""
    length, seen, caches = state['length'], state['seen'][:, None, None], []
    x = self.tokens(tokens[:, None], length[:, None])
    for block, memory, store in zip(self.blocks, state['memory'], state['caches']):
      x, store = block.step(x, store, length, memory, seen)
      caches.append(store)
    return self._logits(x)[:, 0], {**state, 'caches': caches, 'length': length + 1}
