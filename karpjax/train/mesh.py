"""Where a state's arrays lie on a mesh of devices: the rules, in one place; and meshes of TPUs that are only described.

A mesh has three axes. The batch is cut over `data` and `fsdp`; parameters, optimiser state and averages are cut over
`fsdp` (Rajbhandari et al. 2020, stage 3) and, where a module names its axes, over `tensor` (Shoeybi et al. 2019).
XLA's partitioner finds the collectives (Xu et al. 2021); no experiment writes one.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from karpjax.errors import UsageError, choose, first_line

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


def make(parallel: str, text: str, devices) -> Mesh:
  """The mesh of the axis `parallel`, or of `mesh` such as data:4,fsdp:2,tensor:1; neighbours are neighbours on the last
  axes.

  Raises:
    UsageError: an unknown axis, or sizes that do not multiply to the devices.
  """
  sizes = {axis: len(devices) if axis == parallel and not text else 1 for axis in AXES}
  for part in text.split(',') if text else ():
    match = re.fullmatch(r'(\w+):([1-9]\d*)', part)
    if not match:
      raise UsageError(f'mesh={text}: write AXIS:SIZE,…, as data:4,fsdp:2,tensor:1')
    choose('mesh axis', match[1], sizes)
    sizes[match[1]] = int(match[2])
  if math.prod(sizes.values()) != len(devices):
    product = ' × '.join(str(n) for n in sizes.values() if n > 1) or '1'
    raise UsageError(f'mesh={text}: {product} = {math.prod(sizes.values())}, but there are {len(devices)} devices')
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


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
      text = f'{path} {list(shape)}: {shape[i]} {name} do not divide over tensor:{sizes[axis]}'
      raise UsageError(f'{text}; choose another width, or a smaller tensor axis')
  if sizes['fsdp'] > 1 and 'fsdp' not in cut and math.prod(shape) >= SMALLEST:
    free = [i for i, n in enumerate(shape) if cut[i] is None and n % sizes['fsdp'] == 0]
    if free:
      cut[max(free, key=lambda i: (shape[i], i))] = 'fsdp'  # the largest; of equals, the last
  return P(*cut)


def shardings(mesh: Mesh, carry, seeds: int, axes: Callable[[], Any] | None = None):
  """A NamedSharding for every array of a carry, in global form.

  Args:
    carry: ShapeDtypeStructs.
    seeds: every leaf but the step counter has a leading axis if there are more than one.
    axes: () -> a tree like params of PartitionSpecs of the names in RULES, or None.

  Raises:
    UsageError: for a named axis that does not divide over `tensor`.
  """
  sizes, lead = dict(mesh.shape), (None,) * (seeds > 1)
  named = {}
  if axes is not None and sizes['fsdp'] * sizes['tensor'] > 1:
    leaves = jax.tree_util.tree_leaves_with_path(axes(), is_leaf=lambda x: isinstance(x, P))
    named = {_keys(path): tuple(names) for path, names in leaves}

  def cut(path, leaf):
    keys, shape = _keys(path), leaf.shape[len(lead) :]
    if not shape or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return NamedSharding(mesh, P())
    # An optimiser keeps arrays like the params: the path of one ends with a param's.
    names = next((named[keys[i:]] for i in range(len(keys)) if keys[i:] in named), ())
    return NamedSharding(mesh, P(*lead, *_specification('/'.join(keys), shape, names, sizes)))

  state = carry.state
  laid = jax.tree_util.tree_map_with_path(cut, state.replace(carried={}, buffers={}))
  carried, buffers = jax.tree.map(lambda _: NamedSharding(mesh, P(*lead, BATCH)), (state.carried, state.buffers))
  totals = jax.tree.map(lambda _: NamedSharding(mesh, P()), carry.totals)
  return carry.replace(state=laid.replace(carried=carried, buffers=buffers), totals=totals)


def _keys(path) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def described_devices(topology: str) -> list:
  """The devices of a topology such as v5e:4x4, as libtpu describes them; they hold no arrays and run no program.

  Raises:
    UsageError: without libtpu, or for a topology that it does not know.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UsageError(f'topology={topology} needs libtpu: pip install -r requirements-tpu.txt')
  # Off Google's cloud there is no metadata server to ask, and asking takes minutes.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  from jax.experimental import topologies

  try:
    return list(topologies.get_topology_desc(topology, 'tpu').devices)
  except Exception as error:  # libtpu's own, of several classes
    examples = 'v5e:2x2, v5e:4x4, v6e:2x4, v4:2x2x1 or v5p:2x2x1'
    raise UsageError(f'topology={topology}: {first_line(error)}; write VERSION:CHIPS, as {examples}') from None
