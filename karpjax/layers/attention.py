"""Attention of many heads, within a sequence or to another one, with a cache; and that of recurrent decoders."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import axes, errors
from karpjax.layers import initialisers, linear

BASE = 10_000.0  # of the wavelengths of rotary and sinusoidal positions


def rotate(x, positions):
  """Rotary positions (Su et al. 2021, eq. 34): pairs (i, i + head_dim / 2) turned by position · 10,000^(−2i /
  head_dim).

  Args:
    x: [batch, time, heads, head_dim], head_dim even.
    positions: [batch, time] or [time] int32.
  """
  half = x.shape[-1] // 2
  angles = positions[..., None, None] * BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)  # […, time, 1, half]
  sine, cosine = jnp.sin(angles), jnp.cos(angles)
  a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], -1).astype(x.dtype)


def sinusoids(positions, width: int):
  """Vaswani et al. 2017, section 3.5, sines in the first half: positions […] -> […, width] float32."""
  angles = positions[..., None] * BASE ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)[..., :width]


def attend(query, store, *, mask=None, causal: bool = False, implementation: str | None = None, drop=lambda x: x):
  """softmax(query keyᵀ / √head_dim) value (Vaswani et al. 2017, eq. 1), in float32 where it is summed.

  Args:
    query: [batch, time, heads, head_dim].
    store: keys and values, as `stored`; kv_heads divides heads (grouped queries, Ainslie et al. 2023).
    mask: bool, broadcast to [batch, heads, time, places]: True where a query sees a place. One that sees none sees all.
    causal: whether query t sees the places up to t alone.
    implementation: None is ours; 'cudnn' calls cuDNN's flash attention, on GPUs, in bfloat16.
    drop: what is done to the weights, which are `attention_weights`; not with another implementation.
  """
  if implementation:
    key, value = store['key'].transpose(0, 3, 1, 2), store['value'].transpose(0, 2, 1, 3)
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=implementation)
  batch, time, heads, size = query.shape
  weights = drop(attention_weights(query, store, mask, causal))
  y = (weights.astype(store['value'].dtype) @ store['value']).astype(query.dtype)
  return y.reshape(batch, heads, time, size).transpose(0, 2, 1, 3)


def attention_weights(query, store, mask, causal: bool):
  """What `attend` weighs the values with: [batch, kv_heads, heads / kv_heads * time, places] float32."""
  (batch, time, heads, size), (_, kv_heads, _, places) = query.shape, store['key'].shape
  if causal:
    earlier = jnp.tri(time, places, dtype=bool)[None, None]
    mask = earlier if mask is None else earlier & mask
  if mask is not None and heads > kv_heads:  # a group's queries follow each other
    mask = jnp.broadcast_to(mask, (mask.shape[0], heads, time, places)).reshape(mask.shape[0], kv_heads, -1, places)
  query = query.transpose(0, 2, 1, 3).reshape(batch, kv_heads, -1, size)
  scores = jnp.matmul(query, store['key'], preferred_element_type=jnp.float32) * size**-0.5
  return jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min))


class MultiHeadAttention(nn.Module):
  """Params: 'query' [width, heads, head_dim], 'key_value' [width, 2, kv_heads, head_dim], 'out' [heads, head_dim,
  width], and where there are biases 'query_bias', 'key_value_bias', 'out_bias'. Their heads are cut over a mesh's
  tensor axis.

  Attributes:
    width: of the input and the output.
    heads: of the queries.
    kv_heads: of the keys and values; None: as many.
    rotary: whether positions turn queries and keys.
    bias: whether the projections have one.
    kernel_std, out_std: standard deviations of the kernels at the start; 0: Xavier's uniform draw.
    implementation: as `attend`'s, of a sequence to itself.
    dropout: rate on the weights; a key of the collection 'dropout' draws.
    dtype: of the matmuls and the output.
    head_dim: units of a head; 0: width / heads.
  """

  width: int
  heads: int
  kv_heads: int | None = None
  rotary: bool = False
  bias: bool = True
  kernel_std: float = 0.02
  out_std: float = 0.02
  implementation: str | None = None
  dtype: Any = jnp.float32
  dropout: Any = 0.0
  head_dim: int = 0

  def setup(self):
    if self.implementation and self.dropout:
      raise errors.UsageError(f'implementation={self.implementation} takes no attention_dropout={self.dropout}')
    kv, size = self.kv_heads or self.heads, head_size(self)
    uneven = not self.head_dim and self.width % self.heads
    if uneven or self.heads % kv or (self.rotary and size % 2):
      raise errors.UsageError(
        f'width={self.width} does not divide over heads={self.heads} (head_dim={self.head_dim}), with rotary positions into '
        f'parts of an even size, or the heads over kv_heads={self.kv_heads}'
      )
    # Glorot & Bengio 2010: U(±√(6 / (in + out))); the kernels have more axes than two
    xavier = (6 / (self.width + self.heads * size)) ** 0.5
    init = lambda std: initialisers.normal(std) if std else initialisers.uniform(xavier)
    named = lambda init, matrix, *names: axes.declare(init, matrix, names)
    into, zeros = init(self.kernel_std), nn.initializers.zeros_init()
    self.drop = linear.Dropout(self.dropout)
    self.query = self.param('query', named(into, 'ioo', 'embed', 'heads', None), (self.width, self.heads, size))
    pair = named(into, 'isoo', 'embed', None, 'heads', None)  # the keys' matrix and the values'
    self.key_value = self.param('key_value', pair, (self.width, 2, kv, size))
    out = named(init(self.out_std), 'iio', 'heads', None, 'embed')
    self.out = self.param('out', out, (self.heads, size, self.width))
    if self.bias:
      self.query_bias = self.param('query_bias', named(zeros, '', 'heads', None), (self.heads, size))
      self.key_value_bias = self.param('key_value_bias', named(zeros, '', None, 'heads', None), (2, kv, size))
      self.out_bias = self.param('out_bias', zeros, (self.width,))

  def _project(self, x, name):
    kernel = getattr(self, name).astype(self.dtype)
    y = linear.dense(x.astype(self.dtype), kernel.reshape(self.width, -1))
    y = y.reshape(*x.shape[:-1], *kernel.shape[1:])  # [batch, time, …]
    return y + getattr(self, f'{name}_bias').astype(self.dtype) if self.bias else y

  def store(self, memory, positions=None):
    """[batch, places, width] -> its keys and values, as `stored`."""
    both = self._project(memory, 'key_value')
    key, value = both[:, :, 0], both[:, :, 1]
    return stored(rotate(key, positions) if self.rotary else key, value)

  def __call__(self, x, *, store=None, mask=None, causal: bool = False, positions=None, train: bool = False):
    """x: [batch, time, width] -> the same.

    Args:
      x: gives the queries.
      store: of another sequence, from `store`, or what a cache holds; None: of x.
      mask, causal: as `attend`'s.
      positions: [time] or [batch, time] int32, for rotary ones; None: 0, 1, ….
      train: whether weights are dropped.
    """
    positions = jnp.arange(x.shape[1]) if positions is None else positions
    query = self._project(x, 'query')
    query = rotate(query, positions) if self.rotary else query
    implementation = self.implementation if store is None else None
    store = self.store(x, positions) if store is None else store
    if self.is_mutable_collection('intermediates'):  # [batch, heads, time, places] float32, for looking at
      weights = attention_weights(query, store, mask, causal)
      self.sow('intermediates', 'attention', weights.reshape(*x.shape[:1], self.heads, -1, weights.shape[-1]))
    drop = functools.partial(self.drop, train=train)
    y = attend(query, store, mask=mask, causal=causal, implementation=implementation, drop=drop)
    y = linear.dense(y.reshape(*y.shape[:2], -1), self.out.astype(self.dtype).reshape(-1, self.width))
    return y + self.out_bias.astype(self.dtype) if self.bias else y


def head_size(sizes) -> int:
  """The units of a head: of what has `width`, `heads` and `head_dim`."""
  return sizes.head_dim or sizes.width // sizes.heads


def stored(key, value):
  """Keys and values [batch, places, kv_heads, head_dim] as a cache holds them: {'key': [batch, kv_heads, head_dim,
  places], 'value': [batch, kv_heads, places, head_dim]}, as the matmuls want them: else each token's step would copy
  all of it.
  """
  return {'key': key.transpose(0, 2, 3, 1), 'value': value.transpose(0, 2, 1, 3)}


def cache(batch: int, length: int, kv_heads: int, head_dim: int, dtype=jnp.float32):
  """Room for the keys and values of `length` tokens, as `stored`."""
  empty = lambda: jnp.zeros((batch, length, kv_heads, head_dim), dtype)
  return stored(empty(), empty())


def enlarge(store, length: int):
  """A cache with room for `length` tokens in all."""
  more = lambda x, axis: jnp.pad(x, [(0, length - size if i == axis else 0) for i, size in enumerate(x.shape)])
  return {'key': more(store['key'], 3), 'value': more(store['value'], 2)}


def write(store, new, length):
  """A cache with the keys and values of new tokens, as `stored`, behind the first `length` [batch] int32 ones."""

  def put(name, axis):
    one = lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis)
    return jax.vmap(one)(store[name], new[name], length)

  # else XLA's CPU backend writes once for each use, into copies of the cache
  return jax.lax.optimization_barrier({'key': put('key', 2), 'value': put('value', 1)})


# ---- of recurrent decoders: one query to the places of a memory ----


class Additive(nn.Module):
  """softmax over places of vᵀ tanh(W query + U memory) (Bahdanau et al. 2015, section A.1.2).

  Attributes:
    units: of the hidden layer.
    dtype: of the matmuls.
  """

  units: int
  dtype: Any = jnp.float32

  def setup(self):
    self.of_query = linear.Dense(self.units, dtype=self.dtype)
    self.of_memory = linear.Dense(self.units, use_bias=False, dtype=self.dtype)
    self.score = linear.Dense(1, use_bias=False, dtype=self.dtype)

  def keys(self, memory):
    """The part that no query changes: [batch, places, in] -> [batch, places, units]."""
    return self.of_memory(memory)

  def __call__(self, query, keys, memory, mask):
    """One query for each example.

    Args:
      query: [batch, in].
      keys: from `keys`.
      memory: [batch, places, in].
      mask: [batch, places] bool, False at padding.

    Returns:
      The weighted memory [batch, in] and the weights [batch, places] float32.
    """
    scores = self.score(jnp.tanh(self.of_query(query)[:, None] + keys))[..., 0]
    return _read(scores, memory, mask)


class Multiplicative(nn.Module):
  """softmax over places of queryᵀ W memory (Luong et al. 2015, «general»); called as `Additive` is.

  Attributes:
    units: of the query.
    dtype: of the matmuls.
  """

  units: int
  dtype: Any = jnp.float32

  def setup(self):
    self.of_memory = linear.Dense(self.units, use_bias=False, dtype=self.dtype)

  def keys(self, memory):
    """[batch, places, in] -> [batch, places, units]."""
    return self.of_memory(memory)

  def __call__(self, query, keys, memory, mask):
    """As `Additive`."""
    return _read(jnp.einsum('bu,bsu->bs', query.astype(self.dtype), keys), memory, mask)


def _read(scores, memory, mask):
  weights = jax.nn.softmax(jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min))
  return jnp.einsum('bs,bsi->bi', weights.astype(memory.dtype), memory), weights
