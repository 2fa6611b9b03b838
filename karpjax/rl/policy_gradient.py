"""REINFORCE, A2C and PPO as one pure step: a rollout, its advantages, and one or many updates from it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives
from karpjax.errors import UsageError
from karpjax.losses import policy_gradient as losses
from karpjax.program import ROLLOUT, SHUFFLE, TrainState, example_keys, pair
from karpjax.rl import returns, statistics
from karpjax.rl import rollout as rollouts
from karpjax.rl.distributions import Distribution
from karpjax.rl.environment import Environment, Recalled
from karpjax.train.step import compute_gradients


@dataclasses.dataclass(frozen=True)
class Method:
  """What tells the algorithms apart.

  Attributes:
    rollout: steps of each environment between updates.
    whole_episodes: each rollout begins new episodes, and what follows their first end counts nothing (REINFORCE).
    epochs, minibatches: how often a rollout is gone through, and in how many parts.
    clip: ε of PPO's objective; 0: the plain policy gradient.
    clip_value: whether the value's loss is clipped by the same ε.
    discount: γ. decay: λ of the advantages; 1: whole returns.
    baseline: whether the value is taken off the return.
    entropy, value: weights of these terms.
    normalise: whether each minibatch's advantages get mean 0 and deviation 1.
    target_kl: no more updates from a rollout once the policy is so far from the one that acted; 0: no limit.
    points: whether a reward other than 0 ends the return: each point of a game for itself (Karpathy 2016).
    scale_rewards: divides rewards by the running deviation of their discounted sum.
    microbatches: see `compute_gradients`.
  """

  rollout: int = 128
  whole_episodes: bool = False
  epochs: int = 4
  minibatches: int = 4
  clip: Any = 0.2
  clip_value: bool = True
  discount: Any = 0.99
  decay: Any = 0.95
  baseline: bool = True
  entropy: Any = 0.01
  value: Any = 0.5
  normalise: bool = True
  target_kl: float = 0.0
  points: bool = False
  scale_rewards: bool = False
  microbatches: int = 1


def value_of(observation):
  """The observation itself, without what is remembered with it."""
  return observation.value if isinstance(observation, Recalled) else observation


def normalised(moments, observation):
  """The observation as the networks see it."""
  if (running := moments.get('observation')) is None:
    return observation
  seen = statistics.standardise(running, value_of(observation))
  return observation._replace(value=seen) if isinstance(observation, Recalled) else seen


def actor(apply: Callable, distribution: Distribution, state: TrainState, greedy: bool = False) -> Callable:
  """The act of `rollout.rollout` by a state's policy: drawn actions, or the likeliest ones. `apply` is that of `train_step`."""

  def act(observation, noise):
    outputs, _, *memory = apply(state.params, normalised(state.moments, observation))
    action = distribution.mode(outputs) if greedy else distribution.sample(outputs, noise)
    return Recalled(action, *memory) if memory else action

  return act


def rollout(
  environment: Environment, apply: Callable, distribution: Distribution, method: Method, state: TrainState, batch
) -> tuple[rollouts.Running, rollouts.Transition]:
  """What the step of a state begins with; the arguments are those of `train_step` and of its step."""
  key = jax.random.fold_in(state.key, state.step)
  keys = example_keys(jax.random.fold_in(key, ROLLOUT), batch)  # [environments]
  world, acting, fresh = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
  running = rollouts.start(environment, fresh) if method.whole_episodes else state.carried['running']
  noise = jax.vmap(lambda k: distribution.noise(k, (method.rollout,)), out_axes=1)(acting)
  act = actor(apply, distribution, state)
  return rollouts.rollout(environment, act, running, world, noise, method.rollout, again=not method.whole_episodes)


def shuffles(state: TrainState, method: Method):
  """[epochs]: the keys of the permutations in which a step goes through its rollout."""
  key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), SHUFFLE)
  return jax.random.split(key, method.epochs)


