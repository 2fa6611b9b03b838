"""From a loss to gradients and metrics: the one place where microbatches and devices meet.

A loss returns sums and counts. The gradients of the sum are accumulated over microbatches, summed over replicas and
divided once by the whole count, so that masks and padding weigh the same however a batch is cut.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from karpjax import program

REPLICAS = 'replicas'  # the axis name under which `transform` maps a step over devices


def replicas() -> int:
  """How many replicas share this trace's batch: 1 outside the mapped axis."""
  try:
    return jax.lax.axis_size(REPLICAS)
  except NameError:
    return 1


def total(tree):
  """Sum over replicas, leaf by leaf; the identity on one device."""
  return jax.lax.psum(tree, REPLICAS) if replicas() > 1 else tree


def mean(tree):
  """Mean over replicas, leaf by leaf; the identity on one device."""
  return jax.lax.pmean(tree, REPLICAS) if replicas() > 1 else tree


def largest(tree):
  """Maximum over replicas, leaf by leaf; the identity on one device."""
  return jax.lax.pmax(tree, REPLICAS) if replicas() > 1 else tree


def gather(tree):
  """[batch of one replica, ...] -> [whole batch, ...], leaf by leaf; the identity on one device."""
  return jax.lax.all_gather(tree, REPLICAS, tiled=True) if replicas() > 1 else tree


def offset(batch_size: int):
  """Where this replica's rows begin in the whole batch: 0 on one device."""
  return jax.lax.axis_index(REPLICAS) * batch_size if replicas() > 1 else 0


def compute(loss: Callable, *, microbatches: int = 1) -> Callable:
  """The gradient of a loss's mean over the whole batch.

  Args:
    loss: (params, collections, batch, key) -> (metrics, collections); `metrics['loss']` is the (sum, count) to minimise.
      It may give a third value: what goes on with each example, a pytree of [batch, …].
    microbatches: in how many equal parts, one after the other, the batch of one replica is worked off.

  Returns:
    (params, collections, batch, key) -> (gradients, metrics, collections), alike on every replica, and the loss's third
    value, {} where it gives none.
  """

  def summed(params, collections, batch, key):
    metrics, collections, *each = loss(params, collections, batch, key)
    return metrics['loss'][0], (metrics, collections, each[0] if each else {})

  one = jax.grad(summed, has_aux=True)

  def gradients(params, collections, batch, key):
    if microbatches == 1:
      grads, (metrics, collections, each) = one(params, collections, batch, key)
    else:
      # [batch, ...] -> [microbatches, batch / microbatches, ...]: every microbatches-th row, so that each device
      # of a mesh finds its share of every part among its own rows, and parts are the same on any number of devices
      parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
      first = jax.tree.map(lambda x: x[0], parts)
      shapes = jax.eval_shape(one, params, collections, first, key)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))

      def add(carry, part):
        (grads, metrics), collections = carry
        new_grads, (new_metrics, collections, each) = one(params, collections, part, key)
        return (jax.tree.map(jnp.add, (grads, metrics), (new_grads, new_metrics)), collections), each

      ((grads, metrics), collections), each = jax.lax.scan(add, (zeros, collections), parts)
      each = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), each)  # back to [batch, …]
    grads, metrics = total((grads, metrics))
    count = jnp.maximum(metrics['loss'][1], 1)  # a batch that is all mask has no gradient
    return jax.tree.map(lambda g: g / count.astype(g.dtype), grads), metrics, collections, each

  return gradients


def train_step(loss: Callable, optimiser, *, microbatches: int = 1, ema_decay: float = 0.0) -> Callable:
  """The ordinary step of one player: gradients, optimiser, running average.

  Args:
    loss: as for `compute`; its key is that of the step, to be folded with a purpose.
    optimiser: optax GradientTransformation.
    microbatches: see `compute`.
    ema_decay: of the running average of params; 0 keeps none.

  Returns:
    (TrainState, batch) -> (TrainState, metrics); metrics gain 'gradient_norm', the global norm before clipping. Where the
    state has something per example, the loss finds it as batch['carried'] and gives what it becomes as its third value.
  """
  gradients = compute(loss, microbatches=microbatches)

  def step(state: program.TrainState, batch):
    key = jax.random.fold_in(state.key, state.step)
    if state.per_example:
      batch = {**batch, 'carried': state.per_example}
    grads, metrics, collections, each = gradients(state.params, state.collections, batch, key)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      ema = optax.incremental_update(params, ema, 1 - ema_decay)
    metrics = {**metrics, 'gradient_norm': (optax.global_norm(grads), jnp.ones(()))}
    state = state.replace(step=state.step + 1, params=params, collections=collections, opt_state=opt_state, ema=ema)
    return state.replace(per_example=each), metrics

  return step
