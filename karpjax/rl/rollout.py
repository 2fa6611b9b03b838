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

from karpjax.program import INITIALISE
from karpjax.rl.environment import Environment


@dataclasses.dataclass(frozen=True)
class Policy:
  """What acts in an environment; the two are built once, together.

  Attributes:
    environment: of one world.
    init: key -> variables of its networks.
    apply: its networks, as the algorithm takes them.
    act: (state of a Program, observation [environments, …], noise) -> action [environments, …]: drawn, or where `noise` is
      None the best.
    noise: key -> the noise of one world's action; None where a policy draws nothing.
    predict: (state, observation) -> what a Program predicts, [environments, …].
    distribution: of the actions, where they are drawn from one.
  """

  environment: Environment
  init: Callable
  apply: Callable
  act: Callable
  noise: Callable | None
  predict: Callable
  distribution: Any = None


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
class Transition:
  """A step, each leaf [time, environments, …].

  Attributes:
    observation, action, reward: what was seen, done and gained.
    terminated, truncated: how it ended, if it did.
    next_observation: of the state it led to, before any reset.
    episode_return, episode_length: of the episode so far, this step included.
  """

  observation: Any
  action: Any
  reward: jax.Array
  terminated: jax.Array
  truncated: jax.Array
  next_observation: Any
  episode_return: jax.Array
  episode_length: jax.Array

  @property
  def done(self):
    """Whether a step was its episode's last."""
    return self.terminated | self.truncated


def _new(state, observation, count: int) -> RolloutState:
  return RolloutState(state, observation, jnp.zeros(count), jnp.zeros(count, jnp.int32))


def start(environment: Environment, keys) -> RolloutState:
  """New episodes: keys [environments]."""
  return _new(*jax.vmap(environment.reset)(keys), len(keys))


def first_episodes(environment: Environment, key, count: int) -> RolloutState:
  """`count` new episodes from a run's first key: a world's does not depend on how many there are."""
  first = jax.random.fold_in(jax.random.fold_in(key, 0), INITIALISE)  # step 0's, of that purpose
  return start(environment, jax.vmap(jax.random.fold_in, (None, 0))(first, jnp.arange(count)))


def _where(condition, new, old):
  """Leaf by leaf, condition [environments] against leaves [environments, …]."""
  return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


