"""What the driven vehicle meets and sees, in its own frame: x metres ahead of its middle, y metres to its left."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from karpjax.rl.driving import road as roads
from karpjax.rl.driving import traffic as others
from karpjax.rl.driving import vehicle
from karpjax.rl.driving.traffic import State

RANGE = 60.0  # m
_right = np.array([2, 4, 7, 11, 16, 23, 32, 45, 65, 90, 130])
# Close together ahead, where things are far away when they matter.
ANGLES = np.deg2rad(np.concatenate([-_right[::-1], [0], _right, [180]])).astype(np.float32)
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)  # [rays, 2]
PIXELS, METRES = 32, 2.0  # of a bird's eye view: how many each way, and the size of one
CHANNELS = ('road', 'lane', 'vehicles', 'closing', 'obstacles', 'speed')
KNOTS = np.arange(-4, round(RANGE / roads.CELL) + 2)  # the edges are seen so far, in cells: 20 m back and RANGE ahead


@struct.dataclass
class Boxes:
  """Rectangles in the frame of the driven vehicle: centre [bodies, 2] m, heading [bodies] rad, half [bodies, 2] m (of
  length and width), closing [bodies] m / s, how much slower than the driven vehicle each goes along its heading."""

  centre: jax.Array
  heading: jax.Array
  half: jax.Array
  closing: jax.Array


def frame(state: State):
  """(origin [2] m, heading [] rad) of the vehicle in the plane."""
  place = roads.at(state.road, state.ego.s)
  return roads.beside(place, state.ego.d), place.heading + state.ego.heading


def into(origin, heading, points):
  """Points [..., 2] of the plane as they lie from a frame."""
  x, y = jnp.moveaxis(points - origin, -1, 0)
  cos, sin = jnp.cos(heading), jnp.sin(heading)
  return jnp.stack([cos * x + sin * y, cos * y - sin * x], -1)


def boxes(state: State) -> Boxes:
  """Traffic, then obstacles."""
  (origin, heading), traffic, obstacles = frame(state), state.traffic, state.obstacles
  s, d = jnp.concatenate([traffic.s, obstacles.s]), jnp.concatenate([traffic.d, obstacles.d])
  standing = lambda moving: jnp.pad(moving, (0, others.OBSTACLES))
  place = roads.at(state.road, state.ego.s + roads.ahead(state.ego.s, s))
  turned = place.heading - heading + standing(others.headings(state.road, traffic))
  centre = into(origin, heading, roads.beside(place, d))
  return Boxes(centre, turned, others.HALVES, state.ego.speed - standing(traffic.speed) * jnp.cos(turned))


def lines(state: State, offsets, cells):
  """[offsets, cells, 2]: lines beside the centre line, offsets [offsets] m to its left,
  so many cells ahead of the vehicle's.
  """
  place = roads.at(state.road, (jnp.floor(state.ego.s / roads.CELL) + cells) * roads.CELL)
  return into(*frame(state), jax.vmap(lambda d: roads.beside(place, d[None]))(offsets))


def edges(state: State):
  """[2, knots, 2]: the road's right and left edge."""
  return lines(state, jnp.stack([-state.road.half_width, state.road.half_width]), KNOTS)


def hit(boxes: Boxes):
  """[bodies] bool: whether the vehicle's own rectangle and each of them overlap, by separating axes."""
  own = np.array([vehicle.LENGTH, vehicle.WIDTH], np.float32) / 2
  cos, sin = jnp.abs(jnp.cos(boxes.heading)), jnp.abs(jnp.sin(boxes.heading))
  span = lambda half: jnp.stack([half[..., 0] * cos + half[..., 1] * sin, half[..., 0] * sin + half[..., 1] * cos], -1)
  mine = jnp.abs(boxes.centre) < own + span(boxes.half)
  theirs = jnp.abs(jax.vmap(lambda c, a: into(0.0, a, c))(boxes.centre, boxes.heading)) < boxes.half + span(own)
  return (mine & theirs).all(-1)


