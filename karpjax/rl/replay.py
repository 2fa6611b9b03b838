"""Replay: each environment keeps a ring of its last transitions, in the state of a run.

Rings are per example, so a device samples from those of its own environments, and a ring's draws do not depend on how many
there are. All are filled at the same pace: how much each was given, `written`, is arithmetic on the step and is not kept.
"""

import jax
import jax.numpy as jnp
from flax import struct

from karpjax.rl.environment import Discrete, Environment
from karpjax.rl.rollout import Transition

SMALLEST_PRIORITY = 1e-6  # the paper's ε: a transition without error may still be drawn


@struct.dataclass
class Replay:
  """Rings, each leaf [environments, capacity, …]; place i holds what was written i-th, modulo the capacity.

  Attributes:
    observation, action, reward, terminated, truncated, next_observation: as in a Transition.
    chance: float32, to which a transition's chance is proportional, 0 of empty places; None: all are alike.
    largest: [environments] float32, the largest chance so far, which new transitions get; None: as above.
  """

  observation: jax.Array
  action: jax.Array
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  next_observation: jax.Array
  chance: jax.Array | None = None
  largest: jax.Array | None = None

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
    chance=zeros((), jnp.float32) if prioritised else None,
    largest=jnp.ones(environments) if prioritised else None,
  )


def write(replay: Replay, written, seen: Transition) -> Replay:
  """With a rollout behind what is there; the oldest goes.

  Args:
    replay: the rings.
    written: [] int32, transitions that each ring was given before.
    seen: [time, environments, …], of no more steps than a ring holds.
  """
  places = (written + jnp.arange(len(seen.reward))) % replay.capacity
  new = {name: getattr(seen, name).swapaxes(0, 1) for name in Transition.__annotations__ if hasattr(replay, name)}
  if replay.chance is not None:
    new['chance'] = replay.largest[:, None]  # all are learnt from once before they are judged
  return replay.replace(**{name: getattr(replay, name).at[:, places].set(x) for name, x in new.items()})


def uniform(replay: Replay, written, keys, count: int, n_step: int = 1):
  """Places drawn with replacement from all that begin `n_step` transitions.

  Args:
    replay: the rings.
    written: [] int32, transitions that each ring was given; at least `n_step`.
    keys: [environments].
    count: draws from each ring.
    n_step: how many transitions a draw stands for: the last n_step - 1 written begin none.

  Returns:
    [environments, count] int32.
  """
  size = jnp.minimum(written, replay.capacity)
  age = jax.vmap(lambda key: jax.random.randint(key, (count,), 0, size - n_step + 1))(keys)
  return (written - size + age) % replay.capacity


def proportional(replay: Replay, written, keys, count: int, n_step: int = 1):
  """The same with chances P(i) = p_i^α / Σ p^α within each ring (Schaul et al. 2016, eq. 1), one from each of `count` equal parts
  of the sum (appendix B.2.1).

  Returns:
    (places, importance [environments, count] float32: 1 / (N · P(i)), before any exponent, N the places that may be drawn).
  """
  place = jnp.arange(replay.capacity)
  behind = (written - 1 - place) % replay.capacity  # transitions written after it
  allowed = (behind >= n_step - 1) & (place < written)

  def draw(key, chance):
    chance = jnp.where(allowed, chance, 0)
    sums = jnp.cumsum(chance)
    at = (jnp.arange(count) + jax.random.uniform(key, (count,))) / count * sums[-1]
    # rounding may give the whole sum, which lies beyond the last that has a chance
    drawn = jnp.minimum(jnp.searchsorted(sums, at, side='right'), jnp.searchsorted(sums, sums[-1]))
    return drawn, sums[-1] / (allowed.sum() * chance[drawn])

  return jax.vmap(draw)(keys, replay.chance)


def judge(replay: Replay, places, errors, exponent) -> Replay:
  """With chances (|error| + ε)^α at places [environments, count] (Schaul et al. 2016, proportional)."""
  chance = (jnp.abs(errors) + SMALLEST_PRIORITY) ** exponent
  ring = jnp.arange(len(places))[:, None]
  return replay.replace(
    chance=replay.chance.at[ring, places].set(chance),
    largest=jnp.maximum(replay.largest, chance.max(1)),
  )


def gather(replay: Replay, places, n_step: int, discount) -> dict[str, jax.Array]:
  """The n-step transitions that begin at places (Sutton 1988; Hessel et al. 2018, eq. 2); none goes beyond its episode's end.

  Args:
    replay: the rings.
    places: [environments, count], each followed by n_step - 1 later ones.
    n_step: the most rewards summed.
    discount: γ.

  Returns:
    With leading axes [environments · count]: 'observation', 'action', 'reward' (Σ γ^k r_k, k < m), 'next_observation' (after m
    transitions, before any reset) and 'discount', which its value is worth: γ^m, 0 where the state is final.
  """
  ring = jnp.arange(len(places))[:, None]
  window = (places[..., None] + jnp.arange(n_step)) % replay.capacity  # [environments, count, n_step]
  at = lambda x: x[ring[..., None], window]
  terminated = at(replay.terminated)
  ends = terminated | at(replay.truncated)
  counts = jnp.cumsum(ends, -1) - ends == 0  # up to the first end, and with it
  powers = discount ** jnp.arange(n_step)
  last = counts.sum(-1, keepdims=True) - 1
  place = jnp.take_along_axis(window, last, -1)[..., 0]  # [environments, count]
  final = jnp.take_along_axis(terminated, last, -1)[..., 0]
  batch = {
    'observation': replay.observation[ring, places],
    'action': replay.action[ring, places],
    'reward': (at(replay.reward) * counts * powers).sum(-1),
    'next_observation': replay.next_observation[ring, place],
    'discount': jnp.where(final, 0.0, discount * powers[last[..., 0]]),
  }
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
