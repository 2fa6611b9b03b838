"""Language models by name: tokens [batch, time] int32 -> logits [batch, time, vocabulary] float32 of each next token.

All have `initial(batch)`, the state before the first token, and `step(tokens [batch, new], state)`, which gives the
logits [batch, vocabulary] of what follows and the next state: what `karpjax.generate` draws from.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from karpjax import options
from karpjax.errors import UsageError
from karpjax.layers import attention, initialisers, linear, recurrence
from karpjax.layers.initialisers import normal
from karpjax.layers.normalisation import BatchNorm
from karpjax.layers.transformer import POSITIONS, REMATS, Block, Tokens, remat
from karpjax.options import option


class GPT(nn.Module):
  """A Transformer that predicts each next token (Radford et al. 2019).

  With 50,257 tokens, a context of 1,024, 12 layers, 12 heads and a width of 768: 124,439,808 params, tied. Kernels that end
  a part of a block begin with std / √(2 layers).
  """

  vocabulary: int
  context: int
  layers: int = option(4, 'The number of blocks.', low=1)
  heads: int = option(4, 'The heads of the attention.', low=1)
  width: int = option(128, 'The width of embeddings and blocks.', low=1)
  kv_heads: int | None = option(None, 'The heads of keys and values, which groups of heads share.', low=1)
  positions: str = option('learned', 'The kind of positions; rotary is quicker to learn.', choices=POSITIONS)
  bias: bool = option(True, 'Whether linear layers and norms have biases.')
  dropout: float = option(0.0, 'Dropout rate.', low=0, below=1)
  std: float = option(
    0.02, 'The deviation of kernels at the start; 0.02 suits large widths, 1 / √width small ones.', low=0
  )
  tied: bool = option(True, 'Whether the logits are by the embeddings.')
  remat: str = option('none', 'What the backward pass computes anew.', choices=REMATS)
  implementation: str | None = option(
    None, 'cudnn: its flash attention, on GPUs, in bfloat16.', choices=('cudnn', 'xla')
  )
  dtype: Any = jnp.float32

  def setup(self):
    self.tokens = Tokens(self.vocabulary, self.context, self.width, self.positions, dtype=self.dtype)
    block = functools.partial(remat(Block, self.remat), **options.shared(Block, self))
    out_std = self.std * (2 * self.layers) ** -0.5
    self.blocks = [block(rotary=self.positions == 'rotary', out_std=out_std) for _ in range(self.layers)]
    self.norm, self.drop = (
      nn.LayerNorm(epsilon=1e-5, use_bias=self.bias, dtype=self.dtype),
      linear.Dropout(self.dropout),
    )
    if not self.tied:
      init = nn.with_partitioning(initialisers.normal(0.02), ('embed', 'vocabulary'))
      self.head = linear.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, kernel_init=init)

  def _logits(self, x):
    x = self.norm(x)
    return self.tokens.logits(x) if self.tied else self.head(x).astype(jnp.float32)

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    x = self.drop(self.tokens(tokens), train=train)  # [batch, time, width]
    for block in self.blocks:
      x = block(x, train)
    return self._logits(x)

  def initial(self, batch: int, room: int = 0):
    """The state of `step` before the first token: with room for so many tokens, or for `context`."""
    size, kv = self.width // self.heads, self.kv_heads or self.heads
    caches = [attention.cache(batch, room or self.context, kv, size, self.dtype) for _ in range(self.layers)]
    return {'caches': caches, 'length': jnp.zeros((batch,), jnp.int32)}

  def begin(self, tokens, length):
    """The state after a prompt of any length, by one program.

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


class Bigram(nn.Module):
  """One table of logits, [vocabulary, vocabulary]: of what follows each token. The context plays no part."""

  vocabulary: int
  context: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    return self.param('logits', nn.initializers.zeros_init(), (self.vocabulary, self.vocabulary))[tokens]

  def initial(self, batch: int):
    """Nothing."""
    return {}

  def step(self, tokens, state):
    """As for all."""
    return self(tokens)[:, -1], state


class Counts(Bigram):
  """The counts of pairs of tokens, 'counts' [vocabulary, vocabulary] float32: the maximum-likelihood bigram."""

  smoothing: float = option(1.0, 'Added to each count (Laplace); 0 is the maximum of the likelihood.', low=0)

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    counts = self.param('counts', nn.initializers.zeros_init(), (self.vocabulary, self.vocabulary))
    return jnp.log(counts + self.smoothing)[tokens]


class Windowed(nn.Module):
  """What models of a window of the last tokens share."""

  vocabulary: int
  context: int
  window: int = option(3, 'Tokens that the model sees.', low=1)
  embedding: int = option(10, "The width of a token's embedding.", low=1)
  hidden: int = option(200, 'Units of each hidden layer.', low=1)
  norm: str = option('none', 'The norm before each tanh.', choices=('none', 'batch'))
  dtype: Any = jnp.float32

  def initial(self, batch: int):
    """The last tokens: zeros."""
    return {'window': jnp.zeros((batch, self.window), jnp.int32)}

  def step(self, tokens, state):
    """As for all; the window is looked at anew."""
    window = jnp.concatenate([state['window'], tokens], 1)[:, -self.window :]
    return self(window)[:, -1], {'window': window}

  def embed(self, tokens):
    """[batch, time] -> [batch, window - 1 + time, embedding]; before the first token stand tokens 0."""
    table = nn.Embed(self.vocabulary, self.embedding, dtype=self.dtype, embedding_init=normal(1.0))
    return table(jnp.pad(tokens, ((0, 0), (self.window - 1, 0))))

  def hide(self, x, train):
    """A hidden layer."""
    x = linear.Dense(self.hidden, use_bias=self.norm == 'none', dtype=self.dtype)(x)
    return jnp.tanh(BatchNorm(dtype=self.dtype)(x, train=train) if self.norm == 'batch' else x)


