"""Learning from weights that are there: some stay as they are, others learn more slowly than the last layer."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Sequence

import jax
import optax
from flax import linen as nn
from flax import struct

from karpjax.errors import UsageError, nearest
from karpjax.layers.normalisation import BatchNorm
from karpjax.program import Program

TRUNK = 'trunk'  # the pattern of all but the last layer, which models call logits
HEAD = 'logits'


@struct.dataclass
class FineTuned:
  """The state of an optimiser that moves some parameters, and some less than others.

  Attributes:
    inner: of the optimiser, which knows nothing of those that stay.
    stays: whether each parameter stays, in the order of `jax.tree.leaves`.
    scales: by which the updates of each are multiplied.
  """

  inner: optax.OptState
  stays: tuple[bool, ...] = struct.field(pytree_node=False)
  scales: tuple[float, ...] = struct.field(pytree_node=False)


def asked(config) -> bool:
  """Whether a config wants anything of this."""
  return bool(config.freeze) or config.layer_decay != 1 or config.head_learning_rate != 1


def tuned(optimiser: optax.GradientTransformation, config) -> optax.GradientTransformation:
  """An optimiser whose updates leave what is frozen, and are scaled by layer.

  What is frozen has no state, no weight decay, and no part in the norm by which gradients are clipped. An update of layer i of
  n, in the order in which a model makes them, is multiplied by layer_decay^(n − i) (Howard & Ruder 2018, "Universal Language
  Model Fine-tuning for Text Classification", section 3.2, have 1 / 2.6), that of the last layer by head_learning_rate. A layer
  is what stands at the top of a model's parameters and has a kernel, with what is made before the next one.

  Args:
    optimiser: whose updates they are, the learning rate within.
    config: with freeze, layer_decay and head_learning_rate.

  Raises:
    UsageError: by `init`, for a pattern that no parameter's name matches, or where none is left to learn.
  """

  def inner(stays):
    if not any(stays):
      return optimiser
    labels = ['stays' if stay else 'learns' for stay in stays]
    like = lambda params: jax.tree.unflatten(jax.tree.structure(params, is_leaf=_is_box), labels)
    return optax.partition({'learns': optimiser, 'stays': optax.set_to_zero()}, like)

  def init(params):
    named = names(params)
    stays = frozen(named, config.freeze)
    scales = [_scale(name, [*params], params, config) for name in named]
    return FineTuned(inner(stays).init(params), stays, tuple(scales))

  def update(updates, state, params=None):
    updates, own = inner(state.stays).update(updates, state.inner, params)
    leaves, tree = jax.tree.flatten(updates)
    scaled = [u if scale == 1 else scale * u for u, scale in zip(leaves, state.scales)]
    return tree.unflatten(scaled), state.replace(inner=own)

  return optax.GradientTransformation(init, update)


def _is_box(x) -> bool:
  return isinstance(x, nn.meta.AxisMetadata)


def names(params) -> list[str]:
  """'conv1/kernel' of each parameter, boxed or not, in the order of `jax.tree.leaves`."""
  paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box)
  return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in paths]


def frozen(named: Sequence[str], patterns: Sequence[str]) -> tuple[bool, ...]:
  """Which of the parameters a pattern names: one of `fnmatch` for their names or those of modules above them, or TRUNK."""
  parts = {name: ['/'.join(name.split('/')[: i + 1]) for i in range(name.count('/') + 1)] for name in named}
  hits = {}
  for pattern in patterns:
    if pattern == TRUNK:
      hits[pattern] = {name for name in named if HEAD not in name.split('/')[:-1]}
    else:
      hits[pattern] = {name for name, above in parts.items() if any(fnmatch.fnmatchcase(x, pattern) for x in above)}
    if not hits[pattern]:
      known = sorted({x for above in parts.values() for x in above})
      raise UsageError(f'freeze={pattern}: no parameter has that name.{nearest(pattern, known)}')
  all_ = set().union(*hits.values())
  if len(all_) == len(named):
    raise UsageError(f'freeze={",".join(patterns)}: nothing is left to learn')
  return tuple(name in all_ for name in named)


def _scale(name: str, tops: Sequence[str], params, config) -> float:
  """Of the updates of a parameter; `tops` are names at the top, in the order in which they were made."""
  holds = lambda value: isinstance(value, dict) and any(x.endswith('kernel') for x in names(value))
  kernels = [top for top in tops if holds(params[top])]
  before = [top for top in tops[: tops.index(name.split('/')[0]) + 1] if top in kernels]
  depth = kernels.index(before[-1]) if before else 0
  head = HEAD in name.split('/')[:-1]
  return config.layer_decay ** (len(kernels) - 1 - depth) * (config.head_learning_rate if head else 1)


def still(loss: Callable, config) -> Callable:
  """A loss as for `compute_gradients`, which has no gradient by what is frozen; batch norm there is as in evaluation."""
  if not config.freeze:
    return loss

  def stopped(params, collections, batch, key):
    (leaves, tree), named = jax.tree.flatten(params), names(params)
    stays = dict(zip(named, frozen(named, config.freeze)))
    params = tree.unflatten([jax.lax.stop_gradient(x) if stays[n] else x for n, x in zip(named, leaves)])

    def as_in_evaluation(call, inputs, options, context):
      own = '/'.join((*context.module.path, 'scale'))
      if context.method_name == '__call__' and stays.get(own):
        if isinstance(context.module, BatchNorm):
          options = {**options, 'train': False}
        elif isinstance(context.module, nn.BatchNorm):
          options = {**options, 'use_running_average': True}
      return call(*inputs, **options)

    with nn.intercept_methods(as_in_evaluation):
      return loss(params, collections, batch, key)

  return stopped


def said(program: Program, config) -> Program:
  """The Program, which tells how many parameters stay.

  Raises:
    UsageError: where several players learn, each with an optimiser of its own.
  """
  if not asked(config):
    return program
  state = jax.eval_shape(program.init, jax.eval_shape(lambda: jax.random.key(0)))
  if isinstance(state.opt_state, dict):
    raise UsageError('freeze, layer_decay and head_learning_rate are for one model; here several learn')
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(state.params)]
  stay = sum(size for size, stays in zip(sizes, frozen(names(state.params), config.freeze)) if stays)
  line = f'frozen: {stay:,} of {sum(sizes):,} parameters; {sum(sizes) - stay:,} learn'
  notes = lambda: [*program.notes(), *([line] if config.freeze else [])]
  return dataclasses.replace(program, notes=notes)
