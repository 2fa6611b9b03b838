"""Q-learning from replay as one pure step: some steps of every environment, then updates from what the rings hold."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives
from karpjax.losses import q_learning as losses
from karpjax.program import REPLAY, ROLLOUT, TrainState, example_keys, pair, step_key
from karpjax.rl import replay as replays
from karpjax.rl import rollout as rollouts
from karpjax.rl import updates
from karpjax.rl.environment import Environment
from karpjax.train.step import compute_gradients

LOSSES = {'squared': losses.squared, 'huber': losses.huber}


@dataclasses.dataclass(frozen=True)
class Method:
  """What tells the algorithms apart; all steps are those of environments, of all together.

  Attributes:
    environments: how many there are, over all devices.
    rollout: steps of each environment between updates.
    updates: how many follow them.
    batch: transitions of an update from each environment's ring.
    learning_starts: no update before so many steps.
    target_every: steps between two renewals of the target network.
    tau: how far these move it to the online network; 1: a copy.
    n_step: rewards summed before a value stands for the rest.
    discount: γ.
    double: whether the online network chooses the action whose value the target network gives.
    loss: one of LOSSES; without effect on distributions.
    atoms: [n] of the distributions of returns, or None for values.
    exploration: (first, last, steps): the chance of a drawn action falls linearly.
    priority: α of prioritised replay; 0: uniform.
    importance: (first, steps): β of its weights grows linearly to 1.
    microbatches: see `compute_gradients`.
  """

  environments: int
  rollout: int = 10
  updates: int = 1
  batch: int = 128
  learning_starts: int = 10_000
  target_every: int = 500
  tau: Any = 1.0
  n_step: int = 1
  discount: Any = 0.99
  double: bool = False
  loss: str = 'squared'
  atoms: Any = None
  exploration: tuple[float, float, int] = (1.0, 0.05, 250_000)
  priority: float = 0.0
  importance: tuple[float, int] = (0.4, 500_000)
  microbatches: int = 1


def values(method: Method, outputs):
  """A network's outputs [batch, actions(, n)] -> [batch, actions]."""
  return outputs if method.atoms is None else losses.expectation(outputs, method.atoms)


def noise(actions: int, chance):
  """For `epsilon_greedy`: (key, shape) -> (whether to draw, what), each [*shape]."""

  def draw(key, shape=()):
    whether, what = jax.random.split(key)
    return jax.random.uniform(whether, shape) < chance, jax.random.randint(what, shape, 0, actions)

  return draw


def epsilon_greedy(values, noise):
  """The best of values [environments, actions], or what the noise says."""
  drawn, action = noise
  return jnp.where(drawn, action, values.argmax(-1)).astype(jnp.int32)


