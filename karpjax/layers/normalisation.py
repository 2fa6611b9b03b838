"""Batch normalisation whose moments are those of the whole batch, however many devices share it;
and that of each image.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import collectives


def moments(x, weights=None):
  """Mean and (biased) variance of each channel over the whole batch, all replicas' rows included.

  One pass, as E[x^2] - E[x]^2 in float32: compiled, the variance's relative error is under 1e-6 (mean / std)^2,
  so 1e-4 where the mean is ten standard deviations and 1e-2 where it is a hundred. Activations stay far below
  that, and a second pass over x costs half as much again in training.

  Args:
    x: [batch, ..., channels].
    weights: [batch, ...], how often each row counts, as 0 at padding; None: once.

  Returns:
    Two arrays [channels] float32.
  """
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  if weights is None:
    mean, mean_of_squares = collectives.mean((x.mean(axes), jnp.square(x).mean(axes)))  # [channels]
  else:
    share = (weights / jnp.maximum(collectives.total(weights.sum()), 1))[..., None]
    x = jnp.where(share, x, 0)  # or NaN at padding would count
    mean, mean_of_squares = collectives.total(((share * x).sum(axes), (share * jnp.square(x)).sum(axes)))
  return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0)  # rounding may leave it below 0


class BatchNorm(nn.Module):
  """Ioffe & Szegedy 2015, algorithms 1 and 2: by the batch in training, by running statistics in evaluation.

  Params 'scale' and 'bias', collection 'batch_stats' with 'mean' and 'var', each [channels] float32, also
  where the computation is in bfloat16. The running variance is the biased one, as in Linen; PyTorch keeps the
  unbiased one.

  Attributes:
    momentum: of the running statistics: new = momentum * old + (1 - momentum) * batch.
    epsilon: added to the variance.
    dtype: of the output.
    scale_init: zeros at a residual branch's end make its block begin as the identity (Goyal et al. 2017).
    classes: where not 0, 'scale' and 'bias' are [classes, channels], a row for each class (Dumoulin et al. 2017, "A
      Learned Representation for Artistic Style", section 2.2; as Miyato & Koyama 2018, section 4, in a generator).
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  scale_init: Callable = nn.initializers.ones_init()
  classes: int = 0

  @nn.compact
  def __call__(self, x, *, train: bool, labels=None, weights=None):
    """x: [batch, ..., channels], labels of its classes: [batch] int, weights as `moments` -> the shape of x,
    of `dtype`.
    """
    channels = x.shape[-1:]
    shape = (self.classes, *channels) if self.classes else channels
    scale = self.param('scale', self.scale_init, shape)
    bias = self.param('bias', nn.initializers.zeros_init(), shape)
    if self.classes:
      shape = x.shape[0], *(1,) * (x.ndim - 2), -1
      scale, bias = (jnp.asarray(table)[labels].reshape(shape) for table in (scale, bias))
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
    running_var = self.variable('batch_stats', 'var', jnp.ones, channels)
    if train:
      mean, var = moments(x, weights)
      if not self.is_initializing():
        for running, now in ((running_mean, mean), (running_var, var)):
          running.value = self.momentum * running.value + (1 - self.momentum) * now
    else:
      mean, var = running_mean.value, running_var.value
    gain = scale * jax.lax.rsqrt(var + self.epsilon)
    return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(self.dtype)


class InstanceNorm(nn.Module):
  """Ulyanov et al. 2016: each channel of each image by its own moments over the places, in training and in evaluation.

  Params 'scale' and 'bias', each [channels] float32.

  Attributes:
    epsilon: added to the variance.
    dtype: of the output.
  """

  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """x: [batch, *spatial, channels] -> the same shape, of `dtype`; `train` changes nothing."""
    scale = self.param('scale', nn.initializers.ones_init(), x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros_init(), x.shape[-1:])
    x, places = x.astype(jnp.float32), tuple(range(1, x.ndim - 1))
    mean = x.mean(places, keepdims=True)  # [batch, 1, 1, channels]
    var = jnp.maximum(jnp.square(x).mean(places, keepdims=True) - jnp.square(mean), 0)
    # As in `BatchNorm`. From x - mean, XLA would not see that two players who make the same images compute the same.
    gain = scale * jax.lax.rsqrt(var + self.epsilon)
    return (x * gain + (bias - mean * gain)).astype(self.dtype)
