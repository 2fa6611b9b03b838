"""Replay: each environment keeps a ring of its last transitions, in the state of a run; and the updates that learn from
it.

Rings are per example, so a device samples from those of its own environments, and a ring's draws do not depend on how
many there are. All are filled at the same pace: how much each was given, `written`, is arithmetic on the step and is
not kept.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from karpjax import collectives
from karpjax.program import REPLAY, ROLLOUT, TrainState, example_keys, step_key
from karpjax.rl import rollout as rollouts
from karpjax.rl.environment import Discrete, Environment
from karpjax.rl.rollout import Experience, Policy, Transition

SMALLEST_PRIORITY = 1e-6  # the paper's ε: a transition without error may still be drawn


@struct.dataclass
class Replay(Experience):
  """Rings, each leaf [environments, capacity, …]; index i holds what was written i-th, modulo the capacity.

  Attributes:
    priority: float32, p^α, to which a transition's probability is proportional, 0 where nothing was written; None: all
      alike.
    max_priority: [environments] float32, the largest so far, which new transitions get; None: as above.
  """

  priority: jax.Array | None = None
  max_priority: jax.Array | None = None

  @property
  def capacity(self) -> int:
    return self.reward.shape[1]


def empty(environment: Environment, environments: int, capacity: int, prioritised: bool = False) -> Replay:
  """Rings of `capacity` transitions for each of so many environments."""
  zeros = lambda shape=(), dtype=jnp.float32: jnp.zeros((environments, capacity, *shape), dtype)
  seen, action = jax.eval_shape(environment.reset, jax.random.key(0))[1], environment.action
  observation, next_observation = zeros(seen.shape, seen.dtype), zeros(seen.shape, seen.dtype)
  actions = zeros((), jnp.int32) if isinstance(action, Discrete) else zeros(action.shape)
  priorities = (zeros(), jnp.ones(environments)) if prioritised else ()
  ends = zeros((), bool), zeros((), bool)
  return Replay(observation, actions, zeros(), *ends, next_observation, *priorities)


def write(replay: Replay, written, transitions: Transition, on_host: bool = False) -> Replay:
  """With a rollout behind what is there; the oldest goes.

  Args:
    written: [] int32, transitions that each ring was given before.
    transitions: [time, environments, …], of no more steps than a ring holds.
    on_host: whether the environments live there. A host that has lost an episode, as after a resume, begins another
      without an end of the first, whose last transition then counts as truncated.
  """
  if on_host:
    before = (written - 1) % replay.capacity
    lost = (written > 0) & (transitions.episode_length[0] == 1) & ~replay.terminated[:, before]
    replay = replay.replace(truncated=replay.truncated.at[:, before].max(lost))
  indices = (written + jnp.arange(len(transitions.reward))) % replay.capacity
  new = {field.name: getattr(transitions, field.name).swapaxes(0, 1) for field in dataclasses.fields(Experience)}
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
    (indices [environments, count] int32, importance [environments, count] float32, which is 1).
  """
  size = jnp.minimum(written, replay.capacity)
  age = jax.vmap(lambda key: jax.random.randint(key, (count,), 0, size - n_step + 1))(keys)
  return (written - size + age) % replay.capacity, jnp.ones(age.shape)


def proportional(replay: Replay, written, keys, count: int, n_step: int = 1):
  """The same with P(i) = p_i^α / Σ p^α within each ring (Schaul et al. 2016, eq. 1), one from each of `count` equal
  parts of the sum (appendix B.2.1).

  Returns:
    (indices, importance: 1 / (N · P(i)), before any exponent, N those that may be drawn).
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


def priorities(replay: Replay) -> dict:
  """What updates change of a replay; {} where all transitions are alike."""
  return {} if replay.priority is None else {'priority': replay.priority, 'max_priority': replay.max_priority}


def update_priorities(replay: Replay, indices, errors, exponent) -> Replay:
  """With priorities (|error| + ε)^α at indices [environments, count] (Schaul et al. 2016, proportional)."""
  priority = (jnp.abs(errors) + SMALLEST_PRIORITY) ** exponent
  ring = jnp.arange(len(indices))[:, None]
  return replay.replace(
    priority=replay.priority.at[ring, indices].set(priority),
    max_priority=jnp.maximum(replay.max_priority, priority.max(1)),
  )


def gather(replay: Replay, indices, n_step: int, discount) -> dict[str, jax.Array]:
  """The n-step transitions that begin at indices (Sutton 1988; Hessel et al. 2018, eq. 2); none goes beyond its
  episode's end.

  Args:
    indices: [environments, count], each followed by n_step - 1 later ones.

  Returns:
    With leading axes [environments · count]: 'observation', 'action', 'reward' (Σ γ^k r_k, k < m), 'next_observation'
    (after m transitions, before any reset) and 'discount', which its value is worth: γ^m, 0 where the state is final.
  """
  ring = jnp.arange(len(indices))[:, None]
  window = (indices[..., None] + jnp.arange(n_step)) % replay.capacity  # [environments, count, n_step]
  at = lambda x: x[ring[..., None], window]
  terminated, done = at(replay.terminated), at(replay.done)
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
  """What `update` gives, () -> (what becomes of `before`, metrics), where it is due; else `before` and metrics that
  count nothing.

  Not mapped over, only one of the two is computed.
  """
  nothing = lambda: (before, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(update)[1]))
  return jax.lax.cond(due, update, nothing)


def train_step(policy: Policy, noise: Callable, update: Callable, config) -> Callable:
  """The step of what learns from replay: some steps of every environment, then `updates` from what the rings hold.

  Args:
    policy: acts; given noise, as below.
    noise: (key of one environment, steps [time] that all environments have made before each of its next ones) -> the
      noise of these, each leaf [time, …].
    update: (state, replay, written, keys [environments], number) -> (state, metrics): one update. Its state carries
      nothing per example, and has for buffers what `priorities` gives.
    config: an `agents.ReplayConfig`.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has carried {'worlds': RolloutState} and buffers Replay. The
    batch is only the environments' numbers. Metrics of updates count nothing before learning starts.
  """
  length, count = config.train_frequency, config.batch_size
  on_host = policy.environment.reset_done is not None

  def step(state: TrainState, batch):
    keys, acting = jax.vmap(jax.random.split, out_axes=1)(example_keys(step_key(state, ROLLOUT), batch))
    before = state.step * length * count + jnp.arange(length) * count
    drawn = jax.vmap(lambda key: noise(key, before), out_axes=1)(acting)  # [time, environments, …]
    act = lambda observation, noise: policy.act(state, observation, noise)
    worlds, seen = rollouts.rollout(policy.environment, act, state.carried['worlds'], keys, drawn, length)
    replay, written = write(state.buffers, state.step * length, seen, on_host), (state.step + 1) * length

    def one(state, i):
      keys = example_keys(jax.random.fold_in(step_key(state, REPLAY), i), batch)
      return update(state, replay.replace(**state.buffers), written, keys, i)

    def learn():
      after, metrics = jax.lax.scan(one, unlearnt, jnp.arange(config.updates))
      return after, jax.tree.map(lambda x: x.sum(0), metrics)

    unlearnt = state.replace(carried={}, buffers=priorities(replay))
    state, metrics = when(written * count >= config.learning_starts, learn, unlearnt)
    metrics |= collectives.total(rollouts.finished(seen))
    buffers = replay.replace(**state.buffers)
    return state.replace(step=state.step + 1, carried={'worlds': worlds}, buffers=buffers), metrics

  return step
