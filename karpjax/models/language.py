"""Language models by name: tokens [batch, time] int32 -> logits [batch, time, vocabulary] float32 of each next token.

All have `initial(batch)`, the state before the first token, and `step(tokens [batch, new], state)`, which gives the
logits [batch, vocabulary] of what follows and the next state: what `karpjax.decoding` samples from.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors, hyperparameters
from karpjax.layers import linear, recurrence
from karpjax.layers.dropout import Dropout
from karpjax.layers.initialisers import normal
from karpjax.layers.normalisation import BatchNorm
from karpjax.models import choices
from karpjax.models.transformer import GPT


class Bigram(nn.Module):
  """One table of logits, [vocabulary, vocabulary]: of what follows each token.

  Attributes:
    vocabulary, context, dtype: as for all; the context is not looked at.
  """

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
  """How often each token followed each other one: the maximum-likelihood bigram, which no gradient has to find.

  Params: 'counts' [vocabulary, vocabulary] float32; see `counting_step`.

  Attributes:
    smoothing: added to each count (Laplace); 0 is the likelihood's maximum, and gives what was never seen no chance.
  """

  smoothing: float = 1.0

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    counts = self.param('counts', nn.initializers.zeros_init(), (self.vocabulary, self.vocabulary))
    return jnp.log(counts + self.smoothing)[tokens]


def _windowed_initial(self, batch: int):
  """The state of a model that sees a window: its last tokens, zeros."""
  return {'window': jnp.zeros((batch, self.window), jnp.int32)}


def _windowed_step(self, tokens, state):
  """As for all; the window is looked at anew."""
  window = jnp.concatenate([state['window'], tokens], 1)[:, -self.window :]
  return self(window)[:, -1], {'window': window}


def _padded(tokens, window):
  """Before the first token stand tokens 0."""
  return jnp.pad(tokens, ((0, 0), (window - 1, 0)))


class MLP(nn.Module):
  """The embeddings of the last tokens side by side, one hidden layer (Bengio et al. 2003, without direct connections).

  Attributes:
    vocabulary, context, dtype: as for all.
    window: how many tokens it sees.
    embedding: width of a token's.
    hidden: units.
    norm: 'none', or 'batch' for batch norm before the tanh.
  """

  vocabulary: int
  context: int
  window: int = 3
  embedding: int = 10
  hidden: int = 200
  norm: str = 'none'
  dtype: Any = jnp.float32

  initial, step = _windowed_initial, _windowed_step

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    time = tokens.shape[1]
    x = nn.Embed(self.vocabulary, self.embedding, dtype=self.dtype, embedding_init=normal(1.0))(
      _padded(tokens, self.window)
    )
    x = jnp.concatenate([x[:, i : i + time] for i in range(self.window)], -1)  # [batch, time, window · embedding]
    x = linear.Dense(self.hidden, use_bias=_bias(self.norm), dtype=self.dtype)(x)
    x = BatchNorm(dtype=self.dtype)(x, train=train) if self.norm == 'batch' else x
    return linear.Dense(self.vocabulary, dtype=self.dtype, kernel_init=normal(0.01))(jnp.tanh(x)).astype(jnp.float32)


class WaveNet(nn.Module):
  """Neighbours are joined, then pairs, then fours (van den Oord et al. 2016, without gates and skips).

  With 27 tokens, a window of 8, embeddings of 24 and 128 units: 76,579 params.

  Attributes:
    vocabulary, context, dtype: as for all.
    window: how many tokens it sees, a power of 2.
    embedding: width of a token's.
    hidden: units of each level.
    norm: 'batch' or 'none', before each tanh.
  """

  vocabulary: int
  context: int
  window: int = 8
  embedding: int = 24
  hidden: int = 128
  norm: str = 'batch'
  dtype: Any = jnp.float32

  initial, step = _windowed_initial, _windowed_step

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, time] int32 -> logits [batch, time, vocabulary] float32."""
    levels = self.window.bit_length() - 1
    if 2**levels != self.window or not levels:
      raise errors.UsageError(f'--window={self.window}: wavenet joins pairs, and needs a power of 2, as 8')
    x = nn.Embed(self.vocabulary, self.embedding, dtype=self.dtype, embedding_init=normal(1.0))(
      _padded(tokens, self.window)
    )
    for level in range(levels):  # of places that are so far apart; the first ones of each level have no partner
      x = jnp.concatenate([x[:, : -(2**level)], x[:, 2**level :]], -1)
      x = linear.Dense(self.hidden, use_bias=_bias(self.norm), dtype=self.dtype)(x)
      x = BatchNorm(dtype=self.dtype)(x, train=train) if self.norm == 'batch' else x
      x = jnp.tanh(x)
    return linear.Dense(self.vocabulary, dtype=self.dtype)(x).astype(jnp.float32)


def _bias(norm):
  """Whether the layer before a norm has a bias: not where batch norm has one."""
  if norm not in ('none', 'batch'):
    raise errors.UsageError(f'unknown norm {norm!r}.{errors.nearest(norm, ("none", "batch"))}')
  return norm == 'none'


class Recurrent(nn.Module):
  """Embeddings, recurrent layers, and a dense one (Mikolov et al. 2010; Karpathy, Johnson & Fei-Fei 2015).

  Attributes:
    vocabulary, context, dtype: as for all; the context is not looked at.
    cell: 'rnn', 'lstm' or 'gru'.
    units: of each layer.
    embedding: width of a token's; 0: as the first layer's units.
    dropout: rate on the embeddings, between the layers and before the logits.
  """

  vocabulary: int
  context: int
  cell: str = 'lstm'
  units: tuple[int, ...] = (128,)
  embedding: int = 0
  dropout: Any = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    self.embed = nn.Embed(
      self.vocabulary, self.embedding or self.units[0], dtype=self.dtype, embedding_init=normal(1.0)
    )
    self.stack = recurrence.Stack(self.units, self.cell, dropout=self.dropout, dtype=self.dtype)
    self.drop = Dropout(self.dropout)
    self.head = linear.Dense(self.vocabulary, dtype=self.dtype)

  def read(self, tokens, state=None, *, train: bool = False):
    """tokens [batch, time] after those of a state (None: none) -> logits [batch, time, vocabulary], and the next state."""
    drops = train and not hyperparameters.is_zero(self.dropout)
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
  'wavenet': WaveNet,
  'gpt': GPT,
}
RECURRENT = ('rnn', 'lstm', 'gru')
_DECIDED = 'vocabulary', 'context', 'dtype', 'cell'


def build(name: str, *, vocabulary: int, context: int, dtype, options: Mapping[str, Any]) -> nn.Module:
  """The model called `name`, traced once but not compiled.

  Raises:
    UsageError: for an unknown name or option, or a value that makes no sense.
  """
  constructor = errors.choose('model', name, MODELS)
  chosen = choices.checked(name, constructor, options, _DECIDED)
  for option, value in chosen.items():
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(n, int) and not isinstance(n, bool) and n < 1 for n in numbers) and option != 'dropout':
      raise errors.UsageError(f'--{option}={value}: model {name} needs at least 1')
  model = constructor(vocabulary=vocabulary, context=context, dtype=dtype, **chosen)
  if not any(isinstance(value, jax.Array) for value in chosen.values()):  # a sweep's, within a step
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, context), jnp.int32))
  return model
