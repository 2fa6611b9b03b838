"""Traffic: vehicles that follow by the intelligent driver model and change lanes by MOBIL, among obstacles that stand.

Treiber, Hennecke & Helbing 2000, "Congested traffic states in empirical observations and microscopic simulations";
Kesting, Treiber & Helbing 2007, "General lane-changing model MOBIL for car-following models". All are at (s, d) of a
road.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from karpjax.rl.driving import road as roads
from karpjax.rl.driving.vehicle import LENGTH, SECONDS, WIDTH, Vehicle

VEHICLES, OBSTACLES = 12, 4
OBSTACLE_LENGTH, OBSTACLE_WIDTH = 2.5, 2.0  # m
# IDM: a and b in m / s², T in s, s0 in m; the hardest braking in m / s²
ACCELERATION, BRAKING, HEADWAY, STANDSTILL, HARDEST = 1.5, 2.0, 1.2, 2.0, 8.0
CLEARANCE = 10.0  # m, kept before obstacles beyond s0: room to drive round them
# MOBIL: politeness p, threshold Δa and the safe braking b in m / s²
POLITENESS, THRESHOLD, SAFE = 0.3, 0.2, 2.0
ABREAST = 2.4  # m: with less between two middles, one follows the other
ROOM, SETTLED = 8.0, 0.4  # m: between bumpers; to the middle of the lane
SLANT, ACROSS = 0.3, 1.2  # changing lanes: metres to the side per metre, and most m / s
LENGTHS = np.array([LENGTH] * (VEHICLES + 1) + [OBSTACLE_LENGTH] * OBSTACLES, np.float32)
HALVES = np.array([[LENGTH, WIDTH]] * VEHICLES + [[OBSTACLE_LENGTH, OBSTACLE_WIDTH]] * OBSTACLES, np.float32) / 2
STANDING = np.array([0.0] * (VEHICLES + 1) + [CLEARANCE] * OBSTACLES, np.float32)


@struct.dataclass
class Traffic:
  """Vehicles, each leaf [VEHICLES]: s, d (m), speed along the road (m / s), the desired one,
  and the lane aimed at (int32).
  """

  s: jax.Array
  d: jax.Array
  speed: jax.Array
  desired: jax.Array
  lane: jax.Array


class Bodies(NamedTuple):
  """What there is to follow, avoid or cut off, each leaf [bodies]: s, d, speed, and `aim`, the d that it moves to."""

  s: jax.Array
  d: jax.Array
  speed: jax.Array
  aim: jax.Array


@struct.dataclass
class State:
  """A world; obstacles: [OBSTACLES], in the middle of lanes; collision, off_road: [] bool, never both."""

  road: roads.Road
  ego: Vehicle
  traffic: Traffic
  obstacles: Bodies
  collision: jax.Array
  off_road: jax.Array


def spawn(key, road: roads.Road) -> tuple[Traffic, Bodies]:
  """Traffic at its beginning: one body in each of equal stretches of the road, the first of which is empty."""
  bodies, group = VEHICLES + OBSTACLES, (VEHICLES + OBSTACLES) // OBSTACLES
  drawn = jax.random.uniform(key, (2 * bodies + VEHICLES + 1,))
  # one body of each group is an obstacle, the same of all: two of them are never abreast
  first = (drawn[-1] * group).astype(jnp.int32)
  standing = group * np.arange(OBSTACLES) + first
  moving = np.arange(VEHICLES)
  moving = group * (moving // (group - 1)) + (first + 1 + moving % (group - 1)) % group
  s = (np.arange(1, bodies + 1) * (roads.LENGTH / (bodies + 1)) + 10 * (drawn[:bodies] - 0.5)).astype(jnp.float32)
  lane = jnp.minimum((drawn[bodies : 2 * bodies] * road.lanes).astype(jnp.int32), road.lanes - 1)
  d = roads.lane_centre(road, lane)
  desired = 5 + 6 * drawn[2 * bodies : -1]  # m / s
  vehicles = Traffic(s[moving], d[moving], 0.8 * desired, desired, lane[moving])
  return vehicles, Bodies(s[standing], d[standing], jnp.zeros(OBSTACLES), d[standing])


def everyone(state: State) -> Bodies:
  """All bodies of a world: traffic, the vehicle that is driven, obstacles, in this order."""
  traffic, ego = state.traffic, state.ego
  driven = ego.s, ego.d, jnp.maximum(ego.speed * jnp.cos(ego.heading), 0), ego.d
  vehicles = traffic.s, traffic.d, traffic.speed, roads.lane_centre(state.road, traffic.lane)
  return Bodies(*(jnp.concatenate([a, b[None], c]) for a, b, c in zip(vehicles, driven, state.obstacles)))


def follow(speed, desired, leader, gap):
  """The IDM's acceleration (Treiber et al. 2000, eqs. 2 and 3), […] m / s², not below -HARDEST.

  Args:
    speed, desired, leader: m / s: one's own, where nothing is ahead, and that of what is.
    gap: m, from bumper to bumper.
  """
  wished = STANDSTILL + jnp.maximum(
    0, HEADWAY * speed + speed * (speed - leader) / (2 * np.sqrt(ACCELERATION * BRAKING))
  )
  free = 1 - (speed / desired) ** 4
  return jnp.maximum(ACCELERATION * (free - (wished / jnp.maximum(gap, 0.1)) ** 2), -HARDEST)


def accelerations(road: roads.Road, bodies: Bodies, drivers: Traffic):
  """What drivers do who keep to their lanes, each for the most hindering of what is ahead in its way, and the hardest
  braking that they ask of who is behind: two arrays [drivers] m / s²."""
  s, d, speed, desired = (x[:, None] for x in (drivers.s, drivers.d, drivers.speed, drivers.desired))
  aim = roads.lane_centre(road, drivers.lane)[:, None]
  distance = roads.ahead(s, bodies.s)  # [drivers, bodies]
  near = lambda x, y, within: jnp.abs(x - y) < within
  # An obstacle is no longer in the way of who has begun to drive round it.
  moving = STANDING == 0
  in_way = near(aim, bodies.d, ABREAST) | (near(d, bodies.d, ABREAST) & moving) | near(aim, bodies.aim, ABREAST / 2)
  gap = jnp.abs(distance) - (LENGTH + LENGTHS) / 2
  free = follow(drivers.speed, drivers.desired, drivers.speed, jnp.inf)
  held = follow(speed, desired, bodies.speed, gap - STANDING)
  mine = jnp.minimum(free, jnp.where(in_way & (distance > 0), held, jnp.inf).min(-1))
  asked = follow(bodies.speed, jnp.inf, speed, gap)
  return mine, jnp.where(in_way & (distance < 0) & moving, asked, jnp.inf).min(-1)


def change(road: roads.Road, bodies: Bodies, drivers: Traffic, side, now):
  """MOBIL (Kesting et al. 2007, eqs. 1 and 2, of followers only the new one): [drivers] bool, whether to move one lane
  over.

  Args:
    side: 1 to the left, -1 to the right.
    now: [drivers] m / s², what they do if they stay.
  """
  lane = drivers.lane + side
  new, asked = accelerations(road, bodies, drivers.replace(lane=lane, d=roads.lane_centre(road, lane)))
  # From a standstill it takes room to get out behind another vehicle.
  distance = roads.ahead(drivers.s[:, None], bodies.s)
  abreast = jnp.abs(drivers.d[:, None] - bodies.d) < ABREAST
  close = (distance > 0) & (distance - LENGTH < ROOM) & abreast & (STANDING == 0)
  safe = (asked > -SAFE) & (new > -SAFE) & ((drivers.speed > 1) | ~close.any(-1))
  better = new - now + POLITENESS * jnp.minimum(asked, 0) > THRESHOLD
  return safe & better & (lane >= 0) & (lane < road.lanes)


def advance(key, state: State) -> Traffic:
  """Traffic a step later."""
  road, traffic, bodies = state.road, state.traffic, everyone(state)
  now, _ = accelerations(road, bodies, traffic)
  # In one step all look to the same side: no two come into one gap from both.
  side = jnp.where(jax.random.bernoulli(key), 1, -1)
  settled = jnp.abs(traffic.d - roads.lane_centre(road, traffic.lane)) < SETTLED
  lane = traffic.lane + side * (settled & change(road, bodies, traffic, side, now))
  speed = jnp.maximum(traffic.speed + SECONDS * now, 0)
  most = SECONDS * jnp.minimum(SLANT * speed, ACROSS)
  d = traffic.d + jnp.clip(roads.lane_centre(road, lane) - traffic.d, -most, most)
  s = traffic.s + SECONDS * (traffic.speed + speed) / 2
  return Traffic(s % roads.LENGTH, d, speed, traffic.desired, lane)


def headings(road: roads.Road, traffic: Traffic):
  """[VEHICLES] rad to the left of the road's: where they head."""
  across = roads.lane_centre(road, traffic.lane) - traffic.d
  return jnp.where(jnp.abs(across) > 0.1, jnp.sign(across) * jnp.minimum(SLANT, ACROSS / (traffic.speed + 1)), 0.0)
