"""Generators and discriminators, in pairs by name: perceptrons, DCGAN's and SNGAN's residual networks.

A generator: latents [batch, latent] float32, labels [batch] int32 -> examples [batch, *shape] float32; images lie in [-1, 1].
A discriminator: such examples and labels -> scores [batch] float32 and class logits [batch, classes], or None.

A class is told to a generator by an embedding beside the latent. In the discriminator `conditional` is
  'embedding': the embedding beside the input: as more numbers, or of an image as more channels (Mirza & Osindero 2014);
  'projection': the inner product of an embedding and the last features, added to the score (Miyato & Koyama 2018, eq. 3);
  'auxiliary': class logits of its own (AC-GAN: Odena et al. 2017, section 3);
  'none': labels are not looked at.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import convolution, initialisers, linear
from karpjax.layers.normalisation import BatchNorm
from karpjax.models import choices, mlp
from karpjax.program import INITIALISE

CONDITIONALS = ('none', 'embedding', 'projection', 'auxiliary')
EMBEDDING = 32  # numbers that stand for a class
HALF = ((1, 1), (1, 1))  # padding by which a window of 4 and a stride of 2 halve an image exactly

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)  # Radford et al. 2016, section 4
dcgan_init = initialisers.normal(0.02)  # there too


class LayerNorm(nn.Module):
  """Ba et al. 2016 over all that an example has, gain and bias per channel: what WGAN-GP has in the place of batch norm."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    norm = nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)), feature_axes=-1, dtype=self.dtype, name='norm')
    return norm(x)


NORMS = {'none': None, 'batch': BatchNorm, 'layer': LayerNorm}


def _embedded(labels, classes: int, name: str = 'class'):
  """[batch] -> [batch, EMBEDDING], as large as latents are."""
  return nn.Embed(classes, EMBEDDING, embedding_init=nn.initializers.normal(1.0), name=name)(labels)


def _latent(z, labels, module):
  """What a generator begins with: the latent, beside it the class."""
  if module.conditional != 'none':
    z = jnp.concatenate([z, _embedded(labels, module.classes)], -1)  # [batch, latent + EMBEDDING]
  return z.astype(module.dtype)


def _seen(x, labels, module):
  """What a discriminator begins with: the example, with 'embedding' the class beside it."""
  if module.conditional == 'embedding':
    places = _embedded(labels, module.classes).reshape(-1, *(1,) * (x.ndim - 2), EMBEDDING)  # [batch, 1, …, EMBEDDING]
    x = jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], EMBEDDING))], -1)
  return x.astype(module.dtype)


def _layer(layer, x, module, train: bool):
  """A discriminator's layer, with `spectral_norm` divided by its kernel's largest singular value (Miyato et al. 2018)."""
  if module.spectral_norm:
    return nn.SpectralNorm(layer, name=f'spectral_{layer.name}')(x, update_stats=train)
  return layer(x)


def _judged(features, labels, module, train: bool, kernel_init):
  """features [batch, n] -> scores [batch], and class logits [batch, classes] or None; float32."""
  features = features.astype(jnp.float32)
  dense = functools.partial(linear.Dense, kernel_init=kernel_init)
  scores, logits = _layer(dense(1, name='score'), features, module, train)[:, 0], None
  if module.conditional == 'projection':
    embedding = nn.Embed(module.classes, features.shape[-1], embedding_init=kernel_init, name='projection')
    scores += (_layer(embedding, labels, module, train) * features).sum(-1)
  if module.conditional == 'auxiliary':
    logits = _layer(dense(module.classes, name='classes'), features, module, train)
  return scores, logits


