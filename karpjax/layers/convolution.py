"""One convolution for all models, its transpose and pooling: XLA's own on accelerators, other forms on the CPU.

A convolution is linear in the input and in the kernel, so its derivatives are two more bilinear maps, and the
derivatives of each of `_forward`, `input_gradient` and `_kernel_gradient` are the other two: reverse mode of any order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from karpjax.errors import UsageError
from karpjax.layers import cpu, initialisers
from karpjax.layers.cpu import Geometry
from karpjax.lean import quantisation

DIMENSIONS = {1: ('NWC', 'WIO', 'NWC'), 2: ('NHWC', 'HWIO', 'NHWC')}


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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(geometry, x, kernel):
  on_cpu = partial(cpu.convolution, _plain, geometry)
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=partial(_plain, geometry))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_gradient(geometry: Geometry, g, kernel):
  """What g [batch, *output, out] says of the input, [batch, *size, in], by kernel [*window, in, out]."""
  on_cpu = partial(cpu.convolution_input_gradient, _plain, geometry)
  return lax.platform_dependent(g, kernel, cpu=on_cpu, default=partial(_plain_input_gradient, geometry))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry, x, g):
  on_cpu = partial(cpu.convolution_kernel_gradient, geometry)
  return lax.platform_dependent(x, g, cpu=on_cpu, default=partial(_plain_kernel_gradient, geometry))


_forward.defvjp(
  lambda geometry, x, kernel: (_forward(geometry, x, kernel), (x, kernel)),
  lambda geometry, saved, ct: (input_gradient(geometry, ct, saved[1]), _kernel_gradient(geometry, saved[0], ct)),
)
input_gradient.defvjp(
  lambda geometry, g, kernel: (input_gradient(geometry, g, kernel), (g, kernel)),
  lambda geometry, saved, ct: (_forward(geometry, ct, saved[1]), _kernel_gradient(geometry, ct, saved[0])),
)
_kernel_gradient.defvjp(
  lambda geometry, x, g: (_kernel_gradient(geometry, x, g), (x, g)),
  lambda geometry, saved, ct: (input_gradient(geometry, saved[1], ct), _forward(geometry, saved[0], ct)),
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
    UsageError: where the window exceeds the input.
  """
  size, window = x.shape[1:-1], kernel.shape[:-2]
  strides = tuple(strides or (1,) * len(window))
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  geometry = Geometry(size, window, strides, tuple((int(low), int(high)) for low, high in padding))
  if any(n < 1 for n in geometry.output):
    raise UsageError(f"convolution: the window {window} exceeds the input {size}; use padding='SAME' or a smaller one.")
  return _forward(geometry, x, kernel)


class Conv(nn.Module):
  """Convolution with bias, as `nn.Conv` (same params, same initialisers) over `convolution`.

  Attributes:
    features: out channels.
    kernel_size: the window, one int per spatial axis.
    strides: one int for all spatial axes.
    padding: as `convolution`'s.
    use_bias: whether a bias [features] is added.
    dtype: of the computation; params are float32.
    kernel_init, bias_init: Linen initialisers.
  """

  features: int
  kernel_size: tuple[int, ...]
  strides: int = 1
  padding: Any = 'SAME'
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = initialisers.lecun_normal
  bias_init: Callable = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, in] -> [batch, *spatial', features] of `dtype`."""
    strides = (self.strides,) * len(self.kernel_size)
    return self._applied(partial(convolution, strides=strides, padding=self.padding), x, x.shape[-1], self.features)

  def _applied(self, form, x, *channels):
    kernel = self.param('kernel', self.kernel_init, (*self.kernel_size, *channels))
    y = form(quantisation.entering(x.astype(self.dtype), 1), kernel.astype(self.dtype))
    if self.use_bias:
      y = y + self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
    return y


def _depthwise_plain(strides, padding, x, kernel):
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=DIMENSIONS[len(strides)], feature_group_count=x.shape[-1]
  )