class MLP(Windowed):
  """The embeddings of the last tokens side by side, one hidden layer (Bengio et al. 2003, without direct connections)."""

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    x, time = self.embed(tokens), tokens.shape[1]
    x = jnp.concatenate([x[:, i : i + time] for i in range(self.window)], -1)  # [batch, time, window · embedding]
    x = self.hide(x, train)
    return linear.Dense(self.vocabulary, dtype=self.dtype, kernel_init=normal(0.01))(x).astype(jnp.float32)


class WaveNet(Windowed):
  """Neighbours are joined, then pairs, then fours (van den Oord et al. 2016, without gates and skips).

  With 27 tokens and what is usual: 76,579 params.
  """

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    levels = self.window.bit_length() - 1
    if 2**levels != self.window or not levels:
      raise UsageError(f'window={self.window}: wavenet joins pairs, and needs a power of 2, as 8')
    x = self.embed(tokens)
    for level in range(levels):  # of places that are so far apart; the first ones of each level have no partner
      x = self.hide(jnp.concatenate([x[:, : -(2**level)], x[:, 2**level :]], -1), train)
    return linear.Dense(self.vocabulary, dtype=self.dtype)(x).astype(jnp.float32)


class Recurrent(nn.Module):
  """Embeddings, recurrent layers, and a dense one (Mikolov et al. 2010; Karpathy, Johnson & Fei-Fei 2015).

  The cell is 'rnn', 'lstm' or 'gru'; the context plays no part. Dropout is on the embeddings, between the layers and before
  the logits.
  """

  vocabulary: int
  context: int
  cell: str = 'lstm'
  units: tuple[int, ...] = option((128,), 'Units of each recurrent layer.', low=1)
  embedding: int = option(0, "The width of a token's embedding; 0: the first layer's units.", low=0)
  dropout: float = option(0.0, 'Dropout rate.', low=0, below=1)
  dtype: Any = jnp.float32

  def setup(self):
    width = self.embedding or self.units[0]
    self.embed = nn.Embed(self.vocabulary, width, dtype=self.dtype, embedding_init=normal(1.0))
    self.stack = recurrence.Stack(self.units, self.cell, dropout=self.dropout, dtype=self.dtype)
    self.drop = linear.Dropout(self.dropout)
    self.head = linear.Dense(self.vocabulary, dtype=self.dtype)

  def read(self, tokens, state=None, *, train: bool = False):
    """tokens [batch, time] after those of a state (None: none) -> logits [batch, time, vocabulary], and the next state."""
    drops = train and self.dropout > 0
    x = self.drop(self.embed(tokens), train=True) if drops else linear.rows(self.embed.embedding, tokens)
    x, state = self.stack(x, state, train=train)
    return self.head(self.drop(x, train=train)).astype(jnp.float32), state

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    return self.read(tokens, train=train)[0]

  def initial(self, batch: int):
    """The state of each layer: zeros."""
    return recurrence.Stack(self.units, self.cell, parent=None).initial(batch)

  def step(self, tokens, state):
    """As for all."""
    logits, state = self.read(tokens, state)
    return logits[:, -1], state


MODELS = {
  'counts': Counts,
  'bigram': Bigram,
  'mlp': MLP,
  'rnn': functools.partial(Recurrent, cell='rnn'),
  'lstm': functools.partial(Recurrent, cell='lstm'),
  'gru': functools.partial(Recurrent, cell='gru'),
  'wavenet': functools.partial(WaveNet, window=8, embedding=24, hidden=128, norm='batch'),
  'gpt': GPT,
}
RECURRENT = ('rnn', 'lstm', 'gru')


# ---- a look inside ----


@functools.lru_cache(maxsize=4)
def _look(model):
  return jax.jit(lambda variables, tokens: model.apply(variables, tokens, mutable='intermediates')[1]['intermediates'])


def attention_maps(model: GPT, variables, tokens: np.ndarray) -> np.ndarray:
  """tokens [1, time] -> [layers, heads, time, time] float32: how much each token looks at each one before it."""
  inside = _look(model)({'params': variables['params']}, tokens)
  return np.stack([inside[f'blocks_{i}']['attention']['attention'][0][0] for i in range(model.layers)])


def activations(model: Recurrent, variables, tokens: np.ndarray):
  """What recurrent layers do over a text [n].

  Returns:
    For each layer: tanh of its cells (of an LSTM), else its state, [n, units] in [-1, 1]; and its gates, {name: [n, units]}.
  """
  stack, cells, gates = _look(model)(variables, tokens[None])['stack'], [], []
  for i, units in enumerate(model.units, start=1):
    inside = jax.tree.map(lambda x: np.asarray(x)[:, 0], stack[f'layer{i}']['inside'][0])  # [n, …] each
    cells.append(np.tanh(inside['states'][-1]) if model.cell == 'lstm' else inside['states'][0])
    blocks = np.split(1 / (1 + np.exp(-inside['gates'])), max(1, inside['gates'].shape[-1] // units), -1)
    named = {'lstm': {'input': 0, 'forget': 1, 'output': 3}, 'gru': {'reset': 0, 'update': 1}, 'rnn': {}}[model.cell]
    gates.append({name: blocks[place] for name, place in named.items()})
  return cells, gates
