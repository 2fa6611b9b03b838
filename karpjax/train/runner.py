"""A Program bound to its data and devices: `Feed` finds the examples of a step, `Runner` compiles and runs steps."""

import dataclasses
import functools
import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.data import batches
from karpjax.data.dataset import Dataset, Split
from karpjax.errors import UsageError, first_line, refuse_too_large
from karpjax.options import text as typed
from karpjax.program import FROZEN, Population, Program
from karpjax.train import compile, hosts, placement, runtime, transforms

CALL_SECONDS = 0.25  # of a call of many steps: short enough to be stopped, long enough to hide dispatch
GROWTH = 4  # of a call to the next: the first is slower than the others


def check_memory(state, seeds: int, num_state_shards: int = 1, array: int = 0) -> None:
  """Refuses what cannot fit, before anything is compiled: so many states, of which three live at once in a step.

  Args:
    state: the shapes of one seed's.
    seeds: how many of them.
    num_state_shards: over how many accelerators they are cut; the devices of a CPU share one memory.
    array: bytes of the largest array of a step, which all devices may have a part of.

  Raises:
    UsageError: which says how many seeds would fit.
  """
  needed = 3 * seeds * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  stats = jax.local_devices()[0].memory_stats() or {}
  here = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  available = stats.get('bytes_limit', 0) * num_state_shards or here
  if needed > available:
    text = f'seeds={seeds}: their parameters, optimiser states and gradients alone need {needed / 1e9:.1f} GB'
    most = int(seeds * available / needed)
    advice = f'at most seeds={most} could fit' if most else 'a smaller model is needed'
    raise UsageError(f'{text} and there are {available / 1e9:.1f} GB; {advice}')
  if array > (limit := stats.get('bytes_limit', 0) * jax.device_count() or here):
    text = f'one array of a step would need {array / 1e9:,.1f} GB, and there are {limit / 1e9:,.1f} GB'
    raise UsageError(f'{text}: make batches, rollouts or the model smaller')


class Feed:
  """The examples of training steps, on the devices: numbers of a resident split's, or batches of a streamed one.

  Attributes:
    shared: whether all seeds see the same batches, which then have no axis of seeds: members of a sweep may.
    seconds_waited: how long the host has spent on finding examples.
  """

  def __init__(self, split: Split, examples, config, seeds: Sequence[int], placed):
    order = config.order
    if order == 'bucketed':
      if split.lengths is None:
        raise UsageError('order=bucketed: the examples of this set are all of one length; give order=reshuffle')
      order = batches.by_length(split.lengths, config.batch_size)
    self.split, self.examples, self.config, self.order, self.placement = split, examples, config, order, placed
    self.rows = batches.rows(config.batch_size, split.size, order, placed.num_batch_shards * config.microbatches)
    self.shared, self.resident = len(set(seeds)) == 1, split.arrays is not None
    self.seeds = seeds[:1] if self.shared else seeds
    self.lead = () if self.shared else (len(seeds),)  # of a batch, before its rows
    self.seconds_waited, self._stream, self._next_step = 0.0, None, -1

  @functools.cached_property
  def numbers(self):
    """(start, steps) -> the example numbers of these steps, [steps, (seeds,) rows of the batch] int32."""
    options = dict(batch_size=self.config.batch_size, size=self.split.size, order=self.order)
    return functools.partial(_numbers, self.seeds, self.rows, self.placement.local_rows(self.rows), options)

  def _shard(self, tree, axis):
    return self.placement.shard(tree, axis, seeded=not self.shared)

  @functools.cached_property
  def arrays(self):
    """The resident split on every device."""
    return self.placement.shard(self.split.arrays)

  def structs(self, steps: int = 1):
    """The shapes of what `take` gives for a call of up to so many steps."""
    shape = (*self.lead, self.rows)
    if not self.resident:
      batch = {name: jax.ShapeDtypeStruct(shape + x.shape, x.dtype) for name, x in self.examples.items()}
      return (self._shard(batch, len(self.lead)),)
    numbers = jax.ShapeDtypeStruct((steps,) * (steps > 1) + shape, np.int32)
    arrays = jax.eval_shape(lambda x: x, self.split.arrays)
    return self.placement.shard(arrays), self._shard(numbers, len(numbers.shape) - 1)

  def take(self, start: int, stop: int, most: int) -> tuple:
    """The arguments of a call for steps start … stop − 1 between the carry and the rest, of up to `most` steps."""
    start_time = time.perf_counter()
    if self.resident:
      numbers = self.numbers(start, stop - start)
      if most > 1:
        numbers = np.concatenate([numbers, np.zeros((most - len(numbers), *numbers.shape[1:]), np.int32)])
      else:
        numbers = numbers[0]
      arguments = self.arrays, self._shard(numbers, numbers.ndim - 1)
    else:
      if self._next_step != start:
        numbers = lambda t, numbers=self.numbers: numbers(t, 1)[0]  # worker processes get it without the rest
        self._stream = batches.stream(self.split, numbers, start, self.config.steps, workers=self.config.workers)
      self._next_step = start + 1
      arguments = (self._shard(next(self._stream), len(self.lead)),)
    self.seconds_waited += time.perf_counter() - start_time
    return arguments


