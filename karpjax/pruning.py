"""Magnitude pruning of any experiment's kernels, by the schedule of Zhu & Gupta 2017, and the tickets of Frankle & Carbin 2019."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.custom_batching import sequential_vmap

from karpjax import axes
from karpjax.durations import Pace
from karpjax.errors import UsageError


class Pruned(NamedTuple):
  """The state of an optimiser that prunes."""

  clock: optax.ScaleByScheduleState  # of its updates
  made: jax.Array  # [] int32: how many prunings
  masks: Any  # bool, like params: False where they are pruned; [] of what is spared
  inner: optax.OptState  # of the optimiser


def pruned(optimiser: optax.GradientTransformation, config, pace: Pace = Pace()) -> optax.GradientTransformation:
  """An optimiser whose updates set pruned weights to exactly 0, and keep them there; it sees no gradient of them.

  After t updates, t = from, from + every, … and until, the smallest of the weights are pruned, so many that of them are 0

    sparsity · (1 − (1 − (t − from) / (until − from))³)    (Zhu & Gupta 2017, eq. 1, from a sparsity of 0)

  of each kernel or, where the scope is global, of all. Kernels are what `axes.kernels` says; biases, norms and embeddings
  are spared.

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
    if not any(kernels):
      raise UsageError('sparsity, mask_from: the model has no kernels to prune')
    masks = [jnp.ones(p.shape if kernel else (), bool) for kernel, p in zip(kernels, leaves)]
    zero = jnp.zeros((), jnp.int32)
    return Pruned(optax.ScaleByScheduleState(zero), zero, tree.unflatten(masks), optimiser.init(params))

  def update(gradients, state, params=None):
    masked = jax.tree.map(lambda mask, g: jnp.where(mask, g, 0), state.masks, gradients)
    updates, inner = optimiser.update(masked, state.inner, params)
    count, masks, made = optax.safe_increment(state.clock.count), state.masks, state.made
    if masks_at:
      masks, made = masks_at(count, made, masks, optax.apply_updates(params, updates))
    updates = jax.tree.map(lambda mask, u, p: jnp.where(mask, u, -p), masks, updates, params)
    return updates, Pruned(optax.ScaleByScheduleState(count), made, masks, inner)

  return optax.GradientTransformation(init, update)


def _schedule(config, pace: Pace):
  """(updates, prunings made, masks, params) -> (masks, prunings made): see `pruned`."""
  first, until, every = config.sparsity_from, config.sparsity_until, config.sparsity_every
  if not (0 <= first <= until and 1 <= until <= config.steps and every >= 1):
    text = f'sparsity_from={first}, sparsity_until={until}, sparsity_every={every}'
    raise UsageError(
      f'{text}: from ≤ until is needed, until from 1 to the {config.steps} steps of the run, every from 1'
    )
  first, until, every = pace.made(first), max(1, pace.made(until)), max(1, int(every * pace.per_step))
  events = -(-(until - first) // every)  # before the last
  grouped = (lambda leaves: [leaves]) if config.sparsity_scope == 'global' else lambda leaves: [[x] for x in leaves]

  def smallest_pruned(sparsity, masks, params):
    """The masks of one group."""
    sizes = jnp.concatenate([jnp.where(mask, jnp.abs(p), -1).ravel() for mask, p in zip(masks, params)])
    count = jnp.minimum(jnp.floor(sparsity * sizes.size).astype(jnp.int32), sizes.size - 1)
    kept = jnp.zeros(sizes.shape, bool).at[jnp.argsort(sizes)].set(jnp.arange(sizes.size) >= count)
    cuts = np.cumsum([mask.size for mask in masks])[:-1].tolist()
    return [part.reshape(mask.shape) for part, mask in zip(jnp.split(kept, cuts), masks)]

  @sequential_vmap  # for sorting is dear: of several seeds, too, only where it is due
  def renewed(due, made, masks, params):
    share = jnp.where(due > events, 1, (due - 1) * every / max(until - first, 1))
    sparsity = config.sparsity * (1 - (1 - share) ** 3)

    def prune():
      groups = zip(grouped(masks), grouped(params))
      return [mask for group in groups for mask in smallest_pruned(sparsity, *group)]

    return jax.lax.cond(due > made, prune, lambda: masks)

  def masks_at(count, made, masks, params):
    due = jnp.where(count >= until, events + 1, jnp.where(count >= first, (count - first) // every + 1, 0))
    leaves, tree = jax.tree.flatten(masks)
    at = [i for i, mask in enumerate(leaves) if mask.ndim]
    params = jax.tree.leaves(params)
    new = dict(zip(at, renewed(due, made, [leaves[i] for i in at], [params[i] for i in at])))
    return tree.unflatten([new.get(i, mask) for i, mask in enumerate(leaves)]), jnp.maximum(due, made)

  return masks_at
