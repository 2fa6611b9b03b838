"""Value learning: DQN, double, dueling, n-step, prioritised and distributional (C51), in any combination.

  python launch.py value_learning                                         # DQN balances a pole, 500,000 steps
  python launch.py value_learning --double --dueling --priority=0.6
  python launch.py value_learning --atoms=51 --lowest=0 --highest=100
  python launch.py play runs/value_learning/…                             # an episode of the best actions as GIF
  python launch.py check value_learning

Mnih et al. 2015; van Hasselt et al. 2016; Wang et al. 2016; Schaul et al. 2016; Bellemare et al. 2017; all at once: Hessel et al.
2018. An example is an environment, and a step is --train_frequency steps of each and the updates that follow: --steps counts
these. Flags that count steps otherwise count those of all environments together.
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
from karpjax.models.actor_critic import BODIES
from karpjax.models.q_network import QNetwork
from karpjax.program import Program, TrainState
from karpjax.report import episodes as report
from karpjax.rl import environments, q_learning, replay, runs
from karpjax.rl.environment import Discrete, Environment


@dataclasses.dataclass(frozen=True)
class Config(runs.Acting):
  environment: str = config.flag(
    'cartpole', f'{", ".join(environments.NAMES)}, gymnax:NAME, or gymnasium:NAME on the host; of discrete actions.'
  )
  train_frequency: int = config.flag(10, 'Steps of each environment between updates.')
  updates: int = config.flag(1, 'How many follow them.')
  replay_batch: int = config.flag(128, 'Transitions of an update, as many from each environment.')
  buffer: int = config.flag(10_000, 'Transitions that are kept, of all environments together.')
  learning_starts: int = config.flag(10_000, 'No update before so many steps.')
  target_every: int = config.flag(500, 'Steps between two renewals of the target network.')
  tau: float = config.flag(1.0, 'How far these move it to the online network; 1: a copy.')
  discount: float = config.flag(0.99, 'γ.')
  loss: str = config.flag(
    'squared',
    'Of the error; not of distributions. huber clips its derivative; on cartpole values diverge by it.',
    choices=q_learning.LOSSES,
  )
  double: bool = config.flag(False, 'The online network chooses the action, the target network gives its value.')
  n_step: int = config.flag(1, 'Rewards summed before a value stands for the rest.')
  priority: float = config.flag(0.0, 'α of prioritised replay, as 0.6; 0: uniform.')
  importance: float = config.flag(0.4, 'Where β of its weights begins, which ends at 1.')
  importance_steps: int = config.flag(500_000, 'Steps until then.')
  exploration_start: float = config.flag(1.0, 'Chance of a drawn action at the beginning.')
  exploration_end: float = config.flag(0.05, 'The same at the end, and in stochastic evaluations.')
  exploration_steps: int = config.flag(250_000, 'Steps from the one to the other, on a line.')
  lowest: float = config.flag(-100.0, 'Return of the first atom.')
  highest: float = config.flag(100.0, 'Return of the last.')
  atoms: int = config.flag(0, 'Of the distribution of returns (C51: 51); 0: only its mean is learnt.', group='Model')
  dueling: bool = config.flag(False, 'Streams of state value and advantages.', group='Model')
  body: str = config.flag('mlp', 'cnn for images; nature for those of Atari games.', choices=BODIES, group='Model')
  widths: tuple[int, ...] = config.flag((120, 84), 'Units of the hidden layers.', group='Model')
  activation: str = config.flag('relu', 'tanh, relu or gelu.', group='Model')
  steps: config.Duration = config.run_flag('50000', 'How often --train_frequency steps are made and learnt from.')
  log_every: config.Duration = config.run_flag('1000', 'A row of training metrics this often.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '10000', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  learning_rate: float = config.optimiser_flag(2.5e-4, 'The peak of the schedule.')


def check(config: Config) -> None:
  """Raises UsageError for numbers that no run can have."""
  at_least = {name: 1 for name in ('train_frequency', 'updates', 'replay_batch', 'buffer', 'target_every', 'n_step')}
  at_least |= dict.fromkeys(('learning_starts', 'exploration_steps', 'importance_steps', 'priority', 'atoms'), 0)
  for name, low in at_least.items():
    if getattr(config, name) < low:
      raise errors.UsageError(f'--{name}={getattr(config, name)}: at least {low} is needed')
  runs.check_shares(config, 'discount', 'tau', 'importance', 'exploration_start', 'exploration_end')
  if config.atoms == 1 or (config.atoms and config.lowest >= config.highest):
    raise errors.UsageError(
      f'--atoms={config.atoms} from {config.lowest} to {config.highest}: two that differ are needed'
    )


def method(config: Config) -> q_learning.Method:
  """The algorithm that the flags describe; raises UsageError where they do not fit together."""
  check(config)
  runs.check_replay(config, config.n_step)
  worlds = config.batch_size
  first = max(config.learning_starts, worlds * config.n_step)
  return q_learning.Method(
    environments=worlds,
    rollout=config.train_frequency,
    updates=config.updates,
    batch=config.replay_batch // worlds,
    learning_starts=first,
    target_every=config.target_every,
    tau=config.tau,
    n_step=config.n_step,
    discount=config.discount,
    double=config.double,
    loss=config.loss,
    atoms=jnp.linspace(config.lowest, config.highest, config.atoms) if config.atoms else None,
    exploration=(config.exploration_start, config.exploration_end, config.exploration_steps),
    priority=config.priority,
    importance=(config.importance, config.importance_steps),
    microbatches=config.microbatches,
  )


data = runs.data


def build(config: Config, environment: Environment) -> tuple[Callable, Callable]:
  """init: key -> params; apply: (params, observation) -> outputs."""
  if not isinstance(environment.action, Discrete):
    raise errors.UsageError(
      f'--environment={config.environment}: its actions are continuous, and values are learnt of discrete ones; '
      'policy_gradient acts in it'
    )
  model = QNetwork(environment.action.size, dtype=jnp.dtype(config.dtype), **config.model_options())
  first = jnp.zeros((1, *environment.observation.shape))
  init = lambda key: nn.meta.unbox(model.init(key, first))['params']
  return init, lambda params, observation: model.apply({'params': params}, observation)


def player(config: Config) -> tuple[Environment, Callable, Callable]:
  """(environment, acting, noise): what an episode of a run's policy needs, see `rollout.episodes`."""
  environment = environments.make(config.environment)
  (_, apply), algorithm = build(config, environment), method(config)

  def acting(state, greedy):
    def act(observation, noise):
      values = q_learning.values(algorithm, apply(state.params, observation))
      return values.argmax(-1).astype(jnp.int32) if greedy else q_learning.epsilon_greedy(values, noise)

    return act

  return environment, acting, jax.vmap(q_learning.noise(environment.action.size, config.exploration_end))


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: environments and replay in the state, some steps and the updates from them in a step."""
  environment, *_ = player(config)
  algorithm = method(config)
  fresh, apply = build(config, environment)
  learning = runs.updates(config, algorithm.learning_starts)
  optimiser = optim.configured(dataclasses.replace(config, steps=learning, warmup=config.warmup * config.updates))

  def init(key):
    rings = replay.empty(environment, config.batch_size, config.buffer // config.batch_size, config.priority > 0)
    params, running = fresh(key), runs.begin(environment, key, config.batch_size)
    target = jax.tree.map(jnp.copy, params)
    return TrainState.create(
      key, {'params': params}, optimiser, target=target, carried={'running': running}, buffers=rings
    )

  def predict(state, batch, key):
    """The actions' values at the first observation of each world."""
    observation = jax.vmap(environment.reset)(metrics.world_keys(key, batch))[1]
    return q_learning.values(algorithm, apply(state.params, observation))

  return Program(
    init=init,
    step=q_learning.train_step(environment, apply, optimiser, algorithm),
    evaluate=functools.partial(metrics.evaluate, *player(config)),
    summarise=metrics.summarise,
    predict=predict,
    report=functools.partial(report.draw, *player(config)),
    collecting=runs.collecting(config, algorithm.learning_starts),
  )
