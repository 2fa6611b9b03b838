"""Evolution strategies: policies without backpropagation, by the returns of a population of perturbed ones.

  python launch.py evolution                                              # balances a pole
  python launch.py evolution --environment=pendulum --worlds=4 --steps=300
  python launch.py play runs/evolution/…                                  # an episode of the policy as GIF

Salimans et al. 2017. An example is a pair of opposite perturbations, which play in the same worlds, and a step is a whole
population and the update from it: --steps counts these.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax import config, errors, optim
from karpjax.data import dataset
from karpjax.metrics import episodes as metrics
from karpjax.models.actor_and_critics import Actor
from karpjax.models.actor_critic import BODIES
from karpjax.program import Program, TrainState
from karpjax.report import episodes as report
from karpjax.rl import environments, evolution, runs
from karpjax.rl.environment import Box, Environment, scale_action


@dataclasses.dataclass(frozen=True)
class Config(runs.Acting):
  environment: str = config.flag('cartpole', f'{", ".join(environments.NAMES)}, gymnax:NAME or brax:NAME.')
  deviation: float = config.flag(0.1, 'σ of the perturbations.')
  worlds: int = config.flag(1, 'Episodes of each member of the population.')
  ranked: bool = config.flag(True, 'Whether centred ranks stand for returns.')
  body: str = config.flag('mlp', 'cnn for images; nature for those of Atari games.', choices=BODIES, group='Model')
  widths: tuple[int, ...] = config.flag((32,), 'Units of the hidden layers.', group='Model')
  activation: str = config.flag('tanh', 'tanh, relu or gelu.', group='Model')
  steps: config.Duration = config.run_flag('100', 'How many populations.')
  batch_size: int = config.data_flag(64, 'Pairs in a population, over all devices.')
  log_every: config.Duration = config.run_flag('10', 'A row of training metrics this often.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '50', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  order: str = config.data_flag('streams', 'Pairs keep their numbers.', choices=('streams',))
  learning_rate: float = config.optimiser_flag(0.05, 'The peak of the schedule.')
  weight_decay: float = config.optimiser_flag(0.005, 'Spares biases and norms; decoupled for adamw and lion, else L2.')


def method(config: Config) -> evolution.Method:
  """The algorithm that the flags describe; raises UsageError for numbers that no run can have."""
  if not (math.isfinite(config.deviation) and config.deviation > 0):
    raise errors.UsageError(f'--deviation={config.deviation}: a positive number is needed')
  if config.worlds < 1:
    raise errors.UsageError(f'--worlds={config.worlds}: at least 1 is needed')
  return evolution.Method(config.deviation, config.worlds, config.ranked, config.microbatches)


data = runs.data


def build(config: Config) -> tuple[Environment, Callable, Callable]:
  """The environment; init: key -> params; act: (params, observation) -> action."""
  environment = environments.make(config.environment)
  continuous = isinstance(environment.action, Box)
  if continuous:
    environment = scale_action(environment)
  outputs = environment.action.shape[0] if continuous else environment.action.size
  model = Actor(outputs, dtype=jnp.dtype(config.dtype), **config.model_options())
  first = jnp.zeros((1, *environment.observation.shape))

  def act(params, observation):
    outputs = model.apply({'params': params}, observation)
    return jnp.tanh(outputs) if continuous else outputs.argmax(-1).astype(jnp.int32)

  return environment, lambda key: nn.meta.unbox(model.init(key, first))['params'], act


def player(config: Config) -> tuple[Environment, Callable, Callable]:
  """(environment, acting, noise): what an episode of a run's policy needs, see `rollout.episodes`; it has no draws."""
  environment, _, act = build(config)
  return environment, lambda state, greedy: lambda observation, noise: act(state.params, observation), lambda keys: keys


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: nothing but params in the state, a population and the update from it in a step."""
  (environment, fresh, act), algorithm = build(config), method(config)
  optimiser = optim.configured(config)

  def predict(state, batch, key):
    """The actions at the first observation of each world."""
    return act(state.params, jax.vmap(environment.reset)(metrics.world_keys(key, batch))[1])

  return Program(
    init=lambda key: TrainState.create(key, {'params': fresh(key)}, optimiser),
    step=evolution.train_step(environment, act, optimiser, algorithm),
    evaluate=functools.partial(metrics.evaluate, *player(config), stochastic=False),
    summarise=metrics.summarise,
    predict=predict,
    report=functools.partial(report.draw, *player(config)),
  )