def examples_of(seen: rollouts.Transition, given: dict) -> dict:
  """What minibatches are cut from: steps, or of a policy that remembers whole environments.

  Args:
    seen: a rollout, [time, environments, …].
    given: more arrays [time, environments, …].

  Returns:
    'observation', 'action' and what is given, [time * environments, …]; or [environments, time, …], where 'observation' is
    Recalled with the memory [environments, …] before the first time, and with 'fresh', where a step is its episode's first.
  """
  examples = {'observation': seen.observation, 'action': seen.action, **given}
  if not isinstance(seen.observation, Recalled):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples)
  first = jax.tree.map(lambda x: x[0], seen.observation.memory)  # blank already where an episode begins
  fresh = jnp.concatenate([jnp.zeros_like(seen.end[:1]), seen.end[:-1]])
  examples |= {'observation': seen.observation.value, 'action': seen.action.value, 'fresh': fresh}
  examples = jax.tree.map(lambda x: x.swapaxes(0, 1), examples)
  return {**examples, 'observation': Recalled(examples['observation'], first)}


def standardised(advantages, mask):
  """Those of a minibatch, [size] or [environments, time], over all replicas, with mean 0 and deviation 1."""
  count = jnp.maximum(collectives.total(mask.sum()), 1)
  mean = collectives.total(jnp.where(mask, advantages, 0).sum()) / count
  variance = collectives.total(jnp.where(mask, jnp.square(advantages - mean), 0).sum()) / count
  return (advantages - mean) / (jnp.sqrt(variance) + 1e-8)


