"""Inception v3 (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision") as FID is computed
with it.

The weights of Heusel et al. 2017 are of TensorFlow's graph of 2015-12-05, as a PyTorch checkpoint
pt_inception-2015-12-05-6726825d, whose names the layers bear. Three things differ from torchvision's network: means
over windows leave padding out, the pooling of the last block is a maximum, and images are [-1, 1] throughout.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax

from karpjax import errors
from karpjax.layers.convolution import Conv, max_pool
from karpjax.layers.normalisation import BatchNorm
from karpjax.lean import quantisation

SIZE = 299  # height and width of what the network sees
FEATURES = 2048
PIECE = 32  # images whose activations are held at once: about half a gigabyte


POOLINGS = {
  'mean': lambda x: nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False),
  'max': lambda x: max_pool(x, 3, 1, 'SAME'),
  'halve': lambda x: max_pool(x, 3, 2),
}

# A branch is a pooling or none, a name, and convolutions: channels@height×width, which keep the image's size; with /stride they
# take whole windows alone; + has two side by side. Several layers are called name_1, name_2, …, two side by side name_2a, name_2b.
STEM = (
  'Conv2d_1a_3x3 32@3x3/2', 'Conv2d_2a_3x3 32@3x3/1', 'Conv2d_2b_3x3 64@3x3', 'halve',
  'Conv2d_3b_1x1 80@1x1', 'Conv2d_4a_3x3 192@3x3/1', 'halve',
)  # fmt: skip
_A = 'branch1x1 64@1x1 | branch5x5 48@1x1 64@5x5 | branch3x3dbl 64@1x1 96@3x3 96@3x3 | mean branch_pool {}@1x1'
_C = (
  'branch1x1 192@1x1 | branch7x7 {0}@1x1 {0}@1x7 192@7x1 | branch7x7dbl {0}@1x1 {0}@7x1 {0}@1x7 {0}@7x1 192@1x7 | '
  'mean branch_pool 192@1x1'
)
_E = (
  'branch1x1 320@1x1 | branch3x3 384@1x1 384@1x3+384@3x1 | branch3x3dbl 448@1x1 384@3x3 384@1x3+384@3x1 | '
  '{} branch_pool 192@1x1'
)
BLOCKS = {  # the paper's figures 5, 10, 6 and 7, with the grid reduced between them: branches side by side along the channels
  'Mixed_5b': _A.format(32),
  'Mixed_5c': _A.format(64),
  'Mixed_5d': _A.format(64),
  'Mixed_6a': 'branch3x3 384@3x3/2 | branch3x3dbl 64@1x1 96@3x3 96@3x3/2 | halve',
  'Mixed_6b': _C.format(128),
  'Mixed_6c': _C.format(160),
  'Mixed_6d': _C.format(160),
  'Mixed_6e': _C.format(192),
  'Mixed_7a': 'branch3x3 192@1x1 320@3x3/2 | branch7x7x3 192@1x1 192@1x7 192@7x1 192@3x3/2 | halve',
  'Mixed_7b': _E.format('mean'),
  'Mixed_7c': _E.format('max'),
}


class BasicConv(nn.Module):
  """A convolution, its batch norm and relu."""

  layer: str  # such as 384@3x3/2

  @nn.compact
  def __call__(self, x):
    channels, height, width, *stride = map(int, re.split('[@x/]', self.layer))
    padding = 'VALID' if stride else 'SAME'
    x = Conv(channels, (height, width), *stride or [1], padding, use_bias=False, name='conv')(x)
    return nn.relu(BatchNorm(epsilon=1e-3, name='bn')(x, train=False))


def applied(branch: str, x, prefix: str = ''):
  """What a branch makes of x, [batch, height, width, channels] -> such; called within a module's `__call__`."""
  words = branch.split()
  x = POOLINGS[words.pop(0)](x) if words[0] in POOLINGS else x
  for i, layers in enumerate(words[1:], start=1):
    name = prefix + words[0] + (f'_{i}' if len(words) > 2 else '')
    sides = layers.split('+')
    names = [name] if len(sides) == 1 else [f'{name}a', f'{name}b']
    x = jnp.concatenate([BasicConv(layer, name=name)(x) for layer, name in zip(sides, names)], -1)
  return x


class InceptionV3(nn.Module):
  """All but the classifier, in inference."""

  @nn.compact
  def __call__(self, images):
    """images: [batch, 299, 299, 3] in [-1, 1] -> [batch, 2048], means over the places of the last block."""
    x = images
    for branch in STEM:
      x = applied(branch, x)  # [batch, 35, 35, 192]
    for name, block in BLOCKS.items():  # [batch, 35, 35, 288], from Mixed_6a on 17 and 768, from Mixed_7a on 8 and 2048
      x = jnp.concatenate([applied(branch, x, f'{name}.') for branch in block.split('|')], -1)
    return x.mean((1, 2))


# ---- published weights ----

NAMES = {  # ours: theirs
  'kernel': 'conv.weight', 'scale': 'bn.weight', 'bias': 'bn.bias', 'mean': 'bn.running_mean', 'var': 'bn.running_var',
}  # fmt: skip
UNUSED = {'fc.weight': (1008, FEATURES), 'fc.bias': (1008,)}  # the classifier, of 1,008 classes


@functools.cache
def shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
  """{(collection, layer, module, leaf): shape} of the network's arrays."""
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
  return {path: x.shape for path, x in traverse_util.flatten_dict(variables).items()}


def published() -> dict[str, tuple[int, ...]]:
  """{name: shape} of the checkpoint's arrays, without the classifier's: kernels are [out, in, height, width]."""
  turned = lambda x: (x[3], x[2], x[0], x[1]) if len(x) == 4 else x
  return {f'{layer}.{NAMES[leaf]}': turned(shape) for (_, layer, _, leaf), shape in shapes().items()}


def from_published(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
  """Variables of `InceptionV3` from the arrays of the checkpoint, {name: array}; `source` is named in an error.

  Raises:
    UsageError: where an array is absent, of another shape, or none of the checkpoint's.
  """
  expected = published()
  known, dimensions = expected | UNUSED, lambda shape: '×'.join(map(str, shape))
  if missing := sorted(expected.keys() - arrays):
    raise errors.UsageError(
      f"{source} lacks {len(missing)} of the FID network's {len(expected)} arrays, such as {missing[0]}; give the weights "
      'of pt_inception-2015-12-05-6726825d under its names'
    )
  for name, array in arrays.items():
    if name not in known and not name.endswith('.num_batches_tracked'):
      raise errors.UsageError(f'{source} holds {name}, which the FID network has not.{errors.nearest(name, known)}')
    if name in known and array.shape != known[name]:
      there, here = dimensions(array.shape), dimensions(known[name])
      raise errors.UsageError(f'{source}: {name} is {there}, and in the FID network {here}')
  ours = lambda x: np.asarray(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x, np.float32)
  variables = {path: ours(arrays[f'{path[1]}.{NAMES[path[3]]}']) for path in shapes()}
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
    with quantisation.within():
      return InceptionV3().apply(variables, jnp.broadcast_to(2 * x - 1, (rows, SIZE, SIZE, 3)))

  with jax.default_matmul_precision('float32'):  # accelerators would round to fewer bits
    outputs = lax.map(piece, images)  # [pieces, rows, 2048]
  return outputs.swapaxes(0, 1).reshape(-1, FEATURES)[:count]
