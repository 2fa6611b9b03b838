"""Roads with lanes, drawn from a key: centre lines of circular arcs, closed tracks or open roads without an end.

Where something is on a road is said by Frenet coordinates: s, metres along the centre line, and d, metres to its left.
All roads are LENGTH long; beyond, a closed track begins again, and an open road goes on with the same bends where it
had come to.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

CELL, CELLS = 5.0, 96  # an arc's length in metres, and how many there are
LENGTH = CELL * CELLS
LANE, MOST_LANES = 3.5, 3  # a lane's width in metres; a road has 2 or 3 of them
SHARPEST = 0.04  # 1 / m, about: bends have a radius of 25 m and more
ROADS = {'mixed': 0.5, 'closed': 1.0, 'open': 0.0}  # what share of the roads is closed

# The heading is a turn, all round or none, and waves: WAVES[k] rad at most, k + 1 periods on the road. On open roads they add
# up to less than a right angle, so that none crosses itself.
WAVES = np.array([0.5, 0.3, 0.28, 0.2, 0.12], np.float32)
_phases = np.arange(CELLS + 1)[:, None] / CELLS * 2 * np.pi * np.arange(1, len(WAVES) + 1)
BASIS = np.stack([np.sin(_phases), np.cos(_phases)], -1).astype(np.float32)  # [CELLS + 1, waves, 2]
SUMS = np.tri(CELLS + 1, CELLS, -1, dtype=np.float32)  # row i adds up the first i; faster than cumsum


@struct.dataclass
class Road:
  """One of them.

  Attributes:
    knots: [CELLS + 1, 3] float32: x, y (m) and heading (rad, unwrapped) where the arcs meet.
    lanes: [] int32.
  """

  knots: jax.Array
  lanes: jax.Array

  @property
  def half_width(self):
    """[] float32, m: from the centre line to either edge."""
    return self.lanes * (LANE / 2)


class Place(NamedTuple):
  """Points of a centre line: position […, 2] m, heading […] rad, curvature […] 1 / m, positive to the left."""

  position: jax.Array
  heading: jax.Array
  curvature: jax.Array


def generate(key, roads: str = 'mixed') -> Road:
  """A road; `roads` is one of ROADS."""
  drawn = jax.random.uniform(key, (2 * len(WAVES) + 2,))
  closed = drawn[-1] < ROADS[roads]
  size, angle = drawn[: len(WAVES)] * WAVES, drawn[len(WAVES) : -2] * (2 * np.pi)
  waves = jnp.stack([size * jnp.cos(angle), size * jnp.sin(angle)], -1)  # [waves, 2]
  turn = jnp.where(closed, 2 * np.pi, 0.0)
  # The first wave of a closed track is what closes it.
  waves = waves.at[0].multiply(~closed)
  sharpest = jnp.abs(jnp.diff(jnp.tensordot(BASIS, waves, 2))).max() / CELL
  waves *= jnp.minimum(1, (SHARPEST - turn / LENGTH) / sharpest)
  heading = turn * np.linspace(0, 1, CELLS + 1, dtype=np.float32) + jnp.tensordot(BASIS, waves, 2)
  heading = jnp.where(closed, _close(heading), heading)
  lanes = jnp.where(drawn[-2] < 0.5, MOST_LANES - 1, MOST_LANES)
  return Road(jnp.concatenate([SUMS @ _chords(heading), heading[:, None]], -1), lanes)


def _chords(heading):
  """[CELLS, 2] m: from knot to knot."""
  middle, bend = (heading[1:] + heading[:-1]) / 2, heading[1:] - heading[:-1]
  return (CELL * _sinc(bend / 2) * jnp.stack([jnp.cos(middle), jnp.sin(middle)])).T


def _sinc(x):
  """sin x / x to 1e-7 for the small angles within a cell."""
  return 1 - x**2 / 6 + x**4 / 120


def _close(heading):
  """The heading with as much of the first wave as brings the end to the beginning, by Newton's method."""
  wave = BASIS[:, 0]  # [CELLS + 1, 2]
  middle = (wave[1:] + wave[:-1]) / 2
  for _ in range(3):
    chords = _chords(heading)
    missing = chords.sum(0)
    # turning a chord by an angle moves its end by that angle times its normal
    normal = jnp.stack([-chords[:, 1], chords[:, 0]])
    (a, b), (c, d) = normal @ middle
    by = jnp.stack([d * missing[0] - b * missing[1], a * missing[1] - c * missing[0]]) / (a * d - b * c)
    heading = heading - wave @ by
  return heading


def at(road: Road, s) -> Place:
  """The centre line at s […] m, of any size; exactly, as each cell is an arc."""
  laps = jnp.floor(s / LENGTH)
  along = s - laps * LENGTH
  cell = jnp.clip((along / CELL).astype(jnp.int32), 0, CELLS - 1)
  here, there = road.knots[cell], road.knots[cell + 1]
  lap = road.knots[-1] - road.knots[0]
  along = along - cell * CELL
  curvature = (there[..., 2] - here[..., 2]) / CELL
  heading, half = here[..., 2], along * curvature / 2
  chord = (along * _sinc(half))[..., None] * jnp.stack([jnp.cos(heading + half), jnp.sin(heading + half)], -1)
  position = here[..., :2] + chord + laps[..., None] * lap[:2]
  return Place(position, heading + 2 * half + laps * lap[2], curvature)


def beside(place: Place, d):
  """[…, 2] m: d […] m to the left of a place."""
  normal = jnp.stack([-jnp.sin(place.heading), jnp.cos(place.heading)], -1)
  return place.position + d[..., None] * normal


def lane_centre(road: Road, lane):
  """d of the middle of a lane […] int; 0 is the rightmost."""
  return (lane - (road.lanes - 1) / 2) * LANE


def nearest_lane(road: Road, d):
  """[…] int32: the lane whose middle is nearest to d […]."""
  lane = jnp.round(d / LANE + (road.lanes - 1) / 2).astype(jnp.int32)
  return jnp.clip(lane, 0, road.lanes - 1)


def off_lane(road: Road, d):
  """[…] m to the left of the middle of the nearest lane."""
  return d - lane_centre(road, nearest_lane(road, d))


def ahead(of, s):
  """[…] m from `of` to s the shorter way round: roads are rings to what drives on them."""
  return (s - of + LENGTH / 2) % LENGTH - LENGTH / 2