def train_step(
  environment: Environment,
  apply: Callable,
  distribution: Distribution,
  optimiser: optax.GradientTransformation,
  method: Method,
) -> Callable:
  """The step of a policy gradient method.

  Args:
    environment: of one world.
    apply: (params, observation [batch, …]) -> outputs [batch, size], values [batch]; where the environment is one of
      `environment.remember`, also what the policy remembers next. It then also takes (params, Recalled of an observation
      [batch, time, …] and the memory [batch, …] before, fresh [batch, time] bool), and gives outputs and values [batch, time, …].
    distribution: of the actions, given these outputs.
    optimiser: makes `epochs` × `minibatches` updates a step.
    method: the algorithm.

  Raises:
    UsageError: when it is traced, for a rollout which cannot be cut into its minibatches.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has carried {'running': rollout.Running, 'discounted':
    [environments], if rewards are scaled} and perhaps moments {'observation', 'reward'}, which are statistics.Running.
    The batch is only the environments' numbers.
  """
  plain = isinstance(method.clip, int | float) and method.clip == 0

  def policy(params, collections, observation, *fresh):
    return apply(params, normalised(collections, observation), *fresh)[:2]

  def many(params, collections, observation):
    """[time, environments, …] -> outputs [time, environments, size], values [time, environments]; each step by itself."""
    lead = value_of(observation).shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observation)
    outputs, values = policy(params, collections, flat)
    return outputs.reshape(*lead, -1), values.reshape(lead)

  def loss(params, collections, batch, key):
    outputs, values = policy(params, collections, batch['observation'], *([batch['fresh']] if 'fresh' in batch else []))
    log_probs = distribution.log_prob(outputs, batch['action'])
    advantages, mask = batch['advantage'], batch['mask']
    if plain:
      objective = losses.score_function(log_probs, advantages)
    else:
      objective = losses.clipped_objective(log_probs, batch['log_prob'], advantages, method.clip)
    if method.clip_value and not plain:
      value_loss = losses.clipped_squared_error(values, batch['value'], batch['target'], method.clip)
    else:
      value_loss = losses.squared_error(values, batch['target'])
    entropy = distribution.entropy(outputs)
    moved = jnp.abs(jnp.exp(log_probs - batch['log_prob']) - 1)
    total = objective + method.value * value_loss - method.entropy * entropy
    each = {
      'policy_loss': objective,
      'value_loss': value_loss,
      'entropy': entropy,
      'kl': losses.divergence(log_probs, batch['log_prob']),
      'clipped': moved > (1.0 if plain else method.clip),
    }
    # all sums at once: each alone would be several calls of the CPU
    rows = jax.lax.stop_gradient(jnp.stack([x.astype(jnp.float32) for x in each.values()]))
    sums, count = jnp.where(mask, rows, 0).sum(tuple(range(1, rows.ndim))), mask.sum().astype(jnp.float32)
    metrics = {name: (sums[i], count) for i, name in enumerate(each)}
    return {'loss': pair(total, mask), **metrics}, collections

  compute = compute_gradients(loss, microbatches=method.microbatches)

  def update(carry, batch, collections):
    params, opt_state, stopped = carry
    grads, metrics, *_ = compute(params, collections, batch, None)
    updates, new_opt_state = optimiser.update(grads, opt_state, params)
    new = optax.apply_updates(params, updates), new_opt_state
    metrics = {**metrics, 'gradient_norm': (optax.global_norm(grads), jnp.ones(()))}
    if method.target_kl:
      new = jax.tree.map(lambda a, b: jnp.where(stopped, b, a), new, (params, opt_state))
      metrics = jax.tree.map(lambda x: jnp.where(stopped, 0, x), metrics)
      stopped = stopped | (metrics['kl'][0] > 1.5 * method.target_kl * metrics['kl'][1])
    return (*new, stopped), metrics

  def step(state: TrainState, batch):
    running, seen = rollout(environment, apply, distribution, method, state, batch)
    # In one pass over all steps, so that the loop above computes nothing but actions.
    outputs, values = many(state.params, state.moments, seen.observation)
    next_values = many(state.params, state.moments, seen.next_observation)[1]
    rewards, carried, moments = scaled(state, seen)
    final = seen.terminated | (seen.reward != 0) if method.points else seen.terminated
    advantages = returns.advantages(
      rewards, values, next_values, final, seen.truncated, discount=method.discount, decay=method.decay
    )
    targets = advantages + values
    mask = jnp.ones(rewards.shape, bool)
    if method.whole_episodes:
      mask = jnp.cumsum(seen.end, 0) - seen.end == 0  # up to the first end, and with it
    if not method.baseline:
      advantages = targets
    given = {
      'log_prob': distribution.log_prob(outputs, value_of(seen.action)),
      'value': values,
      'advantage': advantages,
      'target': targets,
      'mask': mask,
    }
    examples = examples_of(seen, given)
    size = len(examples['mask'])
    if size % (method.minibatches * method.microbatches):
      whole = 'fresh' in examples
      raise UsageError(
        f'{size} {"environments" if whole else "steps of a rollout"} on one device cannot be cut into '
        f'{method.minibatches} minibatches'
        + (f' of {method.microbatches} microbatches' if method.microbatches > 1 else '')
        + (', and a memory needs whole rollouts' if whole else '')
        + f': another {"" if whole else "--rollout, "}--batch_size or --minibatches is needed'
      )

    def epoch(carry, key):
      parts = examples
      if method.minibatches > 1:
        order = jax.random.permutation(key, size)
        parts = jax.tree.map(lambda x: x[order], examples)
      parts = jax.tree.map(lambda x: x.reshape(method.minibatches, -1, *x.shape[1:]), parts)
      if method.normalise:
        parts['advantage'] = jax.vmap(standardised)(parts['advantage'], parts['mask'])
      return jax.lax.scan(lambda carry, part: update(carry, part, state.moments), carry, parts)

    begun = state.params, state.opt_state, jnp.zeros((), bool)
    (params, opt_state, _), metrics = jax.lax.scan(epoch, begun, shuffles(state, method))
    metrics = jax.tree.map(lambda x: x.sum((0, 1)), metrics)
    if 'observation' in moments:
      moments['observation'] = statistics.update(moments['observation'], value_of(seen.observation))
    explained = collectives.mean(returns.explained_variance(values, targets))
    metrics = {
      **{name: x for name, x in metrics.items() if name != 'loss'},
      'explained_variance': (explained, jnp.ones(())),
      **collectives.total(rollouts.finished(seen)),
    }
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, moments=moments)
    return state.replace(carried={**carried, 'running': running}), metrics

  def scaled(state, seen):
    """The rewards that are learnt from; what the state holds for them."""
    moments = dict(state.moments)
    if not method.scale_rewards:
      return seen.reward, {}, moments

    def add(total, x):
      reward, end = x
      total = method.discount * total + reward
      return jnp.where(end, 0, total), total

    last, sums = jax.lax.scan(add, state.carried['discounted'], (seen.reward, seen.end))
    deviation = jnp.sqrt(moments['reward'].variance + 1e-8)
    moments['reward'] = statistics.update(moments['reward'], sums)
    return seen.reward / deviation, {'discounted': last}, moments

  return step
