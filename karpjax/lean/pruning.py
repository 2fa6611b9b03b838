"""Magnitude pruning of any experiment's kernels or channels, by the schedule of Zhu & Gupta 2017, and the tickets of Frankle & Carbin 2019."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.custom_batching import sequential_vmap

from karpjax import axes
from karpjax.durations import Pace
from karpjax.errors import UsageError


class Channels(NamedTuple):
  """The units of one layer. An axis has them last, behind the places at which each of them is."""

  option: str  # of the model, which says how many they are
  entry: int | None  # of its values, where it has several
  size: int
  makers: tuple[tuple[str, int], ...]  # (name, axis) of the kernels whose outputs they are
  members: tuple[tuple[str, int], ...]  # of all that goes with them: parameters, and statistics of norms


@struct.dataclass
class Static:
  """What a state holds that is no array."""

  value: tuple = struct.field(pytree_node=False, default=())


class Pruned(NamedTuple):
  """The state of an optimiser that prunes."""

  clock: optax.ScaleByScheduleState  # of its updates
  made: jax.Array  # [] int32: how many prunings
  masks: Any  # bool, like params: False where they are pruned; [] of what is spared
  inner: optax.OptState  # of the optimiser
  channels: Static = Static()  # Channels, where they are pruned: see `structure`
  layers: Static = Static()  # `axes.layers` of params


def pruned(optimiser: optax.GradientTransformation, config, pace: Pace = Pace()) -> optax.GradientTransformation:
  """An optimiser whose updates set pruned weights to exactly 0, and keep them there; it sees no gradient of them.

  After t updates, t = from, from + every, … and until, the smallest of the weights are pruned, so many that of them are 0

    sparsity · (1 − (1 − (t − from) / (until − from))³)    (Zhu & Gupta 2017, eq. 1, from a sparsity of 0)

  of each kernel or, where the scope is global, of all. Kernels are what `axes.kernels` says; biases, norms and embeddings
  are spared. If `structured`, whole channels go, so many of each layer's, the sum of whose weights' sizes is smallest (Li
  et al. 2017), with all that belongs to them.

  Args:
    optimiser: whose updates are masked.
    config: a resolved `config.Train`; with `mask_from` the masks are those that `masks.lend` gives, and stay.
    pace: of the optimiser.

  Raises:
    UsageError: for times that are not those of the run; with running averages, which would not be sparse; and by
      `init`, where the model has no kernel.
  """
  if config.ema:
    raise UsageError(f'ema={config.ema}: averages of weights are not 0 where the pruned weights are; give ema=0')
  masks_at = None if config.mask_from else _schedule(config, pace)

  def init(params):
    kernels, (leaves, tree) = axes.kernels(params), jax.tree.flatten(nn.meta.unbox(params))
    kernels = [config.structured or kernel for kernel in kernels]
    if not any(kernels):
      raise UsageError('sparsity, mask_from: the model has no kernels to prune')
    masks = [jnp.ones(p.shape if kernel else (), bool) for kernel, p in zip(kernels, leaves)]
    zero = jnp.zeros((), jnp.int32)
    clock, layers = optax.ScaleByScheduleState(zero), Static(axes.layers(params))
    return Pruned(clock, zero, tree.unflatten(masks), optimiser.init(params), layers=layers)

  def update(gradients, state, params=None):
    masked = jax.tree.map(lambda mask, g: jnp.where(mask, g, 0), state.masks, gradients)
    updates, inner = optimiser.update(masked, state.inner, params)
    count, masks, made = optax.safe_increment(state.clock.count), state.masks, state.made
    if masks_at:
      masks, made = masks_at(count, made, masks, optax.apply_updates(params, updates), state.channels.value)
    updates = jax.tree.map(lambda mask, u, p: jnp.where(mask, u, -p), masks, updates, params)
    return updates, state._replace(clock=optax.ScaleByScheduleState(count), made=made, masks=masks, inner=inner)

  return optax.GradientTransformation(init, update)


def by_unit(x, axis: int, size: int):
  """An array with an axis of places × size -> [all else, size]."""
  return jnp.moveaxis(x, axis, -1).reshape(-1, size)


def spread(units, shape, axis: int):
  """[size] -> an array of this shape that says it of each unit along an axis of places × size."""
  along = jnp.tile(units, shape[axis] // len(units))
  return jnp.broadcast_to(along.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def largest(sizes, sparsity):
  """Which of [n] stay: all but the smallest, so many as this fraction of them; one at the least."""
  count = jnp.minimum(jnp.floor(sparsity * sizes.size).astype(jnp.int32), sizes.size - 1)
  return jnp.zeros(sizes.shape, bool).at[jnp.argsort(sizes)].set(jnp.arange(sizes.size) >= count)


def _largest_channels(channels, names, sparsity, masks, params):
  """The masks of arrays with these names, without the channels whose kernels' weights are smallest."""
  masks, params, new = dict(zip(names, masks)), dict(zip(names, params)), dict(zip(names, masks))
  for each in channels:
    size = lambda name, axis: by_unit(jnp.abs(jnp.where(masks[name], params[name], 0)), axis, each.size).sum(0)
    kept = largest(sum(size(*maker) for maker in each.makers), sparsity)
    for name, axis in each.members:
      if name in new:
        new[name] &= spread(kept, new[name].shape, axis)
  return list(new.values())


