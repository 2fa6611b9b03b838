"""Device placement: one device, or a mesh of devices, by `jit` or by `shard_map`.

A placement is made for the shapes of one carry, in global form, which is that of one device and of checkpoints. Each
has

  layout            its name, for start-up
  num_batch_shards  over how many devices a batch is cut
  num_state_shards  over how many devices one state, or several seeds' states, are cut
  out_shardings     of a carry that a jitted function initialises; None: as one device has it
  put               a carry in global form -> on the devices
  put_sums          an evaluation's sums -> on the devices
  get               a carry on the devices -> in global form; or what all devices hold alike -> on this host
  shard             this host's arrays -> cut along the axis of the batch, or of the seeds before it where they are `seeded`;
                    without an axis whole on every device
  local_rows        the rows of a batch that this host supplies
  jit               a function whose result lies as its argument number `donated`, which is donated -> jitted

Wherever it takes arrays it takes their ShapeDtypeStructs as well, and says how they would lie.
"""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from karpjax.errors import UsageError
from karpjax.train import hosts, mesh, runtime


def place(config, shapes, axes=None, flops: float = 0):
  """The placement that `parallel`, `mesh` and `topology` name.

  Args:
    config: a resolved `config.Train`.
    shapes: of a carry, in global form.
    axes: the Program's; see `mesh.shardings`.
    flops: of one seed's step, which decide how a CPU's compiler is told to work.

  Raises:
    UsageError: for a mesh that does not fit the devices, or a placement of one host where there are several.
  """
  layout = config.mesh or config.parallel
  devices = mesh.described_devices(config.topology) if config.topology else jax.devices()
  if config.topology and layout == 'pmap':
    raise UsageError('topology: parallel=pmap needs devices that are there; give parallel=data')
  if layout == 'seeds':
    return Seeds(shapes, devices, config.seeds, flops)
  if layout in ('none', 'pmap') and not config.topology:
    if jax.process_count() > 1:
      text = f'parallel={layout} is for one host, and there are {jax.process_count()}'
      raise UsageError(f'{text}; give parallel=data or fsdp, or a mesh')
    if layout == 'none':
      return OneDevice(flops)
  if layout == 'none':
    devices = devices[:1]
  over = mesh.make('data' if layout == 'pmap' else config.parallel, config.mesh, devices)
  return (Replicas if layout == 'pmap' else OnMesh)(over, layout, mesh.shardings(over, shapes, config.seeds, axes))


def _is_struct(x) -> bool:
  return isinstance(x, jax.ShapeDtypeStruct)


class OneDevice:
  """The default device."""

  layout, num_batch_shards, num_state_shards, out_shardings = 'none', 1, 1, None

  def __init__(self, flops: float):
    self.options = runtime.compiler_options(flops)

  def put(self, carry):
    own = lambda x: isinstance(x, jax.Array | jax.ShapeDtypeStruct)
    # a copy, for calls donate it; jnp.array would compile a program for every shape
    return jax.tree.map(lambda x: x if own(x) else jax.device_put(np.array(x)), carry)

  put_sums = put

  def get(self, tree):
    return tree

  def shard(self, tree, axis=None, seeded=False):
    return jax.tree.map(lambda x: x if _is_struct(x) else jax.device_put(x), tree) if axis is None else tree

  def local_rows(self, batch_size):
    return slice(None)

  def jit(self, function, arguments, donated):
    return jax.jit(function, donate_argnums=donated, compiler_options=self.options)


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

  out_shardings = property(lambda self: self.shardings)

  def __init__(self, over: jax.sharding.Mesh, layout: str, shardings):
    self.mesh, self.layout, self.shardings = over, layout, shardings
    self.num_batch_shards = over.shape['data'] * over.shape['fsdp']
    self.num_state_shards = over.shape['fsdp'] * over.shape['tensor']
    self.sums = NamedSharding(over, P())

  def _along(self, axis, seeded=False):
    return NamedSharding(self.mesh, P() if axis is None else P(*(None,) * axis, mesh.BATCH))

  def put(self, carry):
    return jax.tree.map(_lay, carry, self.shardings)

  def put_sums(self, sums):
    return jax.tree.map(lambda x: _lay(x, self.sums), sums)

  def get(self, tree):
    return jax.tree.map(hosts.gather, tree)

  def shard(self, tree, axis=None, seeded=False):
    """Arrays are this host's rows of the batch, structs of the whole batch."""
    sharding = self._along(axis)
    local = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return jax.tree.map(lambda x: _lay(x, sharding) if _is_struct(x) else local(x), tree)

  def local_rows(self, batch_size):  # which are neighbours
    indices = self._along(0).addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size) for index in indices]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

  def jit(self, function, arguments, donated):
    """Arguments are structs; one that stands for a tree of arrays says how all of them lie."""
    out_shardings = jax.tree.map(lambda x: x.sharding, arguments[donated])
    return jax.jit(function, donate_argnums=donated, out_shardings=out_shardings)


class Replicas(OnMesh):
  """The devices of one host, each with its rows of the batch and all of the state: `shard_map`, as `pmap` has it."""

  out_shardings, options = None, {}

  def jit(self, function, arguments, donated):
    specs = jax.tree.map(lambda x: getattr(getattr(x, 'sharding', None), 'spec', P()), arguments)
    mapped = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=specs[donated], check_vma=False)
    return jax.jit(mapped, donate_argnums=donated, compiler_options=self.options)


class Seeds(Replicas):
  """Each device trains some of the seeds, and none speaks to another: `shard_map` over one axis of devices."""

  num_batch_shards = 1

  def __init__(self, shapes, devices, seeds: int, flops: float):
    # the largest number of devices that have as many seeds each
    count = max(n for n in range(1, len(devices) + 1) if seeds % n == 0)
    if seeds == 1 or (jax.process_count() > 1 and count < len(devices)):
      text = f'parallel=seeds: seeds={seeds} do not divide over {len(devices)} devices'
      raise UsageError(f'{text}; give a multiple, as seeds={len(devices)}')
    self.mesh = jax.make_mesh((count,), ('seeds',), axis_types=(AxisType.Auto,), devices=devices[:count])
    self.layout = f'{seeds // count} seeds on {"each of " if count > 1 else ""}{count}'
    self.num_state_shards = count
    self.sums = NamedSharding(self.mesh, P('seeds'))
    shardings = jax.tree.map(lambda _: self.sums, shapes)
    self.shardings = shardings.replace(state=shardings.state.replace(step=NamedSharding(self.mesh, P())))
    # each device of a CPU is a core, which has no other to share an operation with
    alone = {'xla_cpu_multi_thread_eigen': False} if devices[0].platform == 'cpu' else {}
    self.options = alone | runtime.compiler_options(flops)

  def _along(self, axis, seeded=False):
    return NamedSharding(self.mesh, P(*(None,) * (axis - 1), 'seeds') if seeded else P())

  def shard(self, tree, axis=None, seeded=False):
    return jax.tree.map(lambda x: _lay(x, self._along(axis, seeded)), tree)