class MLPGenerator(nn.Module):
  """Dense layers; tanh closes an image, nothing a row of numbers.

  Attributes:
    shape: of an example.
    classes, conditional: see the module's head.
    dtype: of the computation.
    widths: of the hidden layers.
    norm: 'none', or 'batch' for batch norm before each activation but the first.
  """

  shape: tuple[int, ...]
  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (128, 256, 512)
  norm: str = 'none'

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    x, norm = _latent(z, labels, self), errors.choose('norm', self.norm, NORMS)
    for i, width in enumerate(self.widths, start=1):
      x = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')(
        x
      )  # [batch, width]
      if norm and i > 1:
        x = norm(dtype=self.dtype, name=f'norm{i}')(x, train=train)
      x = leaky_relu(x)
    x = linear.Dense(math.prod(self.shape), name='out')(x.astype(jnp.float32)).reshape(-1, *self.shape)
    return jnp.tanh(x) if len(self.shape) == 3 else x


class MLPDiscriminator(nn.Module):
  """Dense layers.

  Attributes:
    classes, conditional: see the module's head.
    dtype: of the computation; scores are float32.
    widths: of the hidden layers.
    norm: 'none', 'batch' or 'layer', before each activation but the first.
    spectral_norm: of every layer.
  """

  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (512, 256, 128)
  norm: str = 'none'
  spectral_norm: bool = False

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x, norm = _seen(x.reshape(x.shape[0], -1), labels, self), errors.choose('norm', self.norm, NORMS)
    for i, width in enumerate(self.widths, start=1):
      dense = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')
      x = _layer(dense, x, self, train)  # [batch, width]
      if norm and i > 1:
        x = norm(dtype=self.dtype, name=f'norm{i}')(x, train=train)
      x = leaky_relu(x)
    return _judged(x, labels, self, train, initialisers.lecun_normal)


class DCGANGenerator(nn.Module):
  """Radford et al. 2016, figure 1: a projection, then transposed convolutions, each of which doubles the image.

  Attributes:
    shape, classes, conditional, dtype: as MLPGenerator's.
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
    norm, (height, width) = errors.choose('norm', self.norm, NORMS), halved(self.shape, len(self.widths))

    def activated(x, name):
      return nn.relu(norm(dtype=self.dtype, name=name)(x, train=train) if norm else x)

    options = {'use_bias': norm is None, 'dtype': self.dtype, 'kernel_init': dcgan_init}
    x = linear.Dense(height * width * self.widths[0], name='project', **options)(_latent(z, labels, self))
    x = activated(x.reshape(-1, height, width, self.widths[0]), 'norm0')
    for i, channels in enumerate(self.widths[1:], start=1):
      x = activated(convolution.ConvTranspose(channels, (4, 4), name=f'conv{i}', **options)(x), f'norm{i}')
    x = convolution.ConvTranspose(self.shape[-1], (4, 4), dtype=self.dtype, kernel_init=dcgan_init, name='out')(x)
    return jnp.tanh(x.astype(jnp.float32))


class DCGANDiscriminator(nn.Module):
  """Radford et al. 2016, section 3: convolutions, each of which halves the image.

  Attributes:
    classes, conditional, dtype, spectral_norm: as MLPDiscriminator's.
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
    x, norm = _seen(x, labels, self), errors.choose('norm', self.norm, NORMS)
    for i, width in enumerate(self.widths, start=1):
      normed = norm if i > 1 else None
      conv = convolution.Conv(
        width, (4, 4), 2, HALF, use_bias=normed is None, dtype=self.dtype, kernel_init=dcgan_init, name=f'conv{i}'
      )
      x = _layer(conv, x, self, train)  # [batch, height / 2, width / 2, channels]
      if normed:
        x = normed(dtype=self.dtype, name=f'norm{i}')(x, train=train)
      x = leaky_relu(x)
    return _judged(x.reshape(x.shape[0], -1), labels, self, train, dcgan_init)


