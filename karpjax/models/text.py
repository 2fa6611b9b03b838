"""Classifiers of texts: tokens [batch, length] int32, padded with 0 behind -> logits [batch, classes] float32.

What is behind a text changes nothing: a longer padding gives the same logits.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import options
from karpjax.errors import UsageError
from karpjax.layers import dropout, initialisers, linear, max_over_time, recurrence
from karpjax.models.transformer import Encoder, Sizes
from karpjax.options import option


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
  """

  vocabulary: int  # tokens, 0 padding
  classes: int
  dtype: Any = jnp.float32  # of the matmul; the logits are float32
  embedding: int = option(300, 'Size of the word vectors.', low=1)
  windows: tuple[int, ...] = option((3, 4, 5), 'Words in a window, for each kind of window.', low=1)
  channels: int = option(100, 'Features of each kind of window.', low=1)
  dropout: float = option(0.5, "Dropout rate on each layer's input.", low=0, below=1)

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    x, mask = embed(self, tokens)
    x = max_over_time.MaxOverTime(self.windows, self.channels, self.dtype, name='features')(x, mask)
    return logits(self, x, train=train)  # x: [batch, channels * len(windows)]


class BiLSTM(nn.Module):
  """LSTMs that read the text both ways, the maximum over time of their outputs, dropout, one dense layer."""

  vocabulary: int
  classes: int
  dtype: Any = jnp.float32
  embedding: int = option(300, 'Size of the word vectors.', low=1)
  units: tuple[int, ...] = option((150,), 'Units of each layer, for each direction.', low=1)
  dropout: float = option(0.5, "Dropout rate on each layer's input.", low=0, below=1)

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    x, mask = embed(self, tokens)
    x = dropout.Dropout(self.dropout)(x, train=train)
    stack = recurrence.Stack(self.units, 'lstm', True, self.dropout, self.dtype, name='lstm')
    x, _ = stack(x, mask=mask, train=train)  # [batch, length, 2 * units[-1]]
    x = jnp.where(mask[..., None], x, -1).max(1)  # no output is below -1: [batch, 2 * units[-1]]
    return logits(self, x, train=train)


class Transformer(Sizes, nn.Module):
  """An encoder as BERT's, the mean of its outputs over the text's tokens, dropout, one dense layer.

  Its params begin with 'encoder', as those of a masked language model, whose weights it can start from.
  """

  vocabulary: int
  classes: int
  context: int  # the largest number of tokens
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    encoder = Encoder(**options.shared(Encoder, self), name='encoder')
    x = encoder(tokens, train=train).astype(jnp.float32)  # [batch, length, width]
    real = (tokens != 0).astype(jnp.float32)
    x = jnp.einsum('blw,bl->bw', x, real) / jnp.maximum(real.sum(1, keepdims=True), 1)  # [batch, width]
    return logits(self, x, train=train)


MODELS = {'textcnn': TextCNN, 'bilstm': BiLSTM, 'transformer': Transformer}
SIZES = tuple(
  name for name in options.of_model(Transformer) if name != 'dropout'
)  # an encoder's weights depend on them


def pretrained(spec, flags) -> dict[str, Any]:
  """The sizes and the context of a masked language model's encoder, from its run's spec and flags."""
  fields = options.of_model(Transformer)
  chosen = {name: fields[name].default if flags.get(name) is None else flags[name] for name in SIZES}
  return {'context': spec.lengths['text'], **chosen}


def build(config, spec) -> nn.Module:
  """The model of a Config for the texts of a TextSpec, whose 'pretrained' encoder, if any, decides its own sizes.

  Raises:
    UsageError: as `options.build`, and for a size that is not the pretrained encoder's.
  """
  name, chosen = config.model, config.model_options()
  context = length = spec.lengths['text']
  if encoder := spec.pretrained:
    if encoder['positions'] == 'learned':  # the others have no end
      context = encoder['context']
    for size in SIZES:
      if chosen[size] not in (None, encoder[size]):
        raise UsageError(f'{size}={chosen[size]}: that of the pretrained encoder is {encoder[size]}')
    name, chosen = 'transformer', {**chosen, **{size: encoder[size] for size in SIZES}}
  decided = {'vocabulary': spec.tokenisers['text'].size, 'classes': len(spec.classes), 'context': context}
  inputs = jnp.zeros((1, length), jnp.int32)
  return options.build(MODELS, name, chosen, inputs, dtype=jnp.dtype(config.dtype), **decided)
