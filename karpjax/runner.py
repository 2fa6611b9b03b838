"""A Program bound to data and devices: what is compiled, where its arguments lie, and how many steps a call makes.

The global form of a carry, which checkpoints hold whatever ran the program, is that of one device: `per_example` leaves
[batch, …]; with several seeds every leaf but the step counter has a leading axis [seeds, …]. pmap's form has one more
leading axis [devices, …] on every leaf.
"""

import dataclasses
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

from karpjax import gradients, start_up, transform
from karpjax import program as programs
from karpjax.data import batches
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError

CALL_SECONDS = 0.25  # what a call of many steps should take: short enough to be stopped, long enough to hide dispatch
LARGEST_CALL = 8192


@dataclasses.dataclass(frozen=True)
class Runner:
  """A Program bound to data and devices.

  Attributes:
    shapes: the global form of a carry, as ShapeDtypeStructs.
    init: () -> carry, in global form.
    place: carry in global form -> on the devices; globalise: the reverse.
    prepare: (carry on the devices, choices) -> figures of the compiled step; fills in `choices`, a dict which a resumed
      run gives back.
    advance: (carry, start, stop, fresh) -> the carry after steps start … stop − 1, which must lie in one call;
      `fresh` forgets the metric sums first.
    call_end: t -> the first step beyond t at which a call has to end.
    evaluate: (carry, name of a split) -> its sums, on the host.
  """

  shapes: transform.Carry
  init: Callable
  place: Callable
  globalise: Callable
  prepare: Callable
  advance: Callable
  call_end: Callable
  evaluate: Callable


