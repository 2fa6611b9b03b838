"""Generators and discriminators: perceptrons, DCGAN (Radford et al. 2016), SNGAN (Miyato et al. 2018).

A generator takes latents [batch, latent] float32 and labels [batch] int32, and gives examples [batch, *shape] float32;
images lie in [-1, 1]. A discriminator takes such examples and labels, and gives scores [batch] float32 and class logits
[batch, classes], or None.

A generator of perceptrons has an embedding of the class beside the latent, a DCGAN's one behind its first norm, an
SNGAN's a gain and a bias for each class in every batch norm, or without norms an embedding beside the latent. A
discriminator has, with
  embedding: an embedding beside the input: as more numbers, or as more channels (Mirza & Osindero 2014);
  projection: the inner product of an embedding and the last features, added to the score (Miyato & Koyama 2018, eq. 3);
  auxiliary: class logits of its own (AC-GAN: Odena et al. 2017, section 3);
  none: labels are not looked at.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import axes, errors
from karpjax.layers import convolution, initialisers, linear
from karpjax.layers.convolution import Conv, ConvTranspose
from karpjax.layers.normalisation import BatchNorm
from karpjax.options import option

CONDITIONALS = 'none', 'embedding', 'projection', 'auxiliary'
EMBEDDING = 32  # numbers of a class's embedding
HALF = ((1, 1), (1, 1))  # padding by which a window of 4 and a stride of 2 halve an image of even size exactly
dcgan_init = initialisers.normal(0.02)  # Radford et al. 2016, section 4
last_init = axes.declare(dcgan_init, '')
leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)  # there too


def halvings(shape) -> int:
  """How often an image can be halved to at least 4 pixels; a small one twice."""
  size, times = min(shape[:2]), 0
  while all(n % 2 ** (times + 1) == 0 for n in shape[:2]) and (size >= 8 or (times < 2 and size >= 4)):
    size, times = size // 2, times + 1
  return max(times, 1)


def sizes(shape, times: int, exact: bool = False) -> list[tuple[int, int]]:
  """(height, width) of an image halved so many times, rounding up or exactly: [times + 1], the smallest first.

  Raises:
    UsageError: where a size is 1 before that, or odd where halves are exact.
  """
  halved = [tuple(shape[:2])]
  for done in range(times):
    if min(halved[0]) == 1 or (exact and any(n % 2 for n in halved[0])):
      raise errors.UsageError(
        f'images of {shape[0]}×{shape[1]} cannot be halved {times} times, once for each of widths: give {done} widths '
        f'at most, or an image_size that {2**times} divides'
      )
    halved.insert(0, tuple(-(-n // 2) for n in halved[0]))
  return halved


WIDTHS = {  # of a generator, by the shape of an example
  'mlp': lambda shape: (128, 256, 512),
  'dcgan': lambda shape: tuple(64 * 2**i for i in reversed(range(halvings(shape)))),
  'sngan': lambda shape: (128,) * halvings(shape),
}


class LayerNorm(nn.Module):
  """Ba et al. 2016 over all of an example, gain and bias per channel: WGAN-GP's in the place of batch norm."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    axes = tuple(range(1, x.ndim))
    return nn.LayerNorm(reduction_axes=axes, feature_axes=-1, dtype=self.dtype, name='norm')(x)


NORMS = {'batch': BatchNorm, 'layer': LayerNorm}


class Player(nn.Module):
  """The fields that the data and the experiment decide.

  Attributes:
    shape: of an example.
    classes: how many, where `conditional` is not 'none'.
    conditional: one of CONDITIONALS.
    dtype: of the computation; outputs are float32.
  """

  shape: tuple[int, ...]
  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32

  def normalised(self, kind: str, name: str, x, train: bool, **labels):
    """x by the norm of a kind; 'none' leaves it."""
    if kind == 'none':
      return x
    by_class = {'classes': self.classes} if labels else {}
    return NORMS[kind](dtype=self.dtype, name=name, **by_class)(x, train=train, **labels)

  def embedded(self, labels, numbers: int = EMBEDDING):
    """[batch] -> [batch, numbers], as large as latents and normalised features are."""
    return nn.Embed(self.classes, numbers, embedding_init=nn.initializers.normal(1.0), name='class')(labels)


# ---- generators ----


class Generator(Player):
  widths: tuple[int, ...] = option((), "The generator's units or channels; by default by the image's size.", low=1)
  generator_norm: str = option('none', "The generator's norm.", choices=('none', 'batch'))

  def latent_and_class(self, z, labels):
    """The latent, and beside it the class's embedding."""
    if self.conditional != 'none':
      z = jnp.concatenate([z, self.embedded(labels)], -1)  # [batch, latent + EMBEDDING]
    return z.astype(self.dtype)


