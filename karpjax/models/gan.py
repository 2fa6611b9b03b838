"""Generators and discriminators: perceptrons, DCGAN (Radford et al. 2016), SNGAN (Miyato et al. 2018).

A generator takes latents [batch, latent] float32 and labels [batch] int32, and gives examples [batch, *shape] float32; images
lie in [-1, 1]. A discriminator takes such examples and labels, and gives scores [batch] float32 and class logits
[batch, classes], or None. How they see classes: `models.players`.
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import convolution, initialisers, linear, pooling, transposed_convolution
from karpjax.models import players
from karpjax.options import option

# ---- generators ----


class MLPGenerator(players.Player):
  """Dense layers; tanh closes an image, nothing a row of numbers."""

  widths: tuple[int, ...] | None = option(
    None, "Units or channels of the generator's layers; the default depends on the image's size.", low=1
  )
  generator_norm: str = option('none', "The generator's norm.", choices=('none', 'batch'))

  @property
  def units(self) -> tuple[int, ...]:
    return (128, 256, 512) if self.widths is None else self.widths

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    x = players.latent_and_class(self, z, labels)
    for i, width in enumerate(self.units, start=1):
      dense = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')
      x = dense(x)  # [batch, width]
      x = players.leaky_relu(players.normalised(self, self.generator_norm, f'norm{i}', x, train) if i > 1 else x)
    x = linear.Dense(math.prod(self.shape), name='out')(x.astype(jnp.float32)).reshape(-1, *self.shape)
    return jnp.tanh(x) if len(self.shape) == 3 else x


def halvings(shape) -> int:
  """How often an image can be halved to at least 4 pixels; a small one twice."""
  size, times = min(shape[:2]), 0
  while all(n % 2 ** (times + 1) == 0 for n in shape[:2]) and (size >= 8 or (times < 2 and size >= 4)):
    size, times = size // 2, times + 1
  return max(times, 1)


def sizes(shape, times: int) -> list[tuple[int, int]]:
  """(height, width) of an image halved so many times, rounding up: [times + 1], the smallest first.

  Raises:
    UsageError: where a size is 1 before that.
  """
  halved = [tuple(shape[:2])]
  for _ in range(times):
    if min(halved[0]) == 1:
      raise errors.UsageError(
        f'images of {shape[0]}×{shape[1]} cannot be halved {times} times, once for each of widths: give '
        f'{len(halved) - 1} widths at most'
      )
    halved.insert(0, tuple(-(-n // 2) for n in halved[0]))
  return halved


class DCGANGenerator(players.Player):
  """Radford et al. 2016, figure 1: a projection, then transposed convolutions, each of which doubles the image.

  Where the image's size is no multiple of so many doublings, they end in the size that the discriminator's convolutions have
  there: 4 → 7 → 14 → 28. `widths` are the channels of the projection and of every transposed convolution but the last.
  """

  widths: tuple[int, ...] | None = option(None, low=1)
  generator_norm: str = option('batch', choices=('none', 'batch'))

  @property
  def units(self) -> tuple[int, ...]:
    return tuple(64 * 2**i for i in reversed(range(halvings(self.shape)))) if self.widths is None else self.widths

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    norm = lambda name, x: players.normalised(self, self.generator_norm, name, x, train)
    first, *others = self.units
    (height, width), *larger = sizes(self.shape, len(self.units))
    options = {'use_bias': self.generator_norm == 'none', 'dtype': self.dtype, 'kernel_init': players.dcgan_init}
    start = (height, width, first)
    x = linear.Dense(math.prod(start), name='project', **options)(z.astype(self.dtype)).reshape(-1, *start)
    x = norm('norm0', x)
    if self.conditional != 'none':
      # Behind the norm: before it, what tells classes apart may grow until the norm has made the latent vanish.
      x = x + players.embedded(self, labels, math.prod(start)).reshape(x.shape).astype(self.dtype)
    x = nn.relu(x)
    for i, (channels, size) in enumerate(zip(others, larger), start=1):
      conv = transposed_convolution.ConvTranspose(channels, (4, 4), size=size, name=f'conv{i}', **options)
      x = nn.relu(norm(f'norm{i}', conv(x)))  # [batch, *size, channels]
    options = options | {'use_bias': True}
    x = transposed_convolution.ConvTranspose(self.shape[-1], (4, 4), size=larger[-1], name='out', **options)(x)
    return jnp.tanh(x.astype(jnp.float32))


def doubled(x):
  """Nearest neighbours: [batch, height, width, channels] -> [batch, 2 height, 2 width, channels]."""
  return x.repeat(2, 1).repeat(2, 2)


class SNGANGenerator(players.Player):
  """Miyato et al. 2018, table 3a: residual blocks, each of which doubles the image; `widths` are their channels.

  Classes have each a gain and a bias of every batch norm (Miyato & Koyama 2018, section 4): beside a latent that is then
  normalised, what tells them apart may grow until the latent vanishes.
  """

  widths: tuple[int, ...] | None = option(None, low=1)
  generator_norm: str = option('batch', choices=('none', 'batch'))

  @property
  def units(self) -> tuple[int, ...]:
    return (128,) * halvings(self.shape) if self.widths is None else self.widths

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    height, width, factor = *self.shape[:2], 2 ** len(self.units)
    if height % factor or width % factor:
      raise errors.UsageError(
        f'images of {height}×{width} cannot be halved {len(self.units)} times, once for each of widths: give fewer '
        f'widths, or an image_size that {factor} divides, such as {max(factor, round(height / factor) * factor)}'
      )
    by_class = self.conditional != 'none' and self.generator_norm == 'batch'
    labelled = {'labels': labels} if by_class else {}
    conv = functools.partial(convolution.Conv, dtype=self.dtype, kernel_init=initialisers.he_normal)
    activated = lambda x, name: nn.relu(players.normalised(self, self.generator_norm, name, x, train, **labelled))
    z = z.astype(self.dtype) if by_class else players.latent_and_class(self, z, labels)
    start = (height // factor, width // factor, self.units[0])
    x = linear.Dense(math.prod(start), dtype=self.dtype, name='project')(z).reshape(-1, *start)
    for i, channels in enumerate(self.units, start=1):
      y = conv(channels, (3, 3), name=f'block{i}_conv1')(doubled(activated(x, f'block{i}_norm1')))
      y = conv(channels, (3, 3), name=f'block{i}_conv2')(activated(y, f'block{i}_norm2'))
      x = y + doubled(conv(channels, (1, 1), name=f'block{i}_shortcut')(x))
    x = conv(self.shape[-1], (3, 3), name='out')(activated(x, 'norm'))
    return jnp.tanh(x.astype(jnp.float32))


# ---- discriminators ----


class MLPDiscriminator(players.Discriminator):
  """Dense layers, with a norm before each activation but the first."""

  norm: str = option('none', "The discriminator's norm.", choices=('none', *players.NORMS))
  spectral_norm: bool = option(False, "Divide the discriminator's weights by their largest singular value.")

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x = players.example_and_class(self, x.reshape(x.shape[0], -1), labels)
    for i, width in enumerate(self.units, start=1):
      dense = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')
      x = players.apply_layer(self, dense, x, train)  # [batch, width]
      x = players.leaky_relu(players.normalised(self, self.norm, f'norm{i}', x, train) if i > 1 else x)
    return players.scores_and_classes(self, x, labels, train)


class DCGANDiscriminator(players.Discriminator):
  """Radford et al. 2016, section 3: convolutions, each of which halves the image, rounding up."""

  norm: str = option('batch', choices=('none', *players.NORMS))
  spectral_norm: bool = option(False)

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    sizes(x.shape[1:], len(self.units))  # for its error
    x = players.example_and_class(self, x, labels)
    for i, width in enumerate(self.units, start=1):
      kind = self.norm if i > 1 else 'none'
      padding = tuple((1, 1 + n % 2) for n in x.shape[1:3])
      options = {'use_bias': kind == 'none', 'dtype': self.dtype, 'kernel_init': players.dcgan_init}
      conv = convolution.Conv(width, (4, 4), 2, padding, name=f'conv{i}', **options)
      x = players.apply_layer(self, conv, x, train)  # [batch, ⌈height / 2⌉, ⌈width / 2⌉, channels]
      x = players.leaky_relu(players.normalised(self, kind, f'norm{i}', x, train))
    return players.scores_and_classes(self, x.reshape(x.shape[0], -1), labels, train, players.dcgan_init)


class SNGANDiscriminator(players.Discriminator):
  """Miyato et al. 2018, table 3b: residual blocks, of which all but the last two, and at least the first, halve the image."""

  norm: str = option('none', choices=('none',))
  spectral_norm: bool = option(True)

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x = players.example_and_class(self, x, labels)

    def conv(x, channels, window, name):
      options = {'dtype': self.dtype, 'kernel_init': initialisers.he_normal, 'name': name}
      return players.apply_layer(self, convolution.Conv(channels, (window, window), **options), x, train)

    for i, channels in enumerate(self.units, start=1):
      pool = pooling.avg_pool if i <= max(1, len(self.units) - 2) else lambda x: x
      y = conv(nn.relu(x) if i > 1 else x, channels, 3, f'block{i}_conv1')
      y = pool(conv(nn.relu(y), channels, 3, f'block{i}_conv2'))
      changes = x.shape[1:] != y.shape[1:]
      x = y + (conv(pool(x), channels, 1, f'block{i}_shortcut') if changes else x)
    return players.scores_and_classes(self, nn.relu(x).sum((1, 2)), labels, train)


GENERATORS = {'mlp': MLPGenerator, 'dcgan': DCGANGenerator, 'sngan': SNGANGenerator}
DISCRIMINATORS = {'mlp': MLPDiscriminator, 'dcgan': DCGANDiscriminator, 'sngan': SNGANDiscriminator}
