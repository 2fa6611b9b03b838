"""Environments of gymnax, such as MinAtar's: Young & Tian 2019; Lange 2022."""

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import errors
from karpjax.rl import drawing
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, strong


def make(name: str) -> Environment:
  """'Breakout-MinAtar' and so on, by gymnax's own names and settings; its automatic reset is left out.

  Raises:
    UsageError: where gymnax is not installed, or knows no such environment, or its actions are of a kind of their own.
  """
  try:
    import gymnax
  except ImportError as error:
    raise errors.UsageError(
      f'--environment=gymnax:{name} needs a package ({error}): pip install gymnax six; it holds jax below 0.12'
    ) from None
  errors.choose('environment of gymnax', name, dict.fromkeys(gymnax.registered_envs))
  world, params = gymnax.make(name)
  observed, acted = world.observation_space(params), world.action_space(params)
  if hasattr(acted, 'n'):
    action = Discrete(int(acted.n))
  elif hasattr(acted, 'low'):
    action = Box(tuple(acted.shape), np.asarray(acted.low), np.asarray(acted.high))
  else:
    raise errors.UsageError(
      f'gymnax:{name} has actions of kind {type(acted).__name__}; discrete ones and boxes are known'
    )
  shape = tuple(observed.shape)

  def reset(key):
    observation, state = world.reset_env(key, params)
    return strong(state), observation.astype(jnp.float32)

  def step(key, state, action):
    observation, state, reward, terminated, _ = world.step_env(key, state, action, params)
    terminated = jnp.asarray(terminated, bool)
    truncated = jnp.asarray(world.is_truncated(state, params), bool) & ~terminated
    reached = TimeStep(observation.astype(jnp.float32), jnp.asarray(reward, jnp.float32), terminated, truncated)
    return strong(state), reached

  def render(states):
    return drawing.channels(np.asarray(jax.vmap(world.get_obs)(states), np.float32))

  picture = len(shape) == 3 and hasattr(world, 'get_obs')
  limit = int(params.max_steps_in_episode)
  return Environment(f'gymnax:{name}', reset, step, Box(shape), action, limit, render if picture else None)
