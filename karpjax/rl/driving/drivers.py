"""Drivers that learn nothing: what a learnt one is to be compared with. Each is (key, State) -> action [2] in ±1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl import rollout
from karpjax.rl.driving import road as roads
from karpjax.rl.driving import traffic as others
from karpjax.rl.driving import vehicle
from karpjax.rl.driving.environment import State
from karpjax.rl.environment import Environment, wrap

CRUISING = 12.0  # m / s
COMFORT = 4.0  # m / s² across, in bends
AHEAD, SOON = 1.5, 8.0  # s, m: so far ahead is the lane that a vehicle is bound for


def random(key, state: State):
  """Any action."""
  return jax.random.uniform(key, (2,), jnp.float32, -1, 1)


def steer(state: State, aim):
  """The steering [] in ±1 that brings the vehicle to d = `aim` [] m and along the road, by proportional and derivative terms
  and the road's own curvature."""
  ego = state.ego
  bend = roads.at(state.road, ego.s + ego.speed * vehicle.SECONDS).curvature
  slow = jnp.maximum(ego.speed, 3.0)
  # across: the acceleration of a damped spring, of 0.9 / s and damping 1
  pull = 0.81 * jnp.clip(aim - ego.d, -4, 4) - 1.8 * slow * jnp.sin(ego.heading)
  curvature = bend / (1 - bend * ego.d) + pull / slow**2
  return jnp.clip(jnp.arctan((vehicle.FRONT + vehicle.REAR) * curvature) / vehicle.MOST_STEERING, -1, 1)


def accelerate(wanted):
  """[] in ±1, for an acceleration in m / s²."""
  return jnp.clip(wanted / vehicle.MOST_ACCELERATION, -1, 1)


def lane_keeper(key, state: State):
  """Keeps to the nearest lane and to CRUISING m / s, and sees nobody."""
  aim = roads.lane_centre(state.road, roads.nearest_lane(state.road, state.ego.d))
  return jnp.stack([steer(state, aim), accelerate(CRUISING - state.ego.speed)])


def privileged(key, state: State):
  """Knows where all others are, how fast, and what lane they are bound for; follows and changes lanes as they do, but faster,
  and slows down before bends."""
  road, ego = state.road, state.ego
  bodies = others.others(road, state.traffic, ego, state.obstacles)
  bound = ego.d + jnp.sin(ego.heading) * jnp.maximum(AHEAD * ego.speed, SOON)
  lane = roads.nearest_lane(road, bound)
  bends = jnp.abs(roads.at(road, ego.s + np.arange(0, 45, 5, dtype=np.float32)).curvature).max()
  desired = jnp.minimum(CRUISING + 2, jnp.sqrt(COMFORT / jnp.maximum(bends, 1e-3)))
  me = lambda *x: [jnp.asarray(v)[None] for v in x]
  s, d, speed, desired, lane = me(ego.s, ego.d, ego.speed, desired, lane)
  aim = roads.lane_centre(road, lane)
  now, _ = others.accelerations(bodies, s, d, aim, speed, desired)
  left, right = (others.change(road, bodies, side, s, d, lane, speed, desired, now) for side in (1, -1))
  aim = roads.lane_centre(road, lane + jnp.where(left, 1, jnp.where(right, -1, 0)))
  wanted, _ = others.accelerations(bodies, s, d, aim, speed, desired)
  return jnp.stack([steer(state, aim[0]), accelerate(wanted[0])])


DRIVERS = {'random': random, 'pd': lane_keeper, 'privileged': privileged}


def transparent(environment: Environment) -> Environment:
  """The same, which shows its state instead of observations."""

  def step(key, state, action):
    state, reached = environment.step(key, state, action)
    return state, reached.replace(observation=state)

  return wrap(environment, lambda state, observation: (state, state), step, lambda state: state)


def drive(environment: Environment, driver: Callable, keys) -> rollout.RolloutState:
  """An episode on each of roads, keys [roads], to its end."""
  act = lambda state, keys: jax.vmap(driver)(keys, state.inner)
  return rollout.episodes(transparent(environment), act, keys, lambda keys: keys)


def summarise(environment: Environment, ends: rollout.RolloutState) -> dict[str, float]:
  """Means of the outcomes of episodes that have ended, of their returns, and their speed in m / s."""
  outcomes = jax.vmap(environment.outcomes)(ends.state, ends.episode_return)
  numbers = {name: float(x.mean()) for name, x in outcomes.items()} | {'return': float(ends.episode_return.mean())}
  return numbers | {'speed': numbers['progress'] / (float(ends.episode_length.mean()) * vehicle.SECONDS)}


def evaluate(environment: Environment, driver: Callable, keys) -> dict[str, float]:
  """What `summarise` says of an episode on each of roads, keys [roads]."""
  return summarise(environment, jax.jit(lambda keys: drive(environment, driver, keys))(keys))
