"""Transposed convolution: the gradient of a convolution, as a layer that makes images larger."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from karpjax.layers import convolution, initialisers


def transposed_convolution(x, kernel, *, strides: Sequence[int], padding: Sequence[tuple[int, int]]):
  """The gradient of a `convolution` with respect to its input, as a layer: PyTorch's conv_transpose.

  Args:
    x: [batch, *spatial, in], floating point.
    kernel: [*window, out, in], of x's dtype: that of the convolution from `out` to `in` channels.
    strides: by which each spatial axis grows.
    padding: (low, high) per spatial axis, of that convolution: what is cut from the output.

  Returns:
    [batch, *spatial', out]; a size n becomes (n - 1) stride + window - low - high.
  """
  window, strides = kernel.shape[:-2], tuple(strides)
  size = tuple((n - 1) * s + k - low - high for n, s, k, (low, high) in zip(x.shape[1:-1], strides, window, padding))
  return convolution.input_gradient(convolution.Geometry(size, window, strides, tuple(map(tuple, padding))), x, kernel)


class ConvTranspose(nn.Module):
  """Transposed convolution with bias: the spatial axes grow by `strides` exactly, or to the `size` that is given.

  Attributes:
    features: out channels.
    kernel_size: the window, one int per spatial axis; each must be at least the stride, and differ from it by an even number.
    strides: one int for all spatial axes.
    size: of the output, one int per spatial axis, each by less than a stride smaller than `strides` times the input's.
    use_bias: whether a bias [features] is added.
    dtype: of the computation; params are float32.
    kernel_init, bias_init: Linen initialisers; the kernel is [*window, out, in].
  """

  features: int
  kernel_size: tuple[int, ...]
  strides: int = 2
  size: tuple[int, ...] | None = None
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = initialisers.lecun_normal
  bias_init: Callable = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x):
    """x: [batch, *spatial, in] -> [batch, *size, features] of `dtype`."""
    kernel = self.param('kernel', self.kernel_init, (*self.kernel_size, self.features, x.shape[-1]))
    grown = [n * self.strides for n in x.shape[1:-1]]
    cut = [
      ((k - self.strides) // 2, (k - self.strides) // 2 + large - n)
      for k, large, n in zip(self.kernel_size, grown, self.size or grown)
    ]
    y = transposed_convolution(
      x.astype(self.dtype), kernel.astype(self.dtype), strides=(self.strides,) * len(cut), padding=cut
    )
    if self.use_bias:
      y = y + self.param('bias', self.bias_init, (self.features,)).astype(self.dtype)
    return y