def _numbers(seeds, rows: int, local: slice, options, start: int, steps: int) -> np.ndarray:
  each = [batches.indices(seed, start, steps, **options) for seed in seeds]
  return batches.filled(each[0] if len(seeds) == 1 else np.stack(each, 1), rows)[..., local]


def _signature(batch) -> tuple:
  return tuple(sorted((name, x.shape[1:], x.dtype.name) for name, x in batch.items()))


class Runner:
  """A Program bound to its data and to the devices that the config names.

  Attributes:
    shapes: the global form of a carry, as ShapeDtypeStructs.
    placement, feed: where carries lie, and what steps are given.
    steps_per_call: how many steps a call makes at the most, once the step is compiled.

  Raises:
    UsageError: when the batch does not divide over the devices, or the seeds' states do not fit in memory.
  """

  calls, growing = 1, True  # how many steps the next call makes, and whether that is still to be found

  @refuse_too_large()
  def __init__(self, program: Program, dataset: Dataset, config):
    traced_once = {name: jax.jit(getattr(program, name), inline=True) for name in ('init', 'step', 'evaluate')}
    program = dataclasses.replace(program, **traced_once)
    self.program, self.dataset, self.config, seeds = program, dataset, config, config.seeds
    self.population = program.population or Population(range(config.seed, config.seed + seeds), {})
    poisson, train = config.order == 'poisson', dataset.splits['train']
    train = batches.padded(train) if poisson else train

    key = jax.eval_shape(lambda: jax.random.key(0))  # which compiles nothing
    state = jax.eval_shape(program.init, key)
    example = train.fetch(np.zeros(1, np.int32))
    examples = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in example.items()}
    examples['index'] = jax.ShapeDtypeStruct((), jnp.int32)
    batch_of = lambda size: {n: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for n, x in examples.items()}
    frozen = {FROZEN: program.frozen} if program.frozen else {}
    batch = batch_of(config.batch_size) | jax.eval_shape(lambda: frozen)
    traced, (_, metrics) = jax.make_jaxpr(program.step, return_shape=True)(state, batch)
    self.metrics = dict(metrics)
    self.flops = seeds * compile.estimate_flops(traced.jaxpr)
    once = compile.estimate_flops(traced.jaxpr, loops=False)
    self.shapes = jax.eval_shape(self._first_carry, jax.ShapeDtypeStruct((seeds,), np.uint32))
    self.placement = placement.place(config, self.shapes, program.axes, once)
    shards = self.placement.num_batch_shards
    if config.batch_size % (shards * config.microbatches) and not poisson:
      parts = f'{shards} devices' + (f' × microbatches={config.microbatches}' if config.microbatches > 1 else '')
      raise UsageError(f'batch_size={config.batch_size} does not divide over {parts}')
    if not config.topology:  # whose memory the compiler knows
      check_memory(state, seeds, self.placement.num_state_shards, compile.largest_array(traced.jaxpr))
    self.feed = Feed(train, examples, config, self.population.seeds, self.placement)
    size = min(config.eval_batch_size, max(split.size for split in dataset.splits.values()))
    self.eval_batch_size = -(-size // shards) * shards
    batch, mask = batch_of(self.eval_batch_size), jax.ShapeDtypeStruct((self.eval_batch_size,), jnp.bool_)
    self.sums = jax.eval_shape(program.evaluate, state, {**batch, 'mask': mask}, key)
    if unread := program.unread():
      raise UsageError(f'{unread[0]}={typed(getattr(config, unread[0]))}: the program makes no use of it')
    convolves = compile.contains_primitive('conv_general_dilated', traced.jaxpr)
    sequential = not config.topology and runtime.prefer_sequential_seeds(once, convolves)
    options = dict(seeds=seeds, shared=self.feed.shared, sequential=sequential)
    one_batch, one_step, self._many_steps, add_sums = transforms.calls(
      program, train.gather, self.shapes.state, **options
    )
    self._one_step = one_step if self.feed.resident else one_batch
    rows, sums = self.placement.shard(mask, 0), jax.eval_shape(lambda: self._zeros(self.sums))
    shapes = self.placement.put(self.shapes).state, self.placement.put_sums(sums)
    self._add_sums = self.placement.jit(add_sums, (*shapes, rows, rows), donated=1)
    self._evaluated, self._ready = (*shapes, mask), {}

  def _zeros(self, shapes):
    lead = (self.config.seeds,) if self.config.seeds > 1 else ()
    return jax.tree.map(lambda x: jnp.zeros(lead + x.shape, x.dtype), shapes)

  def _first_carry(self, seeds):
    keys = jax.vmap(jax.random.key)(seeds)
    totals = self._zeros(self.metrics)
    if self.config.seeds == 1:
      return transforms.Carry(self.program.init(keys[0]), totals)
    # One after the other: a vmapped orthogonal initialiser can deadlock on two cores (jax 0.10).
    states = jax.lax.map(self.program.init, keys)
    hyper = {name: jnp.array(values, jnp.float32) for name, values in self.population.hyper.items()}
    return transforms.Carry(states.replace(step=states.step[0], **({'hyper': hyper} if hyper else {})), totals)

  def init(self):
    """The first carry, in global form."""
    first_carry = jax.jit(self._first_carry, out_shardings=self.placement.out_shardings)
    return first_carry(np.array(self.population.seeds, np.uint32))

  def carry(self, state):
    """A carry of one seed's state, on the devices."""
    return self.placement.put(transforms.Carry(state, self._zeros(self.metrics)))

  # ---- training ----

  @functools.cached_property
  def frozen(self):
    """What a step reads and never changes, on every device."""
    return self.placement.shard(self.program.frozen)

  def _compile_step(self, steps: int):
    """A call of up to so many steps, compiled."""
    function, count = (self._many_steps, (np.int32(0),)) if steps > 1 else (self._one_step, ())
    arguments = self.placement.put(self.shapes), *self.feed.structs(steps), *count, np.bool_(False)
    arguments += (self.placement.shard(jax.eval_shape(lambda: self.program.frozen)),)
    runtime.trim_malloc()  # else the compiler's peak comes on top of what was freed before
    compiled = self.placement.jit(function, arguments, donated=0).lower(*arguments).compile()
    runtime.trim_malloc()
    return compiled

  def compile(self, steps_per_call: str | int = 'auto') -> dict:
    """Compiles the step, and gives its figures.

    Args:
      steps_per_call: how many steps a call makes at the most; 'auto' decides. Streamed sets take one.
    """
    start_time = time.perf_counter()
    examples = self.config.batch_size * (1 if self.feed.shared else self.config.seeds)
    auto = compile.steps_per_call(self.config.steps, examples, self.flops)
    self.steps_per_call = 1 if not self.feed.resident else auto if steps_per_call == 'auto' else int(steps_per_call)
    self.step = self._compile_step(self.steps_per_call)
    figures = {'flops': self.flops, 'seeds': self.config.seeds, 'compile_seconds': time.perf_counter() - start_time}
    return figures | compile.memory_analysis(self.step)

  def compile_evaluation(self) -> None:
    """Compiles what `evaluate` calls for the first split that is evaluated, so that the first call need not."""
    state, sums, mask = self._evaluated
    names = [n for n in self.config.eval_splits + self.config.final_splits if n in self.dataset.splits]
    for name in names[:1]:
      example = self.dataset.splits[name].fetch(np.zeros(1, np.int32))
      batch = {n: jax.ShapeDtypeStruct((*mask.shape, *x.shape[1:]), x.dtype) for n, x in example.items()}
      batch['index'] = jax.ShapeDtypeStruct(mask.shape, jnp.int32)
      compiled = self._add_sums.lower(state, sums, *self.placement.shard((batch, mask), 0)).compile()
      self._ready[_signature(batch)] = compiled

  def compile_only(self) -> dict:
    """What one step costs, with the collectives of a mesh; nothing is put on the devices."""
    try:
      step = self._compile_step(1)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      why = first_line(error).removeprefix('RESOURCE_EXHAUSTED: ')
      advice = 'Try a smaller batch_size, microbatches=2, dtype=bfloat16, or more devices with parallel=fsdp'
      raise UsageError(f'this step does not fit: {why} {advice}') from None
    return {'flops': self.flops, 'collectives': compile.collectives(step.as_text()), **compile.memory_analysis(step)}

  def next_boundary(self, t: int) -> int:
    """The step at which a call that begins at step t has to end: calls grow until they take CALL_SECONDS."""
    return t + min(self.calls, self.steps_per_call)

  def run_steps(self, carry, start: int, stop: int, reset_metrics: bool):
    """The carry after steps start … stop − 1, which lie in one call; its metric sums are of these alone, or go on."""
    arguments = self.feed.take(start, stop, self.steps_per_call)
    steps = (np.int32(stop - start),) if self.steps_per_call > 1 else ()
    start_time = time.perf_counter()
    carry = self.step(carry, *arguments, *steps, np.bool_(reset_metrics), self.frozen)
    if self.growing and self.steps_per_call > 1:
      jax.block_until_ready(carry)
      seconds = hosts.from_host0((time.perf_counter() - start_time) / (stop - start))  # all have to choose alike
      fits = max(1, min(int(CALL_SECONDS / max(seconds, 1e-9)), self.steps_per_call))
      self.growing, self.calls = fits > GROWTH * self.calls, min(fits, GROWTH * self.calls)
    return carry

  # ---- evaluation ----

  def evaluate(self, carry, name: str):
    """The sums of a split, on the host."""
    split, rows = self.dataset.splits[name], self.placement.local_rows(self.eval_batch_size)
    parts = [(numbers[rows], mask[rows]) for numbers, mask in batches.exact(split.size, self.eval_batch_size)]
    if split.arrays is None:
      read = batches.stream(split, lambda i: parts[i][0], 0, len(parts), workers=self.config.workers)
    else:  # from the host as well: sets of different sizes on the device would be as many programs to compile
      read = (batches.fetch(split, numbers) for numbers, _ in parts)
    sums = self.placement.put_sums(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._evaluated[1]))
    for batch, (_, mask) in zip(read, parts):
      add_sums = self._ready.get(_signature(batch), self._add_sums)
      sums = add_sums(carry.state, sums, *self.placement.shard((batch, mask), 0))
    return self.to_host(sums)

  def to_host(self, tree):
    """What every device holds alike, such as a carry's totals, on the host."""
    return jax.device_get(self.placement.get(tree))
