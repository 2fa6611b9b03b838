"""Fake quantisation, in any experiment: kernels of few bits, and of what enters layers, as floats that take few values.

A number is an integer times a scale, which is shared: of a kernel by each output channel, of what enters a dense layer by
each row, of what enters a convolution by each example. The largest number of those that share it is 2^(bits − 1) − 1 times
the scale, so that none is clipped and 0 is 0.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from karpjax import axes
from karpjax.errors import UsageError
from karpjax.program import Program

BITS = {'w8': 8, 'w8a8': 8, 'w4': 4}  # of kernels, by `quantise`


def integers(x, bits: int, shared, clip: float = 1.0):
  """(integers, scale), float32, whose product is x rounded.

  Args:
    x: floats.
    bits: the integers are at most 2^(bits − 1) − 1 in size.
    shared: the axes along which a scale is shared; of the scale they are 1.
    clip: the largest number that is not clipped, as a fraction of the largest.
  """
  levels = 2 ** (bits - 1) - 1
  x = jnp.asarray(x, jnp.float32)
  scale = clip * jnp.abs(x).max(shared, keepdims=True) / levels
  scale = jnp.where(scale > 0, scale, 1)
  return jnp.clip(jnp.round(x / scale), -levels, levels), scale


def inputs(matrix: str) -> tuple[int, ...]:
  """The axes of a kernel along which its output channels share a scale, from `axes.kernels`."""
  return tuple(i for i, letter in enumerate(matrix) if letter == 'i')


# ---- kernels ----


@struct.dataclass
class Quantised:
  """The state of an optimiser whose params are quantised.

  Attributes:
    rest: like params, what rounding has taken from them: params + rest are the weights that learn; [] of what is spared.
    inner: of the optimiser.
    kernels: as `axes.kernels`, in the order of the params.
  """

  rest: Any
  inner: optax.OptState
  kernels: tuple[str, ...] = struct.field(pytree_node=False)


def quantised(optimiser: optax.GradientTransformation, config) -> optax.GradientTransformation:
  """An optimiser that sees float weights, and whose updates leave quantised kernels, see `BITS`: all else sees these.

  A gradient by a quantised weight is taken for that by its float one ("straight-through": Bengio et al. 2013, "Estimating or
  Propagating Gradients Through Stochastic Neurons", section 3). The first step sees the weights as they are drawn or lent.
  Kernels are those that pruning prunes; biases, norms and embeddings stay. Where links behind this one change an update, as
  limits of weights do, the float weights follow.

  Args:
    optimiser: what moves the float weights.
    config: a resolved `config.Train`, whose `quantise` is not none.

  Raises:
    UsageError: with running averages, which would not be of few bits; and by `init`, where the model has no kernel.
  """
  if config.ema:
    raise UsageError(f'ema={config.ema}: averages of quantised weights take more values than these; give ema=0')

  def init(params):
    plain, kernels = nn.meta.unbox(params), axes.kernels(params)
    if not any(kernels):
      raise UsageError(f'quantise={config.quantise}: the model has no kernels')
    leaves, tree = jax.tree.flatten(plain)
    rest = [jnp.zeros(p.shape if matrix else (), p.dtype) for matrix, p in zip(kernels, leaves)]
    return Quantised(tree.unflatten(rest), optimiser.init(params), kernels)

  def rounded(matrix, change, p, rest):
    """(update of a quantised weight, what rounding takes)."""
    if not matrix:
      return change, rest
    exact = (p + rest) + change
    whole, scale = integers(exact, BITS[config.quantise], inputs(matrix))
    change = whole * scale - p
    return change, exact - (p + change)

  def update(gradients, state, params=None):
    leaves, tree = jax.tree.flatten(params)
    rest = jax.tree.leaves(state.rest)
    exact = tree.unflatten([p + r if matrix else p for matrix, p, r in zip(state.kernels, leaves, rest)])
    updates, inner = optimiser.update(gradients, state.inner, exact)
    each = [rounded(*x) for x in zip(state.kernels, jax.tree.leaves(updates), leaves, rest)]
    updates, rest = (tree.unflatten(part) for part in zip(*each))
    return updates, state.replace(rest=rest, inner=inner)

  return optax.GradientTransformation(init, update)


# ---- what enters layers ----


class _Entering:
  """What is told to the layers of a Program that is traced: whether to quantise what enters them.

  Attributes:
    noted: whether one of them has.
  """

  noted = False


_entering = jax.make_user_context(None)  # an _Entering; compiled functions that models share tell its values apart


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(x, shared: tuple[int, ...]):
  whole, scale = integers(x, 8, shared)
  return (whole * scale).astype(x.dtype)


@_rounded.defjvp
def _straight_through(shared, primals, tangents):
  return _rounded(*primals, shared), tangents[0]


def entering(x, first: int):
  """What enters a layer, as it is or in 8 bits: axes from `first` on share a scale.

  The scale is that of the numbers at hand, not an average of earlier ones: there is no state, and what becomes of an example
  depends on no other, whatever batch, device or padding it comes in.
  """
  if _entering.value is None:
    return x
  _entering.value.noted = True
  return _rounded(x, tuple(range(first % x.ndim, x.ndim)))


_ALWAYS = _Entering()  # one for all, or each call of what is compiled would be traced anew


def within(config=None) -> contextlib.AbstractContextManager:
  """Where models are traced: those of a config, or others, nothing of which is quantised."""
  return _entering(_ALWAYS if config and config.quantise == 'w8a8' else None)


def each_within(config, answers: Iterable) -> Iterator:
  """What is made bit by bit, each `within`."""
  answers, end = iter(answers), object()
  while True:
    with within(config):
      answer = next(answers, end)
    if answer is end:
      return
    yield answer


def seen(program: Program, config) -> Program:
  """The Program, what enters whose layers is quantised if the config says so; of another one's, as a scorer's, it is not.

  Its best weights are of few bits: none of before the first update.
  """
  told = _Entering() if config.quantise == 'w8a8' else None

  def traced(function):
    def inside(*arguments):
      with _entering(told):
        return function(*arguments)

    return function and inside

  names = 'step', 'evaluate', 'predict', 'example_losses', 'report'
  exports = {name: (traced(function), inputs) for name, (function, inputs) in program.exports.items()}
  unread = lambda: [*program.unread(), *(['quantise'] if told and not told.noted else [])]
  settled = program.settled if config.quantise == 'none' else max(program.settled, program.collecting + 1)
  functions = {name: traced(getattr(program, name)) for name in names}
  return dataclasses.replace(program, unread=unread, exports=exports, settled=settled, **functions)
