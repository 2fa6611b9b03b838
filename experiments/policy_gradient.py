"""Policy gradients: REINFORCE, A2C and PPO, thousands of environments and many seeds in one program.

  python launch.py policy_gradient                                        # PPO balances a pole, 500,000 steps
  python launch.py policy_gradient --environment=acrobot --seeds=10
  python launch.py policy_gradient --algorithm=reinforce --batch_size=16 --steps=300
  python launch.py policy_gradient --environment=cartpole_positions --memory=lstm     # velocities must be remembered
  python launch.py play runs/policy_gradient/…                            # an episode of the policy as GIF

Williams 1992; Mnih et al. 2016 (A2C is its synchronous form); Schulman et al. 2016 and 2017. An example is an environment, and a
step is a rollout of all environments and the updates from it: --steps counts these.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax import config, errors, optim
from karpjax.data import dataset
from karpjax.metrics import episodes as metrics
from karpjax.models.actor_critic import BODIES, MEMORIES, ActorCritic
from karpjax.program import Program, TrainState
from karpjax.report import episodes as report
from karpjax.rl import distributions, environments, policy_gradient, runs, statistics
from karpjax.rl.environment import Box, Environment, Recalled, remember

# what each algorithm has where a flag is not given
ALGORITHMS = {
  'ppo': {'rollout': 128, 'epochs': 4, 'minibatches': 4, 'clip_ratio': 0.2, 'decay': 0.95, 'normalise': True},
  'a2c': {'rollout': 5, 'epochs': 1, 'minibatches': 1, 'clip_ratio': 0.0, 'decay': 1.0, 'normalise': False},
  'reinforce': {'rollout': 0, 'epochs': 1, 'minibatches': 1, 'clip_ratio': 0.0, 'decay': 1.0, 'normalise': True},
}


@dataclasses.dataclass(frozen=True)
class Config(runs.Acting):
  environment: str = config.flag(
    'cartpole', f'{", ".join(environments.NAMES)}, gymnax:NAME, brax:NAME, or gymnasium:NAME on the host.'
  )
  algorithm: str = config.flag(
    'ppo', 'Its own values of the flags below are used where they are not given.', choices=ALGORITHMS
  )
  rollout: int | None = config.flag(None, 'Steps of each environment in one update; reinforce: whole episodes.')
  epochs: int | None = config.flag(None, 'How often each rollout is gone through.')
  minibatches: int | None = config.flag(None, 'Into how many parts a rollout is cut.')
  clip_ratio: float | None = config.flag(None, "ε of PPO's objective; 0: the plain policy gradient.")
  clip_value: bool = config.flag(True, "Whether PPO's value loss is clipped too.")
  discount: float = config.flag(0.99, 'γ.')
  gae: float | None = config.flag(None, 'λ of the advantages; 1: whole returns.')
  baseline: bool = config.flag(True, 'Whether the value is taken off the returns.')
  entropy: float = config.flag(0.01, "Weight of the policy's entropy.")
  value: float = config.flag(0.5, "Weight of the value's loss.")
  normalise: bool | None = config.flag(None, "Whether a minibatch's advantages get mean 0 and deviation 1.")
  target_kl: float = config.flag(0.0, 'No more updates from a rollout once the policy has moved so far; 0: no limit.')
  normalise_observations: bool = config.flag(False, 'By their running mean and deviation.')
  points: bool = config.flag(False, 'Whether a reward other than 0 ends the return, as a point of Pong does.')
  scale_rewards: bool = config.flag(False, 'By the running deviation of their discounted sum.')
  body: str = config.flag('mlp', 'cnn for images; nature for those of Atari games.', choices=BODIES, group='Model')
  widths: tuple[int, ...] = config.flag((64, 64), 'Units of the hidden layers.', group='Model')
  activation: str = config.flag('tanh', 'tanh, relu or gelu.', group='Model')
  shared: bool = config.flag(False, 'One body for policy and value.', group='Model')
  log_std: float = config.flag(0.0, "Where the log of a continuous policy's deviation begins.", group='Model')
  memory: str = config.flag(
    'none',
    'A recurrent layer behind each body; minibatches then are of whole environments.',
    choices=MEMORIES,
    group='Model',
  )
  memory_width: int = config.flag(64, 'Its units.', group='Model')
  steps: config.Duration = config.run_flag('976', 'How many rollouts, each with its updates.')
  batch_size: int = config.data_flag(4, 'Environments, side by side, over all devices.')
  log_every: config.Duration = config.run_flag('50', 'A row of training metrics this often.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '250', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  learning_rate: float = config.optimiser_flag(2.5e-4, 'The peak of the schedule.')
  schedule: str = config.optimiser_flag('linear', 'How the learning rate changes.', choices=optim.SCHEDULES)
  epsilon: float | None = config.optimiser_flag(1e-5, 'Added to the denominators of the adaptive optimisers.')
  clip: float = config.optimiser_flag(0.5, 'Largest global norm of the gradient; 0: no clipping.')


def method(config: Config, limit: int) -> policy_gradient.Method:
  """The algorithm that the flags describe; raises UsageError where they do not fit together."""
  own = ALGORITHMS[config.algorithm]
  given = lambda flag, name: own[name] if (value := getattr(config, flag)) is None else value
  found = policy_gradient.Method(
    rollout=given('rollout', 'rollout') or limit,
    whole_episodes=config.algorithm == 'reinforce',
    epochs=given('epochs', 'epochs'),
    minibatches=given('minibatches', 'minibatches'),
    clip=given('clip_ratio', 'clip_ratio'),
    clip_value=config.clip_value,
    discount=config.discount,
    decay=given('gae', 'decay'),
    baseline=config.baseline,
    entropy=config.entropy,
    value=config.value,
    normalise=given('normalise', 'normalise'),
    target_kl=config.target_kl,
    points=config.points,
    scale_rewards=config.scale_rewards,
    microbatches=config.microbatches,
  )
  for name in ('rollout', 'epochs', 'minibatches'):
    if getattr(found, name) < 1:
      raise errors.UsageError(f'--{name}={getattr(found, name)}: at least 1 is needed')
  if found.whole_episodes and found.rollout < limit:
    raise errors.UsageError(f'--rollout={found.rollout}: reinforce needs whole episodes, here of up to {limit} steps')
  return found


data = runs.data


def network(config: Config, environment: Environment) -> ActorCritic:
  return ActorCritic(
    outputs=distributions.of(environment.action).size,
    continuous=isinstance(environment.action, Box),
    dtype=jnp.dtype(config.dtype),
    **config.model_options(),
  )


def world(config: Config) -> Environment:
  """The environment, which holds the policy's memory if it has one."""
  environment = environments.make(config.environment)
  return environment if config.memory == 'none' else remember(environment, network(config, environment).blank())


