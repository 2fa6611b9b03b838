"""Inception v3 (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision") as FID is computed with it.

The weights of Heusel et al. 2017 are of TensorFlow's graph of 2015-12-05, as a PyTorch checkpoint
pt_inception-2015-12-05-6726825d, whose names the layers bear. Three things differ from torchvision's network: means over windows
leave padding out, the pooling of the last block is a maximum, and images are [-1, 1] throughout.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax

from karpjax import errors
from karpjax.layers.convolution import Conv
from karpjax.layers.normalisation import BatchNorm
from karpjax.layers.pooling import max_pool

SIZE = 299  # height and width of what the network sees
FEATURES = 2048
PIECE = 32  # images whose activations are held at once: about half a gigabyte


class Layer(NamedTuple):
  """A convolution, its batch norm and relu. With a stride it takes only whole windows, else it keeps the image's size."""

  name: str
  channels: int
  height: int
  width: int
  stride: int = 1
  keeps: bool = True


POOLINGS = {
  'mean': lambda x: nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False),
  'max': lambda x: max_pool(x, 3, 1, 'SAME'),
  'halve': lambda x: max_pool(x, 3, 2),
}


def _chain(name: str, *layers):
  """Layers name_1, name_2, … one after another, as a tuple; where a list of them is side by side, name_2a and name_2b."""

  def named(name, layer):
    if isinstance(layer, list):
      return [named(name + letter, one) for letter, one in zip('ab', layer)]
    return Layer(name, *layer)

  return tuple(named(f'{name}_{i}', layer) for i, layer in enumerate(layers, start=1))


def _a(pooled: int):
  return [
    Layer('branch1x1', 64, 1, 1),
    _chain('branch5x5', (48, 1, 1), (64, 5, 5)),
    _chain('branch3x3dbl', (64, 1, 1), (96, 3, 3), (96, 3, 3)),
    ('mean', Layer('branch_pool', pooled, 1, 1)),
  ]


def _c(n: int):
  return [
    Layer('branch1x1', 192, 1, 1),
    _chain('branch7x7', (n, 1, 1), (n, 1, 7), (192, 7, 1)),
    _chain('branch7x7dbl', (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)),
    ('mean', Layer('branch_pool', 192, 1, 1)),
  ]


def _e(pooling: str):
  sides = [(384, 1, 3), (384, 3, 1)]
  return [
    Layer('branch1x1', 320, 1, 1),
    _chain('branch3x3', (384, 1, 1), sides),
    _chain('branch3x3dbl', (448, 1, 1), (384, 3, 3), sides),
    (pooling, Layer('branch_pool', 192, 1, 1)),
  ]


