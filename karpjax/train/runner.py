"""A Program bound to data and devices: what is compiled, where its arguments lie, and what a call of it is given.

The global form of a carry, which checkpoints hold whatever ran the program, is that of one device: `per_example` leaves
[batch, …]; with several seeds every leaf but the step counter has a leading axis [seeds, …]. pmap's form has one more
leading axis [devices, …] on every leaf.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import program as programs
from karpjax.data import batches
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.train import costs, layouts, runtime, steps_per_call
from karpjax.train import transforms as transform


@dataclasses.dataclass(frozen=True)
class Runner:
  """A Program bound to data and devices.

  Attributes:
    shapes: the global form of a carry, as ShapeDtypeStructs.
    init: () -> carry, in global form.
    place: carry in global form -> on the devices; globalise: the reverse.
    fetch: what every device holds alike, such as a carry's totals -> on the host.
    prepare: (carry on the devices, choices) -> figures of the compiled step; fills in `choices`, a dict which a resumed
      run gives back.
    compile_only: () -> what one step costs, with the collectives of a mesh; nothing is put on the devices.
    advance: (carry, start, stop, fresh) -> the carry after steps start … stop − 1, which must lie in one call;
      `fresh` forgets the metric sums first.
    waited: {'input': seconds that `advance` has spent on finding its examples}.
    call_end: t -> the first step beyond t at which a call has to end.
    evaluate: (carry, name of a split) -> its sums, on the host.
  """

  shapes: transform.Carry
  init: Callable
  place: Callable
  globalise: Callable
  fetch: Callable
  prepare: Callable
  compile_only: Callable
  advance: Callable
  waited: dict
  call_end: Callable
  evaluate: Callable


def check_memory(state, seeds: int, pieces: int = 1) -> None:
  """Refuses so many states that cannot fit, before anything is compiled: three of each live at once in a step.

  Args:
    state: the shapes of one seed's.
    seeds: how many of them.
    pieces: over how many accelerators they are cut; the devices of a CPU share one memory.

  Raises:
    UsageError: which says how many seeds would fit.
  """
  needed = 3 * seeds * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  stats = jax.local_devices()[0].memory_stats() or {}
  there = stats.get('bytes_limit', 0) * pieces or os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  if needed > there:
    raise UsageError(
      f'--seeds={seeds}: their parameters, optimiser states and gradients alone need {needed / 1e9:.1f} GB and there are '
      f'{there / 1e9:.1f} GB; at most --seeds={max(1, int(seeds * there / needed))} could fit'
    )


def bind(program: programs.Program, dataset: Dataset, config) -> Runner:
  """Binds a Program to its data and to the devices that the config names.

  Args:
    program: pure functions.
    dataset: with a 'train' split.
    config: a resolved `config.Train`.

  Raises:
    UsageError: when the batch does not divide over the devices, or the seeds' states do not fit in memory.
  """
  train, seeds = dataset.splits['train'], config.seeds
  layout = layouts.choose(config, program.axes)
  count = layout.parts
  if config.batch_size % (count * config.microbatches):
    parts = f'{count} devices' + (f' × --microbatches={config.microbatches}' if config.microbatches > 1 else '')
    raise UsageError(f'--batch_size={config.batch_size} does not divide over {parts}')
  eval_batch = min(config.eval_batch_size, max(split.size for split in dataset.splits.values()))
  eval_batch = -(-eval_batch // count) * count

  # ---- the global form ----
  state_shape = jax.eval_shape(program.init, jax.random.key(0))
  if not config.topology:  # whose memory the compiler knows
    check_memory(state_shape, seeds, layout.pieces)
  population = program.population or programs.Population(tuple(range(config.seed, config.seed + seeds)), {})
  keys = jax.vmap(jax.random.key)(jnp.array(population.seeds, jnp.uint32))

  def init(keys):
    if seeds == 1:
      return program.init(keys[0])
    # One after the other: a vmapped orthogonal initialiser can deadlock on two cores (jax 0.10).
    states = jax.lax.map(program.init, keys)
    hyper = {name: jnp.array(values, jnp.float32) for name, values in population.hyper.items()}
    return states.replace(step=states.step[0], **({'hyper': hyper} if hyper else {}))

  example = train.fetch(np.zeros(1, np.int32))
  batch = {name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for name, x in example.items()}
  batch['index'] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  traced, (_, metric_shapes) = jax.make_jaxpr(program.step, return_shape=True)(state_shape, batch)
  zeros = jax.tree.map(lambda x: jnp.zeros((seeds,) if seeds > 1 else (), x.dtype), dict(metric_shapes))
  first_carry = lambda keys: transform.Carry(init(keys), zeros)
  shapes = jax.eval_shape(first_carry, keys)
  layout.lay(shapes)

  shared = seeds > 1 and len(set(population.seeds)) == 1  # members of a sweep may all have one seed, so one data order
  flops, _ = costs.work(traced.jaxpr)
  in_turn = not config.topology and runtime.prefer_sequential_seeds(
    flops, costs.uses('conv_general_dilated', traced.jaxpr)
  )
  functions = transform.calls(program, train.gather, shapes.state, seeds, shared, in_turn)

  resident = {}

  def on_devices(name: str):
    """A split's arrays on the devices, put there once."""
    if name not in resident:
      resident[name] = layout.replicate(dataset.splits[name].arrays)
    return resident[name]

  # ---- training ----
  order = config.order
  if order == 'bucketed':
    if train.lengths is None:
      raise UsageError('--order=bucketed: the examples of this set are all of one length; type --order=reshuffle')
    order = batches.by_length(train.lengths, config.batch_size)
  calls = {}  # filled by prepare: 'one' or 'many', compiled; 'steps', how many it makes at the most; …
  waited = {'input': 0.0}
  streaming = {}  # the iterator of streamed batches, and the step it has come to

  def numbers_of(start, steps):  # [steps, (seeds,) batch]
    one = functools.cache(
      lambda seed: batches.indices(seed, start, steps, batch_size=config.batch_size, size=train.size, order=order)
    )
    rows = [one(seed) for seed in population.seeds]
    return rows[0] if seeds == 1 or shared else np.stack(rows, 1)

  axis = 0 if seeds == 1 or shared else 1  # of the batch, in an array [(seeds,) batch, …]
  rows = (slice(None),) * axis + (layout.rows(config.batch_size),)  # of a batch, that this host supplies
  shape_of_numbers = numbers_of(0, 1)[0][rows].shape

  def numbers_here(start, steps):  # [steps, (seeds,) rows of the batch]
    return numbers_of(start, steps)[(slice(None), *rows)]

  def cut(x):
    return layout.cut(x, axis)

  @contextlib.contextmanager
  def waiting():
    begun = time.perf_counter()
    yield
    waited['input'] += time.perf_counter() - begun

  def advance_many(carry, start, stop, fresh):
    with waiting():
      numbers = np.zeros((calls['steps'], *shape_of_numbers), np.int32)
      numbers[: stop - start] = numbers_here(start, stop - start)
      numbers = layout.cut(numbers, axis + 1)
    return calls['many'](carry, on_devices('train'), numbers, np.int32(stop - start), np.bool_(fresh))

  def advance_one(carry, start, stop, fresh):
    with waiting():
      numbers = cut(numbers_here(start, 1)[0])
    return calls['one'](carry, on_devices('train'), numbers, np.bool_(fresh))

  def next_streamed(t):
    if streaming.get('t') != t:
      numbers = lambda t: numbers_here(t, 1)[0]
      streaming['batches'] = batches.stream(train, numbers, t, config.steps, workers=config.workers)
    streaming['t'] = t + 1
    return jax.tree.map(cut, next(streaming['batches']))

  def advance_streamed(carry, start, stop, fresh):
    with waiting():
      batch = next_streamed(start)
    return calls['one'](carry, batch, np.bool_(fresh))

  def compile_step(name, function, steps, *arguments, replicated):
    calls[name], calls['flops'] = layout.compile(function, arguments, replicated, flops)
    calls['steps'] = steps

  def compile_many(carry, steps):
    numbers = layout.cut(np.zeros((steps, *shape_of_numbers), np.int32), axis + 1)
    arguments = carry, on_devices('train'), numbers, np.int32(0), np.bool_(False)
    compile_step('many', functions.many_steps, steps, *arguments, replicated=2)

  def compile_one(carry, arrays):  # arrays: the resident train split, or None where it is streamed
    numbers = numbers_here(0, 1)[0]
    if arrays is None:
      batch = jax.tree.map(cut, batches.fetch(train, numbers))
      compile_step('one', functions.one_batch, 1, carry, batch, np.bool_(False), replicated=1)
    else:
      compile_step('one', functions.one_step, 1, carry, arrays, cut(numbers), np.bool_(False), replicated=1)

  def prepare(carry, choices):
    begun = time.perf_counter()
    wanted = choices.get('steps_per_call', config.steps_per_call)
    if train.arrays is None:
      compile_one(carry, None)
    elif wanted == 'auto' or int(wanted) == 1:
      compile_one(carry, on_devices('train'))
      if wanted == 'auto':
        chosen = steps_per_call.choose(carry, config.steps, advance_one, compile_many, advance_many)
        calls.pop('one' if chosen > 1 else 'many', None)
        calls['steps'] = chosen
    else:
      compile_many(carry, int(wanted))
    choices['steps_per_call'] = calls['steps']
    seconds = time.perf_counter() - begun
    return {'flops': calls['flops'], 'seeds': seeds, 'compile_seconds': seconds} | costs.figures(
      calls.get('many') or calls['one']
    )

  def compile_only():
    try:
      compile_one(layout.shapes(shapes), layout.replicated_shapes(train.arrays) if train.arrays is not None else None)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      why = str(error).splitlines()[0].removeprefix('RESOURCE_EXHAUSTED: ')
      raise UsageError(
        f'this step does not fit: {why} Try a smaller --batch_size, --microbatches=2, --dtype=bfloat16, or more devices '
        'with --parallel=fsdp'
      ) from None
    made = calls['one']
    return {'flops': calls['flops'], 'collectives': costs.collectives(made.as_text()), **costs.figures(made)}

  def call_end(t):
    return (t // calls['steps'] + 1) * calls['steps']

  def advance(carry, start, stop, fresh):
    if train.arrays is None:
      return advance_streamed(carry, start, stop, fresh)
    return (advance_many if 'many' in calls else advance_one)(carry, start, stop, fresh)

  # ---- evaluation ----
  def evaluate_split(carry, name):
    split = dataset.splits[name]
    parts = list(batches.exact(split.size, eval_batch))
    here = layout.rows(eval_batch)
    numbers = lambda i: parts[i][0][here]
    if split.arrays is None:
      read = batches.stream(split, numbers, 0, len(parts), workers=config.workers)
    else:  # from the host as well: sets of different sizes on the device would be as many programs to compile
      read = (batches.fetch(split, numbers(i)) for i in range(len(parts)))
    sums = layout.sums(sum_zeros)
    for batch, (_, mask) in zip(read, parts):
      if 'add' not in calls:
        calls['add'] = layout.compile_sums(functions.add_sums, flops)
      sums = calls['add'](carry.state, sums, *jax.tree.map(lambda x: layout.cut(x, 0), (batch, mask[here])))
    return layout.fetch(sums)

  eval_shapes = {name: jax.ShapeDtypeStruct((eval_batch, *x.shape[1:]), x.dtype) for name, x in example.items()}
  eval_shapes |= {
    'index': jax.ShapeDtypeStruct((eval_batch,), jnp.int32),
    'mask': jax.ShapeDtypeStruct((eval_batch,), jnp.bool_),
  }
  sum_shapes = jax.eval_shape(program.evaluate, state_shape, eval_shapes, jax.random.key(0))
  sum_zeros = jax.tree.map(lambda x: jnp.zeros(((seeds,) if seeds > 1 else ()) + x.shape, x.dtype), sum_shapes)

  return Runner(
    shapes=shapes,
    init=lambda: layout.init(first_carry, keys),
    place=layout.place,
    globalise=layout.globalise,
    fetch=layout.fetch,
    prepare=prepare,
    compile_only=compile_only,
    advance=advance,
    waited=waited,
    call_end=call_end,
    evaluate=evaluate_split,
  )
