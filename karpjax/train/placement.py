"""Device placement: one device, `pmap`, a mesh, or seeds over devices.

A placement is made for the shapes of one carry, in global form, which is that of one device and of checkpoints. Each has

  layout            its name, for start-up
  num_batch_shards  over how many devices a batch is cut
  num_state_shards  over how many devices one state, or several seeds' states, are cut
  out_shardings     of a carry that a jitted function initialises; None: as one device has it
  put               a carry in global form -> on the devices
  put_sums          an evaluation's sums -> on the devices
  get               a carry on the devices -> in global form; or what all devices hold alike -> on this host
  shard             this host's arrays -> cut along the axis of the batch; without an axis whole on every device
  local_rows        the rows of a batch that this host supplies
  compile_step      a function of a carry, which is donated -> compiled; as many of the last arguments as are `replicated`
                    are alike on all devices
  jit_sums          (state, sums, batch, mask) -> sums, compiled when it is called; sums are donated

Wherever it takes arrays it takes their ShapeDtypeStructs as well, and says how they would lie.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from karpjax import collectives
from karpjax.errors import UsageError
from karpjax.train import hosts, mesh, runtime
from karpjax.train.transforms import Carry


def place(config, shapes: Carry, axes=None, flops: float = 0):
  """The placement that `parallel`, `mesh` and `topology` name.

  Args:
    config: a resolved `config.Train`.
    shapes: of a carry, in global form.
    axes: the Program's; see `mesh.shardings`.
    flops: of one seed's step, which decide how a CPU's compiler is told to work.

  Raises:
    UsageError: for a mesh that does not fit the devices, or a placement of one host where there are several.
  """
  devices = mesh.described_devices(config.topology) if config.topology else jax.devices()
  if config.topology and not config.mesh:
    if config.parallel == 'pmap':
      raise UsageError('topology: parallel=pmap needs devices that are there; give parallel=data')
    if config.parallel == 'none':
      devices = devices[:1]
  if config.parallel == 'seeds' and not config.mesh:
    return SeedsOverDevices(shapes, devices, config.seeds, flops)
  if config.mesh or config.parallel in mesh.AXES or config.topology:
    sizes = mesh.parse(config.parallel, config.mesh, len(devices))
    return OnMesh(shapes, mesh.make(sizes, devices), config.mesh or config.parallel, config.seeds, axes)
  if jax.process_count() > 1:
    text = f'parallel={config.parallel} is for one host, and there are {jax.process_count()}'
    raise UsageError(f'{text}; give parallel=data or fsdp, or a mesh')
  return Pmap(jax.local_devices(), config.seeds) if config.parallel == 'pmap' else OneDevice(flops)


def structs(tree, **options):
  """The ShapeDtypeStructs of a tree."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **options), tree)


def _is_struct(x) -> bool:
  return isinstance(x, jax.ShapeDtypeStruct)


class OneDevice:
  """The default device."""

  layout, num_batch_shards, num_state_shards, out_shardings = 'none', 1, 1, None

  def __init__(self, flops: float):
    self.flops = flops

  def put(self, carry):
    return jax.tree.map(lambda x: x if _is_struct(x) else jnp.array(x), carry)  # a copy, for calls donate it

  def get(self, tree):
    return tree

  def shard(self, tree, axis=None):
    return self.put(tree) if axis is None else tree

  put_sums = put

  def local_rows(self, batch_size):
    return slice(None)

  def compile_step(self, function, arguments, replicated):
    return jax.jit(function, donate_argnums=0).lower(*arguments).compile(runtime.compiler_options(self.flops))

  def jit_sums(self, function):
    return jax.jit(function, donate_argnums=1, compiler_options=runtime.compiler_options(self.flops))


class Pmap:
  """The devices of one host, by `pmap`: every leaf has a leading axis [devices, …]."""

  layout, num_state_shards, out_shardings = 'pmap', 1, None

  def __init__(self, devices, seeds: int):
    self.devices, self.num_batch_shards = devices, len(devices)
    self.batch_axis = 1 if seeds > 1 else 0  # of a per-example leaf [(seeds,) batch, …]

  def _each(self, tree, per_example, rest):
    """A carry whose per-example leaves, and all others, are mapped."""
    state = tree.state
    cut = jax.tree.map(per_example, {'carried': state.carried, 'buffers': state.buffers})
    carry = rest(tree.replace(state=state.replace(carried={}, buffers={})))
    return carry.replace(state=carry.state.replace(**cut))

  def _cut(self, x, axis):  # [.., batch, ..] -> [devices, .., batch / devices, ..]
    if _is_struct(x):
      return jax.eval_shape(functools.partial(self._reshape, axis=axis, arrays=jnp), x)
    return self._reshape(np.asarray(x), axis, np)

  def _reshape(self, x, axis, arrays):
    return arrays.moveaxis(x.reshape(*x.shape[:axis], len(self.devices), -1, *x.shape[axis + 1 :]), axis, 0)

  def _join(self, x):  # the reverse
    axis = self.batch_axis
    x = np.moveaxis(np.asarray(x), 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

  def put(self, carry):
    return self._each(carry, lambda x: self._cut(x, self.batch_axis), self.put_sums)

  def get(self, tree):
    if isinstance(tree, Carry):
      return self._each(tree, self._join, jax_utils.unreplicate)
    return jax_utils.unreplicate(tree)

  def put_sums(self, sums):
    if any(map(_is_struct, jax.tree.leaves(sums))):
      return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.devices), *x.shape), x.dtype), sums)
    return jax_utils.replicate(sums, self.devices)

  def shard(self, tree, axis=None):
    return self.put_sums(tree) if axis is None else jax.tree.map(lambda x: self._cut(x, axis), tree)

  def local_rows(self, batch_size):
    return slice(None)

  def compile_step(self, function, arguments, replicated):
    axes = (0,) * (len(arguments) - replicated) + (None,) * replicated
    mapped = jax.pmap(function, collectives.REPLICAS, in_axes=axes, devices=self.devices, donate_argnums=0)
    return mapped.lower(*arguments).compile()

  def jit_sums(self, function):
    return jax.pmap(function, collectives.REPLICAS, devices=self.devices, donate_argnums=1)


