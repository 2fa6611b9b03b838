"""The environment protocol: two pure functions and what they take and give; and what wraps them.

An environment is of one world: `vmap` makes many of it. Nothing resets itself: `rollout` does that, so that the
observation that an episode ended with is never lost.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from karpjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Discrete:
  """Actions 0 … size - 1, [] int32."""

  size: int


@dataclasses.dataclass(frozen=True)
class Box:
  """Arrays of a shape, each number between two bounds, which may be infinite.

  Attributes:
    low, high: [*shape], or a number for all.
    dtype: float32; of observations also uint8, which networks see on the scale of [0, 1], or int8.
  """

  shape: tuple[int, ...]
  low: Any = -np.inf
  high: Any = np.inf
  dtype: str = 'float32'


@struct.dataclass
class TimeStep:
  """What a step leads to.

  Attributes:
    observation: of the state that was reached, also where the episode is over.
    reward: [] float32.
    terminated: [] bool: the state is final; its value is 0.
    truncated: [] bool: the episode is cut here, as by a time limit; the state has a value.
  """

  observation: Any
  reward: jax.Array
  terminated: jax.Array = np.bool_(False)
  truncated: jax.Array = np.bool_(False)


@dataclasses.dataclass(frozen=True)
class Environment:
  """A Markov decision process as pure functions.

  Attributes:
    name: as `environments.make` knows it.
    reset: key -> (state, observation): how an episode begins.
    step: (key, state, action) -> (state, TimeStep).
    observation: the Box of the observations.
    action: Discrete, or the Box of the actions.
    limit: the most steps of an episode.
    render: (states, a NumPy pytree [time, …]) -> frames [time, height, width, 3] uint8, on the host; or None.
    outcomes: (an episode's last state, its return) -> {name: [] bool or number}: how it went; evaluations report means.
      'success' is what the environment itself calls one; without it there is no such thing.
    shortest: no episode has fewer steps.
    reset_done: (keys [n], states [n], done [n] bool) -> (states, observations, reset_mask [n] bool): new episodes where
      done, and where the host has lost one; rows outside the mask mean nothing. None where the state is all there is of
      an environment, so that resets are free to be made ahead of time.
  """

  name: str
  reset: Callable[[jax.Array], tuple[Any, jax.Array]]
  step: Callable[[jax.Array, Any, jax.Array], tuple[Any, TimeStep]]
  observation: Box
  action: Discrete | Box
  limit: int
  render: Callable[[Any], np.ndarray] | None = None
  outcomes: Callable[[Any, jax.Array], dict[str, jax.Array]] = lambda state, episode_return: {}
  shortest: int = 1
  reset_done: Callable | None = None


def success_from(threshold: float) -> Callable:
  """The `outcomes` of an environment in which an episode succeeds whose return is `threshold` or more."""
  return lambda state, episode_return: {'success': episode_return >= threshold}


def wrap(
  environment: Environment, begin: Callable, step: Callable, inner=lambda state: state, **changes
) -> Environment:
  """An environment around another.

  Args:
    environment: the other.
    begin: (its state, its observation), both of one world's new episode -> (state, observation).
    step: (key, state, action) -> (state, TimeStep).
    inner: state -> the other's state, of one world or of many.
    changes: other fields of the new one.
  """

  def reset_done(keys, state, done):
    state, observation, reset_mask = environment.reset_done(keys, inner(state), done)
    return *jax.vmap(begin)(state, observation), reset_mask

  return dataclasses.replace(
    environment,
    reset=lambda key: begin(*environment.reset(key)),
    step=step,
    render=environment.render and (lambda states: environment.render(inner(states))),
    outcomes=lambda state, episode_return: environment.outcomes(inner(state), episode_return),
    reset_done=environment.reset_done and reset_done,
    **changes,
  )


@struct.dataclass
class Timed:
  """The state of a `time_limit`."""

  inner: Any
  t: jax.Array  # [] int32: steps since the reset


def time_limit(environment: Environment) -> Environment:
  """The same, truncated after its `limit` of steps. A state that is final at that very step is terminated,
  not truncated.
  """

  def step(key, state, action):
    inner, reached = environment.step(key, state.inner, action)
    truncated = (reached.truncated | (state.t + 1 >= environment.limit)) & ~reached.terminated
    return Timed(inner, state.t + 1), reached.replace(truncated=truncated)

  begin = lambda inner, observation: (Timed(inner, jnp.zeros((), jnp.int32)), observation)
  least = min(environment.shortest, environment.limit)
  return wrap(environment, begin, step, lambda state: state.inner, shortest=least)


def scale_action(environment: Environment) -> Environment:
  """The same, whose actions lie within ±1: these are stretched to the bounds, and what lies outside is clipped.

  Raises:
    UsageError: for discrete actions, and for those without bounds.
  """
  box = environment.action
  if isinstance(box, Discrete):
    raise UsageError(
      f'environment={environment.name}: its actions are discrete; value_learning and policy_gradient act in it'
    )
  low, high = (np.broadcast_to(np.asarray(bound, np.float32), box.shape) for bound in (box.low, box.high))
  if len(box.shape) != 1 or not np.isfinite([low, high]).all():
    raise UsageError(f'environment={environment.name}: its actions are of several axes, or of no finite bounds')

  def step(key, state, action):
    return environment.step(key, state, low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low))

  return dataclasses.replace(environment, step=step, action=Box(box.shape, -1.0, 1.0))


def frame_stack(environment: Environment, frames: int) -> Environment:
  """The same, whose observations are the last `frames` ones, joined along the last axis; before the first,
  the first.
  """

  def begin(inner, observation):
    stacked = jnp.concatenate([observation] * frames, -1)
    return (inner, stacked), stacked

  def step(key, state, action):
    inner, stacked = state
    inner, reached = environment.step(key, inner, action)
    size = reached.observation.shape[-1]
    stacked = jnp.concatenate([stacked[..., size:], reached.observation], -1)
    return (inner, stacked), reached.replace(observation=stacked)

  box = environment.observation
  low, high = (np.concatenate([np.broadcast_to(bound, box.shape)] * frames, -1) for bound in (box.low, box.high))
  return wrap(environment, begin, step, lambda state: state[0], observation=Box(low.shape, low, high, box.dtype))


class WithMemory(NamedTuple):
  """An observation or an action, with what the policy remembers: before the one, after the other.

  Attributes:
    value: the observation, or the action.
    memory: any pytree.
  """

  value: Any
  memory: Any


def value_of(observation):
  """The observation or action itself, without what is remembered with it."""
  return observation.value if isinstance(observation, WithMemory) else observation


def add_memory(environment: Environment, initial_memory) -> Environment:
  """The same, as a world that holds a policy's memory: its observations and its actions are `WithMemory`.

  What an action leaves comes back with the next observation, and an episode begins with `initial_memory`. So a memory
  lives where the environments live, and is reset where they are. The Boxes stay those of the values.
  """

  def step(key, state, action):
    state, reached = environment.step(key, state, action.value)
    return state, reached.replace(observation=WithMemory(reached.observation, action.memory))

  begin = lambda state, observation: (state, WithMemory(observation, initial_memory))
  return wrap(environment, begin, step)
