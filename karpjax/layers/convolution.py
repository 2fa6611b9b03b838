"""One convolution and one pooling for all models: XLA's own on accelerators, faster lowerings on the CPU.

A convolution is linear in the input and in the kernel, so its derivatives are two more bilinear maps: `_forward`,
`_input_gradient` and `_kernel_gradient`. The derivatives of each of the three are the other two, which closes them
under differentiation of any order. Each has a plain form, which is all that an accelerator ever sees, and one for the CPU.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from karpjax.errors import UsageError

DIMENSIONS = {1: ('NWC', 'WIO', 'NWC'), 2: ('NHWC', 'HWIO', 'NHWC')}


class Geometry(NamedTuple):
  """What is static in a convolution: one entry per spatial axis."""

  size: tuple[int, ...]  # of the input
  window: tuple[int, ...]  # of the kernel
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]  # (low, high)

  @property
  def output(self) -> tuple[int, ...]:
    """Size of the output."""
    return tuple(
      (n + low + high - k) // s + 1
      for n, k, s, (low, high) in zip(self.size, self.window, self.strides, self.padding)
    )


def _plain(geometry, x, kernel):
  return lax.conv_general_dilated(
    x, kernel, geometry.strides, geometry.padding, dimension_numbers=DIMENSIONS[len(geometry.size)]
  )


def _plain_input_gradient(geometry, g, kernel):
  x = jax.ShapeDtypeStruct((g.shape[0], *geometry.size, kernel.shape[-2]), g.dtype)
  return jax.linear_transpose(lambda x: _plain(geometry, x, kernel), x)(g)[0]


def _plain_kernel_gradient(geometry, x, g):
  kernel = jax.ShapeDtypeStruct((*geometry.window, x.shape[-1], g.shape[-1]), x.dtype)
  return jax.linear_transpose(lambda kernel: _plain(geometry, x, kernel), kernel)(g)[0]


def _patches(geometry, x):
  """[batch, *size, in] -> [batch, *output, window * in]: each output's receptive field ("im2col")."""
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in geometry.padding), (0, 0, 0)))
  fields = []
  for offset in itertools.product(*map(range, geometry.window)):
    stop = [o + s * (n - 1) + 1 for o, s, n in zip(offset, geometry.strides, geometry.output)]
    fields.append(lax.slice(x, (0, *offset, 0), (x.shape[0], *stop, x.shape[-1]), (1, *geometry.strides, 1)))
  return jnp.concatenate(fields, axis=-1)


def _cpu(geometry, x, kernel):
  if math.prod(kernel.shape[:-1]) <= 64:
    patches = _patches(geometry, x)
    return patches @ kernel.reshape(-1, kernel.shape[-1])
  return _unrolled(partial(_plain, geometry))(x, kernel)


def _cpu_input_gradient(geometry, g, kernel):
  # dilate by the strides, then convolve with the kernel turned round
  flipped = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
  padding = []
  for n, m, k, s, (low, _) in zip(
    geometry.size, geometry.output, geometry.window, geometry.strides, geometry.padding
  ):
    before = k - 1 - low
    padding.append((before, n - before - (s * (m - 1) + 1) + k - 1, s - 1))
  g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
  ones, zeros = (1,) * len(padding), ((0, 0),) * len(padding)
  return _unrolled(partial(_plain, Geometry(g.shape[1:-1], geometry.window, ones, zeros)))(g, flipped)


def _cpu_kernel_gradient(geometry, x, g):
  patches = _patches(geometry, x).reshape(math.prod(g.shape[:-1]), -1)
  gradient = patches.T @ g.reshape(-1, g.shape[-1])
  return gradient.reshape(*geometry.window, x.shape[-1], g.shape[-1])


def _unrolled(f):
  """`f` of two arrays, unrolled where it is mapped over: XLA's CPU is slow at the grouped convolution that `vmap` makes."""
  f = jax.custom_batching.custom_vmap(f)

  @f.def_vmap
  def rule(size, mapped, a, b):
    take = lambda array, is_mapped, i: array[i] if is_mapped else array
    outputs = [f(take(a, mapped[0], i), take(b, mapped[1], i)) for i in range(size)]
    return jnp.stack(outputs), True

  return f


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(geometry, x, kernel):
  return lax.platform_dependent(x, kernel, cpu=partial(_cpu, geometry), default=partial(_plain, geometry))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(geometry, g, kernel):
  return lax.platform_dependent(
    g, kernel, cpu=partial(_cpu_input_gradient, geometry), default=partial(_plain_input_gradient, geometry)
  )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry, x, g):
  return lax.platform_dependent(
    x, g, cpu=partial(_cpu_kernel_gradient, geometry), default=partial(_plain_kernel_gradient, geometry)
  )


