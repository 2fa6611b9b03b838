"""One convolution and one pooling for all models: XLA's own on accelerators, faster lowerings on the CPU.

A convolution is linear in the input and in the kernel, so its derivatives are two more bilinear maps, and the
derivatives of each of `_forward`, `input_gradient` and `_kernel_gradient` are the other two: reverse mode of any
order. Each has a plain form, which is all that an accelerator ever runs, and one for the CPU.
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
from karpjax.layers import initialisers

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
      (n + low + high - k) // s + 1 for n, k, s, (low, high) in zip(self.size, self.window, self.strides, self.padding)
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


def _pad(x, *padding):
  return lax.pad(x, jnp.zeros((), x.dtype), tuple((low, high, 0) for low, high in padding))


def _shifted(geometry, x):
  """[batch, *size, in] -> one [batch, *output, in] per place in the window, in the kernel's order."""
  x = _pad(x, (0, 0), *geometry.padding, (0, 0))
  shifted = []
  for offset in itertools.product(*map(range, geometry.window)):
    stop = [o + s * (n - 1) + 1 for o, s, n in zip(offset, geometry.strides, geometry.output)]
    shifted.append(lax.slice(x, (0, *offset, 0), (x.shape[0], *stop, x.shape[-1]), (1, *geometry.strides, 1)))
  return shifted


def _cpu(geometry, x, kernel):
  return _unrolled(partial(_plain, geometry))(x, kernel)


def _cpu_input_gradient(geometry, g, kernel):
  if kernel.shape[-2] <= 4 or max(geometry.strides) > 1:
    # a matmul for every place in the window at once, then the overlapping places added up ("col2im")
    columns = g @ kernel.reshape(-1, kernel.shape[-1]).T  # [batch, *output, window * in]
    columns = columns.reshape(*g.shape[:-1], -1, kernel.shape[-2])  # [batch, *output, window, in]
    total = 0
    for place, offset in enumerate(itertools.product(*map(range, geometry.window))):
      padding = [
        (o - low, n - (o - low) - (s * (m - 1) + 1), s - 1)
        for o, n, m, s, (low, _) in zip(offset, geometry.size, geometry.output, geometry.strides, geometry.padding)
      ]
      total += lax.pad(columns[..., place, :], jnp.zeros((), g.dtype), ((0, 0, 0), *padding, (0, 0, 0)))
    return total
  # strides are 1: a convolution with the kernel turned round
  turned = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
  padding = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(geometry.window, geometry.padding))
  geometry = Geometry(geometry.output, geometry.window, geometry.strides, padding)
  return _unrolled(partial(_plain, geometry))(g, turned)


def _cpu_kernel_gradient(geometry, x, g):
  # Without the barrier, XLA computes what made x and g again in each of the copies below.
  x, g = lax.optimization_barrier((x, g))
  flat = g.reshape(-1, g.shape[-1])  # [batch * output, out]
  shape = (*geometry.window, x.shape[-1], g.shape[-1])
  fields = math.prod(shape[:-1])  # numbers in a receptive field
  # Copies of all of them are cheap, or beside as many features faster than one product for each place: up to 32 MB.
  if fields <= 64 or (g.shape[-1] >= 128 and flat.shape[0] * fields <= 2**23):
    patches = jnp.concatenate(_shifted(geometry, x), axis=-1)  # [batch, *output, window * in]: "im2col"
    return (patches.reshape(flat.shape[0], -1).T @ flat).reshape(shape)
  if len(geometry.size) == 2 and max(geometry.strides) == 1 and g.shape[-1] <= 64:
    return _cpu_kernel_gradient_in_one(geometry, x, g)
  return jnp.stack([s.reshape(flat.shape[0], -1).T @ flat for s in _shifted(geometry, x)]).reshape(shape)


PARTS = 8  # of a batch


