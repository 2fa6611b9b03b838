"""Q-learning from replay as one pure step: some steps of every environment, then updates from what the rings hold."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives
from karpjax.program import REPLAY, ROLLOUT, TrainState, example_keys, pair, step_key
from karpjax.rl import replay as replays
from karpjax.rl import rollout as rollouts
from karpjax.rl.environment import Environment
from karpjax.rl.replay import Replay
from karpjax.rl.rollout import Policy
from karpjax.train.step import compute_gradients

# ---- losses, example by example ----


def of_actions(values, actions):
  """values [batch, actions, …], actions [batch] int -> [batch, …]: those of the actions."""
  index = actions.reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.take_along_axis(values, index, 1)[:, 0]


def td_target(rewards, discounts, next_values, actions):
  """r + γ Q(s', a) [batch] (Mnih et al. 2015, algorithm 1); γ is 0 where the episode terminated, not where it was only cut.

  Q [batch, actions] is of the target network; a [batch] is the best by it, or for double Q-learning by the online network
  (van Hasselt et al. 2016, eq. 4).
  """
  return rewards + discounts * of_actions(next_values, actions)


def squared(errors):
  """½ δ²."""
  return 0.5 * jnp.square(errors)


# squared, or linear beyond ±1 (Huber 1964): its derivative is δ, clipped, as in Mnih et al. 2015
LOSSES = {'squared': squared, 'huber': optax.losses.huber_loss}


def expectation(logits, atoms):
  """The mean of a distribution over atoms [n]: logits […, n] -> […]."""
  return (jax.nn.softmax(logits) * atoms).sum(-1)


def project(probabilities, rewards, discounts, atoms):
  """The distribution of r + γ Z on the atoms of Z: what lies between two is shared by them (Bellemare et al. 2017, algorithm 1).

  Args:
    probabilities: [batch, n], of Z.
    rewards, discounts: [batch].
    atoms: [n], equally spaced, at least two; what falls outside is moved to the nearest end.
  """
  spacing = atoms[1] - atoms[0]
  moved = jnp.clip(rewards[:, None] + discounts[:, None] * atoms, atoms[0], atoms[-1])  # [batch, n]
  # each atom's part of a moved one falls linearly to 0 at its neighbours: the algorithm's l and u without its case of l = u
  parts = jnp.clip(1 - jnp.abs(moved[:, :, None] - atoms) / spacing, 0, 1)  # [batch, n moved, n]
  return jnp.einsum('bi,bij->bj', probabilities, parts)


def cross_entropy(logits, probabilities):
  """-Σ p log softmax(logits): [batch, n], [batch, n] -> [batch]."""
  return -(probabilities * jax.nn.log_softmax(logits)).sum(-1)


# ---- the policy ----


def atoms(config):
  """[n]: the returns that distributions are over; None of a network that gives values."""
  return jnp.linspace(config.lowest, config.highest, config.atoms) if config.atoms else None


def values(config, outputs):
  """A network's outputs [batch, actions(, n)] -> [batch, actions]."""
  return expectation(outputs, atoms(config)) if config.atoms else outputs


def draw(actions: int, epsilon) -> Callable:
  """The noise of `epsilon_greedy`: (key, shape) -> (whether to draw, what), each [*shape]."""

  def noise(key, shape=()):
    whether, what = jax.random.split(key)
    return jax.random.uniform(whether, shape) < epsilon, jax.random.randint(what, shape, 0, actions)

  return noise


def epsilon_greedy(values, noise=None):
  """The best of values [environments, actions], or what the noise says."""
  drawn, action = (False, 0) if noise is None else noise
  return jnp.where(drawn, action, values.argmax(-1)).astype(jnp.int32)


def policy(environment: Environment, init: Callable, apply: Callable, config) -> Policy:
  """The best of discrete actions by a network's values, or drawn ones with the last ε.

  Args:
    environment: of one world.
    init: key -> variables.
    apply: (params, observation [batch, …]) -> [batch, actions], or [batch, actions, n] logits of distributions.
    config: of experiments/value_learning.py.
  """
  predict = lambda state, observation: values(config, apply(state.params, observation))
  act = lambda state, observation, noise: epsilon_greedy(predict(state, observation), noise)
  return Policy(environment, init, apply, act, draw(environment.action.size, config.exploration_end), predict)


# ---- the step ----


def train_step(policy: Policy, optimiser: optax.GradientTransformation, config) -> Callable:
  """The step of a method of value learning, in the order of the algorithm: its parts share network, optimiser and config.

  Args:
    policy: of `policy`.
    optimiser: makes `updates` updates a step.
    config: of experiments/value_learning.py.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has carried {'worlds': RolloutState}, buffers Replay, and target
    params. The batch is only the environments' numbers. Metrics of updates count nothing before learning starts.
  """
  apply, environments, length = policy.apply, config.batch_size, config.train_frequency
  steps_of_step = environments * length  # environments' steps
  batch_size = config.replay_batch // environments  # from each environment's ring

  def epsilon(n):
    """ε after n steps of environments."""
    part = jnp.clip(n / max(config.exploration_steps, 1), 0, 1)
    return config.exploration_start + (config.exploration_end - config.exploration_start) * part

  def interact(state, batch):
    keys, acting = jax.vmap(jax.random.split, out_axes=1)(example_keys(step_key(state, ROLLOUT), batch))
    noise = draw(
      policy.environment.action.size, epsilon(state.step * steps_of_step + jnp.arange(length) * environments)
    )
    drawn = jax.vmap(lambda key: noise(key, (length,)), out_axes=1)(acting)  # [length, environments]
    act = lambda observation, noise: policy.act(state, observation, noise)
    return rollouts.rollout(policy.environment, act, state.carried['worlds'], keys, drawn, length)

  def sample(state, replay, written, keys):
    """(indices, weights [environments, batch_size] of their losses)."""
    if not config.priority:
      indices = replays.uniform(replay, written, keys, batch_size, config.n_step)
      return indices, jnp.ones(indices.shape)
    indices, importance = replays.proportional(replay, written, keys, batch_size, config.n_step)
    part = jnp.clip((state.step + 1) * steps_of_step / max(config.importance_steps, 1), 0, 1)
    weights = importance ** (config.importance + (1 - config.importance) * part)
    return indices, weights / collectives.largest(weights.max())

  def targets(params, target_params, batch):
    """What the outputs at the actions taken are to become: [batch], or [batch, n]."""
    following = apply(target_params, batch['next_observation'])
    choosing = apply(params, batch['next_observation']) if config.double else following
    actions = values(config, choosing).argmax(-1)
    if not config.atoms:
      return td_target(batch['reward'], batch['discount'], following, actions)
    probabilities = jax.nn.softmax(of_actions(following, actions))
    return project(probabilities, batch['reward'], batch['discount'], atoms(config))

  def td_loss(params, collections, batch, key):
    outputs = of_actions(apply(params, batch['observation']), batch['action'])
    if config.atoms:  # whose loss is also the priority of transitions, as in Hessel et al. 2018
      loss = errors = cross_entropy(outputs, batch['target'])
    else:
      errors = outputs - batch['target']
      loss = LOSSES[config.loss](errors)
    metrics = {'loss': pair(loss * batch['weight']), 'td_error': pair(jnp.abs(errors))}
    return {**metrics, 'value': pair(values(config, outputs))}, collections, errors

  compute = compute_gradients(td_loss, microbatches=config.microbatches)

  def learn(state, replay: Replay, written, batch):
    """All updates of a step: (params, opt_state, priorities of the replay), metrics."""
    key = step_key(state, REPLAY)

    def update(carry, i):
      params, opt_state, priorities = carry
      current = replay.replace(**priorities)
      indices, weights = sample(state, current, written, example_keys(jax.random.fold_in(key, i), batch))
      examples = replays.gather(current, indices, config.n_step, config.discount)
      examples['target'] = targets(params, state.target, examples)
      examples['weight'] = weights.reshape(-1)
      grads, metrics, _, errors = compute(params, {}, examples, None)
      changes, opt_state = optimiser.update(grads, opt_state, params)
      if config.priority:
        current = replays.update_priorities(current, indices, errors.reshape(indices.shape), config.priority)
      metrics = {**metrics, 'gradient_norm': (optax.global_norm(grads), jnp.ones(()))}
      return (optax.apply_updates(params, changes), opt_state, priorities_of(current)), metrics

    return replays.repeat(update, (state.params, state.opt_state, priorities_of(replay)), config.updates)

  def step(state: TrainState, batch):
    worlds, transitions = interact(state, batch)
    replay = replays.write(state.buffers, state.step * length, transitions)
    written, steps = (state.step + 1) * length, (state.step + 1) * steps_of_step
    learning = lambda: learn(state, replay, written, batch)
    before = state.params, state.opt_state, priorities_of(replay)
    (params, opt_state, priorities), metrics = replays.when(steps >= config.learning_starts, learning, before)
    moved = optax.incremental_update(params, state.target, config.tau)
    due = steps // config.target_every > state.step * steps_of_step // config.target_every
    target = jax.tree.map(lambda a, b: jnp.where(due, a, b), moved, state.target)
    metrics = {
      'td_loss': metrics.pop('loss'),
      **metrics,
      'exploration': (epsilon(state.step * steps_of_step), jnp.ones(())),
      **collectives.total(rollouts.finished(transitions)),
    }
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, target=target)
    return state.replace(carried={'worlds': worlds}, buffers=replay.replace(**priorities)), metrics

  return step


def priorities_of(replay: Replay) -> dict:
  """What updates change of a replay."""
  return {'priority': replay.priority, 'max_priority': replay.max_priority}
