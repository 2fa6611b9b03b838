"""Classifiers of texts: tokens [batch, length] int32, padded with 0 behind -> logits [batch, classes] float32.

What is behind a text changes nothing: a longer padding gives the same logits.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import dropout, initialisers, linear, max_over_time, recurrence
from karpjax.models import choices, mlp, transformer


def embed(module: nn.Module, tokens):
  """Word vectors 'embedding' [vocabulary, size], drawn from U(-0.25, 0.25) as in Kim 2014's programs.

  Returns:
    [batch, length, size] of the module's dtype, and which tokens are real, [batch, length] bool.
  """
  init = nn.initializers.uniform(0.5)
  table = module.param('embedding', lambda *a: init(*a) - 0.25, (module.vocabulary, module.embedding))
  return table.astype(module.dtype)[tokens], tokens != 0


def logits(module: nn.Module, features, *, train: bool):
  """The last layer, 'logits', under dropout: [batch, n] -> [batch, classes] float32."""
  features = dropout.Dropout(module.dropout)(features.astype(jnp.float32), train=train)
  return linear.Dense(module.classes, kernel_init=initialisers.lecun_normal, name='logits')(features)


class TextCNN(nn.Module):
  """Convolutions over word vectors, their maximum over time, dropout, one dense layer: Kim 2014's CNN-rand.

  With 300 dimensions, windows of 3, 4 and 5 and 100 channels: 300 V + 360,300 + 301 C params.

  Attributes:
    vocabulary: tokens, 0 padding.
    classes: outputs.
    dtype: of the matmul; the logits are float32.
    embedding: size of a word vector.
    windows: words in a window, for each kind of it.
    channels: features of each kind of window.
    dropout: rate on the last layer's input. May be traced.
  """

  vocabulary: int
  classes: int
  dtype: Any = jnp.float32
  embedding: int = 300
  windows: tuple[int, ...] = (3, 4, 5)
  channels: int = 100
  dropout: float = 0.5

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    mlp.check(embedding=self.embedding, windows=self.windows, channels=self.channels, dropout=self.dropout)
    x, mask = embed(self, tokens)
    x = max_over_time.MaxOverTime(self.windows, self.channels, self.dtype, name='features')(x, mask)
    return logits(self, x, train=train)  # x: [batch, channels * len(windows)]


class BiLSTM(nn.Module):
  """LSTMs that read the text both ways, the maximum over time of what they say, dropout, one dense layer.

  Attributes:
    vocabulary, classes, dtype, embedding: as `TextCNN`'s.
    units: of each layer, for each direction.
    dropout: rate on the word vectors, between layers and on the last layer's input. May be traced.
  """

  vocabulary: int
  classes: int
  dtype: Any = jnp.float32
  embedding: int = 300
  units: tuple[int, ...] = (150,)
  dropout: float = 0.5

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    mlp.check(embedding=self.embedding, units=self.units, dropout=self.dropout)
    x, mask = embed(self, tokens)
    x = dropout.Dropout(self.dropout)(x, train=train)
    stack = recurrence.Stack(self.units, 'lstm', True, self.dropout, self.dtype, name='lstm')
    x, _ = stack(x, mask=mask, train=train)  # [batch, length, 2 * units[-1]]
    x = jnp.where(mask[..., None], x, -1).max(1)  # no output is below -1: [batch, 2 * units[-1]]
    return logits(self, x, train=train)


class Transformer(nn.Module):
  """An encoder as BERT's, the mean of what it says of the text's tokens, dropout, one dense layer.

  Its params begin with 'encoder', as those of a masked language model, whose weights it can start from.

  Attributes:
    vocabulary, classes: as `TextCNN`'s.
    context: the largest number of tokens.
    dtype: of the encoder; the logits are float32.
    layers, heads, width, hidden, positions, pre_norm: as `transformer.Encoder`'s.
    dropout: rate in the encoder and on the last layer's input. May be traced.
  """

  vocabulary: int
  classes: int
  context: int
  dtype: Any = jnp.float32
  layers: int = 2
  heads: int = 4
  width: int = 128
  hidden: int = 0
  positions: str = 'learned'
  pre_norm: bool = False
  dropout: float = 0.1

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    mlp.check(layers=self.layers, heads=self.heads, width=self.width, dropout=self.dropout)
    encoder = transformer.Encoder(
      self.vocabulary,
      self.context,
      self.layers,
      self.heads,
      self.width,
      self.hidden,
      self.positions,
      pre_norm=self.pre_norm,
      dropout=self.dropout,
      dtype=self.dtype,
      name='encoder',
    )
    x = encoder(tokens, train=train).astype(jnp.float32)  # [batch, length, width]
    real = (tokens != 0).astype(jnp.float32)
    x = jnp.einsum('blw,bl->bw', x, real) / jnp.maximum(real.sum(1, keepdims=True), 1)  # [batch, width]
    return logits(self, x, train=train)


MODELS = {'textcnn': TextCNN, 'bilstm': BiLSTM, 'transformer': Transformer}
SIZES = ('layers', 'heads', 'width', 'hidden', 'positions', 'pre_norm')  # of an encoder, that its weights depend on


def build(name: str, spec, *, dtype=jnp.float32, options: dict[str, Any]) -> nn.Module:
  """The model for the texts that a `TextSpec` describes.

  Args:
    name: a key of MODELS; where the spec tells the sizes of a pretrained encoder, it is that one's.
    spec: of the data.
    dtype: of the computation.
    options: what the user chose; None leaves the model's own default.

  Raises:
    UsageError: for an unknown name or option, or an option's value that makes no sense.
  """
  context = spec.lengths['text']
  if 'pretrained' in spec.about:
    sizes = dict(spec.about['pretrained'])
    places = sizes.pop('context')
    context = places if sizes.get('positions', 'learned') == 'learned' else context  # only learned ones end somewhere
    other = [option for option in sizes if options.get(option) not in (None, sizes[option])]
    if other:
      raise errors.UsageError(f'--{other[0]}={options[other[0]]}: that of the pretrained encoder is {sizes[other[0]]}')
    name, options = 'transformer', {**options, **sizes}
  constructor = errors.choose('model', name, MODELS)
  chosen = choices.checked(name, constructor, options, ('vocabulary', 'classes', 'context', 'dtype'))
  if constructor is Transformer:
    chosen['context'] = context
  return constructor(spec.tokenisers['text'].size, len(spec.classes), dtype=dtype, **chosen)
