"""Forms of layers that XLA's CPU backend runs faster: each equal, to rounding, to the plain one that its layer states.

A layer names its form here by `lax.platform_dependent`; accelerators never run one. What each gains stands beside it,
measured in turns with the plain form in the step of that row of `launch.py bench` (two cores, jax 0.12).
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# ---- convolution: `plain` is XLA's own, (geometry, x, kernel) -> y ----


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


UNROLLED = 16  # mapped convolutions; more are a loop, since compile time grows with each


def _pad(x, *padding):
  return lax.pad(x, jnp.zeros((), x.dtype), tuple((low, high, 0) for low, high in padding))


def _fields(geometry: Geometry, x):
  """[batch, *size, in] -> its receptive fields, [batch, *output, window * in] in the kernel's order: "im2col"."""
  x = _pad(x, (0, 0), *geometry.padding, (0, 0))
  places = []
  for offset in itertools.product(*map(range, geometry.window)):
    stop = [o + s * (n - 1) + 1 for o, s, n in zip(offset, geometry.strides, geometry.output)]
    places.append(lax.slice(x, (0, *offset, 0), (x.shape[0], *stop, x.shape[-1]), (1, *geometry.strides, 1)))
  return jnp.concatenate(places, -1)


def depthwise(geometry: Geometry, x, kernel):
  """Each channel by a window of its own, [*window, 1, channels]: products of the shifted input, added up."""
  x, total = _pad(x, (0, 0), *geometry.padding, (0, 0)), 0
  for offset in itertools.product(*map(range, geometry.window)):
    stop = [o + s * (n - 1) + 1 for o, s, n in zip(offset, geometry.strides, geometry.output)]
    place = lax.slice(x, (0, *offset, 0), (x.shape[0], *stop, x.shape[-1]), (1, *geometry.strides, 1))
    total += place * kernel[offset][0]
  return total


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


def convolution(plain: Callable, geometry: Geometry, x, kernel):
  """The plain one, one by one where kernels are mapped over: `vmap` would make a grouped convolution, 85 times as slow."""
  form = jax.custom_batching.custom_vmap(partial(plain, geometry))

  @form.def_vmap
  def rule(size, mapped, x, kernel):
    if not mapped[1]:  # one larger batch
      y = form(x.reshape(-1, *x.shape[2:]), kernel)
      return y.reshape(size, -1, *y.shape[1:]), True
    one = lambda i: form(x[i] if mapped[0] else x, kernel[i])
    if size > UNROLLED:
      return lax.map(one, jnp.arange(size)), True
    return jnp.stack([one(i) for i in range(size)]), True

  return form(x, kernel)


def convolution_input_gradient(plain: Callable, geometry: Geometry, g, kernel):
  """What g [batch, *output, out] says of the input: XLA's own is 70 times as slow within a loop."""
  if kernel.shape[-2] <= 4 or max(geometry.strides) > 1:
    return _summed(geometry, g @ kernel.reshape(-1, kernel.shape[-1]).T)
  # strides are 1: a convolution with the kernel turned round
  turned = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
  padding = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(geometry.window, geometry.padding))
  return convolution(plain, Geometry(geometry.output, geometry.window, geometry.strides, padding), g, turned)


FEW = 32  # channels


def convolution_kernel_gradient(geometry: Geometry, x, g):
  """What g [batch, *output, out] says of the kernel, by one matmul of copies (resnet20: 1.9 times as fast).

  At stride 1, x moved along the width to all columns of the window by g moved along the height to all its rows: 1.37
  times the speed of copies of whole fields in resnet20, 1.25 in mnist_cnn. Of few channels one half of the batch after
  the other, so that caches hold more of the copies: 1.15 in mnist_cnn.
  """
  # Without the barrier, XLA computes what made x and g again in each of the copies below.
  x, g = lax.optimization_barrier((x, g))
  shape = (*geometry.window, x.shape[-1], g.shape[-1])
  if len(geometry.size) == 1 or max(geometry.strides) > 1 or x.shape[-1] <= 3:
    return (_fields(geometry, x).reshape(-1, math.prod(shape[:-1])).T @ g.reshape(-1, shape[-1])).reshape(shape)
  if len(x) % 2 or min(shape[2:]) > FEW:
    return _moved_product(geometry, x, g)
  half = lambda a, i: jnp.split(a, 2)[i]
  gradient = _moved_product(geometry, half(x, 0), half(g, 0))
  x, g, gradient = lax.optimization_barrier((x, g, gradient))  # else both halves may be copied first
  return gradient + _moved_product(geometry, half(x, 1), half(g, 1))