def build(config: Config, environment: Environment) -> tuple[distributions.Distribution, Callable, Callable]:
  """The distribution of the actions; init: key -> params; apply: as `policy_gradient.train_step` takes it."""
  model = network(config, environment)
  inputs = lambda observation: observation if isinstance(observation, Recalled) else (observation,)

  def init(key):
    first = jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), jax.eval_shape(environment.reset, key)[1])
    return nn.meta.unbox(model.init(key, *inputs(first)))['params']

  def apply(params, observation, *fresh):
    return model.apply({'params': params}, *inputs(observation), *fresh)

  return distributions.of(environment.action), init, apply


def player(config: Config) -> tuple[Environment, Callable, Callable]:
  """(environment, acting, noise): what an episode of a run's policy needs, see `rollout.episodes`."""
  environment = world(config)
  distribution, _, apply = build(config, environment)
  acting = lambda state, greedy: policy_gradient.actor(apply, distribution, state, greedy)
  return environment, acting, jax.vmap(distribution.noise)


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: environments in the state, a rollout and its updates in a step."""
  environment, *_ = player(config)
  algorithm = method(config, environment.limit)
  distribution, fresh, apply = build(config, environment)
  updates = algorithm.epochs * algorithm.minibatches
  optimiser = optim.configured(
    dataclasses.replace(config, steps=config.steps * updates, warmup=config.warmup * updates)
  )

  def init(key):
    carried = {'running': runs.begin(environment, key, config.batch_size)}
    moments = {}
    if config.scale_rewards:
      carried['discounted'] = jnp.zeros(config.batch_size)
      moments['reward'] = statistics.empty(())
    if config.normalise_observations:
      moments['observation'] = statistics.empty(environment.observation.shape)
    return TrainState.create(key, {'params': fresh(key)}, optimiser, moments=moments, carried=carried)

  def predict(state, batch, key):
    """The policy's outputs at the first observation of each world."""
    observation = jax.vmap(environment.reset)(metrics.world_keys(key, batch))[1]
    return apply(state.params, policy_gradient.normalised(state.moments, observation))[0]

  return Program(
    init=init,
    step=policy_gradient.train_step(environment, apply, distribution, optimiser, algorithm),
    evaluate=functools.partial(metrics.evaluate, *player(config)),
    summarise=metrics.summarise,
    predict=predict,
    report=functools.partial(report.draw, *player(config)),
  )
