"""Robots of brax (Freeman et al. 2021), simulated within the compiled step."""

import jax
import jax.numpy as jnp

from karpjax import errors
from karpjax.rl.environment import Box, Environment, TimeStep, strong, time_limit

LIMITS = {'reacher': 50, 'pusher': 100}  # as of gymnasium's environments of these names; else LIMIT
LIMIT = 1000


def make(name: str) -> Environment:
  """'inverted_pendulum', 'reacher' and so on, by brax's own names, on its positional backend; actions lie within ±1.

  Raises:
    UsageError: where brax is not installed or knows no such environment, or this one on another backend only.
  """
  try:
    from brax import envs
  except ImportError as error:
    raise errors.UsageError(
      f"--environment=brax:{name} needs packages ({error}): pip install brax 'mujoco<4'"
    ) from None
  errors.choose('environment of brax', name, dict.fromkeys(envs._envs))
  try:
    world = envs.get_environment(name, backend='positional')
  except NotImplementedError as error:
    raise errors.UsageError(f'brax:{name} cannot be had on the positional backend: {error}') from None

  def reset(key):
    state = strong(world.reset(key))
    return state, state.obs.astype(jnp.float32)

  def step(key, state, action):
    # its own types, which brax's step need not keep
    after = world.step(state, jnp.clip(action, -1, 1))
    after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
    terminated = after.done.astype(bool)
    reached = TimeStep(
      after.obs.astype(jnp.float32), after.reward.astype(jnp.float32), terminated, jnp.zeros_like(terminated)
    )
    return strong(after), reached

  action = Box((world.action_size,), -1.0, 1.0)
  limit = LIMITS.get(name, LIMIT)
  pure = Environment(f'brax:{name}', reset, step, Box((world.observation_size,)), action, limit)
  return time_limit(pure, limit)
