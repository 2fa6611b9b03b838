"""Off-policy actor-critic methods for continuous actions: DDPG, TD3 and SAC.

python launch.py actor_critic_off_policy                                # SAC swings a pendulum up, 20,000 steps
python launch.py actor_critic_off_policy --algorithm=td3 --seeds=4
python launch.py play runs/actor_critic_off_policy/…                    # an episode of the policy as GIF
python launch.py check actor_critic_off_policy

Lillicrap et al. 2016 (with Gaussian noise for their correlated one, as Fujimoto et al. 2018); Fujimoto et al. 2018;
Haarnoja et al. 2018b. An example is an environment, and a step is --train_frequency steps of each and the updates that
follow: --steps counts these. Flags that count steps otherwise count those of all environments together.

Actions lie within ±1 (see `environment.scale_action`). An actor's outputs are [batch, size] before a tanh, or, of SAC's
stochastic policy, the [batch, 2 · size] of a squashed Gaussian. The values of several critics are [critics, batch].
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from karpjax import config, model_defaults, optim, options
from karpjax.data.dataset import Dataset
from karpjax.models.actor_critic import squashed_sample
from karpjax.models.q_network import Actor, critics
from karpjax.program import PLAYERS, Program, TrainState, first_key, pair
from karpjax.rl import agents, environments
from karpjax.rl import replay as replays
from karpjax.rl.environment import Environment, scale_action
from karpjax.rl.rollout import Policy
from karpjax.train.step import update as make_update

MODELS = {'actor': Actor}
# what each algorithm has where a flag is not given
ALGORITHMS = {
  'ddpg': {'critics': 1, 'policy_every': 1, 'smoothing': 0.0},
  'td3': {'critics': 2, 'policy_every': 2, 'smoothing': 0.2},
  'sac': {'critics': 2, 'policy_every': 1, 'smoothing': 0.0},
}


@config.defaults(
  environment='pendulum', steps='20000', log_every='1000', checkpoint_every='10000', learning_rate=1e-3,
  replay_batch=256, buffer=20_000, learning_starts=1000, tau=0.005,
)  # fmt: skip
class Config(agents.ReplayConfig, config.model_flags(MODELS)):
  algorithm: str = config.flag(
    'sac', 'The algorithm; flags below that are not given have its own values.', choices=ALGORITHMS
  )
  critics: int | None = config.flag(None, 'Critics, of whose values the least counts.', low=1)
  policy_every: int | None = config.flag(None, 'Updates of the critics to one of the policy and of the targets.', low=1)
  smoothing: float | None = config.flag(None, "Deviation of noise on the target policy's actions; not of sac.", low=0)
  smoothing_limit: float = config.flag(0.5, 'The most that this noise moves an action.', low=0)
  exploration: float = config.flag(0.1, 'Deviation of the noise that ddpg and td3 act with.', low=0)
  temperature: float = config.flag(1.0, "sac's α at the beginning.", above=0)
  entropy: float | None = config.flag(None, 'The entropy that α holds the policy at; the negative size of an action.')
  policy_rate: float | None = config.flag(None, "The policy's learning rate. Default: that of the critics.", above=0)


data = agents.data


def resolved(config: Config, size: int) -> Config:
  """The config with the algorithm's own values, for actions of `size` numbers."""
  return model_defaults.with_own_values(config, {'entropy': -float(size), **ALGORITHMS[config.algorithm]})


def squashed(environment: Environment, init: Callable, actor: Callable, critics: Callable, config: Config) -> Policy:
  """The actor's actions in an environment whose actions are a Box of one axis within ±1.

  Args:
    environment: of one world.
    init: key -> {'critics': variables, 'policy': variables}, whose params are {'actor', 'temperature'}, the last SAC's
      log α.
    actor: (params, observation [batch, …]) -> outputs [batch, size or 2 · size].
    critics: (params, observation [batch, …], action [batch, size]) -> [critics, batch].
  """

  def act(state, observation, noise):
    outputs, noise = actor(state.params['policy']['actor'], observation), 0.0 if noise is None else noise
    if config.algorithm == 'sac':
      return squashed_sample(outputs, noise)[0]
    return jnp.clip(jnp.tanh(outputs) + config.exploration * noise, -1, 1)

  noise = lambda key: jax.random.normal(key, environment.action.shape)
  predict = lambda state, observation: act(state, observation, None)
  return Policy(environment, act, noise, predict, init, (actor, critics))