def _cpu_kernel_gradient_in_one(geometry, x, g):
  """One matmul: x moved along the width to all columns of the window by g moved along the height to all its rows."""
  (height, width), channels, features = geometry.window, x.shape[-1], g.shape[-1]
  rows, (low, _) = geometry.padding
  last = geometry.output[1] - geometry.size[1]
  # both as sums, because XLA makes each in one pass
  columns = sum(  # [batch, output + height - 1, output, width * in]
    _pad(x, (0, 0), rows, (low - j, last - low + j), (j * channels, (width - 1 - j) * channels)) for j in range(width)
  )
  moved = sum(  # [batch, output + height - 1, output, height * out]
    _pad(g, (0, 0), (i, height - 1 - i), (0, 0), (i * features, (height - 1 - i) * features)) for i in range(height)
  )
  # In parts, of whole examples, that cores take one each: the product is small and its sums are long.
  parts = math.gcd(x.shape[0], PARTS) if features >= 32 else 1
  columns, moved = columns.reshape(parts, -1, width * channels), moved.reshape(parts, -1, height * features)
  gradient = jnp.einsum('pnc,pnf->pcf', columns, moved).sum(0)
  return gradient.reshape(width, channels, height, features).transpose(2, 0, 1, 3)


UNROLLED = 16  # mapped convolutions; more are a loop, since compile time grows with each


def _unrolled(f):
  """`f` of two arrays, one by one where mapped over: `vmap` would make a grouped convolution, slow on the CPU."""
  f = jax.custom_batching.custom_vmap(f)

  @f.def_vmap
  def rule(size, mapped, a, b):
    def one(i):
      return f(a[i] if mapped[0] else a, b[i] if mapped[1] else b)

    if size > UNROLLED:
      return lax.map(one, jnp.arange(size)), True
    return jnp.stack([one(i) for i in range(size)]), True

  return f


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(geometry, x, kernel):
  return lax.platform_dependent(x, kernel, cpu=partial(_cpu, geometry), default=partial(_plain, geometry))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_gradient(geometry: Geometry, g, kernel):
  """What g [batch, *output, out] says of the input, [batch, *size, in], by kernel [*window, in, out]."""
  return lax.platform_dependent(
    g, kernel, cpu=partial(_cpu_input_gradient, geometry), default=partial(_plain_input_gradient, geometry)
  )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry, x, g):
  return lax.platform_dependent(
    x, g, cpu=partial(_cpu_kernel_gradient, geometry), default=partial(_plain_kernel_gradient, geometry)
  )


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


def _tiles(x, window: int):
  """[batch, *spatial, channels] -> [batch, spatial / window, window, ..., channels]; cuts a remainder."""
  sizes = [n // window for n in x.shape[1:-1]]
  x = x[(slice(None), *(slice(n * window) for n in sizes))]
  return x.reshape(x.shape[0], *itertools.chain(*((n, window) for n in sizes)), x.shape[-1])


def _pool(x, window, stride, padding, plain, tiled):
  rank = x.ndim - 2
  plain = partial(plain, window_shape=(window,) * rank, strides=(stride,) * rank, padding=padding)
  if window != stride or padding != 'VALID':
    return plain(x)
  forms = {'cpu': lambda x: tiled(_tiles(x, window), tuple(range(2, 2 + 2 * rank, 2))), 'default': plain}

  @jax.custom_vjp
  def pool(x):
    return lax.platform_dependent(x, **forms)

  def backward(x, g):
    forms_of_gradient = {name: lambda x, g, f=f: jax.vjp(f, x)[1](g)[0] for name, f in forms.items()}
    return (lax.platform_dependent(x, g, **forms_of_gradient),)

  pool.defvjp(lambda x: (pool(x), x), backward)
  return pool(x)


def max_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Maximum over windows. x: [batch, *spatial, channels] -> [batch, *spatial', channels] of x's dtype.

  Where several places of a window hold the maximum, its gradient goes to the first of them; on the CPU, where
  windows do not overlap, it is divided equally among them. After a relu, ties at 0 have no gradient either way.
  """
  return _pool(x, window, stride, padding, nn.max_pool, jnp.max)


def avg_pool(x, window: int = 2, stride: int = 2, padding='VALID'):
  """Mean over windows, padding as zeros. x: [batch, *spatial, channels] -> [batch, *spatial', channels]."""
  return _pool(x, window, stride, padding, nn.avg_pool, jnp.mean)