def _moved_product(geometry: Geometry, x, g):
  """The gradient of the kernel at stride 1; both moved arrays as sums, which XLA makes in one pass."""
  (height, width), channels, features = geometry.window, x.shape[-1], g.shape[-1]
  rows, (low, _) = geometry.padding
  last = geometry.output[1] - geometry.size[1]
  columns = sum(  # [batch, output + height - 1, output, width * in]
    _pad(x, (0, 0), rows, (low - j, last - low + j), (j * channels, (width - 1 - j) * channels)) for j in range(width)
  )
  moved = sum(  # [batch, output + height - 1, output, height * out]
    _pad(g, (0, 0), (i, height - 1 - i), (0, 0), (i * features, (height - 1 - i) * features)) for i in range(height)
  )
  columns, moved = columns.reshape(1, -1, width * channels), moved.reshape(1, -1, height * features)
  gradient = jnp.einsum('bnc,bnf->bcf', columns, moved)
  return gradient.reshape(width, channels, height, features).transpose(2, 0, 1, 3)


# ---- linear layers ----

# multiplications; beyond, the transposed copy costs more than it spares, of x and of what is narrower than x
SMALL_PRODUCT, LARGE_PRODUCT = 2**21, 2**26


def linear_kernel_gradient(plain: Callable, x, gradient):
  """xᵀ g over all but the last axes, by the order of copies that is fastest (mlp: 1.4 times as fast).

  For (gᵀ x)ᵀ, XLA's CPU backend copies g transposed, and computes what made g, such as the derivative of an activation,
  anew while it does: the step of bench gpt_shakespeare_cpu takes a fifth longer. The barrier spares what made x the
  same. It would copy x transposed too if there were several axes to sum over: a tenth of the step of bench
  gpt_shakespeare.

  Where g is much narrower than x, to transpose it first and the product last is up to five times as fast as one product
  over the first axes, whose narrow side XLA does not use vectors for; not where the product is large beside the work. A
  small product is a third faster, and within the step of bench ppo_cartpole three times as fast, with x transposed
  first.
  """
  x = lax.optimization_barrier(x)
  (*lead, wide), narrow = x.shape, gradient.shape[-1]
  rows = math.prod(lead)
  x, gradient = x.reshape(rows, wide), gradient.reshape(rows, narrow)
  if rows * wide * narrow <= LARGE_PRODUCT and wide >= 3 * narrow and (rows >= 256 or narrow <= 16):
    transposed = lax.optimization_barrier(gradient.T)
    return lax.optimization_barrier(transposed @ x).T
  if rows * wide * narrow <= SMALL_PRODUCT:
    transposed = lax.optimization_barrier(x.T)
    return lax.optimization_barrier(transposed @ gradient)
  return plain(x, gradient)


# ---- pooling ----


def tiles(x, window: int):
  """[batch, *spatial, channels] -> [batch, spatial / window, window, ..., channels]; cuts a remainder.

  The maximum over the windows of it is that of mnist_cnn: 3.4 times as fast a step.
  """
  sizes = [n // window for n in x.shape[1:-1]]
  x = x[(slice(None), *(slice(n * window) for n in sizes))]
  return x.reshape(x.shape[0], *itertools.chain(*((n, window) for n in sizes)), x.shape[-1])