class SNGANGenerator(nn.Module):
  """Miyato et al. 2018, table 3a: residual blocks, each of which doubles the image.

  Attributes:
    shape, classes, conditional, dtype: as MLPGenerator's.
    widths: channels of the blocks.
    norm: 'batch' or 'none'.
  """

  shape: tuple[int, ...]
  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (256, 256, 256)
  norm: str = 'batch'

  @nn.compact
  def __call__(self, z, labels, *, train: bool):
    norm, (height, width) = errors.choose('norm', self.norm, NORMS), halved(self.shape, len(self.widths))
    conv = functools.partial(convolution.Conv, dtype=self.dtype, kernel_init=initialisers.he_normal)

    def activated(x, name):
      return nn.relu(norm(dtype=self.dtype, name=name)(x, train=train) if norm else x)

    x = linear.Dense(height * width * self.widths[0], dtype=self.dtype, name='project')(_latent(z, labels, self))
    x = x.reshape(-1, height, width, self.widths[0])
    for i, channels in enumerate(self.widths, start=1):
      y = conv(channels, (3, 3), name=f'block{i}_conv1')(_doubled(activated(x, f'block{i}_norm1')))
      y = conv(channels, (3, 3), name=f'block{i}_conv2')(activated(y, f'block{i}_norm2'))
      x = y + _doubled(conv(channels, (1, 1), name=f'block{i}_shortcut')(x))
    x = conv(self.shape[-1], (3, 3), name='out')(activated(x, 'norm'))
    return jnp.tanh(x.astype(jnp.float32))


class SNGANDiscriminator(nn.Module):
  """Miyato et al. 2018, table 3b: residual blocks, of which all but the last two, and at least the first, halve the image.

  Attributes:
    classes, conditional, dtype, spectral_norm: as MLPDiscriminator's.
    widths: channels of the blocks.
    norm: must be 'none'.
  """

  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (128, 128, 128, 128)
  norm: str = 'none'
  spectral_norm: bool = True

  @nn.compact
  def __call__(self, x, labels, *, train: bool):
    x = _seen(x, labels, self)

    def conv(x, channels, window, name):
      layer = convolution.Conv(
        channels, (window, window), dtype=self.dtype, kernel_init=initialisers.he_normal, name=name
      )
      return _layer(layer, x, self, train)

    for i, channels in enumerate(self.widths, start=1):
      pool = convolution.avg_pool if i <= max(1, len(self.widths) - 2) else lambda x: x
      y = conv(nn.relu(x) if i > 1 else x, channels, 3, f'block{i}_conv1')
      y = pool(conv(nn.relu(y), channels, 3, f'block{i}_conv2'))
      changes = x.shape[1:] != y.shape[1:]
      x = y + (conv(pool(x), channels, 1, f'block{i}_shortcut') if changes else x)
    return _judged(nn.relu(x).sum((1, 2)), labels, self, train, initialisers.lecun_normal)


def _doubled(x):
  """Nearest neighbours: [batch, height, width, channels] -> [batch, 2 height, 2 width, channels]."""
  return x.repeat(2, 1).repeat(2, 2)


MODELS = {
  'mlp': (MLPGenerator, MLPDiscriminator),
  'dcgan': (DCGANGenerator, DCGANDiscriminator),
  'sngan': (SNGANGenerator, SNGANDiscriminator),
}
OPTIONS = ('widths', 'norm', 'spectral_norm')
_DECIDED = 'shape', 'classes', 'conditional', 'dtype'


def halved(shape, times: int) -> tuple[int, int]:
  """(height, width) of what is doubled so many times to an image of `shape`.

  Raises:
    UsageError: where that does not come out even.
  """
  (height, width, _), factor = shape, 2**times
  if height % factor or width % factor:
    raise errors.UsageError(
      f'images of {height}×{width} cannot be halved {times} times, once for each of --widths; type fewer --widths, or an '
      f'--image_size that {factor} divides, such as --image_size={max(factor, round(height / factor) * factor)}'
    )
  return height // factor, width // factor