STEM = (
  Layer('Conv2d_1a_3x3', 32, 3, 3, 2),
  Layer('Conv2d_2a_3x3', 32, 3, 3, keeps=False),
  Layer('Conv2d_2b_3x3', 64, 3, 3),
  'halve',
  Layer('Conv2d_3b_1x1', 80, 1, 1),
  Layer('Conv2d_4a_3x3', 192, 3, 3, keeps=False),
  'halve',
)
BLOCKS = {  # the paper's figures 5, 10, 6 and 7, with the grid reduced between them
  'Mixed_5b': _a(32),
  'Mixed_5c': _a(64),
  'Mixed_5d': _a(64),
  'Mixed_6a': [
    Layer('branch3x3', 384, 3, 3, 2),
    _chain('branch3x3dbl', (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)),
    'halve',
  ],
  'Mixed_6b': _c(128),
  'Mixed_6c': _c(160),
  'Mixed_6d': _c(160),
  'Mixed_6e': _c(192),
  'Mixed_7a': [
    _chain('branch3x3', (192, 1, 1), (320, 3, 3, 2)),
    _chain('branch7x7x3', (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
    'halve',
  ],
  'Mixed_7b': _e('mean'),
  'Mixed_7c': _e('max'),
}


class BasicConv(nn.Module):
  layer: Layer

  @nn.compact
  def __call__(self, x):
    _, channels, height, width, stride, keeps = self.layer
    padding = 'SAME' if keeps and stride == 1 else 'VALID'
    x = Conv(channels, (height, width), stride, padding, use_bias=False, name='conv')(x)
    return nn.relu(BatchNorm(epsilon=1e-3, name='bn')(x, train=False))


def applied(step, x, prefix: str = ''):
  """What a step of the tables above makes of x, [batch, height, width, channels] -> such; called within a module's `__call__`.

  Args:
    step: a layer, a pooling, a tuple of steps one after another, or a list of steps side by side along the channels.
    x: the input.
    prefix: of the layers' names.
  """
  match step:
    case Layer():
      return BasicConv(step, name=prefix + step.name)(x)
    case str():
      return POOLINGS[step](x)
    case list():
      return jnp.concatenate([applied(branch, x, prefix) for branch in step], -1)
  for one in step:
    x = applied(one, x, prefix)
  return x


class InceptionV3(nn.Module):
  """All but the classifier, in inference."""

  @nn.compact
  def __call__(self, images):
    """images: [batch, 299, 299, 3] in [-1, 1] -> [batch, 2048], means over the places of the last block."""
    x = applied(STEM, images)  # [batch, 35, 35, 192]
    for name, block in BLOCKS.items():  # [batch, 35, 35, 288], from Mixed_6a on 17 and 768, from Mixed_7a on 8 and 2048
      x = applied(block, x, f'{name}.')
    return x.mean((1, 2))


# ---- published weights ----

LEAVES = {  # theirs: (collection, ours)
  'conv.weight': ('params', 'conv', 'kernel'),
  'bn.weight': ('params', 'bn', 'scale'),
  'bn.bias': ('params', 'bn', 'bias'),
  'bn.running_mean': ('batch_stats', 'bn', 'mean'),
  'bn.running_var': ('batch_stats', 'bn', 'var'),
}
UNUSED = {'fc.weight': (1008, FEATURES), 'fc.bias': (1008,)}  # the classifier, of 1,008 classes


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
  """{name: shape} of the checkpoint's arrays, without the classifier's."""
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  own = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
  expected = {}
  for layer in own['params']:
    for name, (collection, module, leaf) in LEAVES.items():
      shape = own[collection][layer][module][leaf].shape
      expected[f'{layer}.{name}'] = tuple(shape[i] for i in (3, 2, 0, 1)) if leaf == 'kernel' else shape
  return expected


def from_published(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
  """Variables of `InceptionV3` from the arrays of the checkpoint by their names there.

  Args:
    arrays: kernels are [out, in, height, width].
    source: as it is named in an error.

  Raises:
    UsageError: where an array is absent, of another shape, or none of the checkpoint's.
  """
  expected = shapes()
  known = expected | UNUSED
  others = sorted(n for n in arrays.keys() - known if not n.endswith('.num_batches_tracked'))
  if missing := sorted(expected.keys() - arrays):
    raise errors.UsageError(
      f"{source} lacks {len(missing)} of the FID network's {len(expected)} arrays, such as {missing[0]}; give the weights "
      'of pt_inception-2015-12-05-6726825d under its names'
    )
  if others:
    raise errors.UsageError(
      f'{source} holds {others[0]}, which the FID network has not.{errors.nearest(others[0], known)}'
    )
  for name in arrays.keys() & known:
    if arrays[name].shape != known[name]:
      there, here = ('×'.join(map(str, shape)) for shape in (arrays[name].shape, known[name]))
      raise errors.UsageError(f'{source}: {name} is {there}, and in the FID network {here}')
  variables = {}
  for name in expected:
    layer, *theirs = name.rsplit('.', 2)
    collection, module, leaf = LEAVES['.'.join(theirs)]
    array = np.asarray(arrays[name], np.float32)
    variables[collection, layer, module, leaf] = array.transpose(2, 3, 1, 0) if leaf == 'kernel' else array
  return traverse_util.unflatten_dict(variables)


def features(variables, images):
  """Images [batch, height, width, 1 or 3] in [0, 1] -> features [batch, 2048] float32.

  They are resized bilinearly, by the centres of pixels and without antialiasing; grey is repeated.
  """
  count = len(images)
  pieces = -(-count // PIECE)
  rows = -(-count // pieces)
  images = jnp.pad(images, ((0, pieces * rows - count), (0, 0), (0, 0), (0, 0)))
  # A piece is every so-manieth image, so that of a batch which lies over devices each device has a part of every piece.
  images = images.reshape(rows, pieces, *images.shape[1:]).swapaxes(0, 1)  # [pieces, rows, height, width, channels]

  def piece(x):
    x = jax.image.resize(x.astype(jnp.float32), (rows, SIZE, SIZE, x.shape[-1]), 'bilinear', antialias=False)
    return InceptionV3().apply(variables, jnp.broadcast_to(2 * x - 1, (rows, SIZE, SIZE, 3)))

  with jax.default_matmul_precision('float32'):  # accelerators would round to fewer bits
    outputs = lax.map(piece, images)  # [pieces, rows, 2048]
  return outputs.swapaxes(0, 1).reshape(-1, FEATURES)[:count]
