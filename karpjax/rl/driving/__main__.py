"""Drivers that learn nothing, which a learnt one is to be compared with, and how they do on roads they have not seen.

python -m karpjax.rl.driving --driver=pd --roads=200 --seed=1
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl import rollout
from karpjax.rl.driving import environment, vehicle
from karpjax.rl.driving import road as roads
from karpjax.rl.driving import traffic as others
from karpjax.rl.driving.traffic import State

CRUISING = 12.0  # m / s
COMFORT = 4.0  # m / s² across, in bends
AHEAD, SOON = 1.5, 8.0  # s, m: so far ahead is the lane that a vehicle is bound for


# ---- drivers, each (key, State) -> action [2] in ±1 ----


def random(key, state: State):
  """Any action."""
  return jax.random.uniform(key, (2,), jnp.float32, -1, 1)


def control(state: State, aim, wanted):
  """The action that brings the vehicle to d = `aim` [] m and along the road, by proportional and derivative terms and
  the road's own curvature, at an acceleration of `wanted` [] m / s²."""
  ego = state.ego
  bend = roads.at(state.road, ego.s + ego.speed * vehicle.SECONDS).curvature
  slow = jnp.maximum(ego.speed, 3.0)
  # across: the acceleration of a damped spring, of 0.9 / s and damping 1
  pull = 0.81 * jnp.clip(aim - ego.d, -4, 4) - 1.8 * slow * jnp.sin(ego.heading)
  steering = jnp.arctan((vehicle.FRONT + vehicle.REAR) * (bend / (1 - bend * ego.d) + pull / slow**2))
  return jnp.clip(jnp.stack([steering / vehicle.MOST_STEERING, wanted / vehicle.MOST_ACCELERATION]), -1, 1)


def lane_keeper(key, state: State):
  """Keeps to the nearest lane and to CRUISING m / s, and sees nobody."""
  aim = roads.lane_centre(state.road, roads.nearest_lane(state.road, state.ego.d))
  return control(state, aim, CRUISING - state.ego.speed)


def privileged(key, state: State):
  """Knows where all others are, how fast, and what lane they are bound for; follows and changes lanes as they do, but
  faster, and slows down before bends."""
  road, ego, bodies = state.road, state.ego, others.everyone(state)
  lane = roads.nearest_lane(road, ego.d + jnp.sin(ego.heading) * jnp.maximum(AHEAD * ego.speed, SOON))
  bends = jnp.abs(roads.at(road, ego.s + np.arange(0, 45, 5, dtype=np.float32)).curvature).max()
  desired = jnp.minimum(CRUISING + 2, jnp.sqrt(COMFORT / jnp.maximum(bends, 1e-3)))
  me = others.Traffic(*(x[None] for x in (ego.s, ego.d, ego.speed, desired, lane)))
  now, _ = others.accelerations(road, bodies, me)
  left, right = (others.change(road, bodies, me, side, now) for side in (1, -1))
  me = me.replace(lane=lane + jnp.where(left, 1, jnp.where(right, -1, 0)))
  wanted, _ = others.accelerations(road, bodies, me)
  return control(state, roads.lane_centre(road, me.lane)[0], wanted[0])


DRIVERS = {'random': random, 'pd': lane_keeper, 'privileged': privileged}


def drive(driver: Callable, keys, kind: str = 'mixed') -> rollout.RolloutState:
  """An episode on each of roads of a kind, keys [roads], to its end."""
  act = lambda _, state, keys: jax.vmap(driver)(keys, state)
  policy = rollout.Policy(environment.make('state', kind), act, noise=lambda key: key)
  return rollout.episodes(policy, None, keys, greedy=False)


def summarise(ends: rollout.RolloutState) -> dict[str, float]:
  """Means of the outcomes of episodes that have ended, of their returns, and their speed in m / s."""
  outcomes = jax.vmap(environment.outcomes)(ends.state.inner, ends.episode_return)
  numbers = {name: float(x.mean()) for name, x in {**outcomes, 'return': ends.episode_return}.items()}
  return numbers | {'speed': numbers['progress'] / (float(ends.episode_length.mean()) * vehicle.SECONDS)}


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog='python -m karpjax.rl.driving', description=__doc__.splitlines()[0])
  parser.add_argument('--driver', choices=[*DRIVERS, 'all'], default='all')
  parser.add_argument('--roads', type=int, default=200, help='how many (default 200)')
  parser.add_argument('--kind', choices=roads.ROADS, default='mixed', help='of roads (default mixed)')
  parser.add_argument('--seed', type=int, default=0, help='another is another set of roads (default 0)')
  options = parser.parse_args(argv)
  for name, low, high in (('roads', 1, 2**31 - 1), ('seed', 0, 2**32 - 1)):
    if not low <= (value := getattr(options, name)) <= high:
      parser.error(f'--{name}={value}: at least {low} and at most {high} is needed')
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(options.seed), jnp.arange(options.roads))
  for name in DRIVERS if options.driver == 'all' else [options.driver]:
    numbers = summarise(jax.jit(lambda keys: drive(DRIVERS[name], keys, options.kind))(keys))
    shares = ' '.join(f'{key} {numbers[key]:6.1%}' for key in ('crash', 'collision', 'off_road', 'time_limit'))
    print(f'{name:10s} {shares} progress {numbers["progress"]:5.0f} m speed {numbers["speed"]:4.1f} m/s')
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
