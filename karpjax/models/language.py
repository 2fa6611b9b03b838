"""Language models by name: tokens [batch, time] int32 -> logits [batch, time, vocabulary] float32 of each next token.

All have `initial(batch)`, the state before the first token, and `step(tokens [batch, new], state)`, which gives the
logits [batch, vocabulary] of what follows and the next state: what `karpjax.generate` draws from.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from karpjax import options
from karpjax.errors import UsageError
from karpjax.layers import attention, linear, recurrence
from karpjax.layers.initialisers import normal
from karpjax.layers.normalisation import BatchNorm
from karpjax.layers.transformer import POSITIONS, REMATS, Block, Tokens, remat
from karpjax.models.transformer import Decoder
from karpjax.options import DEEPEST, option


class GPT(Decoder):
  """A Transformer that predicts each next token (Radford et al. 2019).

  With 50,257 tokens, a context of 1,024, 12 layers, 12 heads and a width of 768: 124,439,808 params, tied. Kernels that end
  a part of a block begin with std / √(2 layers).
  """

  vocabulary: int
  context: int
  layers: int = option(4, 'The number of blocks.', low=1, high=DEEPEST)
  heads: int = option(4, 'The heads of the attention.', low=1)
  width: int = option(128, 'The width of embeddings and blocks.', low=1)
  kv_heads: int | None = option(None, 'The heads of keys and values, which groups of heads share.', low=1)
  head_dim: int = option(0, 'Units of each head; 0: width / heads.', low=0)
  hidden: int = option(0, "Units of a block's MLP; 0: four times the width.", low=0)
  positions: str = option('learned', 'The kind of positions; rotary is quicker to learn.', choices=POSITIONS)
  bias: bool = option(True, 'Whether linear layers and norms have biases.')
  dropout: float = option(0.0, 'Dropout rate.', low=0, below=1)
  attention_dropout: float = option(0.0, 'Dropout rate on the weights of the attention.', low=0, below=1)
  hidden_dropout: float = option(0.0, "Dropout rate on the units of a block's MLP.", low=0, below=1)
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
    self.norm = nn.LayerNorm(epsilon=1e-5, use_bias=self.bias, dtype=self.dtype)
    self.drop = linear.Dropout(self.dropout)
    if not self.tied:
      named = {'kernel_init': normal(0.02), 'names': ('embed', 'vocabulary')}
      self.head = linear.Head(self.vocabulary, use_bias=False, dtype=self.dtype, **named)

  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    return self.read(tokens, train)

  def initial(self, batch: int):
    """The state of `step` before the first token, with room for `context`."""
    return self.empty(batch, self.context, self.kv_heads)

  def begin(self, tokens, length):
    """The state after a prompt of any length, by one program.

    Args:
      tokens: [batch, up to context] int32, of which the first `length` are the prompt.
      length: [batch] int32, at least 1.

    Returns:
      logits [batch, vocabulary] float32 of what follows, and the state.
    """
    # what is behind the prompt is never seen, and overwritten
    x, state = self.extend(tokens, self.empty(*tokens.shape, self.kv_heads))
    last = jnp.take_along_axis(x, (length - 1)[:, None, None], 1)
    caches = [attention.enlarge(store, self.context) for store in state['caches']]
    return self.logits(last)[:, 0], {'caches': caches, 'length': length}

  def step(self, tokens, state):
    """Tokens [batch, new] behind those of a state -> logits [batch, vocabulary] float32 of what follows, and the state."""
    x, state = self.extend(tokens, state)
    return self.logits(x[:, -1:])[:, 0], state


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
  """Embeddings of a window of the last tokens, joined by hidden layers.

  All at once, by one layer: Bengio et al. 2003, without direct connections. In pairs, then pairs of these: van den Oord et
  al. 2016, without gates and skips; with 27 tokens and what is usual 76,579 params. Batch norm is that of windows as examples.
  """

  vocabulary: int
  context: int
  window: int = option(3, 'Tokens that the model sees.', low=1, high=2**12)
  embedding: int = option(10, "The width of a token's embedding.", low=1)
  hidden: int = option(200, 'Units of each hidden layer.', low=1)
  norm: str = option('none', 'The norm before each tanh.', choices=('none', 'batch'))
  pairs: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens, *, train: bool = False, mask=None):
    """tokens: [batch, time] int32, mask: the windows that count in training, [batch, time] bool -> logits as all give."""
    joined, levels = (2, self.window.bit_length() - 1) if self.pairs else (self.window, 1)
    if joined**levels != self.window or not levels:
      raise UsageError(f'window={self.window}: wavenet joins pairs, and needs a power of 2, as 8')
    table = nn.Embed(self.vocabulary, self.embedding, dtype=self.dtype, embedding_init=normal(1.0))
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    weights = [mask.astype(jnp.float32)]  # of each level, from the last: how many of the windows hold a place
    for apart in (joined**level for level in range(levels - 1, 0, -1)):
      held = [((0, 0), (i * apart, (joined - 1 - i) * apart)) for i in range(joined)]
      weights.append(sum(jnp.pad(weights[-1], places) for places in held))
    x = table(jnp.pad(tokens, ((0, 0), (self.window - 1, 0))))  # before the first token stand tokens 0
    for level in range(levels):  # of places that are so far apart; the first ones of each level have no partner
      apart = joined**level
      time = x.shape[1] - (joined - 1) * apart
      x = jnp.concatenate([x[:, i * apart : i * apart + time] for i in range(joined)], -1)
      x = linear.Dense(self.hidden, use_bias=self.norm == 'none', dtype=self.dtype)(x)
      if self.norm == 'batch':
        x = BatchNorm(dtype=self.dtype)(x, train=train, weights=weights[levels - 1 - level])
      x = jnp.tanh(x)
    init = nn.initializers.lecun_normal() if self.pairs else normal(0.01)
    return linear.Head(self.vocabulary, dtype=self.dtype, kernel_init=init)(x).astype(jnp.float32)

  def initial(self, batch: int):
    """The last tokens: zeros."""
    return {'window': jnp.zeros((batch, self.window), jnp.int32)}

  def step(self, tokens, state):
    """As for all; the window is looked at anew."""
    window = jnp.concatenate([state['window'], tokens], 1)[:, -self.window :]
    return self(window)[:, -1], {'window': window}


class Recurrent(nn.Module):
  """Embeddings, recurrent layers, and a dense one (Mikolov et al. 2010; Karpathy, Johnson & Fei-Fei 2015).

  The cell is 'rnn', 'lstm' or 'gru'; the context plays no part. Dropout is on the embeddings, between the layers and before
  the logits.
  """

  vocabulary: int
  context: int
  cell: str = 'lstm'
  units: tuple[int, ...] = option((128,), 'Units of each recurrent layer.', low=1, least=1)
  embedding: int = option(0, "The width of a token's embedding; 0: the first layer's units.", low=0)
  dropout: float = option(0.0, 'Dropout rate.', low=0, below=1)
  dtype: Any = jnp.float32

  def setup(self):
    width = self.embedding or self.units[0]
    self.embed = nn.Embed(self.vocabulary, width, dtype=self.dtype, embedding_init=normal(1.0))
    self.lookup = linear.Lookup(late=True)
    self.stack = recurrence.Stack(self.units, self.cell, dropout=self.dropout, dtype=self.dtype)
    self.drop = linear.Dropout(self.dropout)
    self.head = linear.Head(self.vocabulary, dtype=self.dtype)

  def read(self, tokens, state=None, *, train: bool = False):
    """tokens [batch, time] after those of a state (None: none) -> logits [batch, time, vocabulary], and the next state."""
    drops = train and self.dropout > 0
    x = self.drop(self.embed(tokens), train=True) if drops else self.lookup(self.embed.embedding, tokens)
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
  'mlp': Windowed,
  **{cell: functools.partial(Recurrent, cell=cell) for cell in recurrence.CELLS},
  'wavenet': functools.partial(Windowed, pairs=True, window=8, embedding=24, hidden=128, norm='batch'),
  'gpt': GPT,
}


# ---- a look inside ----


@functools.lru_cache(maxsize=4)
def _look(model):
  return jax.jit(lambda variables, tokens: model.apply(variables, tokens, mutable='intermediates')[1]['intermediates'])


def attention_maps(model: GPT, variables, tokens: np.ndarray) -> np.ndarray:
  """tokens [1, time] -> [layers, heads, time, time] float32: how much each token looks at each one before it."""
  inside = _look(model)(variables, tokens)
  return np.stack([inside[f'blocks_{i}']['attention']['attention'][0][0] for i in range(model.layers)])


def activations(model: Recurrent, variables, tokens: np.ndarray, most: int):
  """What recurrent layers do over a text [n].

  Returns:
    {'layer 1, cell 7': [n] in [-1, 1]} of the `most` cells of each layer whose values differ the most: tanh of an LSTM's
    cells, else the state; and of each layer its gates, {name: [n, units]}.
  """
  stack, cells, gates = _look(model)(variables, tokens[None])['stack'], {}, []
  for i, units in enumerate(model.units, start=1):
    inside = jax.tree.map(lambda x: np.asarray(x)[:, 0], stack[f'layer{i}']['inside'][0])  # [n, …] each
    values = np.tanh(inside['states'][-1]) if model.cell == 'lstm' else inside['states'][0]
    cells |= {f'layer {i}, cell {n}': values[:, n] for n in np.argsort(-values.std(0), kind='stable')[:most]}
    blocks = np.split(1 / (1 + np.exp(-inside['gates'])), max(1, inside['gates'].shape[-1] // units), -1)
    named = {'lstm': {'input': 0, 'forget': 1, 'output': 3}, 'gru': {'reset': 0, 'update': 1}, 'rnn': {}}[model.cell]
    gates.append({name: blocks[place] for name, place in named.items()})
  return cells, gates


# ---- published weights ----

GPT2_HEAD = 64  # units of a head in every GPT-2
GPT2 = {  # Hugging Face's names (of blocks without their numbers) -> ours
  'wte/weight': 'tokens/embedding', 'wpe/weight': 'tokens/positions', 'ln_f/weight': 'norm/scale', 'ln_f/bias': 'norm/bias',
  'ln_1/weight': 'attention_norm/scale', 'ln_1/bias': 'attention_norm/bias', 'ln_2/weight': 'mlp_norm/scale',
  'ln_2/bias': 'mlp_norm/bias', 'attn/c_proj/weight': 'attention/out', 'attn/c_proj/bias': 'attention/out_bias',
  'mlp/c_fc/weight': 'up/kernel', 'mlp/c_fc/bias': 'up/bias', 'mlp/c_proj/weight': 'down/kernel', 'mlp/c_proj/bias': 'down/bias',
}  # fmt: skip


def renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays of a published GPT-2 under our names and in our shapes; of anything else as they are.

  Args:
    arrays: {name: array}, with / in the names; of GPT-2 (Radford et al. 2019) as Hugging Face keeps it: [in, out] kernels;
      queries, keys and values side by side.
  """
  bare = {name.removeprefix('transformer/'): array for name, array in arrays.items()}
  if 'h/0/attn/c_attn/weight' not in bare:
    return dict(arrays)
  ours = {}
  for name, array in bare.items():
    block, part = re.fullmatch(r'(?:h/(\d+)/)?(.+)', name).groups()
    path = f'params/blocks_{block}/' if block else 'params/'
    if part in GPT2:
      shape = (-1, GPT2_HEAD, array.shape[-1]) if part == 'attn/c_proj/weight' else array.shape
      ours[path + GPT2[part]] = array.reshape(shape)
    elif part.startswith('attn/c_attn/'):  # [(width,) 3 · width] -> [(width,) 3, heads, head_dim]
      parts, kind = array.reshape(*array.shape[:-1], 3, -1, GPT2_HEAD), '_bias' if part.endswith('bias') else ''
      ours[f'{path}attention/query{kind}'] = parts[..., 0, :, :]
      ours[f'{path}attention/key_value{kind}'] = parts[..., 1:, :, :]
  return ours  # without the masks that some files hold
