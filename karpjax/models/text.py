"""Classifiers of texts: tokens [batch, length] int32, padded with 0 behind -> logits [batch, classes] float32.

What is behind a text changes nothing: a longer padding gives the same logits.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import options
from karpjax.errors import UsageError
from karpjax.layers import initialisers, linear, recurrence
from karpjax.lean import quantisation
from karpjax.models.transformer import Encoder, Sizes
from karpjax.options import option


def embed(module: nn.Module, tokens):
  """Word vectors 'embedding' [vocabulary, size], drawn from U(-0.25, 0.25) as in Kim 2014's programs.

  Returns:
    [batch, length, size] of the module's dtype, and which tokens are real, [batch, length] bool.
  """
  init = nn.initializers.uniform(0.5)
  table = module.param('embedding', lambda *a: init(*a) - 0.25, (module.vocabulary, module.embedding))
  return linear.Lookup()(table.astype(module.dtype), tokens), tokens != 0


def logits(module: nn.Module, features, *, train: bool):
  """The last layer, 'logits', under dropout: [batch, n] -> [batch, classes] float32."""
  features = linear.Dropout(module.dropout)(features.astype(jnp.float32), train=train)
  return linear.Head(module.classes, kernel_init=initialisers.lecun_normal, name='logits')(features)


class MaxOverTime(nn.Module):
  """A convolution over time for each width of window, rectified, and its maximum over time (Collobert et al. 2011, Kim
  2014).

  A window counts where it meets at least one real step, so a sequence of n steps has n + width - 1 of them: one that is
  shorter than the window has features too, and padding changes none.

  Params: 'window3', …: kernel [width, in, channels], drawn as He et al. 2015, and bias [channels], zeros.

  Attributes:
    windows: widths.
    channels: features of each width.
    dtype: of the matmul and the output; sums over a window are float32.
  """

  windows: tuple[int, ...] = (3, 4, 5)
  channels: int = 100
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, mask):
    """x: [..., time, in], mask: [..., time] bool, real steps first -> [..., widths * channels] of `dtype`."""
    lead, inputs = [(0, 0)] * (x.ndim - 2), x.shape[-1]
    # One matmul of every step with every place of every window, whose results are then shifted and added up: several
    # times faster on a CPU than convolutions, whose gradients are slow in a loop, and the same over vmapped seeds.
    layers = [_Window(width, inputs, self.channels, name=f'window{width}')() for width in self.windows]
    kernels = jnp.concatenate([kernel.transpose(1, 0, 2).reshape(inputs, -1) for kernel, _ in layers], 1)
    x = quantisation.entering(jnp.where(mask[..., None], x, 0).astype(self.dtype), -1)
    places = x @ kernels.astype(self.dtype)
    places = iter(jnp.split(places, sum(self.windows), -1))  # each [..., time, channels]
    features = []
    for width, (_, bias) in zip(self.windows, layers):
      found = 0
      for place in range(width):
        shift = [*lead, (width - 1 - place, place), (0, 0)]
        found += jnp.pad(next(places).astype(jnp.float32), shift)  # [..., time + width - 1, channels]
      # the windows that begin before the first step end in it or beyond; the others are real where their first step is
      real = jnp.pad(mask, [*lead, (width - 1, 0)], constant_values=True)
      found = jnp.where(real[..., None], found + bias, -jnp.inf)
      features.append(nn.relu(found.max(-2)))  # [..., channels]
    return jnp.concatenate(features, -1).astype(self.dtype)


class _Window(nn.Module):
  """The kernel and the bias of one width."""

  width: int
  inputs: int
  channels: int

  @nn.compact
  def __call__(self):
    kernel = self.param('kernel', initialisers.he_normal, (self.width, self.inputs, self.channels))
    return kernel, self.param('bias', nn.initializers.zeros_init(), (self.channels,))


class TextCNN(nn.Module):
  """Convolutions over word vectors, their maximum over time, dropout, one dense layer: Kim 2014's CNN-rand.

  With 300 dimensions, windows of 3, 4 and 5 and 100 channels: 300 V + 360,300 + 301 C params.
  """

  vocabulary: int  # tokens, 0 padding
  classes: int
  dtype: Any = jnp.float32  # of the matmul; the logits are float32
  embedding: int = option(300, 'Size of the word vectors.', low=1)
  windows: tuple[int, ...] = option(
    (3, 4, 5), 'Words in a window, for each kind of window.', low=1, high=2**12, least=1
  )
  channels: int = option(100, 'Features of each kind of window.', low=1)
  dropout: float = option(0.5, "Dropout rate on each layer's input.", low=0, below=1)

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    x, mask = embed(self, tokens)
    x = MaxOverTime(self.windows, self.channels, self.dtype, name='features')(x, mask)
    return logits(self, x, train=train)  # x: [batch, channels * len(windows)]


class BiLSTM(nn.Module):
  """LSTMs that read the text both ways, the maximum over time of their outputs, dropout, one dense layer."""

  vocabulary: int
  classes: int
  dtype: Any = jnp.float32
  embedding: int = option(300, 'Size of the word vectors.', low=1)
  units: tuple[int, ...] = option((150,), 'Units of each layer, for each direction.', low=1, least=1)
  dropout: float = option(0.5, "Dropout rate on each layer's input.", low=0, below=1)

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    """tokens: [batch, length] int32 -> logits [batch, classes] float32."""
    x, mask = embed(self, tokens)
    x = linear.Dropout(self.dropout)(x, train=train)
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


def pretrained(spec, flags) -> dict[str, Any]:
  """What an encoder's weights depend on: the context and the sizes of a masked language model,
  from its spec and flags.
  """
  fields = options.of_model(Transformer).items()
  fields = {name: field for name, field in fields if 'dropout' not in name and name in flags}  # a run may be older
  sizes = {name: field.default if flags.get(name) is None else flags[name] for name, field in fields.items()}
  return {'context': spec.lengths['text'], **sizes}


def build(config, spec) -> nn.Module:
  """The model of a Config for the texts of a TextSpec, whose 'pretrained' encoder, if any, decides its own sizes.

  Raises:
    UsageError: as `options.build`, and for a size that is not the pretrained encoder's.
  """
  name, chosen, context = config.model, config.model_options(), spec.lengths['text']
  inputs = jnp.zeros((1, context), jnp.int32)
  if encoder := dict(spec.pretrained):
    known = encoder.pop('context')
    context = known if encoder['positions'] == 'learned' else context  # the others have no end
    for size, own in encoder.items():
      if chosen[size] not in (None, own):
        raise UsageError(f'{size}={chosen[size]}: that of the pretrained encoder is {own}')
    name, chosen = 'transformer', {**chosen, **encoder}
  decided = {'vocabulary': spec.tokenisers['text'].size, 'classes': len(spec.classes), 'context': context}
  return options.build(MODELS, name, chosen, inputs, dtype=jnp.dtype(config.dtype), **decided)
