"""How a carry and its batches lie on the devices: on one, replicated for pmap, cut over a mesh, or some seeds on each.

A layout is what `runner` needs to know of devices. The global form of a carry, which checkpoints hold whatever ran the
program, is that of one device.
"""

import jax

from karpjax.errors import UsageError
from karpjax.train import mesh as meshes
from karpjax.train import topology
from karpjax.train.layouts import local, sharded
from karpjax.train.layouts.layout import Layout


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
    return sharded.of_seeds(devices, config.seeds, described)
  if config.mesh or config.parallel in meshes.AXES or described:
    return sharded.on_mesh(
      meshes.parse(config.parallel, config.mesh, len(devices)), config.seeds, axes, devices, described
    )
  if jax.process_count() > 1:
    raise UsageError(
      f'--parallel={config.parallel} is for one host, and there are {jax.process_count()}; '
      'give --parallel=data or fsdp, or a --mesh'
    )
  if config.parallel == 'pmap':
    return local.pmap(jax.local_devices(), config.seeds)
  return local.one_device()