def _lay(x, sharding: NamedSharding):
  """A host's array, the same on every host, laid out on a mesh."""
  if _is_struct(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  if hosts.is_key(x):
    return jax.random.wrap_key_data(_lay(np.asarray(jax.random.key_data(x)), sharding))
  if getattr(x, 'sharding', None) == sharding:
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


class OnMesh:
  """`jit` over a mesh of all devices of all hosts; in the program, arrays have their global shapes."""

  def __init__(self, shapes: Carry, over: jax.sharding.Mesh, layout: str, seeds: int, axes):
    self.mesh, self.layout = over, layout
    self.num_batch_shards = over.shape['data'] * over.shape['fsdp']
    self.num_state_shards = over.shape['fsdp'] * over.shape['tensor']
    self.out_shardings = mesh.shardings(over, shapes, seeds, axes)
    self.whole = NamedSharding(over, P())

  def put(self, carry):
    return jax.tree.map(_lay, carry, self.out_shardings)

  def get(self, tree):
    return jax.tree.map(hosts.gather, tree)

  def _sharding(self, axis):
    return NamedSharding(self.mesh, P(*(None,) * axis, mesh.BATCH))

  def shard(self, tree, axis=None):
    """Arrays are this host's rows of the batch, structs of the whole batch."""
    if axis is None:
      return jax.tree.map(lambda x: _lay(x, self.whole), tree)
    sharding = self._sharding(axis)
    local = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return jax.tree.map(lambda x: _lay(x, sharding) if _is_struct(x) else local(x), tree)

  put_sums = shard

  def local_rows(self, batch_size):  # which are neighbours
    indices = self._sharding(0).addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size) for index in indices]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

  def compile_step(self, function, arguments, replicated):
    return jax.jit(function, donate_argnums=0, out_shardings=self.out_shardings).lower(*arguments).compile()

  def jit_sums(self, function):
    return jax.jit(function, donate_argnums=1, out_shardings=self.whole)


class SeedsOverDevices:
  """Each device trains some of the seeds, and none speaks to another: by `shard_map` over one axis of devices."""

  num_batch_shards, out_shardings = 1, None

  def __init__(self, shapes: Carry, devices, seeds: int, flops: float):
    # the largest number of devices that have as many seeds each
    count = max(n for n in range(1, len(devices) + 1) if seeds % n == 0)
    if seeds == 1 or (jax.process_count() > 1 and count < len(devices)):
      text = f'parallel=seeds: seeds={seeds} do not divide over {len(devices)} devices'
      raise UsageError(f'{text}; give a multiple, as seeds={len(devices)}')
    self.mesh = jax.make_mesh((count,), ('seeds',), axis_types=(AxisType.Auto,), devices=devices[:count])
    self.layout = f'{seeds // count} seeds on {"each of " if count > 1 else ""}{count}'
    self.num_state_shards, self.flops = count, flops
    specs = jax.tree.map(lambda _: P('seeds'), shapes)
    self.specs = specs.replace(state=specs.state.replace(step=P()))

  def put(self, carry):
    return jax.tree.map(lambda x, spec: _lay(x, NamedSharding(self.mesh, spec)), carry, self.specs)

  def get(self, tree):
    return jax.tree.map(hosts.gather, tree)

  def put_sums(self, sums):
    return jax.tree.map(lambda x: _lay(x, NamedSharding(self.mesh, P('seeds'))), sums)

  def shard(self, tree, axis=None):
    """The axis of seeds is the one before the batch's; arrays without it are whole on every device."""
    spec = P(*(None,) * (axis - 1), 'seeds') if axis else P()
    return jax.tree.map(lambda x: _lay(x, NamedSharding(self.mesh, spec)), tree)

  def local_rows(self, batch_size):
    return slice(None)

  def _options(self):  # each device of a CPU is a core, which has no other to share an operation with
    alone = {'xla_cpu_multi_thread_eigen': False} if self.mesh.devices.flat[0].platform == 'cpu' else {}
    return alone | runtime.compiler_options(self.flops)

  def _map(self, function, in_specs, out_specs):
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

  def compile_step(self, function, arguments, replicated):
    in_specs = jax.tree.map(lambda x: getattr(getattr(x, 'sharding', None), 'spec', P()), arguments)
    mapped = jax.jit(self._map(function, in_specs, self.specs), donate_argnums=0)
    return mapped.lower(*arguments).compile(self._options())

  def jit_sums(self, function):
    def add(state, sums, *batch):
      in_specs = self.specs.state, P('seeds'), *(P() for _ in batch)
      return self._map(function, in_specs, P('seeds'))(state, sums, *batch)

    return jax.jit(add, donate_argnums=1, compiler_options=self._options())