def check_memory(state, seeds: int) -> None:
  """Refuses so many states that cannot fit, before anything is compiled: three of each live at once in a step.

  Raises:
    UsageError: which says how many seeds would fit.
  """
  needed = 3 * seeds * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  stats = jax.local_devices()[0].memory_stats() or {}
  there = stats.get('bytes_limit') or os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  if needed > there:
    raise UsageError(
      f'--seeds={seeds}: their parameters, optimiser states and gradients alone need {needed / 1e9:.1f} GB and the device has '
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
  devices = jax.local_devices() if config.parallel == 'pmap' else None
  count = len(devices) if devices else 1
  if config.batch_size % (count * config.microbatches):
    parts = f'{count} devices' + (f' × --microbatches={config.microbatches}' if config.microbatches > 1 else '')
    raise UsageError(f'--batch_size={config.batch_size} does not divide over {parts}')
  eval_batch = min(config.eval_batch_size, max(split.size for split in dataset.splits.values()))
  eval_batch = -(-eval_batch // count) * count

  # ---- the global form ----
  state_shape = jax.eval_shape(program.init, jax.random.key(0))
  check_memory(state_shape, seeds)
  population = program.population or programs.Population(tuple(range(config.seed, config.seed + seeds)), {})
  keys = jax.vmap(jax.random.key)(jnp.array(population.seeds, jnp.uint32))

  def init(keys):
    if seeds == 1:
      return program.init(keys[0])
    # One after the other: a vmapped orthogonal initialiser can deadlock on two cores (jax 0.10).
    states = jax.lax.map(program.init, keys)
    hyper = {name: jnp.array(values, jnp.float32) for name, values in population.hyper.items()}
    return states.replace(step=states.step[0], **({'hyper': hyper} if hyper else {}))

  example = {name: array[:1] for name, array in (train.arrays or train.fetch(np.zeros(1, np.int32))).items()}
  batch = {name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for name, x in example.items()}
  batch['index'] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
  metric_shapes = jax.eval_shape(program.step, state_shape, batch)[1]
  zeros = jax.tree.map(lambda x: jnp.zeros((seeds,) if seeds > 1 else (), x.dtype), dict(metric_shapes))
  shapes = jax.eval_shape(lambda keys: transform.Carry(init(keys), zeros), keys)

  functions = transform.calls(program, shapes.state, seeds)

  # ---- devices ----
  def compiled(function, *arguments, replicated: int):
    """Ahead of time; all but the last `replicated` arguments have pmap's leading axis. The first is donated."""
    if devices:
      axes = (0,) * (len(arguments) - replicated) + (None,) * replicated
      mapped = jax.pmap(function, gradients.REPLICAS, in_axes=axes, devices=devices, donate_argnums=0)
    else:
      mapped = jax.jit(function, donate_argnums=0)
    lowered = mapped.lower(*arguments)
    if devices:
      made = lowered.compile()
      calls['flops'] = made.cost_analysis().get('flops')
    else:  # counted before compilation, because afterwards calls of a library, such as oneDNN, count as nothing
      calls['flops'] = lowered.cost_analysis().get('flops')
      calls['options'] = start_up.compiler_options(calls['flops'])
      made = lowered.compile(calls['options'])
    return made

  axis = 1 if seeds > 1 else 0  # of the batch, in an array [(seeds,) batch, …]

  def cut(x, axis=axis):  # [.., batch, ..] -> [devices, .., batch / devices, ..]
    if not devices:
      return x
    x = np.asarray(x)
    return np.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

  def join(x):  # the reverse of cut
    x = np.moveaxis(np.asarray(x), 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

  def relaid(carry, per_example, rest):
    parts = jax.tree.map(per_example, carry.state.per_example)
    carry = rest(carry.replace(state=carry.state.replace(per_example={})))
    return carry.replace(state=carry.state.replace(per_example=parts))

  def replicate(tree):
    return jax_utils.replicate(tree, devices) if devices else jax.tree.map(jnp.array, tree)  # a copy: calls donate it

  def place(carry):
    return relaid(carry, cut, replicate)

  def globalise(carry):
    return relaid(carry, join, jax_utils.unreplicate) if devices else carry

  resident = {}

  def on_devices(name: str):
    """A split's arrays on the devices, put there once."""
    if name not in resident:
      resident[name] = replicate(dataset.splits[name].arrays)
    return resident[name]

  # ---- training ----
  calls = {}  # filled by prepare: 'one' or 'many', compiled; 'steps', how many it makes at the most; …
  streaming = {}  # the iterator of streamed batches, and the step it has come to

  def numbers_of(start, steps):  # [steps, (seeds,) batch]
    rows = [
      batches.indices(seed, start, steps, batch_size=config.batch_size, size=train.size, order=config.order)
      for seed in population.seeds
    ]
    return np.stack(rows, 1) if seeds > 1 else rows[0]

  def advance_many(carry, start, stop, fresh):
    numbers = np.zeros((calls['steps'], *shape_of_numbers), np.int32)
    numbers[: stop - start] = numbers_of(start, stop - start)
    return calls['many'](carry, on_devices('train'), cut(numbers, axis + 1), np.int32(stop - start), np.bool_(fresh))

  def advance_one(carry, start, stop, fresh):
    return calls['one'](carry, on_devices('train'), cut(numbers_of(start, 1)[0]), np.bool_(fresh))

  def next_streamed(t):
    if streaming.get('t') != t:
      numbers = lambda t: numbers_of(t, 1)[0]
      streaming['batches'] = batches.stream(train, numbers, t, config.steps, workers=config.workers)
    streaming['t'] = t + 1
    return jax.tree.map(cut, next(streaming['batches']))

  def advance_streamed(carry, start, stop, fresh):
    return calls['one'](carry, next_streamed(start), np.bool_(fresh))

  shape_of_numbers = (seeds, config.batch_size) if seeds > 1 else (config.batch_size,)

  def compile_many(carry, steps):
    numbers = cut(np.zeros((steps, *shape_of_numbers), np.int32), axis + 1)
    calls.update(
      many=compiled(
        functions.many_steps, carry, on_devices('train'), numbers, np.int32(0), np.bool_(False), replicated=2
      ),
      steps=steps,
    )

  def seconds(advance, carry, steps, times=3):
    """Median seconds of a step, on a copy of the carry: trying changes nothing."""
    measured = []
    for _ in range(times + 1):
      copy = jax.block_until_ready(jax.tree.map(jnp.copy, carry))
      begun = time.perf_counter()
      jax.block_until_ready(advance(copy, 0, steps, False))
      measured.append((time.perf_counter() - begun) / steps)
    return sorted(measured[1:])[times // 2]

  def prepare(carry, choices):
    begun = time.perf_counter()
    wanted = choices.get('steps_per_call', config.steps_per_call)
    if train.arrays is None:
      batch = jax.tree.map(cut, batches.fetch(train, numbers_of(0, 1)[0]))
      calls.update(one=compiled(functions.one_batch, carry, batch, np.bool_(False), replicated=1), steps=1)
    elif wanted == 'auto':
      numbers = cut(numbers_of(0, 1)[0])
      calls.update(
        one=compiled(functions.one_step, carry, on_devices('train'), numbers, np.bool_(False), replicated=1), steps=1
      )
      _choose_steps(carry)
    elif int(wanted) == 1:
      numbers = cut(numbers_of(0, 1)[0])
      calls.update(
        one=compiled(functions.one_step, carry, on_devices('train'), numbers, np.bool_(False), replicated=1), steps=1
      )
    else:
      compile_many(carry, int(wanted))
    choices['steps_per_call'] = calls['steps']
    seconds = time.perf_counter() - begun
    return {'flops': calls['flops'], 'seeds': seeds, 'compile_seconds': seconds} | figures(
      calls.get('many') or calls['one']
    )

  def _choose_steps(carry):
    """Many steps a call only where that measures faster than one: a loop can be slower (convolutions on CPU)."""
    one = seconds(advance_one, carry, 1)
    if one > CALL_SECONDS / 4 or config.steps == 1:
      return
    steps = int(min(LARGEST_CALL, config.steps, 2 ** np.ceil(np.log2(CALL_SECONDS / one) + 2)))
    compile_many(carry, steps)
    first = seconds(advance_many, carry, 1, times=1)
    trial = max(1, min(steps, int(CALL_SECONDS / first)))
    if seconds(advance_many, carry, trial) < one:
      calls.pop('one')
    else:
      calls.pop('many')
      calls['steps'] = 1

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
    streamed = split.arrays is None and batches.stream(
      split, lambda i: parts[i][0], 0, len(parts), workers=config.workers
    )
    sums = replicate(sum_zeros)
    for numbers, mask in parts:
      data, numbers = (
        (jax.tree.map(lambda x: cut(x, 0), next(streamed)), None) if streamed else (on_devices(name), cut(numbers, 0))
      )
      sums = add_sums(carry.state, sums, data, numbers, cut(mask, 0))
    return jax.device_get(jax_utils.unreplicate(sums) if devices else sums)

  eval_shapes = {name: jax.ShapeDtypeStruct((eval_batch, *x.shape[1:]), x.dtype) for name, x in example.items()}
  eval_shapes |= {
    'index': jax.ShapeDtypeStruct((eval_batch,), jnp.int32),
    'mask': jax.ShapeDtypeStruct((eval_batch,), jnp.bool_),
  }
  sum_shapes = jax.eval_shape(program.evaluate, state_shape, eval_shapes, jax.random.key(0))
  sum_zeros = jax.tree.map(lambda x: jnp.zeros(((seeds,) if seeds > 1 else ()) + x.shape, x.dtype), sum_shapes)

  def add_sums(*arguments):
    if 'add' not in calls:
      if devices:
        calls['add'] = jax.pmap(functions.add_sums, gradients.REPLICAS, devices=devices, donate_argnums=1)
      else:
        calls['add'] = jax.jit(functions.add_sums, donate_argnums=1, compiler_options=calls.get('options'))
    return calls['add'](*arguments)

  return Runner(
    shapes=shapes,
    init=lambda: jax.jit(lambda keys: transform.Carry(init(keys), zeros))(keys),
    place=place,
    globalise=globalise,
    prepare=prepare,
    advance=advance,
    call_end=call_end,
    evaluate=evaluate_split,
  )


def figures(compiled) -> dict:
  """What the compiler says of a program, all seeds together, in bytes: read and written, of arguments, of temporaries."""
  memory = compiled.memory_analysis()
  return {
    'bytes': compiled.cost_analysis().get('bytes accessed'),
    'argument_bytes': getattr(memory, 'argument_size_in_bytes', None),
    'temporary_bytes': getattr(memory, 'temp_size_in_bytes', None),
  }
