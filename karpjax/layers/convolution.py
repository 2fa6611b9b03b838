"""One convolution for all models: XLA's own on accelerators, other forms on the CPU.

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
      f'convolution: input of {x.shape[-1]} channels, but kernel {kernel.shape} expects {kernel.shape[-2]}.'
    )
  strides = tuple(strides or (1,) * rank)
  if len(strides) != rank or min(strides) < 1:
    raise UsageError(f'convolution: strides {strides} for {rank} spatial axes: expected {rank} positive integers.')
  size, window = x.shape[1:-1], kernel.shape[:-2]
  if padding in ('SAME', 'VALID'):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  elif isinstance(padding, str) or len(padding) != rank:
    raise UsageError(f"convolution: padding {padding!r}: expected 'SAME', 'VALID' or {rank} pairs (low, high).")
  padding = tuple((int(low), int(high)) for low, high in padding)
  geometry = Geometry(size, window, strides, padding)
  if min(geometry.output) < 1:
    raise UsageError(f"convolution: the window {window} exceeds the input {size}; use padding='SAME' or a smaller one.")
  return _forward(geometry, x, kernel)


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
  kernel_init: Callable = initialisers.lecun_normal
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
