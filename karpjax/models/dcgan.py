"""DCGAN: Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks".

Signatures as in `models.gan`.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import convolution, initialisers, linear, transposed_convolution
from karpjax.models import conditioning

HALF = ((1, 1), (1, 1))  # padding by which a window of 4 and a stride of 2 halve an image of even size exactly
dcgan_init = initialisers.normal(0.02)  # there too


def sizes(shape, times: int) -> list[tuple[int, int]]:
  """(height, width) of an image of `shape` halved so many times, rounding up: [times + 1], the smallest first.

  Raises:
    UsageError: where a size is 1 before that.
  """
  made = [tuple(shape[:2])]
  for _ in range(times):
    if min(made[0]) == 1:
      raise errors.UsageError(
        f'images of {shape[0]}×{shape[1]} cannot be halved {times} times, once for each of --widths; type '
        f'{len(made) - 1} --widths at most'
      )
    made.insert(0, tuple(-(-n // 2) for n in made[0]))
  return made


class DCGANGenerator(nn.Module):
  """Radford et al. 2016, figure 1: a projection, then transposed convolutions, each of which doubles the image.

  Where the image's size is no multiple of so many doublings, they end in the size that the discriminator's convolutions have
  there: 4 → 7 → 14 → 28.

  Attributes:
    shape, classes, conditional, dtype: as `gan.MLPGenerator`'s.
    widths: channels of the projection and of every transposed convolution but the last.
    norm: 'batch' or 'none'.
  """

  shape: tuple[int, ...]
  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (128, 64)
  norm: str = 'batch'

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    norm = errors.choose('norm', self.norm, conditioning.NORMS)
    (height, width), *larger = sizes(self.shape, len(self.widths))

    def activated(x, name):
      return nn.relu(norm(dtype=self.dtype, name=name)(x, train=train) if norm else x)

    options = {'use_bias': norm is None, 'dtype': self.dtype, 'kernel_init': dcgan_init}
    start = (height, width, self.widths[0])
    x = linear.Dense(math.prod(start), name='project', **options)(z.astype(self.dtype)).reshape(-1, *start)
    x = norm(dtype=self.dtype, name='norm0')(x, train=train) if norm else x
    if self.conditional != 'none':
      # Behind the norm: before it, what tells classes apart may grow until the norm has made the latent vanish.
      x = x + conditioning.embedded(labels, self.classes, math.prod(start)).reshape(x.shape).astype(self.dtype)
    x = nn.relu(x)
    for i, (channels, size) in enumerate(zip(self.widths[1:], larger), start=1):
      conv = transposed_convolution.ConvTranspose(channels, (4, 4), size=size, name=f'conv{i}', **options)
      x = activated(conv(x), f'norm{i}')  # [batch, *size, channels]
    x = transposed_convolution.ConvTranspose(
      self.shape[-1], (4, 4), size=larger[-1], dtype=self.dtype, kernel_init=dcgan_init, name='out'
    )(x)
    return jnp.tanh(x.astype(jnp.float32))


class DCGANDiscriminator(nn.Module):
  """Radford et al. 2016, section 3: convolutions, each of which halves the image, rounding up.

  Attributes:
    classes, conditional, dtype, spectral_norm: as `gan.MLPDiscriminator`'s.
    widths: channels of the convolutions.
    norm: 'none', 'batch' or 'layer', before each activation but the first.
  """

  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (64, 128)
  norm: str = 'batch'
  spectral_norm: bool = False

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x, norm = conditioning.seen(x, labels, self), errors.choose('norm', self.norm, conditioning.NORMS)
    for i, width in enumerate(self.widths, start=1):
      normed = norm if i > 1 else None
      padding = tuple((1, 1 + n % 2) for n in x.shape[1:3])
      conv = convolution.Conv(
        width, (4, 4), 2, padding, use_bias=normed is None, dtype=self.dtype, kernel_init=dcgan_init, name=f'conv{i}'
      )
      x = conditioning.layer(conv, x, self, train)  # [batch, ⌈height / 2⌉, ⌈width / 2⌉, channels]
      if normed:
        x = normed(dtype=self.dtype, name=f'norm{i}')(x, train=train)
      x = conditioning.leaky_relu(x)
    return conditioning.judged(x.reshape(x.shape[0], -1), labels, self, train, dcgan_init)
