"""How a Program runs: jit, many steps per call, vmapped seeds, pmap. Each is a transformation of the same pure step.

What is compiled takes a carry (the Program's state, and the metric sums since the last log), which is donated, and gives the
next one. Many steps in one call are a `fori_loop` with a traced number of steps, so that logging, evaluation, checkpoints
and resumes, which cut a run into calls, never change the compiled program, and so never change a bit.

Here is what is pure; `runner` binds it to data and devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from karpjax import collectives
from karpjax import program as programs


@struct.dataclass
class Carry:
  state: Any
  totals: Any  # Metrics: sums and counts since the last log


def _nothing(x):
  """0 · x summed: 0 for finite x, and NaN for all others. Several times faster than isfinite(x).all() on CPU."""
  return (0 * x).sum()


def _cpu_nothing(x):
  """The same by columns first. Without the barrier XLA makes one sum of both, which vectors serve less well: a
  twentieth of the step of bench lecun1989.
  """
  return jax.lax.optimization_barrier((0 * x).sum(tuple(range(x.ndim - 1)))).sum()


def all_finite(tree) -> jax.Array:
  """[] bool: whether every floating-point number of a pytree is finite."""
  leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  forms = {'cpu': _cpu_nothing, 'default': _nothing}
  sums = jnp.stack([jax.lax.platform_dependent(x, **forms) if x.ndim > 1 else _nothing(x) for x in leaves])
  # Their sum is a product because XLA would take a plain one, of all leaves, into what is done with each leaf: minutes of
  # compilation for ResNet-56.
  return jnp.isfinite(jnp.vdot(sums, sums))


def _guarded(state):
  """What is looked through for NaN: not optimisers, whose moments cannot be NaN where neither the params that they moved
  nor the gradient's norm are (6 % of the step of bench gpt_shakespeare_cpu); nor buffers, whose contents were looked
  through when they were carried.
  """
  return state.replace(opt_state=(), buffers=())


def guarded(step: Callable) -> Callable:
  """(carry, batch) -> carry: a Program's step that is kept only while it, and all before it, were finite.

  `buffers` are written in any case: to be able to keep the old ones would take a copy of them at every step, and a seed
  that is no more learns nothing from what is written.
  """

  def guard(carry: Carry, batch) -> Carry:
    old = carry.state
    new, metrics = step(old, batch)
    finite, alive = all_finite((_guarded(new), metrics)), old.nonfinite_step < 0
    keep = lambda a, b: jnp.where(finite & alive, a, b)
    kept = jax.tree.map(keep, new.replace(buffers=()), old.replace(buffers=())).replace(buffers=new.buffers)
    nonfinite_step = jnp.where(alive & ~finite, old.step, old.nonfinite_step)
    totals = jax.tree.map(jnp.add, carry.totals, dict(metrics))
    return Carry(kept.replace(step=old.step + 1, nonfinite_step=nonfinite_step), totals)

  return guard


def first_seed(state, seeds: int):
  """The state of the first seed, from the global form of a state."""
  return jax.tree.map(lambda x: x[0], state.replace(step=state.step[None])) if seeds > 1 else state


def _over_seeds(state):
  """The axes of a state under `vmap` over seeds: not of the step counter, so that a `cond` on it stays a `cond`."""
  return jax.tree.map(lambda _: 0, state).replace(step=None)


def one_by_one(function: Callable, axes, out) -> Callable:
  """As `jax.vmap` over seeds with in_axes `axes` and out_axes `out`, of 0 or None, but a loop: each after the other."""

  def among(axes, tree, choose):
    """A pytree whose leaves with an axis of seeds are chosen from."""
    of = lambda axis, part: part if axis is None else jax.tree.map(choose, part)
    return jax.tree.map(of, axes, tree, is_leaf=lambda x: x is None)

  def mapped(*args):
    seeds = []
    among(axes, args, lambda x: seeds.append(len(x)))
    made = jax.lax.map(lambda i: function(*among(axes, args, lambda x: x[i])), jnp.arange(seeds[0]))
    # what has no axis of seeds is the same for all
    first = jax.tree.map(lambda axis: 0 if axis is None else None, out, is_leaf=lambda x: x is None)
    return among(first, made, lambda x: x[0])

  return mapped


@dataclasses.dataclass(frozen=True)
class Calls:
  """The functions that are compiled. With several seeds every leaf but the step counter has a leading axis [seeds, …].

  Attributes:
    one_batch: (carry, batch, fresh) -> carry; batch: each [(seeds,) batch, …]. `fresh` forgets the metric sums first.
    one_step: (carry, arrays, numbers, fresh) -> carry; arrays [size, …] on the device, numbers [(seeds,) batch].
    many_steps: (carry, arrays, numbers, steps, fresh) -> carry; numbers [most steps, (seeds,) batch], `steps` traced.
    add_sums: (state, sums, batch, mask) -> sums; the batch is that of all seeds.
  """

  one_batch: Callable
  one_step: Callable
  many_steps: Callable
  add_sums: Callable


def calls(
  program: programs.Program, gather: Callable, state, seeds: int, shared: bool = False, in_turn: bool = False
) -> Calls:
  """Transforms a Program's step and evaluation.

  Args:
    program: what is run.
    gather: (arrays, numbers [batch]) -> the examples of these numbers.
    state: the structure of its states.
    seeds: how many.
    shared: whether all seeds see the same batches, which then have no axis of seeds: members of a sweep do.
    in_turn: whether a step is that of one seed after the other, rather than of all at once.
  """
  step, axes = guarded(program.step), Carry(_over_seeds(state), 0)
  own = None if shared else 0

  def seeded(function, axes, out):
    if seeds == 1:
      return function
    return one_by_one(function, axes, out) if in_turn else jax.vmap(function, axes, out)

  def refresh(carry, fresh):
    return carry.replace(totals=jax.tree.map(lambda x: jnp.where(fresh, 0, x), carry.totals))

  def one_batch(carry, batch, fresh):
    return seeded(step, (axes, own), axes)(refresh(carry, fresh), batch)

  def gather_and_step(carry, arrays, numbers):
    return seeded(lambda c, n: step(c, {**gather(arrays, n), 'index': n}), (axes, own), axes)(carry, numbers)

  def one_step(carry, arrays, numbers, fresh):
    return gather_and_step(refresh(carry, fresh), arrays, numbers)

  def many_steps(carry, arrays, numbers, steps, fresh):
    return jax.lax.fori_loop(0, steps, lambda i, c: gather_and_step(c, arrays, numbers[i]), refresh(carry, fresh))

  def add_sums(state, sums, batch, mask):
    batch = {**batch, 'mask': mask}
    evaluate = lambda s: collectives.total(program.evaluate(s, batch, programs.step_key(s, programs.EVALUATE)))
    return jax.tree.map(jnp.add, sums, seeded(evaluate, (axes.state,), 0)(state))

  return Calls(one_batch, one_step, many_steps, add_sums)
