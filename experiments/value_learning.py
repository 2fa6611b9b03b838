"""Value learning: DQN, double, dueling, n-step, prioritised and distributional (C51), in any combination.

python launch.py value_learning                                         # DQN balances a pole, 500,000 steps
python launch.py value_learning --double --dueling --priority=0.6
python launch.py value_learning --atoms=51 --lowest=0 --highest=100
python launch.py play runs/value_learning/…                             # an episode of the best actions as GIF
python launch.py check value_learning

Mnih et al. 2015; van Hasselt et al. 2016; Wang et al. 2016; Schaul et al. 2016; Bellemare et al. 2017; all at once:
Hessel et al. 2018. An example is an environment, and a step is --train_frequency steps of each and the updates that
follow: --steps counts these. Flags that count steps otherwise count those of all environments together.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from karpjax import collectives, config, optim
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.models.q_network import QNetwork
from karpjax.program import Program, TrainState, pair
from karpjax.rl import agents, distributional, environments
from karpjax.rl import replay as replays
from karpjax.rl.environment import Discrete, Environment
from karpjax.rl.replay import Replay
from karpjax.rl.rollout import Policy
from karpjax.train.step import update as make_update

MODELS = {'q_network': functools.partial(QNetwork, widths=(120, 84))}
# squared, or linear beyond ±1 (Huber 1964): its derivative is δ, clipped, as in Mnih et al. 2015
LOSSES = {'squared': optax.losses.l2_loss, 'huber': optax.losses.huber_loss}


@config.defaults(
  steps='50000', log_every='1000', checkpoint_every='10000', learning_rate=2.5e-4, train_frequency=10,
)  # fmt: skip
class Config(agents.ReplayConfig, config.model_flags(MODELS)):
  target_every: int = config.flag(500, 'Steps between two renewals of the target network.', low=1)
  loss: str = config.flag('squared', 'The loss of an error; huber: on cartpole values diverge by it.', choices=LOSSES)
  double: bool = config.flag(False, 'The online network chooses the action, the target network gives its value.')
  n_step: int = config.flag(1, 'Rewards summed before a value stands for the rest.', low=1)
  priority: float = config.flag(0.0, 'α of prioritised replay, as 0.6; 0: uniform.', low=0)
  importance: float = config.flag(0.4, 'β of its weights at the beginning; it ends at 1.', low=0, high=1)
  importance_steps: int = config.flag(500_000, 'Steps until β is 1.', low=0)
  exploration_start: float = config.flag(1.0, 'Probability of a drawn action at the beginning.', low=0, high=1)
  exploration_end: float = config.flag(0.05, 'The same at the end, and in stochastic evaluations.', low=0, high=1)
  exploration_steps: int = config.flag(250_000, 'Steps from the one to the other, on a line.', low=0)
  lowest: float = config.flag(-100.0, 'The return of the first atom.')
  highest: float = config.flag(100.0, 'The return of the last atom.')


data = agents.data


def atoms(config):
  """[n]: the returns that distributions are over."""
  return jnp.linspace(config.lowest, config.highest, config.atoms)


def values(config, outputs):
  """A network's outputs [batch, actions(, n)] -> [batch, actions], of distributions the means."""
  return distributional.mean(outputs, atoms(config)) if config.atoms else outputs


def draw(key, actions: int, epsilon):
  """The noise of `epsilon_greedy`: (whether to draw, the action), each of ε's shape."""
  whether, what = jax.random.split(key)
  shape = jnp.shape(epsilon)
  return jax.random.uniform(whether, shape) < epsilon, jax.random.randint(what, shape, 0, actions)


def epsilon_greedy(values, noise=None):
  """The best of values [environments, actions], or what the noise says."""
  drawn, action = (False, 0) if noise is None else noise
  return jnp.where(drawn, action, values.argmax(-1)).astype(jnp.int32)


def greedy(environment: Environment, init: Callable, apply: Callable, config: Config) -> Policy:
  """The best of discrete actions by a network's values, or drawn ones with the last ε.

  Args:
    environment: of one world.
    init: key -> variables.
    apply: (params, observation [batch, …]) -> [batch, actions], or [batch, actions, n] logits of distributions.
  """
  predict = lambda state, observation: values(config, apply(state.params, observation))
  act = lambda state, observation, noise: epsilon_greedy(predict(state, observation), noise)
  noise = lambda key: draw(key, environment.action.size, config.exploration_end)
  return Policy(environment, act, noise, predict, init, apply)


def policy(config: Config) -> Policy:
  """The network of the actions' values, and its environment; raises UsageError where these do not fit together."""
  environment = environments.make(config.environment)
  if not isinstance(environment.action, Discrete):
    raise UsageError(f'environment={config.environment}: its actions are continuous; policy_gradient acts in it')
  if config.atoms == 1 or (config.atoms and config.lowest >= config.highest):
    raise UsageError(f'atoms={config.atoms} from {config.lowest} to {config.highest}: two that differ are needed')
  init, apply = agents.network(MODELS, config, environment, actions=environment.action.size)
  return greedy(environment, init, apply, config)