def _bilinear(f, first: Callable, second: Callable):
  """Gives `f` (a, b) its derivatives: `first` and `second` map (geometry, a, b, cotangent) to those in a and in b."""
  f.defvjp(
    lambda geometry, a, b: (f(geometry, a, b), (a, b)),
    lambda geometry, saved, ct: (first(geometry, *saved, ct), second(geometry, *saved, ct)),
  )


_bilinear(
  _forward,
  lambda geometry, x, kernel, ct: _input_gradient(geometry, ct, kernel),
  lambda geometry, x, kernel, ct: _kernel_gradient(geometry, x, ct),
)
_bilinear(
  _input_gradient,
  lambda geometry, g, kernel, ct: _forward(geometry, ct, kernel),
  lambda geometry, g, kernel, ct: _kernel_gradient(geometry, ct, g),
)
_bilinear(
  _kernel_gradient,
  lambda geometry, x, g, ct: _input_gradient(geometry, g, ct),
  lambda geometry, x, g, ct: _forward(geometry, x, ct),
)


def convolution(x, kernel, *, strides: Sequence[int] | None = None, padding='SAME'):
  """Cross-correlation over one or two spatial axes, equal to `lax.conv_general_dilated` to rounding.

  Args:
    x: [batch, *spatial, in], floating point.
    kernel: [*window, in, out], of x's dtype.
    strides: one int per spatial axis; 1 by default.
    padding: 'SAME', 'VALID', or (low, high) per spatial axis.

  Returns:
    [batch, *spatial', out] of x's dtype.

  Raises:
    UsageError: where the shapes, strides or padding do not fit.
  """
  rank = kernel.ndim - 2
  if rank not in DIMENSIONS or x.ndim != kernel.ndim:
    raise UsageError(
      f'convolution of input {x.shape} with kernel {kernel.shape}: expected [batch, *spatial, in] and '
      '[*window, in, out] with one or two spatial axes.'
    )
  if x.shape[-1] != kernel.shape[-2]:
    raise UsageError(
      f'convolution: the input has {x.shape[-1]} channels, the kernel {kernel.shape} expects {kernel.shape[-2]}.'
    )
  strides = tuple(strides or (1,) * rank)
  size, window = x.shape[1:-1], kernel.shape[:-2]
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  padding = tuple((int(low), int(high)) for low, high in padding)
  return _forward(Geometry(size, window, strides, padding), x, kernel)


class Conv(nn.Module):
  """Convolution with bias, as `nn.Conv` (same params, same initialisers) over `convolution`.

  Attributes:
    features: out channels.
    kernel_size: the window, one int per spatial axis.
    strides: one int for all spatial axes, or one per axis.
    padding: 'SAME', 'VALID', or (low, high) per spatial axis.
    use_bias: whether a bias [features] is added.
    dtype: of the computation; params are float32.
    kernel_init, bias_init: Linen initialisers.
  """

  features: int
  kernel_size: tuple[int, ...]
  strides: tuple[int, ...] | int = 1
  padding: Any = 'SAME'
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()
  bias_init: Callable = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, in] -> [batch, *spatial', features] of `dtype`."""
    rank = len(self.kernel_size)
    strides = (self.strides,) * rank if isinstance(self.strides, int) else tuple(self.strides)
    kernel = self.param('kernel', self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
    y = convolution(x.astype(self.dtype), kernel.astype(self.dtype), strides=strides, padding=self.padding)
    if self.use_bias:
      y = y + self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
    return y


def _tiles(x, window: int):
  """[batch, *spatial, channels] -> [batch, spatial / window, window, ..., channels]; a remainder is cut off."""
  sizes = [n // window for n in x.shape[1:-1]]
  x = x[(slice(None), *(slice(n * window) for n in sizes))]
  return x.reshape(x.shape[0], *itertools.chain(*((n, window) for n in sizes)), x.shape[-1])


def _pool(x, window, stride, padding, plain, tiled):
  rank = x.ndim - 2
  plain = partial(plain, window_shape=(window,) * rank, strides=(stride,) * rank, padding=padding)
  if window != stride or padding != 'VALID':
    return plain(x)
  axes = tuple(range(2, 2 + 2 * rank, 2))
  return lax.platform_dependent(x, cpu=lambda x: tiled(_tiles(x, window), axes), default=plain)


def max_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Maximum over windows. x: [batch, *spatial, channels] -> [batch, *spatial', channels] of x's dtype."""
  return _pool(x, window, stride, padding, nn.max_pool, jnp.max)


def avg_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Mean over windows, padding counted as zeros. x: [batch, *spatial, channels] -> [batch, *spatial', channels]."""
  return _pool(x, window, stride, padding, nn.avg_pool, jnp.mean)
