"""Environments run side by side: a rollout is one scan, an episode one loop; and how a policy does in episodes.

The environments' states have the leading axis [environments], which is what the Program's state holds per example.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from karpjax.metrics.collect import collect
from karpjax.program import first_key
from karpjax.rl.environment import Environment


@dataclasses.dataclass(frozen=True)
class Policy:
  """What acts in an environment; the two are built once, together.

  Attributes:
    environment: of one world.
    act: (state of a Program, observation [environments, …], noise) -> action [environments, …]: drawn, or where `noise`
      is None the best.
    noise: key -> the noise of one world's action; None where a policy draws nothing.
    predict: (state, observation) -> what a Program predicts, [environments, …].
    init: key -> variables of its networks.
    apply: its networks, as the algorithm takes them.
    distribution: of the actions, where they are drawn from one.
    memory: what it remembers at first, where it has a memory: observations and actions then are `WithMemory`.
  """

  environment: Environment
  act: Callable
  noise: Callable | None = None
  predict: Callable | None = None
  init: Callable | None = None
  apply: Any = None
  distribution: Any = None
  memory: Any = None


@struct.dataclass
class RolloutState:
  """Environments between two rollouts, each leaf [environments, …].

  Attributes:
    state: of the environments.
    observation: of these states.
    episode_return: [environments] float32, rewards since the episode's beginning.
    episode_length: [environments] int32, steps since then.
  """

  state: Any
  observation: Any
  episode_return: jax.Array
  episode_length: jax.Array


@struct.dataclass
class Experience:
  """What is learnt from.

  Attributes:
    observation, action, reward: what was seen, done and gained.
    terminated, truncated: how the episode ended, if it did.
    next_observation: of the state it led to, before any reset.
  """

  observation: Any
  action: Any
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  next_observation: Any

  @property
  def done(self):
    """Whether a step was its episode's last."""
    return self.terminated | self.truncated


@struct.dataclass
class Transition(Experience):
  """A step, each leaf [time, environments, …].

  Attributes:
    episode_return, episode_length: of the episode so far, this step included.
  """

  episode_return: jax.Array
  episode_length: jax.Array


def _new(state, observation, count: int) -> RolloutState:
  return RolloutState(state, observation, jnp.zeros(count), jnp.zeros(count, jnp.int32))


def start(environment: Environment, keys) -> RolloutState:
  """New episodes: keys [environments]."""
  return _new(*jax.vmap(environment.reset)(keys), len(keys))


def first_episodes(environment: Environment, key, count: int) -> RolloutState:
  """`count` new episodes from a run's first key: a world's does not depend on how many there are."""
  return start(environment, jax.vmap(jax.random.fold_in, (None, 0))(first_key(key), jnp.arange(count)))


def _where(condition, new, old):
  """Leaf by leaf, condition [environments] against leaves [environments, …]."""
  return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


def _advance(environment: Environment, act: Callable, worlds: RolloutState, keys, noise):
  """One step of all environments, none reset: (RolloutState, Transition)."""
  action = act(worlds.observation, noise)
  state, reached = jax.vmap(environment.step)(keys, worlds.state, action)
  episode = worlds.episode_return + reached.reward, worlds.episode_length + 1
  ends = reached.terminated, reached.truncated
  seen = Transition(worlds.observation, action, reached.reward, *ends, reached.observation, *episode)
  return RolloutState(state, reached.observation, *episode), seen


