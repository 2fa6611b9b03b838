"""How a carry and its batches lie on the devices: on one, replicated for pmap, cut over a mesh, or some seeds on each.

A layout is what `runner` needs to know of devices. The global form of a carry, which checkpoints hold whatever ran the
program, is that of one device.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from karpjax import gradients, hosts, start_up, topology
from karpjax import mesh as meshes
from karpjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Layout:
  """Attributes:
  parts: over how many devices a batch is cut.
  pieces: over how many devices one state is cut, or several seeds' states are.
  lay: (shapes of a carry) -> None: called once, before all others but `parts`.
  init: (function of the keys, keys) -> a carry in global form.
  place: carry in global form -> on the devices.
  globalise: carry on the devices -> in global form, on this host.
  replicate: arrays of the host -> on every device.
  sums: an evaluation's sums, in global form -> on the devices.
  shapes, replicated_shapes: ShapeDtypeStructs of a carry, or of arrays, as they would lie on the devices.
  cut: (array of the host, axis of the batch) -> cut over the devices.
  rows: (batch size) -> the rows of a batch that this host supplies.
  compile: (function, arguments, how many of the last are replicated) -> (compiled, FLOPs); donates the carry.
  compile_sums: (function (state, sums, …) -> sums, FLOPs of a step) -> the function, compiled when called; donates sums.
  fetch: replicated arrays -> on the host.
  """

  parts: int
  pieces: int
  lay: Callable
  init: Callable
  place: Callable
  globalise: Callable
  replicate: Callable
  sums: Callable
  shapes: Callable
  replicated_shapes: Callable
  cut: Callable
  rows: Callable
  compile: Callable
  compile_sums: Callable
  fetch: Callable


def choose(config, axes=None) -> Layout:
  """The layout that --parallel and --mesh name.

  Args:
    config: a resolved `config.Train`.
    axes: the Program's; see `mesh.shardings`.

  Raises:
    UsageError: for a mesh that does not fit the devices, or a layout of one host where there are several.
  """
  described = bool(config.topology)
  devices = topology.devices(config.topology) if described else jax.devices()
  if described and not config.mesh:
    if config.parallel == 'pmap':
      raise UsageError('--topology: --parallel=pmap needs devices that are there; give --parallel=data')
    if config.parallel == 'none':
      devices = devices[:1]
  if config.parallel == 'seeds' and not config.mesh:
    return _seeds(devices, config.seeds, described)
  if config.mesh or config.parallel in meshes.AXES or described:
    return _mesh(meshes.parse(config.parallel, config.mesh, len(devices)), config.seeds, axes, devices, described)
  if jax.process_count() > 1:
    raise UsageError(
      f'--parallel={config.parallel} is for one host, and there are {jax.process_count()}; '
      'give --parallel=data or fsdp, or a --mesh'
    )
  if config.parallel == 'pmap':
    return _pmap(jax.local_devices(), config.seeds)
  return _one_device()


def _one_device() -> Layout:
  copy = lambda tree: jax.tree.map(jnp.array, tree)  # calls donate it

  def compile(function, arguments, replicated):
    # FLOPs are counted before compilation, because afterwards calls of a library, such as oneDNN, count as nothing
    lowered = jax.jit(function, donate_argnums=0).lower(*arguments)
    flops = lowered.cost_analysis().get('flops')
    return lowered.compile(start_up.compiler_options(flops)), flops

  return Layout(
    parts=1,
    pieces=1,
    lay=lambda shapes: None,
    init=lambda function, keys: jax.jit(function)(keys),
    place=copy,
    globalise=lambda carry: carry,
    replicate=copy,
    sums=copy,
    shapes=lambda carry: carry,
    replicated_shapes=_structs,
    cut=lambda x, axis: x,
    rows=lambda size: slice(None),
    compile=compile,
    compile_sums=lambda f, flops: jax.jit(f, donate_argnums=1, compiler_options=start_up.compiler_options(flops)),
    fetch=jax.device_get,
  )


def _structs(tree, **options):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **options), tree)


def _pmap(devices, seeds: int) -> Layout:
  """Every leaf has a leading axis [devices, …]."""
  axis_of_batch = 1 if seeds > 1 else 0  # in a per-example leaf [(seeds,) batch, …]
  count = len(devices)

  def cut(x, axis):  # [.., batch, ..] -> [devices, .., batch / devices, ..]
    x = np.asarray(x)
    return np.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

  def join(x):  # the reverse
    x = np.moveaxis(np.asarray(x), 0, axis_of_batch)
    return x.reshape(*x.shape[:axis_of_batch], -1, *x.shape[axis_of_batch + 2 :])

  def relaid(carry, per_example, rest):
    parts = jax.tree.map(per_example, carry.state.per_example)
    carry = rest(carry.replace(state=carry.state.replace(per_example={})))
    return carry.replace(state=carry.state.replace(per_example=parts))

  def stacked(x):
    return jax.ShapeDtypeStruct((count, *x.shape), x.dtype)

  def cut_shape(shape):
    return *shape[:axis_of_batch], shape[axis_of_batch] // count, *shape[axis_of_batch + 1 :]

  def replicate(tree):
    return jax_utils.replicate(tree, devices)

  def place(carry):
    return relaid(carry, lambda x: cut(x, axis_of_batch), replicate)

  def compile(function, arguments, replicated):
    axes = (0,) * (len(arguments) - replicated) + (None,) * replicated
    mapped = jax.pmap(function, gradients.REPLICAS, in_axes=axes, devices=devices, donate_argnums=0)
    compiled = mapped.lower(*arguments).compile()
    return compiled, compiled.cost_analysis().get('flops')

  return Layout(
    parts=count,
    pieces=1,
    lay=lambda shapes: None,
    init=lambda function, keys: jax.jit(function)(keys),
    place=place,
    globalise=lambda carry: relaid(carry, join, jax_utils.unreplicate),
    replicate=replicate,
    sums=replicate,
    shapes=lambda carry: relaid(
      carry,
      lambda x: jax.ShapeDtypeStruct((count, *cut_shape(x.shape)), x.dtype),
      lambda tree: jax.tree.map(stacked, tree),
    ),
    replicated_shapes=lambda tree: jax.tree.map(stacked, tree),
    cut=cut,
    rows=lambda size: slice(None),
    compile=compile,
    compile_sums=lambda f, flops: jax.pmap(f, gradients.REPLICAS, devices=devices, donate_argnums=1),
    fetch=lambda tree: jax.device_get(jax_utils.unreplicate(tree)),
  )


def _mesh(sizes: dict[str, int], seeds: int, axes, devices, described: bool) -> Layout:
  """`jit` over a mesh of all devices of all hosts; in the program, arrays have their global shapes."""
  mesh = meshes.make(sizes, devices)
  whole = NamedSharding(mesh, P())
  laid = {}

  def replicate(tree):
    return jax.tree.map(lambda x: meshes.put(x, whole), tree)

  def lay(shapes):
    laid['carry'] = meshes.shardings(mesh, shapes, seeds, axes)

  def cut(x, axis):
    """From this host's rows of the batch; elsewhere x is whole."""
    sharding = NamedSharding(mesh, P(*(None,) * axis, meshes.BATCH))
    if described:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  def rows(size):
    """Which rows the devices of this host hold, which are neighbours; of described devices, all."""
    if described:
      return slice(None)
    held = NamedSharding(mesh, P(meshes.BATCH)).addressable_devices_indices_map((size,)).values()
    bounds = [index[0].indices(size) for index in held]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

  def compile(function, arguments, replicated):
    lowered = jax.jit(function, donate_argnums=0, out_shardings=laid['carry']).lower(*arguments)
    compiled = lowered.compile()
    if described:  # libtpu counts only what is compiled, and for one device
      return compiled, compiled.cost_analysis().get('flops', 0) * mesh.size
    return compiled, lowered.cost_analysis().get('flops')

  return Layout(
    parts=sizes['data'] * sizes['fsdp'],
    pieces=sizes['fsdp'] * sizes['tensor'],
    lay=lay,
    init=lambda function, keys: jax.jit(function, out_shardings=laid['carry'])(meshes.put(keys, whole)),
    place=lambda carry: jax.tree.map(meshes.put, carry, laid['carry']),
    globalise=lambda carry: jax.tree.map(hosts.gather, carry),
    replicate=replicate,
    sums=replicate,
    shapes=lambda carry: jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), carry, laid['carry']
    ),
    replicated_shapes=lambda tree: _structs(tree, sharding=whole),
    cut=cut,
    rows=rows,
    compile=compile,
    compile_sums=lambda f, flops: jax.jit(f, donate_argnums=1, out_shardings=whole),
    fetch=jax.device_get,
  )