def train_step(
  environment: Environment, apply: Callable, optimiser: optax.GradientTransformation, method: Method
) -> Callable:
  """The step of a method of value learning.

  Args:
    environment: of one world, with discrete actions.
    apply: (params, observation [batch, …]) -> [batch, actions], or [batch, actions, n] logits of distributions.
    optimiser: makes `updates` updates a step.
    method: the algorithm.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The state has carried {'running': rollout.Running}, buffers
    replay.Replay, and target params. The batch is only the environments' numbers. Metrics of updates count
    nothing before learning starts.
  """
  a_step = method.environments * method.rollout  # environments' steps
  explored_first, explored_last, explored_steps = method.exploration

  def epsilon(n):
    return explored_first + (explored_last - explored_first) * jnp.clip(n / max(explored_steps, 1), 0, 1)

  def interact(state, batch, running):
    world, acting = jax.vmap(jax.random.split, out_axes=1)(example_keys(step_key(state, ROLLOUT), batch))
    chance = epsilon(state.step * a_step + jnp.arange(method.rollout) * method.environments)
    draw = noise(environment.action.size, chance)
    drawn = jax.vmap(lambda key: draw(key, (method.rollout,)), out_axes=1)(acting)  # [rollout, environments]
    act = lambda observation, noise: epsilon_greedy(values(method, apply(state.params, observation)), noise)
    return rollouts.rollout(environment, act, running, world, drawn, method.rollout)

  def targets(params, target_params, batch):
    """What the outputs at the actions taken are to become: [batch], or [batch, n]."""
    following = apply(target_params, batch['next_observation'])
    judged = apply(params, batch['next_observation']) if method.double else following
    actions = values(method, judged).argmax(-1)
    if method.atoms is None:
      return losses.target(batch['reward'], batch['discount'], following, actions)
    chances = jax.nn.softmax(losses.of_actions(following, actions))
    return losses.project(chances, batch['reward'], batch['discount'], method.atoms)

  def loss(params, collections, batch, key):
    outputs = losses.of_actions(apply(params, batch['observation']), batch['action'])
    if method.atoms is None:
      errors = outputs - batch['target']
      each, value = LOSSES[method.loss](errors), outputs
    else:
      # also what transitions are judged by, as in Hessel et al. 2018
      each = errors = losses.cross_entropy(outputs, batch['target'])
      value = losses.expectation(outputs, method.atoms)
    metrics = {'loss': pair(each * batch['weight']), 'td_error': pair(jnp.abs(errors)), 'value': pair(value)}
    return metrics, collections, errors

  compute = compute_gradients(loss, microbatches=method.microbatches)

  def sample(state, replay, written, keys):
    """(places, weights [environments, batch] of their losses)."""
    if not method.priority:
      places = replays.uniform(replay, written, keys, method.batch, method.n_step)
      return places, jnp.ones(places.shape)
    places, importance = replays.proportional(replay, written, keys, method.batch, method.n_step)
    first, steps = method.importance
    beta = first + (1 - first) * jnp.clip((state.step + 1) * a_step / max(steps, 1), 0, 1)
    weights = importance**beta
    return places, weights / collectives.largest(weights.max())

  def learn(state, replay, written, batch):
    """All updates of a step: (params, opt_state, chance and largest of the replay), metrics."""
    key = step_key(state, REPLAY)

    def update(carry, i):
      params, opt_state, chance, largest = carry
      judged = replay.replace(chance=chance, largest=largest)
      places, weights = sample(state, judged, written, example_keys(jax.random.fold_in(key, i), batch))
      examples = replays.gather(judged, places, method.n_step, method.discount)
      examples['target'] = targets(params, state.target, examples)
      examples['weight'] = weights.reshape(-1)
      grads, metrics, _, errors = compute(params, {}, examples, None)
      changes, opt_state = optimiser.update(grads, opt_state, params)
      if method.priority:
        judged = replays.judge(judged, places, errors.reshape(places.shape), method.priority)
      metrics = {**metrics, 'gradient_norm': (optax.global_norm(grads), jnp.ones(()))}
      return (optax.apply_updates(params, changes), opt_state, judged.chance, judged.largest), metrics

    begun = state.params, state.opt_state, replay.chance, replay.largest
    return updates.repeat(update, begun, method.updates)

  def step(state: TrainState, batch):
    running, seen = interact(state, batch, state.carried['running'])
    replay = replays.write(state.buffers, state.step * method.rollout, seen)
    written, steps = (state.step + 1) * method.rollout, (state.step + 1) * a_step
    before = state.params, state.opt_state, replay.chance, replay.largest
    learning = lambda: learn(state, replay, written, batch)
    due = steps >= method.learning_starts
    (params, opt_state, chance, largest), metrics = updates.when(due, learning, before)
    renewed = optax.incremental_update(params, state.target, method.tau)
    due = steps // method.target_every > state.step * a_step // method.target_every
    target = jax.tree.map(lambda a, b: jnp.where(due, a, b), renewed, state.target)
    metrics = {
      'td_loss': metrics.pop('loss'),
      **metrics,
      'exploration': (epsilon(state.step * a_step), jnp.ones(())),
      **collectives.total(rollouts.finished(seen)),
    }
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, target=target)
    replay = replay.replace(chance=chance, largest=largest)
    return state.replace(carried={'running': running}, buffers=replay), metrics

  return step
