"""DDPG, TD3 and SAC as one pure step: some steps of every environment, then updates from what the rings hold.

Actions lie within ±1 (see `environment.scale_action`). An actor's outputs are [batch, size] before a tanh, or, of a stochastic
policy, the [batch, 2 · size] of a squashed Gaussian.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives
from karpjax.losses import actor_critic_off_policy as losses
from karpjax.program import REPLAY, ROLLOUT, TrainState, example_keys, pair, step_key
from karpjax.rl import distributions, updates
from karpjax.rl import replay as replays
from karpjax.rl import rollout as rollouts
from karpjax.rl.environment import Environment
from karpjax.train.step import compute_gradients


@dataclasses.dataclass(frozen=True)
class Method:
  """What tells the algorithms apart; all steps are those of environments, of all together.

  Attributes:
    environments: how many there are, over all devices.
    rollout: steps of each environment between updates.
    updates: how many follow them.
    batch: transitions of an update from each environment's ring.
    learning_starts: no update before so many steps; until then actions are drawn evenly.
    tau: how far an update moves the target networks to the others.
    discount: γ.
    stochastic: whether the policy is a squashed Gaussian whose entropy is rewarded (SAC).
    policy_every: updates of the critics to one of the policy and of all target networks (TD3: 2).
    exploration: deviation of the noise with which a deterministic policy acts.
    smoothing, smoothing_limit: of the noise of the target policy (TD3); 0: none.
    entropy: H̄, which the temperature of a stochastic policy holds it at.
    microbatches: see `compute_gradients`.
  """

  environments: int
  rollout: int = 1
  updates: int = 1
  batch: int = 256
  learning_starts: int = 1000
  tau: Any = 0.005
  discount: Any = 0.99
  stochastic: bool = True
  policy_every: int = 1
  exploration: Any = 0.1
  smoothing: Any = 0.0
  smoothing_limit: Any = 0.5
  entropy: Any = -1.0
  microbatches: int = 1


def mode(method: Method, outputs):
  """The action without noise, within ±1."""
  return distributions.squashed_mode(outputs) if method.stochastic else jnp.tanh(outputs)


def act(method: Method, outputs, noise):
  """The action with standard normal noise […, size], within ±1."""
  if method.stochastic:
    return distributions.squashed_sample(outputs, noise)[0]
  return jnp.clip(jnp.tanh(outputs) + method.exploration * noise, -1, 1)


def followed(method: Method) -> tuple[str, ...]:
  """The players that have target networks."""
  return ('critics',) if method.stochastic else ('critics', 'policy')


def train_step(
  environment: Environment,
  actor: Callable,
  critics: Callable,
  optimisers: Mapping[str, optax.GradientTransformation],
  method: Method,
) -> Callable:
  """The step of an off-policy actor-critic method.

  Args:
    environment: of one world, whose actions are a Box of one axis within ±1.
    actor: (params, observation [batch, …]) -> outputs [batch, size or 2 · size].
    critics: (params, observation [batch, …], action [batch, size]) -> [critics, batch].
    optimisers: of 'critics' and 'policy'.
    method: the algorithm.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has params {'critics', 'policy': {'actor', 'temperature'}}, the
    last log α of a stochastic policy; `target` those of `followed`; carried {'running': rollout.Running}; buffers
    replay.Replay. The batch is only the environments' numbers.
    Metrics of updates count nothing before learning starts.
  """
  a_step = method.environments * method.rollout  # environments' steps
  (size,) = environment.action.shape

  def interact(state, batch, running):
    keys = example_keys(step_key(state, ROLLOUT), batch)
    world, acting = jax.vmap(jax.random.split, out_axes=1)(keys)
    normal = jax.vmap(lambda key: jax.random.normal(key, (method.rollout, size)), out_axes=1)(acting)
    first = state.step * a_step + jnp.arange(method.rollout) * method.environments < method.learning_starts  # [rollout]

    def choose(observation, noise):
      normal, first = noise
      even = jax.lax.erf(normal / math.sqrt(2))  # evenly within ±1
      return jnp.where(first, even, act(method, actor(state.params['policy']['actor'], observation), normal))

    return rollouts.rollout(environment, choose, running, world, (normal, first), method.rollout)

  def examples(state, replay, written, batch, i):
    """The transitions of an update with its noise, each leaf [environments · batch, …]."""
    keys = example_keys(jax.random.fold_in(step_key(state, REPLAY), i), batch)
    places, noise = jax.vmap(jax.random.split, out_axes=1)(keys)
    drawn = replays.gather(replay, replays.uniform(replay, written, places, method.batch), 1, method.discount)
    normal = jax.vmap(lambda key: jax.random.normal(key, (2, method.batch, size)), out_axes=1)(noise)
    return {**drawn, **dict(zip(('noise', 'next_noise'), normal.reshape(2, -1, size)))}

  def targets(params, target, batch):
    """[batch]: what the critics' values are to become."""
    following = batch['next_observation']
    if method.stochastic:
      outputs = actor(params['policy']['actor'], following)
      action, log_prob = distributions.squashed_sample(outputs, batch['next_noise'])
      temperature = jnp.exp(params['policy']['temperature'])
    else:
      action = jnp.tanh(actor(target['policy']['actor'], following))
      action = losses.smoothed(action, batch['next_noise'], method.smoothing, method.smoothing_limit)
      log_prob = temperature = 0.0
    values = critics(target['critics'], following, action)  # [critics, batch]
    return losses.target(batch['reward'], batch['discount'], values, log_prob, temperature)

  def critic_loss(params, collections, batch, key):
    values = critics(params, batch['observation'], batch['action'])
    each = losses.critics(values, batch['target'])
    errors = jnp.abs(values - batch['target']).mean(0)
    return {'loss': pair(each), 'td_error': pair(errors), 'value': pair(values.mean(0))}, collections

  def policy_loss(params, collections, batch, key):
    """The collections are the critics' params, which stay."""
    outputs = actor(params['actor'], batch['observation'])
    if not method.stochastic:
      each = losses.deterministic_policy(critics(collections, batch['observation'], jnp.tanh(outputs)))
      return {'loss': pair(each), 'policy_loss': pair(each)}, collections
    action, log_prob = distributions.squashed_sample(outputs, batch['noise'])
    values, log_temperature = critics(collections, batch['observation'], action), params['temperature']
    each = losses.soft_policy(values, log_prob, jax.lax.stop_gradient(jnp.exp(log_temperature)))
    warmth = losses.temperature(log_temperature, jax.lax.stop_gradient(log_prob), method.entropy)
    metrics = {'loss': pair(each + warmth), 'policy_loss': pair(each), 'entropy': pair(-log_prob)}
    return {**metrics, 'temperature': pair(jnp.broadcast_to(jnp.exp(log_temperature), each.shape))}, collections

  def descend(name, compute, learnt, collections, batch):
    """`learnt` after an update of one of its parts, and metrics."""
    params, opt_state, target = learnt
    grads, metrics, *_ = compute(params[name], collections, batch, None)
    changes, new = optimisers[name].update(grads, opt_state[name], params[name])
    params = {**params, name: optax.apply_updates(params[name], changes)}
    return (params, {**opt_state, name: new}, target), metrics, (optax.global_norm(grads), jnp.ones(()))

  judge = compute_gradients(critic_loss, microbatches=method.microbatches)
  improve = compute_gradients(policy_loss, microbatches=method.microbatches)

  def learn(state, replay, written, batch):
    """All updates of a step: (params, opt_state, target), metrics."""

    def update(learnt, i):
      drawn = examples(state, replay, written, batch, i)
      drawn['target'] = targets(learnt[0], learnt[2], drawn)
      learnt, metrics, norm = descend('critics', judge, learnt, {}, drawn)
      metrics = {'critic_loss': metrics.pop('loss'), **metrics, 'gradient_norm': norm}

      def follow():
        (params, opt_state, target), metrics, norm = descend('policy', improve, learnt, learnt[0]['critics'], drawn)
        target = optax.incremental_update({name: params[name] for name in target}, target, method.tau)
        del metrics['loss']
        return (params, opt_state, target), {**metrics, 'policy_gradient_norm': norm}

      due = (state.step * method.updates + i + 1) % method.policy_every == 0
      learnt, more = follow() if method.policy_every == 1 else updates.when(due, follow, learnt)
      return learnt, {**metrics, **more}

    begun = state.params, state.opt_state, state.target
    return updates.repeat(update, begun, method.updates)

  def step(state: TrainState, batch):
    running, seen = interact(state, batch, state.carried['running'])
    replay = replays.write(state.buffers, state.step * method.rollout, seen)
    written, steps = (state.step + 1) * method.rollout, (state.step + 1) * a_step
    before = state.params, state.opt_state, state.target
    due = steps >= method.learning_starts
    (params, opt_state, target), metrics = updates.when(due, lambda: learn(state, replay, written, batch), before)
    metrics |= collectives.total(rollouts.finished(seen))
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, target=target)
    return state.replace(carried={'running': running}, buffers=replay), metrics

  return step