class MLPGenerator(Generator):
  """Dense layers; tanh closes an image, nothing a row of numbers."""

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    x = self.latent_and_class(z, labels)
    for i, width in enumerate(self.widths, start=1):
      x = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')(x)
      x = leaky_relu(self.normalised(self.generator_norm, f'norm{i}', x, train) if i > 1 else x)  # [batch, width]
    x = linear.Head(math.prod(self.shape), name='out')(x.astype(jnp.float32)).reshape(-1, *self.shape)
    return jnp.tanh(x) if len(self.shape) == 3 else x


class DCGANGenerator(Generator):
  """Radford et al. 2016, figure 1: a projection, then transposed convolutions, each of which doubles the image.

  Where the image's size is no multiple of so many doublings, they end in the size that the discriminator's convolutions
  have there: 4 → 7 → 14 → 28. `widths` are the channels of the projection and of every transposed convolution but the
  last.
  """

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    norm = lambda name, x: self.normalised(self.generator_norm, name, x, train)
    (start, *larger), (first, *others) = sizes(self.shape, len(self.widths)), self.widths
    up = functools.partial(ConvTranspose, kernel_size=(4, 4), dtype=self.dtype, kernel_init=dcgan_init)
    layer = {'use_bias': self.generator_norm == 'none', 'dtype': self.dtype, 'kernel_init': dcgan_init}
    x = linear.Dense(math.prod(start) * first, name='project', **layer)(z.astype(self.dtype))
    x = norm('norm0', x.reshape(-1, *start, first))
    if self.conditional != 'none':
      # Behind the norm: before it, what tells classes apart may grow until the norm has made the latent vanish.
      x = x + self.embedded(labels, math.prod(start) * first).reshape(x.shape).astype(self.dtype)
    x = nn.relu(x)
    for i, (channels, size) in enumerate(zip(others, larger), start=1):
      x = up(channels, size=size, use_bias=layer['use_bias'], name=f'conv{i}')(x)  # [batch, *size, channels]
      x = nn.relu(norm(f'norm{i}', x))
    return jnp.tanh(up(self.shape[-1], size=larger[-1], kernel_init=last_init, name='out')(x).astype(jnp.float32))


class SNGANGenerator(Generator):
  """Miyato et al. 2018, table 3a: residual blocks, each of which doubles the image; `widths` are their channels.

  Classes have each a gain and a bias of every batch norm (Miyato & Koyama 2018, section 4): beside a latent that is
  then normalised, what tells them apart may grow until the latent vanishes.
  """

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    start = *sizes(self.shape, len(self.widths), exact=True)[0], self.widths[0]
    by_class = self.conditional != 'none' and self.generator_norm == 'batch'
    labelled = {'labels': labels} if by_class else {}
    conv = functools.partial(Conv, dtype=self.dtype, kernel_init=initialisers.he_normal)
    active = lambda name, x: nn.relu(self.normalised(self.generator_norm, name, x, train, **labelled))
    doubled = lambda x: x.repeat(2, 1).repeat(2, 2)  # by nearest neighbours
    z = z.astype(self.dtype) if by_class else self.latent_and_class(z, labels)
    x = linear.Dense(math.prod(start), dtype=self.dtype, name='project')(z).reshape(-1, *start)
    for i, channels in enumerate(self.widths, start=1):
      y = conv(channels, (3, 3), name=f'block{i}_conv1')(doubled(active(f'block{i}_norm1', x)))
      y = conv(channels, (3, 3), name=f'block{i}_conv2')(active(f'block{i}_norm2', y))
      x = y + doubled(conv(channels, (1, 1), name=f'block{i}_shortcut')(x))
    last = conv(self.shape[-1], (3, 3), kernel_init=axes.declare(initialisers.he_normal, ''), name='out')
    return jnp.tanh(last(active('norm', x)).astype(jnp.float32))


# ---- discriminators ----


class SpectralNorm(nn.SpectralNorm):
  """Linen's, for parameters that say their axes too."""

  def _spectral_normalize(self, path, vs, update_stats):
    return super()._spectral_normalize([key for key in path if hasattr(key, 'key')], vs, update_stats)