def policy(config: Config) -> Policy:
  """Actor, critics and the environment, whose actions lie within ±1."""
  environment = scale_action(environments.make(config.environment))
  (size,), stochastic = environment.action.shape, config.algorithm == 'sac'
  first, action = np.zeros((1, *environment.observation.shape), np.float32), np.zeros((1, size), np.float32)
  dtype = jnp.dtype(config.dtype)
  actor = options.build(MODELS, 'actor', config, first, outputs=(1 + stochastic) * size, dtype=dtype)
  networks = critics(resolved(config, size).critics, actor)

  def init(key):
    keys = jax.random.split(first_key(key, PLAYERS))
    params = {'actor': actor.init(keys[0], first)['params']}
    if stochastic:
      params['temperature'] = jnp.log(jnp.asarray(config.temperature, jnp.float32))
    return {'critics': networks.init(keys[1], first, action), 'policy': {'params': params}}

  act = lambda params, observation: actor.apply({'params': params}, observation)
  values = lambda params, *inputs: networks.apply({'params': params}, *inputs)
  return squashed(environment, init, act, values, config)


# ---- the step ----


def target_players(config) -> tuple[str, ...]:
  """The players that have target networks."""
  return ('critics',) if config.algorithm == 'sac' else ('critics', 'policy')