def spread(seeds: int, devices: int) -> int:
  """Over how many devices seeds are spread, as many on each: the largest number that divides them."""
  return max(n for n in range(1, devices + 1) if seeds % n == 0)


def _seeds(devices, seeds: int, described: bool) -> Layout:
  """Each device trains some of the seeds, and none speaks to another: by `shard_map` over one axis of devices."""
  count = spread(seeds, len(devices))
  if seeds == 1 or (jax.process_count() > 1 and count < len(devices)):
    raise UsageError(
      f'--parallel=seeds: --seeds={seeds} do not divide over {len(devices)} devices; give a multiple, as --seeds={len(devices)}'
    )
  mesh = jax.make_mesh((count,), ('seeds',), axis_types=(AxisType.Auto,), devices=devices[:count])
  laid = {}

  def lay(shapes):
    specs = jax.tree.map(lambda _: P('seeds'), shapes)
    laid['carry'] = specs.replace(state=specs.state.replace(step=P()))

  def sharding(spec):
    return NamedSharding(mesh, spec)

  def place(tree, specs):
    return jax.tree.map(lambda x, spec: meshes.put(x, sharding(spec)), tree, specs)

  def replicate(tree):
    return jax.tree.map(lambda x: meshes.put(x, sharding(P())), tree)

  def cut(x, axis):  # […, seeds, batch]: the axis of seeds is the one before the batch's; of no seeds, replicated
    where = sharding(P(*(None,) * (axis - 1), 'seeds') if axis else P())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) if described else meshes.put(x, where)

  def options(flops):  # each device of a CPU is a core, which has no other to share an operation with
    alone = {'xla_cpu_multi_thread_eigen': False} if devices[0].platform == 'cpu' else {}
    return alone | start_up.compiler_options(flops)

  def compile(function, arguments, replicated):
    own = jax.tree.map(lambda x: getattr(getattr(x, 'sharding', None), 'spec', P()), arguments)  # as they lie already
    each = jax.shard_map(function, mesh=mesh, in_specs=own, out_specs=laid['carry'], check_vma=False)
    lowered = jax.jit(each, donate_argnums=0).lower(*arguments)
    if described:
      compiled = lowered.compile()
      return compiled, compiled.cost_analysis().get('flops', 0) * count
    flops = lowered.cost_analysis().get('flops', 0) * count  # counted for one device
    return lowered.compile(options(flops)), flops

  def compile_sums(function, flops):
    def add(state, sums, *batch):
      specs = laid['carry'].state, P('seeds'), *(P() for _ in batch)
      each = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P('seeds'), check_vma=False)
      return each(state, sums, *batch)

    return jax.jit(add, donate_argnums=1, compiler_options=options(flops))

  return Layout(
    parts=1,
    pieces=count,
    lay=lay,
    init=lambda function, keys: jax.jit(function)(keys),
    place=lambda carry: place(carry, laid['carry']),
    globalise=lambda carry: jax.tree.map(hosts.gather, carry),
    replicate=replicate,
    sums=lambda tree: jax.tree.map(lambda x: meshes.put(x, sharding(P('seeds'))), tree),
    shapes=lambda carry: jax.tree.map(
      lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(spec)), carry, laid['carry']
    ),
    replicated_shapes=lambda tree: _structs(tree, sharding=sharding(P())),
    cut=cut,
    rows=lambda size: slice(None),
    compile=compile,
    compile_sums=compile_sums,
    fetch=lambda tree: jax.tree.map(hosts.gather, tree),
  )
