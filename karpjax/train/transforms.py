"""Pure transformations of a Program's step: finite guard, many steps a call, vmapped seeds.

What is compiled takes a carry (the state, and the metric sums since the last log), which is donated, and gives the next
one. Many steps in one call are a `fori_loop` with a traced number of steps, so that logging, evaluation, checkpoints
and resumes, which cut a run into calls, never change the compiled program, and so never change a bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_batching import sequential_vmap

from karpjax import collectives
from karpjax.program import EVALUATE, FROZEN, Program, step_key


@struct.dataclass
class Carry:
  """What a step is given and gives, in global form or as it lies on the devices.

  The global form, which checkpoints hold whatever ran the program, is that of one device: `carried` and `buffers` are
  [batch, …]; with several seeds every leaf but the step counter has a leading axis [seeds, …].
  """

  state: Any
  totals: Any  # Metrics: sums and counts since the last log


# ---- the finite guard ----


def all_finite(tree) -> jax.Array:
  """[] bool: whether every floating-point number of a pytree is finite."""
  leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  # 0 · x is 0 for finite x, NaN for all others: several times faster than isfinite(x).all() on CPU.
  sums = jnp.stack([(0 * x).sum() for x in leaves])
  # Their sum is a product because XLA would take a plain one, of all leaves, into what is done with each leaf: minutes of
  # compilation for ResNet-56.
  return jnp.isfinite(jnp.vdot(sums, sums))


def guarded(step: Callable) -> Callable:
  """(carry, batch) -> carry: a Program's step that is kept only while it, and all before it, were finite.

  `buffers` are written in any case: to keep the old ones would take a copy of them at every step, and a seed that has
  diverged learns nothing from what is written.
  """

  def guard(carry: Carry, batch) -> Carry:
    old = carry.state
    new, metrics = step(old, batch)
    # without the optimiser, whose moments are NaN only with params or gradients, and buffers, checked when carried
    finite, alive = all_finite((new.replace(opt_state=(), buffers=()), metrics)), old.nonfinite_step < 0
    keep = lambda a, b: jnp.where(finite & alive, a, b)
    state = jax.tree.map(keep, new.replace(buffers=()), old.replace(buffers=())).replace(buffers=new.buffers)
    nonfinite_step = jnp.where(alive & ~finite, old.step, old.nonfinite_step)
    totals = jax.tree.map(jnp.add, carry.totals, dict(metrics))
    return Carry(state.replace(step=old.step + 1, nonfinite_step=nonfinite_step), totals)

  return guard


# ---- several seeds ----


def first_seed(state, seeds: int):
  """The state of the first seed, from the global form of a state."""
  return jax.tree.map(lambda x: x[0], state.replace(step=state.step[None])) if seeds > 1 else state


def stack_axes(state):
  """The axes of a state under `vmap` over seeds: not of the step counter, so that a `cond` on it stays a `cond`."""
  return jax.tree.map(lambda _: 0, state).replace(step=None)


def over_seeds(step: Callable, axes: Carry, batch_axis: int | None, sequential: bool) -> Callable:
  """(carry, batch) -> carry of several seeds, at once or one after the other."""
  if not sequential:
    return jax.vmap(step, (axes, batch_axis), axes)
  each = jax.vmap(sequential_vmap(step), (axes, batch_axis))

  def in_turn(carry, batch):
    carry = each(carry, batch)
    return carry.replace(state=carry.state.replace(step=carry.state.step[0]))

  return in_turn


# ---- what is compiled ----


def calls(program: Program, gather: Callable, state, *, seeds: int, shared: bool, sequential: bool):
  """The functions that are compiled, of a Program's step and evaluation.

  Args:
    program: what is run.
    gather: (arrays, numbers [batch]) -> the examples of these numbers.
    state: the structure of its states; with several seeds every leaf but the step counter has a leading axis [seeds,
      …].
    seeds: how many.
    shared: whether all seeds see the same batches, which then have no axis of seeds: members of a sweep with one seed
      do.
    sequential: whether a step is that of one seed after the other, rather than of all at once.

  Returns:
    Of steps each takes one more argument, the Program's `frozen`, by default none.

    one_batch: (carry, batch, reset_metrics) -> carry; batch: each [(seeds,) batch, …].
    one_step: (carry, arrays, numbers, reset_metrics) -> carry; arrays [size, …] on the device, numbers [(seeds,)
    batch]. many_steps: (carry, arrays, numbers, steps, reset_metrics) -> carry; numbers [most steps, (seeds,) batch],
    `steps` traced. add_sums: (state, sums, batch, mask) -> sums; the batch is that of all seeds.
  """
  step, axes = guarded(program.step), Carry(stack_axes(state), 0)

  def seeded(step):
    return step if seeds == 1 else over_seeds(step, axes, None if shared else 0, sequential)

  def reset(carry, reset_metrics):
    return carry.replace(totals=jax.tree.map(lambda x: jnp.where(reset_metrics, 0, x), carry.totals))

  def whole(frozen):
    return {FROZEN: frozen} if frozen else {}

  def one_batch(carry, batch, reset_metrics, frozen=None):
    return seeded(lambda c, b: step(c, {**b, **whole(frozen)}))(reset(carry, reset_metrics), batch)

  def gather_and_step(carry, arrays, numbers, frozen):
    return seeded(lambda c, n: step(c, {'index': n, **gather(arrays, n), **whole(frozen)}))(carry, numbers)

  def one_step(carry, arrays, numbers, reset_metrics, frozen=None):
    return gather_and_step(reset(carry, reset_metrics), arrays, numbers, frozen)

  def many_steps(carry, arrays, numbers, steps, reset_metrics, frozen=None):
    body = lambda i, carry: gather_and_step(carry, arrays, numbers[i], frozen)
    return jax.lax.fori_loop(0, steps, body, reset(carry, reset_metrics))

  def add_sums(state, sums, batch, mask):
    evaluate = lambda s: collectives.total(program.evaluate(s, {**batch, 'mask': mask}, step_key(s, EVALUATE)))
    if seeds > 1:
      evaluate = jax.vmap(sequential_vmap(evaluate) if sequential else evaluate, (axes.state,))
    return jax.tree.map(jnp.add, sums, evaluate(state))

  return one_batch, one_step, many_steps, add_sums
