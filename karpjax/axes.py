"""What the axes of a parameter are, said where it is made: how a mesh may cut them, and along which it is a matrix."""

from collections.abc import Callable, Mapping

import jax
from flax import linen as nn
from flax import struct


class Axes(nn.Partitioned):
  """A parameter and its axes, as a box of Linen's.

  Attributes:
    names: as `nn.with_partitioning`'s, see `mesh.RULES`.
    matrix: a letter for each axis: i of inputs, o of outputs, s of a stack, each entry of which is a matrix of its own;
      '' where there is none, as of embeddings and last layers.
  """

  matrix: str = struct.field(pytree_node=False, default='')

  def add_axis(self, index, params):
    """Of `nn.vmap`: a stack."""
    stacked = self.matrix and f'{self.matrix[:index]}s{self.matrix[index:]}'
    return super().add_axis(index, params).replace(matrix=stacked)


def declare(init: Callable, matrix: str | None, names: tuple[str | None, ...] = ()) -> Callable:
  """An initialiser whose parameters say their axes; a `matrix` of None: [*inputs, outputs]."""

  def boxed(*arguments):
    value = init(*arguments)
    return Axes(value, names, matrix=kernel(value) if matrix is None else matrix)

  return boxed


def kernel(value) -> str:
  """The axes of a kernel [*window, in, out], as Linen's layers have them."""
  return 'i' * (value.ndim - 1) + 'o'


def matrices(params) -> tuple[str, ...]:
  """`Axes.matrix` of each parameter, in the order of `jax.tree.leaves`, of boxed params as `init` gives them.

  Of what makers say nothing, such as the layers of Linen in a model of one's own, those called 'kernel' are matrices,
  but for the last made, where no other is said to be none: the last layer.
  """
  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box)
  made = [(path, nn.meta.unbox(x)) for path, x in leaves]
  kernels = {path for path, x in made if jax.tree_util.keystr(path[-1:], simple=True) == 'kernel' and x.ndim > 1}
  said = {path: x.matrix for path, x in leaves if isinstance(x, Axes)}
  if not any(path in kernels and not matrix for path, matrix in said.items()):
    kernels -= {path for path, x in leaves if x is _last_made(params)}
  return tuple(said.get(path, kernel(x) if path in kernels else '') for path, x in made)


def kernels(params) -> tuple[str, ...]:
  """As `matrices`, with the kernels of last layers: what is pruned and quantised."""
  leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(params))
  is_kernel = lambda path, x: x.ndim > 1 and jax.tree_util.keystr(path[-1:], simple=True) == 'kernel'
  return tuple(
    matrix or (kernel(x) if is_kernel(path, x) else '') for matrix, (path, x) in zip(matrices(params), leaves)
  )


def layers(params) -> tuple[str, ...]:
  """As `kernels`, with all else of two axes or more of which makers say nothing, as embeddings: what makes and reads units."""
  boxes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
  said = [isinstance(x, Axes) or nn.meta.unbox(x).ndim < 2 for x in boxes]
  guess = lambda x: kernel(nn.meta.unbox(x))
  return tuple(matrix or ('' if known else guess(x)) for matrix, known, x in zip(kernels(params), said, boxes))


def _last_made(params):
  """The last 'kernel' in the order in which a model has made them, or None."""
  last = None
  for name, value in params.items():
    below = _last_made(value) if isinstance(value, Mapping) else value if name == 'kernel' else None
    last = last if below is None else below
  return last
