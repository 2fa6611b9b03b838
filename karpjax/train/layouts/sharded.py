"""Arrays cut over a mesh of all devices of all hosts: the batch and the state, or the seeds."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from karpjax.errors import UsageError
from karpjax.train import costs, hosts, runtime
from karpjax.train import mesh as meshes
from karpjax.train.layouts.layout import Layout, structs


def _over(mesh, laid: dict, described: bool, where: Callable, **others) -> Layout:
  """What every layout over a mesh has.

  Args:
    mesh: of any axes.
    laid: {'carry': a NamedSharding for each leaf of a carry}, filled in by `lay`.
    described: whether its devices are of a topology, and so hold nothing.
    where: axis of the batch -> the sharding of an array that has it.
    others: the rest of a Layout.
  """
  whole = NamedSharding(mesh, P())

  def replicate(tree):
    return jax.tree.map(lambda x: meshes.put(x, whole), tree)

  def described_cut(x, axis):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(axis))

  common = dict(
    place=lambda carry: jax.tree.map(meshes.put, carry, laid['carry']),
    globalise=lambda carry: jax.tree.map(hosts.gather, carry),
    replicate=replicate,
    sums=replicate,
    shapes=lambda carry: jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), carry, laid['carry']
    ),
    replicated_shapes=lambda tree: structs(tree, sharding=whole),
  )
  if described:
    others |= {'cut': described_cut, 'rows': lambda size: slice(None)}
  return Layout(**common | others)


def on_mesh(sizes: dict[str, int], seeds: int, axes, devices, described: bool) -> Layout:
  """`jit` over a mesh of all devices of all hosts; in the program, arrays have their global shapes."""
  mesh = meshes.make(sizes, devices)
  whole = NamedSharding(mesh, P())
  laid = {}

  def lay(shapes):
    laid['carry'] = meshes.shardings(mesh, shapes, seeds, axes)

  def where(axis):
    return NamedSharding(mesh, P(*(None,) * axis, meshes.BATCH))

  def cut(x, axis):
    """From this host's rows of the batch; elsewhere x is whole."""
    return jax.make_array_from_process_local_data(where(axis), np.asarray(x))

  def rows(size):
    """Which rows the devices of this host hold, which are neighbours."""
    held = where(0).addressable_devices_indices_map((size,)).values()
    bounds = [index[0].indices(size) for index in held]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

  def compile(function, arguments, replicated, flops):
    traced = jax.jit(function, donate_argnums=0, out_shardings=laid['carry']).trace(*arguments)
    return costs.compiled(traced.lower(), traced.jaxpr, mesh.size)

  return _over(
    mesh,
    laid,
    described,
    where,
    parts=sizes['data'] * sizes['fsdp'],
    pieces=sizes['fsdp'] * sizes['tensor'],
    lay=lay,
    init=lambda function, keys: jax.jit(function, out_shardings=laid['carry'])(meshes.put(keys, whole)),
    cut=cut,
    rows=rows,
    compile=compile,
    compile_sums=lambda f, flops: jax.jit(f, donate_argnums=1, out_shardings=whole),
    fetch=jax.device_get,
  )


def spread(seeds: int, devices: int) -> int:
  """Over how many devices seeds are spread, as many on each: the largest number that divides them."""
  return max(n for n in range(1, devices + 1) if seeds % n == 0)


def of_seeds(devices, seeds: int, described: bool) -> Layout:
  """Each device trains some of the seeds, and none speaks to another: by `shard_map` over one axis of devices."""
  count = spread(seeds, len(devices))
  if seeds == 1 or (jax.process_count() > 1 and count < len(devices)):
    raise UsageError(
      f'--parallel=seeds: --seeds={seeds} do not divide over {len(devices)} devices; give a multiple, as --seeds={len(devices)}'
    )
  mesh = jax.make_mesh((count,), ('seeds',), axis_types=(AxisType.Auto,), devices=devices[:count])
  laid, own = {}, NamedSharding(mesh, P('seeds'))

  def lay(shapes):
    carry = jax.tree.map(lambda _: own, shapes)
    laid['carry'] = carry.replace(state=carry.state.replace(step=NamedSharding(mesh, P())))

  def where(axis):  # […, seeds, batch]: the axis of seeds is the one before the batch's; without it, replicated
    return NamedSharding(mesh, P(*(None,) * (axis - 1), 'seeds') if axis else P())

  def specs(tree):
    return jax.tree.map(lambda x: x.spec, tree)

  def options(flops):  # each device of a CPU is a core, which has no other to share an operation with
    alone = {'xla_cpu_multi_thread_eigen': False} if devices[0].platform == 'cpu' else {}
    return alone | runtime.compiler_options(flops)

  def compile(function, arguments, replicated, flops):
    given = jax.tree.map(lambda x: getattr(getattr(x, 'sharding', None), 'spec', P()), arguments)  # as they lie already
    each = jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=specs(laid['carry']), check_vma=False)
    traced = jax.jit(each, donate_argnums=0).trace(*arguments)
    return costs.compiled(traced.lower(), traced.jaxpr, count, of_one=True, options=options(flops))

  def compile_sums(function, flops):
    def add(state, sums, *batch):
      given = specs(laid['carry'].state), P('seeds'), *(P() for _ in batch)
      each = jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=P('seeds'), check_vma=False)
      return each(state, sums, *batch)

    return jax.jit(add, donate_argnums=1, compiler_options=options(flops))

  return _over(
    mesh,
    laid,
    described,
    where,
    parts=1,
    pieces=count,
    lay=lay,
    init=lambda function, keys: jax.jit(function)(keys),
    sums=lambda tree: jax.tree.map(lambda x: meshes.put(x, own), tree),
    cut=lambda x, axis: meshes.put(x, where(axis)),
    rows=lambda size: slice(None),
    compile=compile,
    compile_sums=compile_sums,
    fetch=lambda tree: jax.tree.map(hosts.gather, tree),
  )
