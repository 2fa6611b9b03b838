"""Features of a frozen classifier, in which a generator's images are compared with the originals: a perceptual loss.

Features are those of the last convolution, before its activation (Ledig et al. 2017, section 2.2.1, take them behind it; Wang et al.
2018, "ESRGAN", section 3.2, say why before).
"""

from collections.abc import Callable

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from karpjax import errors, scorer
from karpjax.layers.convolution import Conv, convolution
from karpjax.layers.pooling import max_pool
from karpjax.train import weights

VGG19 = (2, 2, 4, 4, 4)  # convolutions in each block of Simonyan & Zisserman 2015, configuration E
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights are for


def load(source: str, shape: tuple[int, int, int]) -> Callable:
  """Images [batch, *shape] in [0, 1] -> features [batch, height', width', d].

  Args:
    source: WORKDIR of a run of image_classification, whose best checkpoint is taken; or FILE.safetensors with the weights of
      torchvision's vgg19 under its names, 'features.0.weight' and so on.
    shape: of an image, (height, width, channels).

  Raises:
    UsageError: where there is neither, or the net does not take such images.
  """
  features = vgg19(source) if source.endswith('.safetensors') else _of_classifier(source, shape)
  try:
    jax.eval_shape(features, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  except errors.UsageError:
    raise
  except (TypeError, ValueError, flax.errors.ScopeParamShapeError) as error:
    size = '×'.join(map(str, shape))
    raise errors.UsageError(f'--scorer={source} does not take images of {size}: {str(error).splitlines()[0]}') from None
  return features


def _of_classifier(workdir: str, shape) -> Callable:
  inside, _, spec = scorer.classifier(workdir)
  if spec.shape[-1] != shape[-1]:
    raise errors.UsageError(
      f'--scorer={workdir} sees {spec.shape[-1]} channels, and the net makes {shape[-1]}: --colour=y makes 1, rgb 3'
    )

  def features(images):
    seen, _ = inside(images * spec.maximum, Conv)
    if not seen:
      raise errors.UsageError(f'--scorer={workdir}: its model has no convolution, whose outputs would be the features')
    return seen[-1][1].astype(jnp.float32)

  return features


def vgg19(path: str) -> Callable:
  """Images [batch, height, width, 1 or 3] in [0, 1] -> features [batch, height // 16, width // 16, 512]: VGG-19's conv5_4.

  Raises:
    UsageError: where the file cannot be read or lacks a layer.
  """
  arrays = weights.read_safetensors(path, '--scorer=')
  try:
    layers, number = [], 0  # torchvision counts convolutions, activations and poolings
    for depth in VGG19:
      block = []
      for _ in range(depth):
        kernel, bias = (arrays[f'features.{number}.{name}'] for name in ('weight', 'bias'))
        block.append((kernel.transpose(2, 3, 1, 0), bias))  # [out, in, 3, 3] -> [3, 3, in, out]
        number += 2
      layers.append(block)
      number += 1
  except KeyError as error:
    raise errors.UsageError(f"--scorer={path} lacks {error}; torchvision's vgg19 has it") from None

  def features(images):
    x = (images - np.array(MEAN, np.float32)) / np.array(STD, np.float32)  # grey becomes RGB
    for block in layers:
      x = max_pool(nn.relu(x)) if block is not layers[0] else x
      for i, (kernel, bias) in enumerate(block):
        x = convolution(nn.relu(x) if i else x, jnp.asarray(kernel, jnp.float32)) + bias
    return x

  return features
