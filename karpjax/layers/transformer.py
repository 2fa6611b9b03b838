"""What Transformers are built of: a block, which may be rematerialised,
and the embeddings of tokens and their positions.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import attention, initialisers, linear

ACTIVATIONS = {
  'gelu': nn.gelu,
  'gelu_exact': functools.partial(nn.gelu, approximate=False),
  'relu': nn.relu,
  'silu': nn.silu,
}
REMATS = {'none': None, 'full': None, 'dots': jax.checkpoint_policies.dots_saveable}
POSITIONS = ('learned', 'sinusoidal', 'rotary', 'none')


class Block(nn.Module):
  """Attention, attention to a memory if it is `crossed`, and an MLP, each added to its input (Vaswani et al. 2017).

  Attributes:
    width: of input and output.
    heads, kv_heads, head_dim, rotary, bias, implementation: as `MultiHeadAttention`'s.
    hidden: units of the MLP; 0: four times the width.
    causal: whether a token sees no later one.
    crossed: whether it attends to a memory.
    pre_norm: norms before each part (Radford et al. 2019), or after its sum (2017).
    activation: a key of ACTIVATIONS.
    dropout: rate on what each part adds.
    attention_dropout, hidden_dropout: rates on the attention's weights and on the units of the MLP.
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
  attention_dropout: Any = 0.0
  hidden_dropout: Any = 0.0
  std: float = 0.02
  out_std: float = 0.02
  epsilon: float = 1e-5
  implementation: str | None = None
  head_dim: int = 0
  dtype: Any = jnp.float32

  def setup(self):
    sizes, kernels = (self.width, self.heads, self.kv_heads), (self.bias, self.std, self.out_std)
    others = dict(implementation=self.implementation, dropout=self.attention_dropout, dtype=self.dtype)
    others['head_dim'] = self.head_dim
    attends = lambda rotary: attention.MultiHeadAttention(*sizes, rotary, *kernels, **others)
    norm = lambda: nn.LayerNorm(epsilon=self.epsilon, use_bias=self.bias, dtype=self.dtype)
    self.attention, self.attention_norm = attends(self.rotary), norm()
    if self.crossed:
      self.cross, self.cross_norm = attends(False), norm()
    init = lambda std: initialisers.normal(std) if std else initialisers.xavier_uniform
    dense = lambda units, std, *names: linear.Dense(
      units, use_bias=self.bias, dtype=self.dtype, kernel_init=nn.with_partitioning(init(std), names)
    )
    self.up = dense(self.hidden or 4 * self.width, self.std, 'embed', 'hidden')
    self.down = dense(self.width, self.out_std, 'hidden', 'embed')
    self.mlp_norm, self.drop = norm(), linear.Dropout(self.dropout)
    self.hidden_drop = linear.Dropout(self.hidden_dropout)

  def _parts(self, x, attend: Callable, cross: Callable, train: bool):
    def add(x, norm, part):
      if self.pre_norm:
        return x + self.drop(part(norm(x)), train=train)
      return norm(x + self.drop(part(x), train=train))

    x = add(x, self.attention_norm, attend)
    if self.crossed:
      x = add(x, self.cross_norm, cross)
    activate = lambda x: self.hidden_drop(ACTIVATIONS[self.activation](self.up(x)), train=train)
    return add(x, self.mlp_norm, lambda x: self.down(activate(x)))

  def __call__(self, x, train: bool, mask=None, memory=None, memory_mask=None):
    """x: [batch, time, width] -> the same.

    Args:
      x: the sequence.
      train: whether units are dropped.
      mask: [batch, 1, time or 1, time] bool, as `attend`'s.
      memory: [batch, places, width], for a crossed block.
      memory_mask: [batch, 1, 1, places] bool.
    """
    attend = lambda x: self.attention(x, mask=mask, causal=self.causal, train=train)
    cross = lambda x: self.cross(x, store=self.cross.store(memory), mask=memory_mask, train=train)
    return self._parts(x, attend, cross, train)

  def remember(self, memory):
    """Keys and values of a memory, as a cache holds them, for `step`."""
    return self.cross.store(memory)

  def step(self, x, store, length, memory=None, memory_mask=None):
    """New tokens behind those of a cache.

    Args:
      x: [batch, new, width].
      store: as `attention.cache`'s.
      length: [batch] int32, of the tokens in it.
      memory: from `remember`.
      memory_mask: [batch, 1, 1, places] bool.

    Returns:
      [batch, new, width], and the cache with the new tokens.
    """
    kept = {}
    positions = length[:, None] + jnp.arange(x.shape[1])  # [batch, new]
    places = jnp.arange(store['value'].shape[2])
    mask = (places <= positions[..., None])[:, None]  # [batch, 1, new, places]

    def cached(x):
      kept.update(attention.write(store, self.attention.store(x, positions), length))
      return self.attention(x, store=kept, mask=mask, positions=positions)

    return self._parts(x, cached, lambda x: self.cross(x, store=memory, mask=memory_mask), False), kept


def remat(block: type[nn.Module], how: str) -> type[nn.Module]:
  """The block with the same params and outputs, but activations computed anew in the backward pass (Chen et al. 2016).

  Args:
    block: its call takes (x, train), train a Python bool.
    how: 'none' keeps everything, 'full' nothing, 'dots' matrix products.
  """
  return block if how == 'none' else nn.remat(block, policy=REMATS[how], static_argnums=(2,))


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
    init = initialisers.normal(self.std)
    self.lookup = linear.Lookup()
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
    x = self.lookup(self.embedding.astype(self.dtype), tokens)
    if self.scaled:
      x = x * self.width**0.5
    if self.positions == 'learned':
      x = x + self.places.astype(self.dtype)[at]
    elif self.positions == 'sinusoidal':
      x = x + attention.sinusoids(at, self.width).astype(self.dtype)
    return x

  def logits(self, x):
    """[batch, time, width] -> [batch, time, vocabulary] float32, by the embeddings themselves (Press & Wolf 2017)."""
    return linear.matmul(x, self.embedding.astype(self.dtype).T).astype(jnp.float32)