def _halvings(shape) -> int:
  """As often as it goes to at least 4 pixels; small images twice."""
  size, times = min(shape[:2]), 0
  while all(n % 2 ** (times + 1) == 0 for n in shape[:2]) and (size >= 8 or (times < 2 and size >= 4)):
    size, times = size // 2, times + 1
  return max(times, 1)


def _widths(name: str, shape) -> tuple[int, ...]:
  """A generator's, where none are given."""
  match name:
    case 'mlp':
      return 128, 256, 512
    case 'dcgan':
      return tuple(64 * 2**i for i in reversed(range(_halvings(shape))))
  return (128,) * _halvings(shape)


def build(
  name: str,
  *,
  shape: tuple[int, ...],
  classes: int,
  latent: int,
  conditional: str = 'none',
  dtype=jnp.float32,
  generator: dict[str, Any],
  discriminator: dict[str, Any],
  penalised: bool = False,
) -> tuple[nn.Module, nn.Module]:
  """(generator, discriminator) for examples of `shape`, traced once but not compiled.

  Args:
    name: a key of MODELS.
    shape: of one example: [numbers], or [height, width, channels].
    classes: how many, where `conditional` is not 'none'.
    latent: numbers in a latent.
    conditional: one of CONDITIONALS.
    dtype: of the computation.
    generator, discriminator: options of each; None leaves the module's own default, which for widths depends on the shape,
      and a discriminator's are a generator's, turned round.
    penalised: whether gradients of single examples are, which batch norm does not allow: a DCGAN's has then layer norm.

  Raises:
    UsageError: for an unknown name or option, or what the shape does not allow.
  """
  modules = errors.choose('model', name, MODELS)
  if name != 'mlp' and len(shape) != 3:
    raise errors.UsageError(f'--model={name} makes images, not rows of {shape[0]} numbers; type --model=mlp')
  widths = _widths(name, shape) if generator.get('widths') is None else tuple(generator['widths'])
  if name != 'mlp' and not widths:
    raise errors.UsageError(f'--widths= leaves --model={name} no layer; give at least one')
  mirrored = (*reversed(widths), widths[0]) if name == 'sngan' else tuple(reversed(widths))
  generator = {**generator, 'widths': widths}
  own = mirrored if discriminator.get('widths') is None else tuple(discriminator['widths'])
  discriminator = {**discriminator, 'widths': own}
  if name == 'sngan' and discriminator.get('norm') not in (None, 'none'):
    raise errors.UsageError(f'--model=sngan has no --norm={discriminator["norm"]} in its discriminator; leave it out')
  if penalised and discriminator.get('norm') == 'batch':
    raise errors.UsageError('a gradient penalty is of each example alone: type --norm=layer or none, not batch')
  if penalised and name == 'dcgan' and discriminator.get('norm') is None:
    discriminator['norm'] = 'layer'  # Gulrajani et al. 2017, section 4
  mlp.check(widths=(*widths, *discriminator['widths']), latent=latent)
  decided = {'classes': classes, 'conditional': conditional, 'dtype': dtype}
  g = modules[0](shape=tuple(shape), **decided, **choices.checked(name, modules[0], generator, _DECIDED))
  d = modules[1](**decided, **choices.checked(name, modules[1], discriminator, _DECIDED))
  if len(shape) == 3:
    halved(shape, len(d.widths) if name == 'dcgan' else 0)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  for module, size in ((g, (latent,)), (d, shape)):  # for its errors
    init = functools.partial(module.init, train=False)
    jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size), jnp.float32), label)
  return g, d


def init(generator: nn.Module, discriminator: nn.Module, key, shape: tuple[int, ...], latent: int) -> dict[str, Any]:
  """{'discriminator', 'generator': Linen's variables} from a run's first key."""
  keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 0), INITIALISE))
  example, z, label = jnp.zeros((1, *shape)), jnp.zeros((1, latent)), jnp.zeros(1, jnp.int32)
  return {
    'discriminator': discriminator.init(keys[0], example, label, train=True),
    'generator': generator.init(keys[1], z, label, train=True),
  }
