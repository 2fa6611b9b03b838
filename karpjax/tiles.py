"""A picture of any size through a function of tiles, without seams: each tile looks beyond the part that it gives."""

from collections.abc import Callable

import numpy as np


def spans(length: int, tile: int, margin: int) -> list[tuple[int, int, int]]:
  """How tiles cover one axis.

  Args:
    length: of the axis.
    tile: of a tile; where the axis is shorter, one tile is all of it.
    margin: by how much a tile begins before the part that it gives, and ends behind it, except at the ends of the axis: there
      it begins or ends as the axis does, so that whatever the function pads with is what it pads the whole picture with.

  Returns:
    [(where a tile begins, where its part begins, where that ends), …]; the parts lie one behind the other.

  Raises:
    ValueError: where the margins leave nothing of a tile.
  """
  if margin < 0 or tile <= 2 * margin:
    raise ValueError(f'tiles of {tile} with margins of {margin} on both sides: nothing is left')
  if length <= tile:
    return [(0, 0, length)]
  starts = [*range(0, length - tile, tile - 2 * margin), length - tile]
  ends = [*(start + tile - margin for start in starts[:-1]), length]
  return list(zip(starts, [0, *ends[:-1]], ends))


def apply(function: Callable, picture: np.ndarray, *, tile: int, margin: int, scale: int = 1) -> np.ndarray:
  """function of a whole picture, tile by tile: the same numbers where an output depends on no pixel farther than `margin`.

  Args:
    function: [1, height, width, channels] -> [1, height · scale, width · scale, channels'], for tiles of one size (smaller
      where the picture is smaller).
    picture: [height, width, channels].
    tile, margin: see `spans`; for both axes.
    scale: how much larger what the function gives is.

  Returns:
    [height · scale, width · scale, channels'].
  """
  height, width = picture.shape[:2]
  whole = None
  for top, first_row, last_row in spans(height, tile, margin):
    for left, first_column, last_column in spans(width, tile, margin):
      made = np.asarray(function(picture[None, top : top + tile, left : left + tile])[0])
      if whole is None:
        whole = np.empty((height * scale, width * scale, made.shape[-1]), made.dtype)
      rows, columns = slice(first_row * scale, last_row * scale), slice(first_column * scale, last_column * scale)
      whole[rows, columns] = made[
        (first_row - top) * scale : (last_row - top) * scale,
        (first_column - left) * scale : (last_column - left) * scale,
      ]
  return whole
