"""Classic control as pure functions: the tasks that every paper begins with, step by step those of gymnasium.

An episode succeeds whose return is what gymnasium's registry asks of a solution, its `reward_threshold`; the pendulum
has none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.rl import drawing
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, success_from, time_limit


def cartpole(name: str = 'cartpole', seen: slice = slice(None)) -> Environment:
  """A pole on a cart, pushed left or right by 10 N; 1 a step until it falls (Barto, Sutton & Anderson 1983), at most
  500.

  State and, where all of it is seen, observation: [4] float32: position (m), velocity, angle of the pole (rad), angular
  velocity. Over at 2.4 m or 12°. Without velocities what moves must be remembered (Wierstra et al. 2007).
  """
  gravity, cart, pole, half_length, force, seconds = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
  whole = cart + pole

  def reset(key):
    state = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
    return state, state[seen]

  def step(key, state, action):
    x, v, angle, spin = state
    push = jnp.where(action == 1, force, -force)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    pushed = (push + pole * half_length * spin**2 * sin) / whole
    # Florian 2007, "Correct equations for the dynamics of the cart-pole system", eqs. 23 and 24 without friction
    angular = (gravity * sin - cos * pushed) / (half_length * (4 / 3 - pole * cos**2 / whole))
    linear = pushed - pole * half_length * angular * cos / whole
    state = jnp.stack([x + seconds * v, v + seconds * linear, angle + seconds * spin, spin + seconds * angular])
    over = (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 12 * np.pi / 180)
    return state, TimeStep(state[seen], jnp.float32(1), over)

  high = np.array([4.8, np.inf, 24 * np.pi / 180, np.inf], np.float32)[seen]
  box, success = Box(high.shape, -high, high), success_from(475)
  return time_limit(Environment(name, reset, step, box, Discrete(2), 500, drawing.cartpole, success))


def acrobot() -> Environment:
  """Two links, a torque of -1, 0 or 1 at the joint between: swing the tip up; -1 a step (Sutton 1996), at most 500.

  State: [4] float32: angle of the first link from straight down, angle of the second relative to it, their velocities.
  Observation: [6]: cos and sin of each angle, the velocities. Over when the tip is one link above the axis.
  """
  gravity, seconds, limits = 9.8, 0.2, np.array([4 * np.pi, 9 * np.pi], np.float32)

  def observe(state):
    (a, b), speeds = state[:2], state[2:]
    return jnp.concatenate([jnp.stack([jnp.cos(a), jnp.sin(a), jnp.cos(b), jnp.sin(b)]), speeds])

  def derivative(state, torque):
    # Sutton & Barto 1998, figure 11.4, with masses, lengths and moments of inertia of 1, centres of mass at ½
    a, b, da, db = state
    d1 = 0.25 + 1 + 0.25 + jnp.cos(b) + 2
    d2 = 0.25 + 0.5 * jnp.cos(b) + 1
    phi2 = 0.5 * gravity * jnp.cos(a + b - np.pi / 2)
    phi1 = -0.5 * db**2 * jnp.sin(b) - db * da * jnp.sin(b) + 1.5 * gravity * jnp.cos(a - np.pi / 2) + phi2
    ddb = (torque + d2 / d1 * phi1 - 0.5 * da**2 * jnp.sin(b) - phi2) / (0.25 + 1 - d2**2 / d1)
    return jnp.stack([da, db, -(d2 * ddb + phi1) / d1, ddb])

  def reset(key):
    state = jax.random.uniform(key, (4,), jnp.float32, -0.1, 0.1)
    return state, observe(state)

  def step(key, state, action):
    torque = jnp.asarray(action, jnp.float32) - 1
    # one step of the classical Runge–Kutta method
    k1 = derivative(state, torque)
    k2 = derivative(state + seconds / 2 * k1, torque)
    k3 = derivative(state + seconds / 2 * k2, torque)
    k4 = derivative(state + seconds * k3, torque)
    state = state + seconds / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    angles = (state[:2] + np.pi) % (2 * np.pi) - np.pi
    state = jnp.concatenate([angles, jnp.clip(state[2:], -limits, limits)])
    over = -jnp.cos(state[0]) - jnp.cos(state[1] + state[0]) > 1
    return state, TimeStep(observe(state), jnp.float32(jnp.where(over, 0, -1)), over)

  high = np.concatenate([np.ones(4, np.float32), limits])
  box, success = Box((6,), -high, high), success_from(-100)
  return time_limit(Environment('acrobot', reset, step, box, Discrete(3), 500, drawing.acrobot, success))


def pendulum() -> Environment:
  """A pendulum with a motor too weak to lift it at once: swing up and stay; 200 steps, the cost is of angle, speed and
  torque.

  State: [2] float32: angle from upright (rad), velocity. Observation: [3]: cos, sin, velocity. Action: [1], a torque
  within ±2.
  """
  gravity, seconds, fastest, strongest = 10.0, 0.05, 8.0, 2.0

  def observe(state):
    return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

  def reset(key):
    state = jax.random.uniform(key, (2,), jnp.float32, -1, 1) * np.array([np.pi, 1], np.float32)
    return state, observe(state)

  def step(key, state, action):
    angle, speed = state
    torque = jnp.clip(action[0], -strongest, strongest)
    off = (angle + np.pi) % (2 * np.pi) - np.pi
    cost = off**2 + 0.1 * speed**2 + 0.001 * torque**2
    speed = jnp.clip(speed + (1.5 * gravity * jnp.sin(angle) + 3 * torque) * seconds, -fastest, fastest)
    state = jnp.stack([angle + speed * seconds, speed])
    return state, TimeStep(observe(state), -cost)

  high = np.array([1, 1, fastest], np.float32)
  box, action = Box((3,), -high, high), Box((1,), -strongest, strongest)
  return time_limit(Environment('pendulum', reset, step, box, action, 200, drawing.pendulum))


def mountain_car(continuous: bool = False) -> Environment:
  """A car too weak for the hill before it must take a run-up (Moore 1990).

  State and observation: [2] float32: position in -1.2 … 0.6, velocity. Discrete: push left, not, right; -1 a step, 200
  steps. Continuous: an action [1] within ±1, whose square costs 0.1, and 100 at the goal; 999 steps.
  """
  low, high = np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32)
  goal, gravity, force = (0.45, 0.0025, 0.0015) if continuous else (0.5, 0.0025, 0.001)

  def reset(key):
    state = jnp.stack([jax.random.uniform(key, (), jnp.float32, -0.6, -0.4), jnp.zeros(())])
    return state, state

  def step(key, state, action):
    position, speed = state
    push = jnp.clip(action[0], -1, 1) if continuous else jnp.asarray(action, jnp.float32) - 1
    speed = jnp.clip(speed + push * force - jnp.cos(3 * position) * gravity, low[1], high[1])
    position = jnp.clip(position + speed, low[0], high[0])
    speed = jnp.where((position == low[0]) & (speed < 0), 0, speed)
    state, over = jnp.stack([position, speed]), (position >= goal) & (speed >= 0)
    reward = jnp.where(over, 100.0, 0.0) - 0.1 * jnp.square(action[0]) if continuous else -1.0
    return state, TimeStep(state, jnp.float32(reward), over)

  limit, threshold = (999, 90) if continuous else (200, -110)
  name, action = ('mountain_car_continuous', Box((1,), -1.0, 1.0)) if continuous else ('mountain_car', Discrete(3))
  box, success = Box((2,), low, high), success_from(threshold)
  return time_limit(Environment(name, reset, step, box, action, limit, drawing.mountain_car, success))


ENVIRONMENTS = {
  'cartpole': cartpole,
  'cartpole_positions': functools.partial(cartpole, 'cartpole_positions', slice(None, None, 2)),
  'acrobot': acrobot,
  'pendulum': pendulum,
  'mountain_car': mountain_car,
  'mountain_car_continuous': functools.partial(mountain_car, continuous=True),
}
