"""Frames of driving: the road from above, ahead to the right, followed by a camera."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl import drawing
from karpjax.rl.driving import road as roads
from karpjax.rl.driving import sensors, vehicle
from karpjax.rl.driving import traffic as others

GRASS, ASPHALT, PAINT, GLASS, FLASH = '#a9c29a', '#5b6068', '#f4f5f7', '#22303f', '#CC79A7'
EGO, OBSTACLE, STRIPE = '#D55E00', '#E69F00', '#222222'
BODIES = ('#0072B2', '#56B4E9', '#009E73', '#e8e6df', '#8d99ae')
WINDOWS = ((0.58, 0.74, 0.78, GLASS), (0.12, 0.22, 0.7, GLASS))  # back, front, side, colour
STRIPES = tuple((start, start + 0.14, 1.0, STRIPE) for start in (0.15, 0.45, 0.75))
SCALE, MIDDLE = 5.0, (75, drawing.HEIGHT / 2)  # pixels a metre; where the driven vehicle is
CELLS = np.arange(-6, 16) * 1.0  # the part of the road that is shown
PARTS = 4  # of a cell: points of its lines
OWN = np.array([[vehicle.LENGTH, vehicle.WIDTH]], np.float32) / 2
CORNERS = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], np.float32)


@jax.jit
@jax.vmap
def scene(state):
  """What is to be drawn, from the road's own direction at the vehicle: lines [2 + marks, points, 2] m, edges first;
  corners [1 + bodies, 4, 2] m of the rectangles, the driven vehicle's first."""
  ego, half = state.ego, state.road.half_width
  camera = state.replace(ego=ego.replace(d=jnp.zeros(()), heading=jnp.zeros(())))
  marks = roads.lane_centre(state.road, np.arange(1, roads.MOST_LANES)) - roads.LANE / 2
  # whole cells, so that dashes stay where they are on the road
  points = np.arange(CELLS[0], CELLS[-1], 1 / PARTS, dtype=np.float32)
  lines = sensors.lines(camera, jnp.concatenate([jnp.stack([-half, half]), marks]), points)
  seen = sensors.boxes(camera)
  heading = jnp.concatenate([ego.heading[None], seen.heading])
  middle = jnp.concatenate([jnp.stack([jnp.zeros(()), ego.d])[None], seen.centre])
  corners = CORNERS * jnp.concatenate([OWN, seen.half])[:, None]
  corners = middle[:, None] + jax.vmap(lambda a, points: sensors.into(0.0, -a, points))(heading, corners)
  return {'lines': lines, 'corners': corners}


def frames(states) -> np.ndarray:
  """States, each leaf [time, …] -> frames [time, height, width, 3] uint8."""
  scenes = jax.device_get(scene(states))
  crash, lanes = np.asarray(states.collision) | np.asarray(states.off_road), np.asarray(states.road.lanes)
  first = (np.asarray(states.ego.s) // roads.CELL + CELLS[0]).astype(int) % 2 * PARTS  # one cell painted, one not
  pixels = lambda points: np.asarray(MIDDLE) + np.asarray(points) * (SCALE, -SCALE)

  def paint(i, pen):
    pen.rectangle([(0, 0), (drawing.WIDTH, drawing.HEIGHT)], GRASS)
    right, left, *marks = pixels(scenes['lines'][i])
    pen.polygon(np.concatenate([right, left[::-1]]), ASPHALT)
    for edge in (right, left):
      pen.line(edge, PAINT, 2)
    for mark in marks[: lanes[i] - 1]:
      for begin in range(first[i], len(mark) - PARTS, 2 * PARTS):
        pen.line(mark[begin : begin + PARTS + 1], PAINT)
    own, *bodies = pixels(scenes['corners'][i])
    for number, body in enumerate(bodies):
      car = number < others.VEHICLES
      _body(pen, body, BODIES[number % len(BODIES)] if car else OBSTACLE, WINDOWS if car else STRIPES)
    _body(pen, own, FLASH if crash[i] else EGO, WINDOWS, outline=PAINT)

  return drawing.frames(len(crash), paint)


def _body(pen: drawing.Pen, corners, colour, parts, outline=None):
  """A rectangle [4, 2] and parts of it, each between shares of its length from the back,
  and of its width about the middle.
  """
  pen.polygon(corners, colour, outline)
  ahead, left = (corners[0] - corners[3]) / 2, (corners[0] - corners[1]) / 2
  for back, front, side, inner in parts:
    x, y = np.array([back, front, front, back]) * 2 - 1, np.array([side, side, -side, -side])
    pen.polygon(corners.mean(0) + np.outer(x, ahead) + np.outer(y, left), inner)