# ---- the step ----


def of_actions(values, actions):
  """values [batch, actions, …], actions [batch] int -> [batch, …]: those of the actions."""
  index = actions.reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.take_along_axis(values, index, 1)[:, 0]


def train_step(policy: Policy, optimiser: optax.GradientTransformation, config: Config) -> Callable:
  """The step of a method of value learning, in the order of the algorithm: its parts share network, optimiser and
  config.

  Args:
    policy: of `greedy`.
    optimiser: makes `updates` updates a step.

  Returns:
    As `replay.train_step`; the state has target params.
  """
  apply, count = policy.apply, config.batch_size
  batch_size = config.replay_batch // count  # from each environment's ring

  def epsilon(steps):
    """ε after so many steps of environments."""
    part = jnp.clip(steps / max(config.exploration_steps, 1), 0, 1)
    return config.exploration_start + (config.exploration_end - config.exploration_start) * part

  def noise(key, steps):
    return draw(key, policy.environment.action.size, epsilon(steps))

  def targets(params, target_params, batch):
    """What the outputs at the actions taken are to become: [batch], or [batch, n].

    That is r + γ Q(s', a) (Mnih et al. 2015, algorithm 1) with Q of the target network, γ being 0 where the episode
    terminated, not where it was only cut; a is the best by it, or for double Q-learning by the online network (van
    Hasselt et al. 2016, eq. 4).
    """
    following = apply(target_params, batch['next_observation'])
    choosing = apply(params, batch['next_observation']) if config.double else following
    actions = values(config, choosing).argmax(-1)
    if not config.atoms:
      return batch['reward'] + batch['discount'] * of_actions(following, actions)
    probabilities = jax.nn.softmax(of_actions(following, actions))
    return distributional.project(probabilities, batch['reward'], batch['discount'], atoms(config))

  def td_loss(params, collections, batch, key):
    outputs = of_actions(apply(params, batch['observation']), batch['action'])
    if config.atoms:  # priorities are by the KL, the loss less the target's entropy (Hessel et al. 2018, section 3)
      loss = optax.losses.softmax_cross_entropy(outputs, batch['target'])
      errors = optax.losses.kl_divergence(jax.nn.log_softmax(outputs), batch['target'])
    else:
      errors = outputs - batch['target']
      loss = LOSSES[config.loss](errors)
    metrics = {'loss': pair(loss * batch['weight']), 'td_error': pair(jnp.abs(errors))}
    return {**metrics, 'value': pair(values(config, outputs))}, collections, errors

  descend = make_update(td_loss, optimiser, config.microbatches)

  def update(state: TrainState, replay: Replay, written, keys, i):
    draw_from = replays.proportional if config.priority else replays.uniform
    indices, importance = draw_from(replay, written, keys, batch_size, config.n_step)
    part = jnp.clip(written * count / max(config.importance_steps, 1), 0, 1)
    weights = importance ** (config.importance + (1 - config.importance) * part)
    examples = replays.gather(replay, indices, config.n_step, config.discount)
    examples['target'] = targets(state.params, state.target, examples)
    examples['weight'] = (weights / collectives.largest(weights.max())).reshape(-1)
    params, _, opt_state, metrics, errors = descend(state.params, {}, state.opt_state, examples, None)
    if config.priority:
      replay = replays.update_priorities(replay, indices, errors.reshape(indices.shape), config.priority)
    metrics['td_loss'] = metrics.pop('loss')
    return state.replace(params=params, opt_state=opt_state, buffers=replays.priorities(replay)), metrics

  learn = replays.train_step(policy, noise, update, config)

  def step(state: TrainState, batch):
    before = state.step * config.train_frequency * count
    after, metrics = learn(state, batch)
    moved = optax.incremental_update(after.params, after.target, config.tau)
    due = (before + config.train_frequency * count) // config.target_every > before // config.target_every
    target = jax.tree.map(lambda a, b: jnp.where(due, a, b), moved, after.target)
    return after.replace(target=target), metrics | {'exploration': (epsilon(before), jnp.ones(()))}

  return step


def program(config: Config, data: Dataset) -> Program:
  """The method: environments and replay in the state, some steps and the updates from them in a step."""
  agent = policy(config)
  config = dataclasses.replace(config, learning_starts=max(config.learning_starts, config.batch_size * config.n_step))
  optimiser = optim.configured(config, agents.pace(config))
  step = train_step(agent, optimiser, config)
  return agents.replay_program(config, agent, optimiser, step, target=lambda variables: variables['params'])


verbs = {'play': agents.play}