def depthwise(x, kernel, *, strides: Sequence[int] | None = None, padding='SAME'):
  """Each channel by a window of its own: x [batch, *spatial, channels], kernel [*window, 1, channels] -> [batch, *spatial', channels].

  Args:
    strides, padding: as for `convolution`.
  """
  size, window = x.shape[1:-1], kernel.shape[:-2]
  strides = tuple(strides or (1,) * len(window))
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  geometry = Geometry(size, window, strides, tuple((int(low), int(high)) for low, high in padding))
  return lax.platform_dependent(
    x, kernel, cpu=partial(cpu.depthwise, geometry), default=partial(_depthwise_plain, strides, geometry.padding)
  )


class Depthwise(Conv):
  """`depthwise` as a layer: as many channels as come in.

  Attributes:
    features: none; that of `Conv` is not looked at.
  """

  features: int = 0
  kernel_size: tuple[int, ...] = (3, 3)
  use_bias: bool = False
  kernel_init: Callable = initialisers.variance_scaling(2.0, 'fan_in', 'normal')  # of one window

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, channels] -> [batch, *spatial', channels] of `dtype`."""
    strides = (self.strides,) * len(self.kernel_size)
    return self._applied(partial(depthwise, strides=strides, padding=self.padding), x, 1, x.shape[-1])


class FeatureMaps(nn.Module):
  """The maps that a convolution's activation gives, as they are: by this module they can be looked at (Grad-CAM)."""

  def __call__(self, x):
    return x


class ConvTranspose(Conv):
  """The gradient of a convolution with respect to its input, as a layer, with bias: PyTorch's ConvTranspose.

  The spatial axes grow by `strides` exactly, or to the `size` that is given. The kernel is [*window, out, in].

  Attributes:
    kernel_size: each at least the stride, from which it differs by an even number; `padding` follows from both.
    size: of the output, one int per spatial axis, each by less than a stride smaller than `strides` times the input's.
  """

  strides: int = 2
  size: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, in] -> [batch, *size, features] of `dtype`."""
    grown = tuple(n * self.strides for n in x.shape[1:-1])
    size, cut = self.size or grown, [(k - self.strides) // 2 for k in self.kernel_size]
    padding = tuple((low, low + large - n) for low, large, n in zip(cut, grown, size))
    geometry = Geometry(tuple(size), tuple(self.kernel_size), (self.strides,) * len(cut), padding)
    return self._applied(partial(input_gradient, geometry), x, self.features, x.shape[-1])


def _pool(x, window, stride, padding, plain, tiled):
  rank = x.ndim - 2
  plain = partial(plain, window_shape=(window,) * rank, strides=(stride,) * rank, padding=padding)
  if window != stride or padding != 'VALID':
    return plain(x)
  forms = {'cpu': lambda x: tiled(cpu.tiles(x, window), tuple(range(2, 2 + 2 * rank, 2))), 'default': plain}
  gradients = {name: lambda x, g, f=f: jax.vjp(f, x)[1](g)[0] for name, f in forms.items()}
  pool = jax.custom_vjp(partial(lax.platform_dependent, **forms))
  pool.defvjp(lambda x: (pool(x), x), lambda x, g: (lax.platform_dependent(x, g, **gradients),))
  return pool(x)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max(x, axes: tuple[int, ...]):
  """The maximum along axes, whose gradient is shared by the places that hold it: by none, not NaN, where none does, as
  when XLA computes x for the maximum and for the comparison in two fusions, which round otherwise.
  """
  return x.max(axes)


def _shares(axes, kept, g):
  x, y = kept
  hits = (x == jnp.expand_dims(y, axes)).astype(g.dtype)
  return (jnp.expand_dims(g, axes) / jnp.maximum(hits.sum(axes, keepdims=True), 1) * hits,)


_max.defvjp(lambda x, axes: ((y := x.max(axes)), (x, y)), _shares)


def max_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Maximum over windows. x: [batch, *spatial, channels] -> [batch, *spatial', channels] of x's dtype.

  Where several places of a window hold the maximum, its gradient goes to the first of them; on the CPU, where
  windows do not overlap, it is divided equally among them. After a relu, ties at 0 have no gradient either way.
  """
  return _pool(x, window, stride, padding, nn.max_pool, _max)


def avg_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Mean over windows, padding as zeros. x: [batch, *spatial, channels] -> [batch, *spatial', channels]."""
  return _pool(x, window, stride, padding, nn.avg_pool, jnp.mean)
