"""Environments run side by side: a rollout is one scan, an episode one loop.

The environments' states have the leading axis [environments], which is what the Program's state holds per example.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from karpjax.rl.environment import Environment


@struct.dataclass
class Running:
  """Environments between two rollouts, each leaf [environments, …].

  Attributes:
    state: of the environments.
    observation: of these states.
    total: [environments] float32, rewards since the episode's beginning.
    length: [environments] int32, steps since then.
  """

  state: Any
  observation: Any
  total: jax.Array
  length: jax.Array


@struct.dataclass
class Transition:
  """A step, each leaf [time, environments, …].

  Attributes:
    observation, action, reward: what was seen, done and gained.
    terminated, truncated: how it ended, if it did.
    next_observation: of the state it led to, before any reset.
    total, length: of the episode so far, this step included.
  """

  observation: Any
  action: Any
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  next_observation: Any
  total: jax.Array
  length: jax.Array

  @property
  def end(self):
    """Whether a step was its episode's last."""
    return self.terminated | self.truncated


def start(environment: Environment, keys) -> Running:
  """New episodes: keys [environments]."""
  state, observation = jax.vmap(environment.reset)(keys)
  zeros = jnp.zeros(keys.shape)
  return Running(state, observation, zeros, zeros.astype(jnp.int32))


def _where(condition, new, old):
  """Leaf by leaf, condition [environments] against leaves [environments, …]."""
  return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


def _advance(environment, act, running, keys, noise):
  """One step of all environments, none reset."""
  action = act(running.observation, noise)
  state, reached = jax.vmap(environment.step)(keys, running.state, action)
  total, length = running.total + reached.reward, running.length + 1
  transition = Transition(
    running.observation,
    action,
    reached.reward,
    reached.terminated,
    reached.truncated,
    reached.observation,
    total,
    length,
  )
  return Running(state, reached.observation, total, length), transition


def _renewal(environment: Environment, keys) -> Callable:
  """keys [length, environments] -> (running, over [environments], t) -> running, where what is over begins anew."""

  def replace(running, over, state, observation):
    zeros = jnp.zeros_like(running.total)
    return _where(over, Running(state, observation, zeros, zeros.astype(jnp.int32)), running)

  if environment.renew:

    def at_once(running, over, t):
      state, observation, again = environment.renew(keys[t], running.state, over)
      return replace(running, again, state, observation)

    return at_once
  # All resets ahead, since they are independent of the steps; over one axis, which XLA compiles faster than over two.
  # One serves as many steps as the shortest episode has: it is used once at most.
  keys = keys[:: environment.shortest]
  resets = jax.vmap(environment.reset)(keys.reshape(-1))
  resets = jax.tree.map(lambda x: x.reshape(len(keys), -1, *x.shape[1:]), resets)
  return lambda running, over, t: replace(running, over, *jax.tree.map(lambda x: x[t // environment.shortest], resets))


def rollout(environment: Environment, act: Callable, running: Running, keys, noise, length: int, again: bool = True):
  """`length` steps of all environments; what ends begins anew.

  Args:
    environment: of one world.
    act: (observation [environments, …], noise) -> action [environments, …].
    running: where the environments stand.
    keys: [environments], of this rollout: an environment's draws do not depend on how many there are.
    noise: a pytree of [length, environments, …] of which each step gives `act` a row.
    length: steps.
    again: if not, what ends stays where it ended, and its steps from there on have no end.

  Returns:
    Running, and the Transition of [length, environments, …].
  """
  drawn = jax.vmap(lambda key: jax.random.split(key, 2 * length))(keys)  # [environments, 2 * length]
  rows = drawn[:, :length].T, noise, jnp.arange(length)
  nothing = jnp.zeros(keys.shape, bool)
  if not again:

    def once(carry, x):
      running, over = carry
      after, transition = _advance(environment, act, running, *x[:2])
      ends = {name: getattr(transition, name) & ~over for name in ('terminated', 'truncated')}
      return (_where(over, running, after), over | transition.end), transition.replace(**ends)

    (running, _), transitions = jax.lax.scan(once, (running, nothing), rows)
    return running, transitions

  renew = _renewal(environment, drawn[:, length:].T)
  if environment.renew:  # first what a resume has lost, by keys that the host has no other use for
    running = _renewal(environment, rows[0])(running, nothing, 0)

  def body(running, x):
    key, noise, t = x
    running, transition = _advance(environment, act, running, key, noise)
    return renew(running, transition.end, t), transition

  return jax.lax.scan(body, running, rows)


def finished(transitions: Transition) -> dict[str, tuple]:
  """(sum, count) of the returns and lengths of the episodes that ended in a rollout."""
  count = transitions.end.sum().astype(jnp.float32)
  return {
    'episode_return': (jnp.where(transitions.end, transitions.total, 0).sum(), count),
    'episode_length': (jnp.where(transitions.end, transitions.length, 0).sum().astype(jnp.float32), count),
  }


def episodes(environment: Environment, act: Callable, keys, noise: Callable) -> Running:
  """One episode of each environment, to its end.

  Args:
    environment: of one world.
    act: as for `rollout`.
    keys: [episodes].
    noise: (keys [episodes]) -> what `act` is given at a step.

  Returns:
    Running at the ends: `total` and `length` are the episodes' returns and lengths.
  """

  def body(carry):
    running, over, t = carry
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
    drawn = jax.vmap(jax.random.split)(now)  # [episodes, 2]
    after, transition = _advance(environment, act, running, drawn[:, 0], noise(drawn[:, 1]))
    return _where(over, running, after), over | transition.end, t + 1

  begun = start(environment, keys), jnp.zeros(keys.shape, bool), jnp.ones((), jnp.int32)
  return jax.lax.while_loop(lambda carry: ~carry[1].all() & (carry[2] <= environment.limit), body, begun)[0]


def record(environment: Environment, act: Callable, key, noise: Callable):
  """One episode with all it went through: (states, Transition), each leaf [environment.limit + 1 | limit, …].

  Args:
    environment: of one world.
    act, noise: as for `episodes`, of one environment.
    key: one.

  What follows the end of the episode is to be cut off at the first `Transition.end`.
  """

  def body(running, t):
    drawn = jax.random.split(jax.random.fold_in(key, t))
    after, transition = _advance(environment, act, running, drawn[:1], noise(drawn[1:]))
    return after, (jax.tree.map(lambda x: x[0], after.state), jax.tree.map(lambda x: x[0], transition))

  begun = start(environment, key[None])
  _, (states, transitions) = jax.lax.scan(body, begun, jnp.arange(1, environment.limit + 1))
  first = jax.tree.map(lambda x: x[0], begun.state)
  return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, states), transitions