def to_boxes(boxes: Boxes):
  """[bodies, rays] m, infinite where a ray from the vehicle's middle misses: by slabs (Kay & Kajiya 1986)."""
  cos, sin = jnp.cos(boxes.heading)[:, None], jnp.sin(boxes.heading)[:, None]
  (x, y), (u, v) = boxes.centre.T[..., None], DIRECTIONS.T

  def slab(origin, ray, half):
    slope = 1 / jnp.where(jnp.abs(ray) < 1e-6, 1e-6, ray)
    middle, reach = origin * slope, jnp.abs(half[:, None] * slope)
    return middle - reach, middle + reach

  enter, leave = slab(cos * x + sin * y, cos * u + sin * v, boxes.half[:, 0])
  enter_side, leave_side = slab(cos * y - sin * x, cos * v - sin * u, boxes.half[:, 1])
  enter, leave = jnp.maximum(enter, enter_side), jnp.minimum(leave, leave_side)
  return jnp.where((enter <= leave) & (leave >= 0), jnp.maximum(enter, 0), jnp.inf)


def to_lines(lines):
  """[rays] m to the nearest of broken lines [lines, knots, 2], infinite where there is none."""
  (x, y), (dx, dy) = lines[:, :-1].reshape(-1, 2).T[..., None], jnp.diff(lines, axis=1).reshape(-1, 2).T[..., None]
  u, v = DIRECTIONS.T
  slope = u * dy - v * dx  # [pieces, rays]: the nearest is then a minimum over rows, which XLA vectorises
  slope = 1 / jnp.where(jnp.abs(slope) < 1e-6, 1e-6, slope)
  far, part = (x * dy - y * dx) * slope, (x * v - y * u) * slope
  return jnp.where((part >= 0) & (part <= 1) & (far >= 0), far, jnp.inf).min(0)


def rays(state: State, seen: Boxes):
  """[rays, 3] float32: how far the nearest body is and how far the edge of the road, 1 at RANGE; and how fast that body
  comes nearer, 1 at the vehicle's greatest speed, 0 where there is none."""
  bodies = to_boxes(seen)
  nearest = bodies.min(0)
  closing = jnp.where(bodies == nearest, seen.closing[:, None], -jnp.inf).max(0)
  closing = jnp.where(nearest < RANGE, closing, 0.0)
  edge = to_lines(edges(state))
  return jnp.stack([jnp.minimum(nearest / RANGE, 1), jnp.minimum(edge / RANGE, 1), closing / vehicle.FASTEST], -1)


def raster(state: State, seen: Boxes):
  """[PIXELS, PIXELS, CHANNELS] float32 in [-1, 1]: a bird's eye view with ahead at the top, the vehicle a quarter up.

  Channels: where the road is; how near to the middle of a lane; where vehicles are and how fast they come nearer; where
  obstacles are; the vehicle's own speed, everywhere.
  """
  across = (np.arange(PIXELS) - (PIXELS - 1) / 2) * METRES
  x, y = np.meshgrid((PIXELS * 0.75 - 0.5 - np.arange(PIXELS)) * METRES, -across, indexing='ij')
  points = np.stack([x, y], -1).astype(np.float32)  # [PIXELS, PIXELS, 2]
  road, (line,) = state.road, lines(state, jnp.zeros(1), KNOTS)
  a, along = line[:-1], jnp.diff(line, axis=0)
  way = points[..., None, :] - a  # [PIXELS, PIXELS, pieces, 2]
  part = jnp.clip((way * along).sum(-1) / jnp.square(along).sum(-1), 0, 1)
  off = way - part[..., None] * along
  nearest = jnp.square(off).sum(-1).argmin(-1)[..., None]
  left = along[:, 0] * way[..., 1] - along[:, 1] * way[..., 0] > 0
  distance = jnp.sqrt(jnp.square(off).sum(-1))
  d = jnp.take_along_axis(jnp.where(left, distance, -distance), nearest, -1)[..., 0]
  there = jnp.abs(d) < road.half_width
  lane = 1 - jnp.abs(roads.off_lane(road, d)) / (roads.LANE / 2)
  inside = jax.vmap(lambda c, a, half: (jnp.abs(into(0.0, a, points - c)) < half + METRES / 4).all(-1))
  bodies = inside(seen.centre, seen.heading, seen.half)  # [bodies, PIXELS, PIXELS]
  moving, standing = bodies[: others.VEHICLES], bodies[others.VEHICLES :]
  closing = jnp.where(moving, seen.closing[: others.VEHICLES, None, None], 0).sum(0) / vehicle.FASTEST
  speed = jnp.broadcast_to(state.ego.speed / vehicle.FASTEST, there.shape)
  planes = [there, jnp.where(there, lane, 0), moving.any(0), closing, standing.any(0), speed]
  return jnp.clip(jnp.stack([plane.astype(jnp.float32) for plane in planes], -1), -1, 1)
