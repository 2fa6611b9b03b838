"""The environment protocol: two pure functions and what they take and give; and what wraps them.

An environment is of one world: `vmap` makes many of it. Nothing resets itself: `rollout` does that, so that the observation
that an episode ended with is never lost.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from karpjax import errors


@dataclasses.dataclass(frozen=True)
class Discrete:
  """Actions 0 … size - 1, [] int32."""

  size: int


@dataclasses.dataclass(frozen=True)
class Box:
  """Arrays of a shape, each number between two bounds, which may be infinite.

  Attributes:
    shape: of one.
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
  terminated: jax.Array
  truncated: jax.Array


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
    renew: (keys [n], states [n], over [n]) -> (states, observations, again [n] bool), of which rows not `again` mean nothing:
      `reset`s of those that are over, and of those that the host has lost. None where the state is all there is of an
      environment, so that resets are free to be made ahead of time.
  """

  name: str
  reset: Callable[[jax.Array], tuple[Any, jax.Array]]
  step: Callable[[jax.Array, Any, jax.Array], tuple[Any, TimeStep]]
  observation: Box
  action: Discrete | Box
  limit: int
  render: Callable[[Any], np.ndarray] | None = None
  outcomes: Callable[[Any, jax.Array], dict[str, jax.Array]] = lambda state, total: {}
  shortest: int = 1
  renew: Callable | None = None


def reaching(threshold: float) -> Callable:
  """The `outcomes` of an environment in which an episode succeeds whose return is `threshold` or more."""
  return lambda state, total: {'success': total >= threshold}


@struct.dataclass
class Timed:
  """The state of a `time_limit`."""

  inner: Any
  t: jax.Array  # [] int32: steps since the reset


def time_limit(environment: Environment, limit: int) -> Environment:
  """The same, truncated after `limit` steps. A state that is final at that very step is terminated, not truncated."""

  def reset(key):
    inner, observation = environment.reset(key)
    return Timed(inner, jnp.zeros((), jnp.int32)), observation

  def renew(keys, state, over):
    inner, observation, again = environment.renew(keys, state.inner, over)
    return Timed(inner, jnp.zeros_like(state.t)), observation, again

  def step(key, state, action):
    inner, reached = environment.step(key, state.inner, action)
    truncated = (reached.truncated | (state.t + 1 >= limit)) & ~reached.terminated
    return Timed(inner, state.t + 1), reached.replace(truncated=truncated)

  render = environment.render and (lambda states: environment.render(states.inner))
  outcomes = lambda state, total: environment.outcomes(state.inner, total)
  shortest = min(environment.shortest, limit)
  return dataclasses.replace(
    environment,
    reset=reset,
    step=step,
    limit=limit,
    render=render,
    outcomes=outcomes,
    shortest=shortest,
    renew=environment.renew and renew,
  )


def clip_action(environment: Environment) -> Environment:
  """The same, which takes any action of a Box's shape, and the nearest within its bounds for it."""

  def step(key, state, action):
    return environment.step(key, state, jnp.clip(action, environment.action.low, environment.action.high))

  return dataclasses.replace(environment, step=step)


def scale_action(environment: Environment) -> Environment:
  """The same, whose actions lie within ±1: these are stretched to the bounds, and what lies outside is clipped.

  Raises:
    UsageError: for discrete actions, and for those without bounds.
  """
  box = environment.action
  if isinstance(box, Discrete):
    raise errors.UsageError(
      f'--environment={environment.name}: its actions are discrete, and continuous ones are needed; '
      'value_learning and policy_gradient act in it'
    )
  low, high = (np.broadcast_to(np.asarray(bound, np.float32), box.shape) for bound in (box.low, box.high))
  if len(box.shape) != 1 or not np.isfinite([low, high]).all():
    raise errors.UsageError(
      f'--environment={environment.name}: actions {list(box.shape)} within {box.low} … {box.high}; '
      'one axis and finite bounds are needed'
    )

  def step(key, state, action):
    return environment.step(key, state, low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low))

  return dataclasses.replace(environment, step=step, action=Box(box.shape, -1.0, 1.0))


def frame_stack(environment: Environment, frames: int) -> Environment:
  """The same, whose observations are the last `frames` ones, joined along the last axis; before the first, the first."""

  def reset(key):
    state, observation = environment.reset(key)
    seen = jnp.concatenate([observation] * frames, -1)
    return (state, seen), seen

  def renew(keys, state, over):
    inner, observation, again = environment.renew(keys, state[0], over)
    seen = jnp.concatenate([observation] * frames, -1)
    return (inner, seen), seen, again

  def step(key, state, action):
    inner, seen = state
    inner, reached = environment.step(key, inner, action)
    size = reached.observation.shape[-1]
    seen = jnp.concatenate([seen[..., size:], reached.observation], -1)
    return (inner, seen), reached.replace(observation=seen)

  *rest, last = environment.observation.shape
  wide = lambda bound: np.concatenate([np.broadcast_to(bound, environment.observation.shape)] * frames, -1)
  low, high = wide(environment.observation.low), wide(environment.observation.high)
  box = Box((*rest, last * frames), low, high, environment.observation.dtype)
  render = environment.render and (lambda states: environment.render(states[0]))
  outcomes = lambda state, total: environment.outcomes(state[0], total)
  return dataclasses.replace(
    environment,
    reset=reset,
    step=step,
    observation=box,
    render=render,
    outcomes=outcomes,
    renew=environment.renew and renew,
  )


def partly_observed(environment: Environment, name: str, places: tuple[int, ...]) -> Environment:
  """The same, called `name`, of whose observations only the numbers at `places` of the last axis are seen."""
  chosen = np.asarray(places)

  def reset(key):
    state, observation = environment.reset(key)
    return state, observation[..., chosen]

  def step(key, state, action):
    state, reached = environment.step(key, state, action)
    return state, reached.replace(observation=reached.observation[..., chosen])

  def renew(keys, state, over):
    state, observation, again = environment.renew(keys, state, over)
    return state, observation[..., chosen], again

  box = environment.observation
  low, high = (np.broadcast_to(bound, box.shape)[..., chosen] for bound in (box.low, box.high))
  seen = Box(low.shape, low, high, box.dtype)
  return dataclasses.replace(
    environment, name=name, reset=reset, step=step, observation=seen, renew=environment.renew and renew
  )


def strong(tree):
  """The same arrays without weak types, which a scan's carry would not keep: for environments of other packages."""
  return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


class Recalled(NamedTuple):
  """An observation or an action, with what the policy remembers: before the one, after the other.

  Attributes:
    value: the observation, or the action.
    memory: any pytree.
  """

  value: Any
  memory: Any


def remember(environment: Environment, blank) -> Environment:
  """The same, as a world that holds a policy's memory: its observations and its actions are `Recalled`.

  What an action leaves comes back with the next observation, and an episode begins with `blank`. So a memory lives where the
  environments live, and is reset where they are. The Boxes stay those of the values.
  """

  def reset(key):
    state, observation = environment.reset(key)
    return state, Recalled(observation, blank)

  def step(key, state, action):
    state, reached = environment.step(key, state, action.value)
    return state, reached.replace(observation=Recalled(reached.observation, action.memory))

  def renew(keys, state, over):
    state, observation, again = environment.renew(keys, state, over)
    blanks = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(over), *x.shape)), blank)
    return state, Recalled(observation, blanks), again

  return dataclasses.replace(environment, reset=reset, step=step, renew=environment.renew and renew)
