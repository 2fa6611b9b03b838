"""The vehicle that is driven: a kinematic bicycle on a road.

Kong et al. 2015, "Kinematic and dynamic vehicle models for autonomous driving control design", eq. 1, in Frenet
coordinates.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from karpjax.rl.driving import road as roads

SECONDS = 0.2  # of a step
LENGTH, WIDTH = 4.5, 1.9  # m, of a body
FRONT, REAR = 1.35, 1.35  # m, from the middle to the axles
MOST_STEERING = 0.2  # rad, of the front wheels
MOST_ACCELERATION = 5.0  # m / s², of engine and brakes
GRIP = 8.0  # m / s²: faster round a bend than this and the front wheels slide
FASTEST = 20.0  # m / s


@struct.dataclass
class Vehicle:
  """Its state, each [] float32.

  Attributes:
    s: m along the centre line since the episode's beginning, d: m to its left.
    heading: rad, to the left of the road's.
    speed: m / s, never backwards.
    steering: rad, acceleration: m / s², of the last step.
  """

  s: jax.Array
  d: jax.Array
  heading: jax.Array
  speed: jax.Array
  steering: jax.Array
  acceleration: jax.Array


def advance(road: roads.Road, vehicle: Vehicle, steering, acceleration) -> Vehicle:
  """A step later, by the midpoint rule in two parts; steering [] rad, acceleration [] m / s²."""
  seconds = SECONDS / 2
  s, d, heading, speed = vehicle.s, vehicle.d, vehicle.heading, vehicle.speed
  for _ in range(2):
    faster = jnp.clip(speed + seconds * acceleration, 0, FASTEST)
    mean = (speed + faster) / 2
    most = jnp.arctan((FRONT + REAR) * GRIP / jnp.maximum(mean, 1.0) ** 2)  # rad: wheels that turn further slide
    turned = jnp.tan(jnp.clip(steering, -most, most))
    slip = jnp.arctan(REAR / (FRONT + REAR) * turned)  # of the middle's way to the body
    spin = mean * jnp.sin(slip) / REAR  # rad / s
    here = roads.at(road, s)

    def rates(d, heading):
      along = mean * jnp.cos(heading + slip) / (1 - here.curvature * d)
      return along, mean * jnp.sin(heading + slip), spin - here.curvature * along

    _, across, turning = rates(d, heading)
    along, across, _ = rates(d + seconds / 2 * across, heading + seconds / 2 * turning)
    s, d, speed = s + seconds * along, d + seconds * across, faster
    # the road's own turn between two places is known exactly
    heading = heading + seconds * spin - (roads.at(road, s).heading - here.heading)
  heading = (heading + np.pi) % (2 * np.pi) - np.pi
  return Vehicle(s, d, heading, speed, jnp.asarray(steering), (speed - vehicle.speed) / SECONDS)