def _schedule(config, pace: Pace):
  """(updates, prunings made, masks, params) -> (masks, prunings made): see `pruned`."""
  first, until, every = config.sparsity_from, config.sparsity_until, config.sparsity_every
  if not (0 <= first <= until and 1 <= until <= config.steps and every >= 1):
    text = f'sparsity_from={first}, sparsity_until={until}, sparsity_every={every}'
    raise UsageError(
      f'{text}: from ≤ until is needed, until from 1 to the {config.steps} steps of the run, every from 1'
    )
  if config.structured and config.sparsity_scope == 'global':
    raise UsageError(
      'sparsity_scope=global: norms of channels of different layers do not compare; structured is by layer'
    )
  first, until, every = pace.made(first), max(1, pace.made(until)), max(1, int(every * pace.per_step))
  events = -(-(until - first) // every)  # before the last
  grouped = (lambda leaves: [leaves]) if config.sparsity_scope == 'global' else lambda leaves: [[x] for x in leaves]

  def smallest_pruned(sparsity, masks, params):
    """The masks of one group."""
    sizes = jnp.concatenate([jnp.where(mask, jnp.abs(p), -1).ravel() for mask, p in zip(masks, params)])
    kept = largest(sizes, sparsity)
    cuts = np.cumsum([mask.size for mask in masks])[:-1].tolist()
    return [part.reshape(mask.shape) for part, mask in zip(jnp.split(kept, cuts), masks)]

  def smallest_of_groups(sparsity, masks, params):
    groups = zip(grouped(masks), grouped(params))
    return [mask for group in groups for mask in smallest_pruned(sparsity, *group)]

  def masks_at(count, made, masks, params, channels):
    due = jnp.where(count >= until, events + 1, jnp.where(count >= first, (count - first) // every + 1, 0))
    leaves, tree = jax.tree.flatten(masks)
    at = [i for i, mask in enumerate(leaves) if mask.ndim]
    named = jax.tree_util.tree_leaves_with_path(params)
    names = ['params/' + jax.tree_util.keystr(named[i][0], simple=True, separator='/') for i in at]
    prune = functools.partial(_largest_channels, channels, names) if config.structured else smallest_of_groups

    @sequential_vmap  # for sorting is dear: of several seeds, too, only where it is due
    def renewed(due, made, masks, params):
      share = jnp.where(due > events, 1, (due - 1) * every / max(until - first, 1))
      sparsity = config.sparsity * (1 - (1 - share) ** 3)
      return jax.lax.cond(due > made, lambda: prune(sparsity, masks, params), lambda: masks)

    new = dict(zip(at, renewed(due, made, [leaves[i] for i in at], [named[i][1] for i in at])))
    return tree.unflatten([new.get(i, mask) for i, mask in enumerate(leaves)]), jnp.maximum(due, made)

  return masks_at
