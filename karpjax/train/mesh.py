"""Where a state's arrays lie on a mesh of devices: the rules, in one place.

A mesh has three axes. The batch is cut over `data` and `fsdp`; parameters, optimiser state and averages are cut over
`fsdp` (Rajbhandari et al. 2020, stage 3) and, where a module names its axes, over `tensor` (Shoeybi et al. 2019).
XLA's partitioner finds the collectives (Xu et al. 2021); no experiment writes one.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from karpjax.errors import UsageError, choose

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')

# Names that modules give to the axes of their parameters (`nn.with_partitioning`) -> axis of the mesh.
RULES = {
  'embed': 'fsdp',  # the width that flows from layer to layer
  'hidden': 'tensor',  # units inside a block: an MLP's hidden layer
  'heads': 'tensor',
  'vocabulary': 'tensor',
}
SMALLEST = 1024  # parameters; arrays under it are not worth cutting over fsdp


def parse(parallel: str, text: str, devices: int) -> dict[str, int]:
  """{axis: size}, of all three axes, from --parallel=data|fsdp|tensor or --mesh=data:4,fsdp:2,tensor:1.

  Raises:
    UsageError: an unknown axis, or sizes that do not multiply to the devices.
  """
  if not text:
    return {axis: devices if axis == parallel else 1 for axis in AXES}
  sizes = dict.fromkeys(AXES, 1)
  for part in text.split(','):
    match = re.fullmatch(r'(\w+):([1-9]\d*)', part)
    if not match:
      raise UsageError(f'--mesh={text}: write AXIS:SIZE,…, as data:4,fsdp:2,tensor:1')
    choose('mesh axis', match[1], sizes)
    sizes[match[1]] = int(match[2])
  if math.prod(sizes.values()) != devices:
    product = ' × '.join(str(n) for n in sizes.values() if n > 1) or '1'
    raise UsageError(f'--mesh={text}: {product} = {math.prod(sizes.values())}, but there are {devices} devices')
  return sizes


def make(sizes: dict[str, int], devices=None) -> Mesh:
  """The mesh, over all devices of all hosts or those given; neighbours on the interconnect are neighbours on the last axes."""
  shape = tuple(sizes[axis] for axis in AXES)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _specification(path: str, shape: tuple[int, ...], names: tuple, sizes: dict[str, int]) -> P:
  """How one array, without the axis of seeds, is cut."""
  cut = [None] * len(shape)
  for i, name in enumerate(names):
    axis = RULES.get(name)
    if axis is None or sizes[axis] == 1 or axis in cut:
      continue
    if shape[i] % sizes[axis] == 0:
      cut[i] = axis
    elif axis == 'tensor' and name != 'vocabulary':  # which no flag can choose: it stays whole
      raise UsageError(
        f'{path} {list(shape)}: {shape[i]} {name} do not divide over tensor:{sizes[axis]}; '
        'choose another width, or a smaller tensor axis'
      )
  if sizes['fsdp'] > 1 and 'fsdp' not in cut and math.prod(shape) >= SMALLEST:
    free = [i for i, n in enumerate(shape) if cut[i] is None and n % sizes['fsdp'] == 0]
    if free:
      cut[max(free, key=lambda i: (shape[i], i))] = 'fsdp'  # the largest; of equals, the last
  return P(*cut)


def shardings(mesh: Mesh, carry, seeds: int, axes: Callable[[], Any] | None = None):
  """A NamedSharding for every array of a carry.

  Args:
    mesh: as `make` gives it.
    carry: ShapeDtypeStructs, in global form.
    seeds: every leaf but the step counter has a leading axis if there are more than one.
    axes: () -> a tree like params of PartitionSpecs of the names in RULES, or None.

  Returns:
    A tree like `carry`.

  Raises:
    UsageError: for a named axis that does not divide over `tensor`.
  """
  sizes = dict(mesh.shape)
  named = {}
  if axes is not None and sizes['fsdp'] * sizes['tensor'] > 1:
    leaves = jax.tree_util.tree_leaves_with_path(axes(), is_leaf=lambda x: isinstance(x, P))
    named = {_keys(path): tuple(names) for path, names in leaves}
  lead = 1 if seeds > 1 else 0

  def place(path, leaf):
    path, shape = _keys(path), leaf.shape[lead:]
    if 'carried' in path or 'buffers' in path:
      return NamedSharding(mesh, P(*(None,) * lead, BATCH))
    if not shape or path[0] != 'state' or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return NamedSharding(mesh, P())
    # An optimiser keeps arrays like the params: the path of one ends with a param's.
    names = next((named[path[i:]] for i in range(len(path)) if path[i:] in named), ())
    return NamedSharding(mesh, P(*(None,) * lead, *_specification('/'.join(path[1:]), shape, names, sizes)))

  return jax.tree_util.tree_map_with_path(place, carry)


def _keys(path) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def put(x, sharding: NamedSharding):
  """A host's array, the same on every host, laid out on the mesh."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(x)), sharding))
  if getattr(x, 'sharding', None) == sharding:
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def bytes_per_device(tree) -> int:
  """Bytes of a tree's shards on the first device of this host."""
  device = jax.local_devices()[0]
  shards = (s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)
  return sum(s.data.size * s.data.dtype.itemsize for s in shards)
