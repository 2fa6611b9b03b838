"""Driving: a vehicle on a road it has not seen, among traffic, to get far and harm nobody.

Everything in a world comes from its key: the road, its lanes, the traffic, the obstacles; and all shapes are fixed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl.driving import drawing, sensors, vehicle
from karpjax.rl.driving import road as roads
from karpjax.rl.driving import traffic as others
from karpjax.rl.driving.traffic import State
from karpjax.rl.environment import Box, Environment, TimeStep, time_limit

STEPS = 200  # of an episode: 40 s
SHORTEST = 3  # steps: half a lane is not to be crossed in two
LOOKAHEAD = np.array([0, 10, 20, 40], np.float32)  # m
LIMIT = 12.0  # m / s: going faster is no more progress
# The reward of a step: 1 at LIMIT along the road, less these
CRASH = 300.0  # at the end, for a collision or leaving the road
OFF_LANE = 0.05  # on the line between two lanes; as the square of the distance to the lane's middle
JERK, TURNING = 0.05, 0.05  # for a change from no to full acceleration, and steering; as its square


def reset(key, kind: str) -> State:
  """A world at its beginning: the vehicle in the middle of a lane, at 5 to 10 m / s."""
  generating, spawning, beginning = jax.random.split(key, 3)
  road = roads.generate(generating, kind)
  traffic, obstacles = others.spawn(spawning, road)
  drawn, zero = jax.random.uniform(beginning, (2,)), jnp.zeros(())
  lane = jnp.minimum((drawn[0] * road.lanes).astype(jnp.int32), road.lanes - 1)
  ego = vehicle.Vehicle(zero, roads.lane_centre(road, lane), zero, 5 + 5 * drawn[1], zero, zero)
  never = jnp.zeros((), bool)
  return State(road, ego, traffic, obstacles, never, never)


def see(state: State, seen: sensors.Boxes):
  """[rays · 3 + 13] float32 within ±1: `sensors.rays`, and what the vehicle knows of itself and of the road: speed;
  sine and cosine of the heading; metres off the lane's middle, to the left and the right edge; lanes; its last action;
  the curvature here and ahead."""
  road, ego, width = state.road, state.ego, roads.LANE * roads.MOST_LANES
  numbers = [
    ego.speed / vehicle.FASTEST,
    jnp.sin(ego.heading),
    jnp.cos(ego.heading),
    roads.off_lane(road, ego.d) / (roads.LANE / 2),
    (road.half_width - ego.d) / width,
    (road.half_width + ego.d) / width,
    road.lanes - (roads.MOST_LANES - 1.0),
    ego.steering / vehicle.MOST_STEERING,
    ego.acceleration / vehicle.MOST_ACCELERATION,
  ]
  bends = roads.at(road, ego.s + LOOKAHEAD).curvature / roads.SHARPEST
  return jnp.clip(jnp.concatenate([sensors.rays(state, seen).reshape(-1), jnp.stack(numbers), bends]), -1, 1)


def reward(before: State, after: State):
  """[] float32: progress, less discomfort and leaving the lane's middle, less CRASH where that ends it."""
  progress = jnp.minimum((after.ego.s - before.ego.s) / (LIMIT * vehicle.SECONDS), 1)
  jerk = (after.ego.acceleration - before.ego.acceleration) / vehicle.MOST_ACCELERATION
  turning = (after.ego.steering - before.ego.steering) / vehicle.MOST_STEERING
  off = roads.off_lane(after.road, after.ego.d) / (roads.LANE / 2)
  comfort = JERK * jnp.square(jerk) + TURNING * jnp.square(turning)
  return progress - comfort - OFF_LANE * jnp.square(off) - CRASH * (after.collision | after.off_road)


def outcomes(state: State, total) -> dict[str, jax.Array]:
  """Of an episode, by its last state: collision, off_road and time_limit, of which one is true; crash, which is one of
  the first two; success, which is none of them; progress, metres along the road."""
  crash = state.collision | state.off_road
  ends = {'crash': crash, 'collision': state.collision, 'off_road': state.off_road}
  return {**ends, 'time_limit': ~crash, 'success': ~crash, 'progress': state.ego.s}


OBSERVATIONS = {  # the environment's name, how it is observed, and the shape of that
  'rays': ('driving', see, (len(sensors.ANGLES) * 3 + 9 + len(LOOKAHEAD),)),
  'raster': ('driving_raster', sensors.raster, (sensors.PIXELS, sensors.PIXELS, len(sensors.CHANNELS))),
  'state': ('driving_state', lambda state, seen: state, ()),  # for drivers that know everything
}


def make(observation: str = 'rays', kind: str = 'mixed') -> Environment:
  """A drive of at most 40 s, five actions a second.

  Actions: [2] float32, clipped to ±1: steering to the left, in 0.2 rad, and acceleration, in 5 m / s².
  Over where the vehicle's rectangle meets another (collision) or its middle is off the road (off_road).

  Args:
    observation: a key of OBSERVATIONS; 'rays' and 'raster' give numbers within ±1.
    kind: of the roads, one of road.ROADS.
  """
  name, observe, shape = OBSERVATIONS[observation]

  def begin(key):
    state = reset(key, kind)
    return state, observe(state, sensors.boxes(state))

  def step(key, state, action):
    action = jnp.clip(action, -1.0, 1.0)
    steering, acceleration = action[0] * vehicle.MOST_STEERING, action[1] * vehicle.MOST_ACCELERATION
    ego = vehicle.advance(state.road, state.ego, steering, acceleration)
    after = state.replace(ego=ego, traffic=others.advance(key, state))
    seen = sensors.boxes(after)
    collision = sensors.hit(seen).any()
    off_road = (jnp.abs(ego.d) > state.road.half_width) & ~collision
    after = after.replace(collision=collision, off_road=off_road)
    return after, TimeStep(observe(after, seen), reward(state, after), collision | off_road)

  box, action = Box(shape, -1.0, 1.0), Box((2,), -1.0, 1.0)
  return time_limit(Environment(name, begin, step, box, action, STEPS, drawing.frames, outcomes, SHORTEST))


ENVIRONMENTS = {'driving': make, 'driving_raster': functools.partial(make, 'raster')}