class Discriminator(Player):
  discriminator_widths: tuple[int, ...] = option((), "The discriminator's; by default the generator's reversed.", low=1)
  norm: str = option('none', "The discriminator's norm.", choices=('none', *NORMS))
  spectral_norm: bool = option(False, "Divide the discriminator's weights by their largest singular value.")

  def example_and_class(self, x, labels):
    """The example, with 'embedding' the class beside it."""
    if self.conditional == 'embedding':
      places = self.embedded(labels).reshape(-1, *(1,) * (x.ndim - 2), EMBEDDING)  # [batch, 1, …, EMBEDDING]
      x = jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], EMBEDDING))], -1)
    return x.astype(self.dtype)

  def applied(self, layer: nn.Module, x, train: bool):
    """A layer's output; with `spectral_norm` its kernel is divided by the largest singular value (Miyato et al.
    2018).
    """
    if self.spectral_norm:
      return SpectralNorm(layer, name=f'spectral_{layer.name}')(x, update_stats=train)
    return layer(x)

  def scores_and_classes(self, features, labels, train: bool, init=initialisers.lecun_normal):
    """Features [batch, n] -> scores [batch], and class logits [batch, classes] or None; float32."""
    features, logits = features.astype(jnp.float32), None
    dense = functools.partial(linear.Head, kernel_init=init)
    scores = self.applied(dense(1, name='score'), features, train)[:, 0]
    if self.conditional == 'projection':
      embedding = nn.Embed(self.classes, features.shape[-1], embedding_init=init, name='projection')
      scores += (self.applied(embedding, labels, train) * features).sum(-1)
    if self.conditional == 'auxiliary':
      logits = self.applied(dense(self.classes, name='classes'), features, train)
    return scores, logits


class MLPDiscriminator(Discriminator):
  """Dense layers, with a norm before each activation but the first."""

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x = self.example_and_class(x.reshape(len(x), -1), labels)
    for i, width in enumerate(self.discriminator_widths, start=1):
      dense = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')
      x = self.applied(dense, x, train)  # [batch, width]
      x = leaky_relu(self.normalised(self.norm, f'norm{i}', x, train) if i > 1 else x)
    return self.scores_and_classes(x, labels, train)


class DCGANDiscriminator(Discriminator):
  """Radford et al. 2016, section 3: convolutions, each of which halves the image, rounding up."""

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    sizes(x.shape[1:], len(self.discriminator_widths))  # for its error
    x = self.example_and_class(x, labels)
    for i, width in enumerate(self.discriminator_widths, start=1):
      kind, padding = self.norm if i > 1 else 'none', tuple((1, 1 + n % 2) for n in x.shape[1:3])
      layer = {'use_bias': kind == 'none', 'dtype': self.dtype, 'kernel_init': dcgan_init}
      x = self.applied(Conv(width, (4, 4), 2, padding, name=f'conv{i}', **layer), x, train)  # [batch, ⌈height / 2⌉, …]
      x = leaky_relu(self.normalised(kind, f'norm{i}', x, train))
    return self.scores_and_classes(x.reshape(len(x), -1), labels, train, dcgan_init)


class SNGANDiscriminator(Discriminator):
  """Miyato et al. 2018, table 3b: residual blocks, of which all but the last two, and at least the first,
  halve the image.
  """

  norm: str = option('none', choices=('none',))

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    def conv(x, channels, window, name):
      layer = Conv(channels, (window, window), dtype=self.dtype, kernel_init=initialisers.he_normal, name=name)
      return self.applied(layer, x, train)

    x = self.example_and_class(x, labels)
    for i, channels in enumerate(self.discriminator_widths, start=1):
      pool = convolution.avg_pool if i <= max(1, len(self.discriminator_widths) - 2) else lambda x: x
      y = conv(nn.relu(x) if i > 1 else x, channels, 3, f'block{i}_conv1')
      y = pool(conv(nn.relu(y), channels, 3, f'block{i}_conv2'))
      changes = x.shape[1:] != y.shape[1:]
      x = y + (conv(pool(x), channels, 1, f'block{i}_shortcut') if changes else x)
    return self.scores_and_classes(nn.relu(x).sum((1, 2)), labels, train)


GENERATORS = {
  'mlp': MLPGenerator,
  'dcgan': functools.partial(DCGANGenerator, generator_norm='batch'),
  'sngan': functools.partial(SNGANGenerator, generator_norm='batch'),
}
DISCRIMINATORS = {
  'mlp': MLPDiscriminator,
  'dcgan': functools.partial(DCGANDiscriminator, norm='batch'),
  'sngan': functools.partial(SNGANDiscriminator, spectral_norm=True),
}
