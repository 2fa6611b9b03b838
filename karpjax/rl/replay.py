"""Replay: each environment keeps a ring of its last transitions, in the state of a run; and the updates that learn from it.

Rings are per example, so a device samples from those of its own environments, and a ring's draws do not depend on how many
there are. All are filled at the same pace: how much each was given, `written`, is arithmetic on the step and is not kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from karpjax.rl.environment import Discrete, Environment
from karpjax.rl.rollout import Transition

SMALLEST_PRIORITY = 1e-6  # the paper's ε: a transition without error may still be drawn


@struct.dataclass
class Replay:
  """Rings, each leaf [environments, capacity, …]; index i holds what was written i-th, modulo the capacity.

  Attributes:
    observation, action, reward, terminated, truncated, next_observation: as in a Transition.
    priority: float32, p^α, to which a transition's probability is proportional, 0 where nothing was written; None: all alike.
    max_priority: [environments] float32, the largest so far, which new transitions get; None: as above.
  """

  observation: jax.Array
  action: jax.Array
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  next_observation: jax.Array
  priority: jax.Array | None = None
  max_priority: jax.Array | None = None

  @property
  def capacity(self) -> int:
    return self.reward.shape[1]


def empty(environment: Environment, environments: int, capacity: int, prioritised: bool = False) -> Replay:
  """Rings of `capacity` transitions for each of so many environments."""
  zeros = lambda shape, dtype: jnp.zeros((environments, capacity, *shape), dtype)
  observation = jax.eval_shape(environment.reset, jax.random.key(0))[1]
  discrete = isinstance(environment.action, Discrete)
  return Replay(
    observation=zeros(observation.shape, observation.dtype),
    action=zeros((), jnp.int32) if discrete else zeros(environment.action.shape, jnp.float32),
    reward=zeros((), jnp.float32),
    terminated=zeros((), bool),
    truncated=zeros((), bool),
    next_observation=zeros(observation.shape, observation.dtype),
    priority=zeros((), jnp.float32) if prioritised else None,
    max_priority=jnp.ones(environments) if prioritised else None,
  )


def write(replay: Replay, written, transitions: Transition) -> Replay:
  """With a rollout behind what is there; the oldest goes.

  Args:
    written: [] int32, transitions that each ring was given before.
    transitions: [time, environments, …], of no more steps than a ring holds.
  """
  indices = (written + jnp.arange(len(transitions.reward))) % replay.capacity
  new = {
    name: getattr(transitions, name).swapaxes(0, 1) for name in Transition.__annotations__ if hasattr(replay, name)
  }
  if replay.priority is not None:
    new['priority'] = replay.max_priority[:, None]  # all are learnt from once before their error is known
  return replay.replace(**{name: getattr(replay, name).at[:, indices].set(x) for name, x in new.items()})


def uniform(replay: Replay, written, keys, count: int, n_step: int = 1):
  """Indices drawn with replacement from all that begin `n_step` transitions.

  Args:
    written: [] int32, transitions that each ring was given; at least `n_step`.
    keys: [environments], each for `count` draws from its ring.
    n_step: how many transitions a draw stands for: the last n_step - 1 written begin none.

  Returns:
    [environments, count] int32.
  """
  size = jnp.minimum(written, replay.capacity)
  age = jax.vmap(lambda key: jax.random.randint(key, (count,), 0, size - n_step + 1))(keys)
  return (written - size + age) % replay.capacity


def proportional(replay: Replay, written, keys, count: int, n_step: int = 1):
  """The same with P(i) = p_i^α / Σ p^α within each ring (Schaul et al. 2016, eq. 1), one from each of `count` equal parts of
  the sum (appendix B.2.1).

  Returns:
    (indices, importance [environments, count] float32: 1 / (N · P(i)), before any exponent, N those that may be drawn).
  """
  index = jnp.arange(replay.capacity)
  behind = (written - 1 - index) % replay.capacity  # transitions written after it
  allowed = (behind >= n_step - 1) & (index < written)

  def draw(key, priority):
    priority = jnp.where(allowed, priority, 0)
    sums = jnp.cumsum(priority)
    at = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count * sums[-1]
    # rounding may give the whole sum, which lies beyond the last that has a probability
    drawn = jnp.minimum(jnp.searchsorted(sums, at, side='right'), jnp.searchsorted(sums, sums[-1]))
    return drawn, sums[-1] / (allowed.sum() * priority[drawn])

  return jax.vmap(draw)(keys, replay.priority)


def update_priorities(replay: Replay, indices, errors, exponent) -> Replay:
  """With priorities (|error| + ε)^α at indices [environments, count] (Schaul et al. 2016, proportional)."""
  priority = (jnp.abs(errors) + SMALLEST_PRIORITY) ** exponent
  ring = jnp.arange(len(indices))[:, None]
  return replay.replace(
    priority=replay.priority.at[ring, indices].set(priority),
    max_priority=jnp.maximum(replay.max_priority, priority.max(1)),
  )


def gather(replay: Replay, indices, n_step: int, discount) -> dict[str, jax.Array]:
  """The n-step transitions that begin at indices (Sutton 1988; Hessel et al. 2018, eq. 2); none goes beyond its episode's end.

  Args:
    indices: [environments, count], each followed by n_step - 1 later ones.

  Returns:
    With leading axes [environments · count]: 'observation', 'action', 'reward' (Σ γ^k r_k, k < m), 'next_observation' (after m
    transitions, before any reset) and 'discount', which its value is worth: γ^m, 0 where the state is final.
  """
  ring = jnp.arange(len(indices))[:, None]
  window = (indices[..., None] + jnp.arange(n_step)) % replay.capacity  # [environments, count, n_step]
  at = lambda x: x[ring[..., None], window]
  terminated = at(replay.terminated)
  done = terminated | at(replay.truncated)
  counts = jnp.cumsum(done, -1) - done == 0  # up to the first end, and with it
  powers = discount ** jnp.arange(n_step)
  last = counts.sum(-1, keepdims=True) - 1
  at_last = lambda x: jnp.take_along_axis(x, last, -1)[..., 0]  # [environments, count]
  batch = {
    'observation': replay.observation[ring, indices],
    'action': replay.action[ring, indices],
    'reward': (at(replay.reward) * counts * powers).sum(-1),
    'next_observation': replay.next_observation[ring, at_last(window)],
    'discount': jnp.where(at_last(terminated), 0.0, discount * powers[last[..., 0]]),
  }
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


# ---- updates from it ----


def when(due, update: Callable, before):
  """What `update` gives, () -> (what becomes of `before`, metrics), where it is due; else `before` and metrics that count nothing.

  Not mapped over, only one of the two is computed.
  """
  nothing = lambda: (before, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(update)[1]))
  return jax.lax.cond(due, update, nothing)


def repeat(update: Callable, first, times: int):
  """update: (carry, i) -> (carry, metrics), `times` after each other: the last carry, and the sums of the metrics."""
  if times == 1:
    return update(first, 0)
  last, metrics = jax.lax.scan(update, first, jnp.arange(times))
  return last, jax.tree.map(lambda x: x.sum(0), metrics)
