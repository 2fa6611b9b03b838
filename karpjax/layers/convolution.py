"""One convolution for all models: XLA's own on accelerators, faster lowerings on the CPU.

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


def _fields(geometry, x):
  """[batch, *size, in] -> its receptive fields, [batch, *output, window * in] in the kernel's order: "im2col".

  One axis of the window after the other, each as a sum of what its places add: XLA makes that in one pass over whole
  rows, but joins slices in two, and a slice of what was padded number by number.
  """
  x = _pad(x, (0, 0), *geometry.padding, (0, 0))
  for axis in reversed(range(len(geometry.size))):
    window, stride, output = geometry.window[axis], geometry.strides[axis], geometry.output[axis]
    places = [lax.slice_in_dim(x, i, i + stride * (output - 1) + 1, stride, axis + 1) for i in range(window)]
    if window == 1:
      (x,) = places
      continue
    n, same = x.shape[-1], [(0, 0)] * (x.ndim - 1)
    x = sum(_pad(place, *same, (i * n, (window - 1 - i) * n)) for i, place in enumerate(places))
    x = lax.optimization_barrier(x)
  return x


def _summed(geometry, fields):
  """The transpose of `_fields`, "col2im": what fields [batch, *output, window * in] say of one place, added up.

  A block of the window as large as the strides falls on each place of the input once, so that blocks are added without
  holes between their rows, which XLA would fill number by number.
  """
  rank, (batch, *output, _) = len(geometry.size), fields.shape
  fields = fields.reshape(batch, *output, *geometry.window, -1)
  blocks = [-(-k // s) for k, s in zip(geometry.window, geometry.strides)]
  total = 0  # [batch, *(output + blocks - 1), *strides, in]
  for block in itertools.product(*map(range, blocks)):
    part = fields[(..., *(slice(i * s, i * s + s) for i, s in zip(block, geometry.strides)), slice(None))]
    moved = ((i, n - 1 - i) for i, n in zip(block, blocks))
    missing = ((0, s - n) for s, n in zip(geometry.strides, part.shape[1 + rank : -1]))  # of the window's last block
    total += _pad(part, (0, 0), *moved, *missing, (0, 0))
  axes = itertools.chain(*((1 + i, 1 + rank + i) for i in range(rank)))
  total = total.transpose(0, *axes, 1 + 2 * rank)
  size = [(n + m - 1) * s for n, m, s in zip(output, blocks, geometry.strides)]
  cut = ((-low, n + low - m) for (low, _), n, m in zip(geometry.padding, geometry.size, size))
  return _pad(total.reshape(batch, *size, -1), (0, 0), *cut, (0, 0))


def _cpu(geometry, x, kernel):
  return _unrolled(partial(_plain, geometry))(x, kernel)


def _cpu_input_gradient(geometry, g, kernel):
  if kernel.shape[-2] <= 4 or max(geometry.strides) > 1:
    return _summed(geometry, g @ kernel.reshape(-1, kernel.shape[-1]).T)
  # strides are 1: a convolution with the kernel turned round
  turned = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
  padding = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(geometry.window, geometry.padding))
  geometry = Geometry(geometry.output, geometry.window, geometry.strides, padding)
  return _unrolled(partial(_plain, geometry))(g, turned)


COPIED = 2**24  # numbers in copies of receptive fields, 64 MB of float32
MANY = 2**13  # positions that fill a matmul's rows, beside features that fill its columns


def _cpu_kernel_gradient(geometry, x, g):
  # Without the barrier, XLA computes what made x and g again in each of the copies below.
  x, g = lax.optimization_barrier((x, g))
  flat = g.reshape(-1, g.shape[-1])  # [batch * output, out]
  shape = (*geometry.window, x.shape[-1], g.shape[-1])
  positions, fields = flat.shape[0], math.prod(shape[:-1])
  dense = len(geometry.size) == 2 and max(geometry.strides) == 1  # windows begin at every place of an image
  if dense and fields > 64 and x.shape[-1] > 3 and (g.shape[-1] <= 64 or positions >= MANY):
    return _cpu_kernel_gradient_in_one(geometry, x, g)
  # One product of copies of all fields is faster than one for each place, above all where a place is a few numbers.
  if x.shape[-1] <= 3 or positions * fields <= COPIED:
    return (_fields(geometry, x).reshape(positions, -1).T @ flat).reshape(shape)
  return jnp.stack([s.reshape(positions, -1).T @ flat for s in _shifted(geometry, x)]).reshape(shape)


PARTS = 8  # of a batch
FEW = 32  # channels, whose copies are a third of the work


def _cpu_kernel_gradient_in_one(geometry, x, g):
  """One matmul: x moved along the width to all columns of the window by g moved along the height to all its rows.

  Of half a batch after the other where there are few channels, so that caches hold more of the copies: a twentieth of the
  step of bench resnet20.
  """
  height, width = geometry.window
  halves = math.gcd(len(x), 2) if min(x.shape[-1], g.shape[-1]) <= FEW else 1
  of_half = lambda i: _moved_product(geometry, *(jnp.split(a, halves)[i] for a in (x, g)), PARTS // halves)
  gradient = of_half(0)
  if halves > 1:
    x, g, gradient = lax.optimization_barrier((x, g, gradient))  # else both halves may be copied first
    gradient += of_half(1)
  return gradient.reshape(width, x.shape[-1], height, g.shape[-1]).transpose(2, 0, 1, 3)


def _moved_product(geometry, x, g, parts):
  """[batch, *size, in] and [batch, *output, out] -> [width * in, height * out], in at most so many parts of the batch."""
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
  parts = math.gcd(len(x), parts) if features >= 32 else 1
  columns, moved = columns.reshape(parts, -1, width * channels), moved.reshape(parts, -1, height * features)
  return jnp.einsum('pnc,pnf->pcf', columns, moved).sum(0)


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
