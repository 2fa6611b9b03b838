"""DDPG, TD3 and SAC as one pure step: some steps of every environment, then updates from what the rings hold.

Actions lie within ±1 (see `environment.scale_action`). An actor's outputs are [batch, size] before a tanh, or, of SAC's
stochastic policy, the [batch, 2 · size] of a squashed Gaussian. The values of several critics are [critics, batch].
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives
from karpjax.program import REPLAY, ROLLOUT, TrainState, example_keys, pair, step_key
from karpjax.rl import replay as replays
from karpjax.rl import rollout as rollouts
from karpjax.rl.environment import Environment
from karpjax.rl.rollout import Policy
from karpjax.train.step import compute_gradients

# ---- losses, example by example ----


def td_target(rewards, discounts, next_values, next_log_probs=0.0, temperature=0.0):
  """r + γ (min_i Q_i(s', a') - α log π(a'|s')): Lillicrap et al. 2016 with one critic and α = 0, Fujimoto et al. 2018,
  algorithm 1, with two, Haarnoja et al. 2018b, eqs. 2 and 3, with α. γ [batch] is 0 where the episode terminated, not where
  it was only cut; Q [critics, batch] is of the target networks.
  """
  return rewards + discounts * (next_values.min(0) - temperature * next_log_probs)


def smooth(actions, noise, deviation, limit):
  """Actions [batch, size] with standard normal noise of deviation σ̃, clipped to ± c = `limit` (Fujimoto et al. 2018, eq. 14)."""
  return jnp.clip(actions + jnp.clip(deviation * noise, -limit, limit), -1, 1)


def td_loss(values, targets):
  """Σ_i ½ (Q_i - y)²: [critics, batch], [batch] -> [batch]."""
  return 0.5 * jnp.square(values - targets).sum(0)


def deterministic_policy_loss(values):
  """-Q_1(s, μ(s)) (Lillicrap et al. 2016, eq. 6; of the first critic alone: Fujimoto et al. 2018): [critics, batch] -> [batch]."""
  return -values[0]


def sac_policy_loss(values, log_probs, temperature):
  """α log π(a|s) - min_i Q_i(s, a) (Haarnoja et al. 2018b, eq. 9): [critics, batch], [batch] -> [batch]."""
  return temperature * log_probs - values.min(0)


def temperature_loss(log_temperature, log_probs, entropy):
  """-α (log π(a|s) + H̄) [batch] (Haarnoja et al. 2018b, eq. 18): α grows where the policy's entropy is under H̄ = `entropy`."""
  return -jnp.exp(log_temperature) * (log_probs + entropy)


# ---- the policy ----


def squashed_sample(outputs, noise):
  """A Gaussian's draw through tanh (Haarnoja et al. 2018b, appendix C): (actions […, size] within ±1, log_prob […]).

  Args:
    outputs: […, 2 · size], the means before the tanh and the logs of the deviations, which are kept from -20 to 2.
    noise: […, size], standard normal.
  """
  mean, log_std = jnp.split(outputs, 2, -1)
  log_std = jnp.clip(log_std, -20, 2)
  raw = mean + jnp.exp(log_std) * noise
  log_prob = -(0.5 * jnp.square(noise) + log_std + 0.5 * math.log(2 * math.pi))
  # log(1 - tanh² u), which would be log 0 for large u
  slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
  return jnp.tanh(raw), (log_prob - slope).sum(-1)


def best_action(config, outputs):
  """The action without noise, within ±1; of a squashed Gaussian the tanh of its means."""
  return jnp.tanh(jnp.split(outputs, 2, -1)[0] if config.algorithm == 'sac' else outputs)


def noisy_action(config, outputs, noise):
  """The action with standard normal noise […, size], within ±1."""
  if config.algorithm == 'sac':
    return squashed_sample(outputs, noise)[0]
  return jnp.clip(jnp.tanh(outputs) + config.exploration * noise, -1, 1)


def policy(environment: Environment, init: Callable, actor: Callable, critics: Callable, config) -> Policy:
  """The actor's actions in an environment whose actions are a Box of one axis within ±1.

  Args:
    environment: of one world.
    init: key -> {'critics': variables, 'policy': variables}, whose params are {'actor', 'temperature'}, the last SAC's log α.
    actor: (params, observation [batch, …]) -> outputs [batch, size or 2 · size].
    critics: (params, observation [batch, …], action [batch, size]) -> [critics, batch].
    config: of experiments/actor_critic_off_policy.py.
  """

  def act(state, observation, noise):
    outputs = actor(state.params['policy']['actor'], observation)
    return best_action(config, outputs) if noise is None else noisy_action(config, outputs, noise)

  noise = lambda key: jax.random.normal(key, environment.action.shape)
  predict = lambda state, observation: act(state, observation, None)
  return Policy(environment, init, (actor, critics), act, noise, predict)


def target_players(config) -> tuple[str, ...]:
  """The players that have target networks."""
  return ('critics',) if config.algorithm == 'sac' else ('critics', 'policy')


# ---- the step ----