def _resets(environment: Environment, keys) -> Callable:
  """keys [length, environments] -> (worlds, done [environments], t) -> worlds, with a new episode where one is done."""
  count = keys.shape[1]
  if environment.reset_done:

    def reset_at_once(worlds, done, t):
      state, observation, reset_mask = environment.reset_done(keys[t], worlds.state, done)
      return _where(reset_mask, _new(state, observation, count), worlds)

    return reset_at_once
  # All resets ahead, since they are independent of the steps; over one axis, which XLA compiles faster than over two.
  # One serves as many steps as the shortest episode has: it is used once at most.
  resets = jax.vmap(environment.reset)(keys[:: environment.shortest].reshape(-1))
  resets = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), resets)  # [length / shortest, environments, …]
  new = lambda t: _new(*jax.tree.map(lambda x: x[t // environment.shortest], resets), count)
  return lambda worlds, done, t: _where(done, new(t), worlds)


def rollout(
  environment: Environment, act: Callable, worlds: RolloutState, keys, noise, length: int, reset: bool = True
):
  """`length` steps of all environments; what is done begins anew.

  Args:
    environment: of one world.
    act: (observation [environments, …], noise) -> action [environments, …].
    keys: [environments], of this rollout: an environment's draws do not depend on how many there are.
    noise: a pytree of [length, environments, …] of which each step gives `act` a row.
    reset: if not, what is done stays where it ended, and its steps from there on have no end.

  Returns:
    RolloutState, and the Transition of [length, environments, …].
  """
  drawn = jax.vmap(lambda key: jax.random.split(key, 2 * length))(keys).T  # [2 * length, environments]
  step_keys, nothing = drawn[:length], jnp.zeros(keys.shape, bool)
  begin_anew = _resets(environment, drawn[length:]) if reset else None
  if reset and environment.reset_done:  # first what a resume has lost, by keys that the host has no other use for
    worlds = _resets(environment, step_keys)(worlds, nothing, 0)

  def step(carry, x):
    (worlds, over), (key, noise, t) = carry, x
    after, seen = _advance(environment, act, worlds, key, noise)
    if reset:
      return (begin_anew(after, seen.done, t), over), seen
    ends = dict(terminated=seen.terminated & ~over, truncated=seen.truncated & ~over)
    return (_where(over, worlds, after), over | seen.done), seen.replace(**ends)

  (worlds, _), transitions = jax.lax.scan(step, (worlds, nothing), (step_keys, noise, jnp.arange(length)))
  return worlds, transitions


def finished(transitions: Transition) -> dict[str, tuple]:
  """(sum, count) of the returns and lengths of the episodes that ended in a rollout."""
  done = transitions.done
  count, sums = done.sum().astype(jnp.float32), lambda x: jnp.where(done, x, 0).sum().astype(jnp.float32)
  return {name: (sums(getattr(transitions, name)), count) for name in ('episode_return', 'episode_length')}


# ---- episodes of a policy ----


def _advance_episodes(policy: Policy, state, greedy: bool, worlds: RolloutState, keys, t):
  """Step t of the episodes that `keys` [episodes] stand for: (RolloutState, Transition)."""
  drawn = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t)))(keys)  # [episodes, 2]
  noise = None if greedy or policy.noise is None else jax.vmap(policy.noise)(drawn[:, 1])
  act = lambda observation, noise: policy.act(state, observation, noise)
  return _advance(policy.environment, act, worlds, drawn[:, 0], noise)


def episodes(policy: Policy, state, keys, greedy: bool = True) -> RolloutState:
  """One episode for each of `keys` [episodes], by the best actions or drawn ones: the ends,
  with returns and lengths.
  """

  def body(carry):
    worlds, over, t = carry
    after, seen = _advance_episodes(policy, state, greedy, worlds, keys, t)
    return _where(over, worlds, after), over | seen.done, t + 1

  first = start(policy.environment, keys), jnp.zeros(keys.shape, bool), jnp.ones((), jnp.int32)
  going_on = lambda carry: ~carry[1].all() & (carry[2] <= policy.environment.limit)
  return jax.lax.while_loop(going_on, body, first)[0]


def record(policy: Policy, state, key, greedy: bool = True):
  """One episode: (states [limit + 1, …], done [limit], returns so far [limit]);
  what follows the first `done` is to be cut off.
  """

  def body(worlds, t):
    after, seen = _advance_episodes(policy, state, greedy, worlds, key[None], t)
    return after, jax.tree.map(lambda x: x[0], (after.state, seen.done, seen.episode_return))

  worlds = start(policy.environment, key[None])
  _, (states, *seen) = jax.lax.scan(body, worlds, jnp.arange(1, policy.environment.limit + 1))
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), worlds.state, states), *seen


def world_keys(key, batch):
  """One key for each of batch['world'] [batch]: an episode is the same in whatever batch it is played."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, batch['world'])


RETURNS = 'episode_returns'  # of every episode, among the sums


def evaluate(policy: Policy, examples: int, state, batch, key):
  """Sums over one episode in each batch['world'], by the best actions and, where a policy draws some, by drawn ones.

  Args:
    examples: size of the largest split: all returns are kept, since sums of squares would lose a small deviation.
  """
  mask = batch['mask']
  sums = {'episodes': mask.sum().astype(jnp.float32)}
  for prefix in ('',) if policy.noise is None else ('', 'stochastic_'):
    ends = episodes(policy, state, world_keys(key, batch), greedy=not prefix)
    numbers = {
      'episode_return': ends.episode_return,
      'episode_length': ends.episode_length,
      **jax.vmap(policy.environment.outcomes)(ends.state, ends.episode_return),
    }
    sums |= {f'{prefix}{name}': jnp.where(mask, x, 0).sum() for name, x in numbers.items()}
    sums[f'{prefix}{RETURNS}'] = collect(ends.episode_return, batch['index'], batch['mask'], examples)
  return sums


def summarise(sums) -> dict[str, float]:
  """Mean returns and lengths, the returns' deviation over episodes, and the mean of each of the environment's
  outcomes.
  """
  count, returns = float(sums['episodes']), [name for name in sums if name.endswith(RETURNS)]
  numbers = {n: float(total) / count for n, total in sums.items() if n != 'episodes' and n not in returns}
  deviation = lambda name: float(np.std(sums[name][: int(count)], dtype=np.float64))
  return numbers | {f'{name.removesuffix("s")}_deviation': deviation(name) for name in returns}
