"""Generators and discriminators, in pairs by name: perceptrons, which are here, DCGAN and SNGAN.

A generator: latents [batch, latent] float32, labels [batch] int32 -> examples [batch, *shape] float32; images lie in [-1, 1].
A discriminator: such examples and labels -> scores [batch] float32 and class logits [batch, classes], or None. How they are told
of classes: see `models.conditioning`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.layers import initialisers, linear
from karpjax.models import choices, conditioning, dcgan, mlp, sngan
from karpjax.program import INITIALISE


class MLPGenerator(nn.Module):
  """Dense layers; tanh closes an image, nothing a row of numbers.

  Attributes:
    shape: of an example.
    classes, conditional: see `models.conditioning`.
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
    x, norm = conditioning.with_class(z, labels, self), errors.choose('norm', self.norm, conditioning.NORMS)
    for i, width in enumerate(self.widths, start=1):
      x = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')(
        x
      )  # [batch, width]
      if norm and i > 1:
        x = norm(dtype=self.dtype, name=f'norm{i}')(x, train=train)
      x = conditioning.leaky_relu(x)
    x = linear.Dense(math.prod(self.shape), name='out')(x.astype(jnp.float32)).reshape(-1, *self.shape)
    return jnp.tanh(x) if len(self.shape) == 3 else x


class MLPDiscriminator(nn.Module):
  """Dense layers.

  Attributes:
    classes, conditional: see `models.conditioning`.
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
    x, norm = (
      conditioning.seen(x.reshape(x.shape[0], -1), labels, self),
      errors.choose('norm', self.norm, conditioning.NORMS),
    )
    for i, width in enumerate(self.widths, start=1):
      dense = linear.Dense(width, dtype=self.dtype, kernel_init=initialisers.he_normal, name=f'hidden{i}')
      x = conditioning.layer(dense, x, self, train)  # [batch, width]
      if norm and i > 1:
        x = norm(dtype=self.dtype, name=f'norm{i}')(x, train=train)
      x = conditioning.leaky_relu(x)
    return conditioning.judged(x, labels, self, train, initialisers.lecun_normal)


MODELS = {
  'mlp': (MLPGenerator, MLPDiscriminator),
  'dcgan': (dcgan.DCGANGenerator, dcgan.DCGANDiscriminator),
  'sngan': (sngan.SNGANGenerator, sngan.SNGANDiscriminator),
}
_DECIDED = 'shape', 'classes', 'conditional', 'dtype'


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
    conditional: one of `conditioning.CONDITIONALS`.
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
  if name == 'dcgan':
    dcgan.sizes(shape, len(d.widths))
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