def train_step(policy: Policy, optimisers: Mapping[str, optax.GradientTransformation], config: Config) -> Callable:
  """The step of an off-policy actor-critic method, in the order of the algorithm: its parts share networks and config.

  Args:
    policy: of `squashed`.
    optimisers: of 'critics' and 'policy'.
    config: with the algorithm's own values where none is given.

  Returns:
    As `replay.train_step`; the state has the players' params, and `target` those of `target_players`.
  """
  actor, critics = policy.apply
  stochastic, shape = config.algorithm == 'sac', policy.environment.action.shape
  batch_size = config.replay_batch // config.batch_size  # from each environment's ring

  def noise(key, steps):
    return jax.random.normal(key, (len(steps), *shape)), steps < config.learning_starts

  def act(state, observation, noise):
    normal, first = noise
    even = jax.lax.erf(normal / math.sqrt(2))  # evenly within ±1
    return jnp.where(first[:, None], even, policy.act(state, observation, normal))

  def sample(replay, written, keys):
    """The transitions of an update with its noise, each leaf [environments · batch_size, …]."""
    drawing, noise = jax.vmap(jax.random.split, out_axes=1)(keys)
    indices, _ = replays.uniform(replay, written, drawing, batch_size)
    examples = replays.gather(replay, indices, 1, config.discount)
    normal = jax.vmap(lambda key: jax.random.normal(key, (2, batch_size, *shape)), out_axes=1)(noise)
    examples['noise'], examples['next_noise'] = normal.reshape(2, -1, *shape)
    return examples

  def targets(params, target, batch):
    """[batch]: what the critics' values are to become; γ is 0 where the episode terminated,
    not where it was only cut.
    """
    following, noise = batch['next_observation'], batch['next_noise']
    if stochastic:
      action, log_prob = squashed_sample(actor(params['policy']['actor'], following), noise)
      bonus = -jnp.exp(params['policy']['temperature']) * log_prob
    else:  # Lillicrap et al. 2016; Fujimoto et al. 2018, eq. 14, smooths
      action, noise = jnp.tanh(actor(target['policy']['actor'], following)), config.smoothing * noise
      action = jnp.clip(action + jnp.clip(noise, -config.smoothing_limit, config.smoothing_limit), -1, 1)
      bonus = 0.0
    values = critics(target['critics'], following, action)  # [critics, batch]
    # Fujimoto et al. 2018, algorithm 1; Haarnoja et al. 2018b, eqs. 2 and 3
    return batch['reward'] + batch['discount'] * (values.min(0) + bonus)

  def critic_loss(params, collections, batch, key):
    """Σ_i ½ (Q_i(s, a) - y)²."""
    values = critics(params, batch['observation'], batch['action'])
    errors = values - batch['target']
    loss, size = 0.5 * jnp.square(errors).sum(0), jnp.abs(errors).mean(0)
    return {'loss': pair(loss), 'td_error': pair(size), 'value': pair(values.mean(0))}, collections

  def policy_loss(params, critic_params, batch, key):
    """By the critics' params, which stay."""
    observation, outputs = batch['observation'], actor(params['actor'], batch['observation'])
    if not stochastic:  # -Q_1(s, μ(s)) (Lillicrap et al. 2016, eq. 6; of the first critic alone: Fujimoto et al. 2018)
      loss = -critics(critic_params, observation, jnp.tanh(outputs))[0]
      return {'loss': pair(loss), 'policy_loss': pair(loss)}, critic_params
    action, log_prob = squashed_sample(outputs, batch['noise'])
    temperature, constant = jnp.exp(params['temperature']), jax.lax.stop_gradient
    # α log π(a|s) - min_i Q_i(s, a) (Haarnoja et al. 2018b, eq. 9)
    loss = constant(temperature) * log_prob - critics(critic_params, observation, action).min(0)
    # -α (log π(a|s) + H̄) (eq. 18): α grows where the policy's entropy is under H̄
    temperature_loss = -temperature * (constant(log_prob) + config.entropy)
    metrics = {'loss': pair(loss + temperature_loss), 'policy_loss': pair(loss), 'entropy': pair(-log_prob)}
    return {**metrics, 'temperature': pair(jnp.broadcast_to(temperature, loss.shape))}, critic_params

  losses = {'critics': critic_loss, 'policy': policy_loss}
  descents = {name: make_update(loss, optimisers[name], config.microbatches) for name, loss in losses.items()}

  def descend(player, state, batch, others=()):
    """The state after an update of one player, and its metrics."""
    params, opt_state = state.params, state.opt_state
    own, _, own_opt_state, metrics, _ = descents[player](params[player], others, opt_state[player], batch, None)
    return state.replace(params={**params, player: own}, opt_state={**opt_state, player: own_opt_state}), metrics

  def update(state: TrainState, replay, written, keys, i):
    examples = sample(replay, written, keys)
    examples['target'] = targets(state.params, state.target, examples)
    state, metrics = descend('critics', state, examples)
    metrics['critic_loss'] = metrics.pop('loss')

    def follow():
      after, metrics = descend('policy', state, examples, others=state.params['critics'])
      params = {name: after.params[name] for name in state.target}
      metrics['policy_gradient_norm'] = metrics.pop('gradient_norm')
      del metrics['loss']
      return after.replace(target=optax.incremental_update(params, state.target, config.tau)), metrics

    due = (state.step * config.updates + i + 1) % config.policy_every == 0
    after, more = follow() if config.policy_every == 1 else replays.when(due, follow, state)
    return after, {**metrics, **more}

  return replays.train_step(dataclasses.replace(policy, act=act), noise, update, config)


def program(config: Config, data: Dataset) -> Program:
  """The method: environments and replay in the state, some steps and the updates from them in a step."""
  agent = policy(config)
  config = resolved(config, *agent.environment.action.shape)
  slower = dataclasses.replace(config, learning_rate=config.policy_rate or config.learning_rate)
  optimisers = {
    'critics': optim.configured(config, agents.pace(config)),
    'policy': optim.configured(slower, agents.pace(config, config.policy_every)),
  }
  target = lambda variables: {name: variables[name]['params'] for name in target_players(config)}
  return agents.replay_program(config, agent, optimisers, train_step(agent, optimisers, config), target)


verbs = {'play': agents.play}