def train_step(policy: Policy, optimisers: Mapping[str, optax.GradientTransformation], config) -> Callable:
  """The step of an off-policy actor-critic method, in the order of the algorithm: its parts share networks and config.

  Args:
    policy: of `policy`.
    optimisers: of 'critics' and 'policy'.
    config: of experiments/actor_critic_off_policy.py, the algorithm's own values where none is given.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has the players' params, `target` those of `target_players`,
    carried {'worlds': RolloutState} and buffers Replay. The batch is only the environments' numbers.
    Metrics of updates count nothing before learning starts.
  """
  environment, (actor, critics) = policy.environment, policy.apply
  stochastic, (size,) = config.algorithm == 'sac', environment.action.shape
  environments, length = config.batch_size, config.train_frequency
  steps_of_step, batch_size = environments * length, config.replay_batch // environments

  def interact(state, batch):
    keys, acting = jax.vmap(jax.random.split, out_axes=1)(example_keys(step_key(state, ROLLOUT), batch))
    normal = jax.vmap(lambda key: jax.random.normal(key, (length, size)), out_axes=1)(acting)
    first = state.step * steps_of_step + jnp.arange(length) * environments < config.learning_starts  # [length]

    def act(observation, noise):
      normal, first = noise
      even = jax.lax.erf(normal / math.sqrt(2))  # evenly within ±1
      return jnp.where(first, even, policy.act(state, observation, normal))

    return rollouts.rollout(environment, act, state.carried['worlds'], keys, (normal, first), length)

  def sample(state, replay, written, batch, i):
    """The transitions of update i with its noise, each leaf [environments · batch_size, …]."""
    keys = example_keys(jax.random.fold_in(step_key(state, REPLAY), i), batch)
    drawing, noise = jax.vmap(jax.random.split, out_axes=1)(keys)
    examples = replays.gather(replay, replays.uniform(replay, written, drawing, batch_size), 1, config.discount)
    normal = jax.vmap(lambda key: jax.random.normal(key, (2, batch_size, size)), out_axes=1)(noise)
    return {**examples, **dict(zip(('noise', 'next_noise'), normal.reshape(2, -1, size)))}

  def targets(params, target, batch):
    """[batch]: what the critics' values are to become."""
    following, noise = batch['next_observation'], batch['next_noise']
    if stochastic:
      action, log_prob = squashed_sample(actor(params['policy']['actor'], following), noise)
      temperature = jnp.exp(params['policy']['temperature'])
    else:
      action = jnp.tanh(actor(target['policy']['actor'], following))
      action = smooth(action, noise, config.smoothing, config.smoothing_limit)
      log_prob = temperature = 0.0
    values = critics(target['critics'], following, action)  # [critics, batch]
    return td_target(batch['reward'], batch['discount'], values, log_prob, temperature)

  def critic_loss(params, collections, batch, key):
    values = critics(params, batch['observation'], batch['action'])
    loss, errors = td_loss(values, batch['target']), jnp.abs(values - batch['target']).mean(0)
    return {'loss': pair(loss), 'td_error': pair(errors), 'value': pair(values.mean(0))}, collections

  def policy_loss(params, judges, batch, key):
    """By the critics' params `judges`, which stay."""
    outputs = actor(params['actor'], batch['observation'])
    if not stochastic:
      loss = deterministic_policy_loss(critics(judges, batch['observation'], jnp.tanh(outputs)))
      return {'loss': pair(loss), 'policy_loss': pair(loss)}, judges
    action, log_prob = squashed_sample(outputs, batch['noise'])
    values, log_temperature = critics(judges, batch['observation'], action), params['temperature']
    loss = sac_policy_loss(values, log_prob, jax.lax.stop_gradient(jnp.exp(log_temperature)))
    warmth = temperature_loss(log_temperature, jax.lax.stop_gradient(log_prob), config.entropy)
    metrics = {'loss': pair(loss + warmth), 'policy_loss': pair(loss), 'entropy': pair(-log_prob)}
    return {**metrics, 'temperature': pair(jnp.broadcast_to(jnp.exp(log_temperature), loss.shape))}, judges

  gradients = {
    'critics': compute_gradients(critic_loss, microbatches=config.microbatches),
    'policy': compute_gradients(policy_loss, microbatches=config.microbatches),
  }

  def descend(player, learnt, batch, judges=()):
    """`learnt` after an update of one player, and its metrics with the norm of its gradient."""
    params, opt_state, target = learnt
    grads, metrics, *_ = gradients[player](params[player], judges, batch, None)
    changes, new = optimisers[player].update(grads, opt_state[player], params[player])
    params = {**params, player: optax.apply_updates(params[player], changes)}
    metrics['gradient_norm'] = (optax.global_norm(grads), jnp.ones(()))
    return (params, {**opt_state, player: new}, target), metrics

  def learn(state, replay, written, batch):
    """All updates of a step: (params, opt_state, target), metrics."""

    def update(learnt, i):
      examples = sample(state, replay, written, batch, i)
      examples['target'] = targets(learnt[0], learnt[2], examples)
      learnt, metrics = descend('critics', learnt, examples)
      metrics['critic_loss'] = metrics.pop('loss')

      def follow():
        (params, opt_state, target), metrics = descend('policy', learnt, examples, judges=learnt[0]['critics'])
        target = optax.incremental_update({name: params[name] for name in target}, target, config.tau)
        metrics['policy_gradient_norm'] = metrics.pop('gradient_norm')
        del metrics['loss']
        return (params, opt_state, target), metrics

      due = (state.step * config.updates + i + 1) % config.policy_every == 0
      after, more = follow() if config.policy_every == 1 else replays.when(due, follow, learnt)
      return after, {**metrics, **more}

    return replays.repeat(update, (state.params, state.opt_state, state.target), config.updates)

  def step(state: TrainState, batch):
    worlds, transitions = interact(state, batch)
    replay = replays.write(state.buffers, state.step * length, transitions)
    written, steps = (state.step + 1) * length, (state.step + 1) * steps_of_step
    learning = lambda: learn(state, replay, written, batch)
    before = state.params, state.opt_state, state.target
    (params, opt_state, target), metrics = replays.when(steps >= config.learning_starts, learning, before)
    metrics |= collectives.total(rollouts.finished(transitions))
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, target=target)
    return state.replace(carried={'worlds': worlds}, buffers=replay), metrics

  return step
