"""Models by name: Linen modules, x [batch, *shape] float32 -> logits [batch, classes] float32."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.models import choices
from karpjax.models.cnn import CNN, dimensions
from karpjax.models.lenet import LeNet1989
from karpjax.models.mlp import MLP, LogisticRegression
from karpjax.models.recurrent import GRUClassifier
from karpjax.models.resnet import ResNet
from karpjax.models.vgg import VGG

_cifar = functools.partial(ResNet, bottleneck=False, imagenet=False, widths=(16, 32, 64))
_imagenet = functools.partial(ResNet, imagenet=True, widths=(64, 128, 256, 512))

MODELS = {  # name -> constructor (classes, dtype, **options)
  'logistic': LogisticRegression,
  'mlp': MLP,
  'lenet1989': LeNet1989,
  'cnn': CNN,
  'vgg': VGG,
  'resnet20': functools.partial(_cifar, blocks=(3, 3, 3)),
  'resnet56': functools.partial(_cifar, blocks=(9, 9, 9)),
  'resnet18': functools.partial(_imagenet, blocks=(2, 2, 2, 2), bottleneck=False),
  'resnet50': functools.partial(_imagenet, blocks=(3, 4, 6, 3), bottleneck=True),
  'gru': GRUClassifier,
}

# fields that are no options: the data, Linen or the model's name decides them
_DECIDED = 'classes', 'dtype', 'parent', 'name', 'blocks', 'bottleneck', 'imagenet'
_KINDS = {1: 'a table', 2: 'a 1-D signal', 3: 'an image'}  # by the rank of an example
_TAKES = {'logistic': (1, 2, 3), 'mlp': (1, 2, 3), 'gru': (2,), 'lenet1989': (3,)}  # ranks; the others (2, 3)


def options(name: str) -> dict[str, Any]:
  """The options of the model called `name`, with their defaults.

  Raises:
    UsageError: for an unknown name; the nearest is offered.
  """
  constructor = errors.choose('model', name, MODELS)
  return choices.defaults(constructor, _DECIDED)


def build(name: str, *, shape: tuple[int, ...], classes: int, dtype=jnp.float32, options: dict[str, Any]) -> nn.Module:
  """The model called `name` for examples of `shape`, traced once but not compiled.

  Args:
    name: a key of MODELS.
    shape: of one example: [features], [length, channels] or [height, width, channels].
    classes: outputs.
    dtype: of the computation, float32 or bfloat16.
    options: what the user chose; None leaves the model's own default.

  Returns:
    A Linen module: `init(key, x, train=False)`, `apply(variables, x, train=...)`.

  Raises:
    UsageError: for an unknown name or option, an option's value that makes no sense, or a shape the model
    can't take.
  """
  constructor = errors.choose('model', name, MODELS)
  chosen = choices.checked(name, constructor, options, _DECIDED)
  module = constructor(classes=classes, dtype=dtype, **chosen)
  ranks = _TAKES.get(name, (2, 3))
  if len(shape) not in ranks:
    raise errors.UsageError(
      f'model {name} takes {" or ".join(_KINDS[rank] for rank in ranks)}, '
      f'not {_KINDS.get(len(shape), "data")} of shape {dimensions(shape)}'
    )
  # With a traced option we are inside of a step, and its numbers have been looked at before.
  if not any(isinstance(value, jax.Array) for value in jax.tree.leaves(chosen)):
    _trace(module, tuple(shape))
  return module


@functools.cache
def _trace(module: nn.Module, shape: tuple[int, ...]) -> None:
  """Traces a model once, for its errors; not again where a step builds the model anew."""
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)