def _advance(environment: Environment, act: Callable, worlds: RolloutState, keys, noise):
  """One step of all environments, none reset."""
  action = act(worlds.observation, noise)
  state, reached = jax.vmap(environment.step)(keys, worlds.state, action)
  after = RolloutState(state, reached.observation, worlds.episode_return + reached.reward, worlds.episode_length + 1)
  transition = Transition(
    worlds.observation,
    action,
    reached.reward,
    reached.terminated,
    reached.truncated,
    reached.observation,
    after.episode_return,
    after.episode_length,
  )
  return after, transition


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
  keys = keys[:: environment.shortest]
  resets = jax.vmap(environment.reset)(keys.reshape(-1))
  resets = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), resets)  # [length / shortest, environments, …]

  def reset_ahead(worlds, done, t):
    return _where(done, _new(*jax.tree.map(lambda x: x[t // environment.shortest], resets), count), worlds)

  return reset_ahead


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
  step_keys, reset_keys = drawn[:length], drawn[length:]
  rows, nothing = (step_keys, noise, jnp.arange(length)), jnp.zeros(keys.shape, bool)
  if not reset:

    def once(carry, x):
      worlds, over = carry
      after, transition = _advance(environment, act, worlds, *x[:2])
      ends = {name: getattr(transition, name) & ~over for name in ('terminated', 'truncated')}
      return (_where(over, worlds, after), over | transition.done), transition.replace(**ends)

    (worlds, _), transitions = jax.lax.scan(once, (worlds, nothing), rows)
    return worlds, transitions

  reset_done = _resets(environment, reset_keys)
  if environment.reset_done:  # first what a resume has lost, by keys that the host has no other use for
    worlds = _resets(environment, step_keys)(worlds, nothing, 0)

  def body(worlds, x):
    key, noise, t = x
    worlds, transition = _advance(environment, act, worlds, key, noise)
    return reset_done(worlds, transition.done, t), transition

  return jax.lax.scan(body, worlds, rows)


def finished(transitions: Transition) -> dict[str, tuple]:
  """(sum, count) of the returns and lengths of the episodes that ended in a rollout."""
  done = transitions.done
  count, sums = done.sum().astype(jnp.float32), lambda x: jnp.where(done, x, 0).sum().astype(jnp.float32)
  return {name: (sums(getattr(transitions, name)), count) for name in ('episode_return', 'episode_length')}


def episodes(environment: Environment, act: Callable, keys, noise: Callable) -> RolloutState:
  """One episode of each environment, to its end.

  Args:
    act: as for `rollout`.
    noise: keys [episodes] -> what `act` is given at a step.

  Returns:
    The environments at the ends, with the episodes' returns and lengths.
  """

  def body(carry):
    worlds, over, t = carry
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
    drawn = jax.vmap(jax.random.split)(now)  # [episodes, 2]
    after, transition = _advance(environment, act, worlds, drawn[:, 0], noise(drawn[:, 1]))
    return _where(over, worlds, after), over | transition.done, t + 1

  first = start(environment, keys), jnp.zeros(keys.shape, bool), jnp.ones((), jnp.int32)
  return jax.lax.while_loop(lambda carry: ~carry[1].all() & (carry[2] <= environment.limit), body, first)[0]


def record(environment: Environment, act: Callable, key, noise: Callable):
  """One episode with all it went through: (states, Transition), each leaf [environment.limit + 1 | limit, …].

  `act` and `noise` are as for `episodes`. What follows the first `Transition.done` is to be cut off.
  """

  def body(worlds, t):
    drawn = jax.random.split(jax.random.fold_in(key, t))
    after, transition = _advance(environment, act, worlds, drawn[:1], noise(drawn[1:]))
    return after, jax.tree.map(lambda x: x[0], (after.state, transition))

  worlds = start(environment, key[None])
  _, (states, transitions) = jax.lax.scan(body, worlds, jnp.arange(1, environment.limit + 1))
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), worlds.state, states), transitions


# ---- how a policy does ----


def world_keys(key, batch):
  """One key for each of batch['world'] [batch]: an episode is the same in whatever batch it is played."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, batch['world'])


def noise_of(policy: Policy, greedy: bool) -> Callable:
  """keys [environments] -> the noise of an action of each; None of the best ones."""
  return (lambda keys: None) if greedy or policy.noise is None else jax.vmap(policy.noise)


def evaluate(policy: Policy, state, batch, key):
  """Sums over one episode in each batch['world'], by the best actions and, where a policy draws some, by drawn ones."""
  environment, mask = policy.environment, batch['mask'].astype(jnp.float32)
  sums = {'episodes': mask.sum()}
  for prefix in ('', 'stochastic_')[: 1 if policy.noise is None else 2]:
    act = lambda observation, noise: policy.act(state, observation, noise)
    ends = episodes(environment, act, world_keys(key, batch), noise_of(policy, greedy=not prefix))
    numbers = {
      'episode_return': ends.episode_return,
      'episode_return_squared': jnp.square(ends.episode_return),
      'episode_length': ends.episode_length,
      **jax.vmap(environment.outcomes)(ends.state, ends.episode_return),
    }
    sums |= {f'{prefix}{name}': (x * mask).sum() for name, x in numbers.items()}
  return sums


def summarise(sums) -> dict[str, float]:
  """Mean returns and lengths, the returns' deviation over episodes, and the mean of each of the environment's outcomes."""
  count = float(sums['episodes'])
  numbers = {name: float(total) / count for name, total in sums.items() if name != 'episodes'}
  for name in [name for name in numbers if name.endswith('episode_return_squared')]:
    mean = name.removesuffix('_squared')
    variance = numbers.pop(name) - numbers[mean] ** 2
    numbers[f'{mean}_deviation'] = float(np.sqrt(max(variance, 0.0)))
  return numbers
