"""What the runner needs to know of devices."""

import dataclasses
from collections.abc import Callable

import jax


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
  compile: (function, arguments, how many of the last are replicated, FLOPs of one seed's step) -> (compiled, FLOPs of a
    call); donates the carry.
  compile_sums: (function (state, sums, …) -> sums, FLOPs of one seed's step) -> the function, compiled when called; donates sums.
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


def structs(tree, **options):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **options), tree)
