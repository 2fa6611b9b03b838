"""Off-policy actor-critic methods for continuous actions: DDPG, TD3 and SAC.

  python launch.py actor_critic_off_policy                                # SAC swings a pendulum up, 20,000 steps
  python launch.py actor_critic_off_policy --algorithm=td3 --seeds=4
  python launch.py play runs/actor_critic_off_policy/…                    # an episode of the policy as GIF
  python launch.py check actor_critic_off_policy

Lillicrap et al. 2016 (with Gaussian noise for their correlated one, as Fujimoto et al. 2018); Fujimoto et al. 2018; Haarnoja et
al. 2018b. An example is an environment, and a step is --train_frequency steps of each and the updates that follow: --steps
counts these. Flags that count steps otherwise count those of all environments together.
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
from karpjax.models.actor_and_critics import Actor, critics
from karpjax.models.actor_critic import BODIES
from karpjax.program import Program, TrainState
from karpjax.report import episodes as report
from karpjax.rl import actor_critic_off_policy as methods
from karpjax.rl import environments, replay, runs
from karpjax.rl.environment import Environment, scale_action

# what each algorithm has where a flag is not given
ALGORITHMS = {
  'ddpg': {'critics': 1, 'policy_every': 1, 'smoothing': 0.0},
  'td3': {'critics': 2, 'policy_every': 2, 'smoothing': 0.2},
  'sac': {'critics': 2, 'policy_every': 1, 'smoothing': 0.0},
}


@dataclasses.dataclass(frozen=True)
class Config(runs.Acting):
  environment: str = config.flag(
    'pendulum', f'{", ".join(environments.NAMES)}, brax:NAME, or gymnasium:NAME on the host; of continuous actions.'
  )
  algorithm: str = config.flag(
    'sac', 'Its own values of the flags below are used where they are not given.', choices=ALGORITHMS
  )
  critics: int | None = config.flag(None, 'How many; the least of their values counts.')
  policy_every: int | None = config.flag(None, 'Updates of the critics to one of the policy and of the targets.')
  smoothing: float | None = config.flag(None, "Deviation of the noise of the target policy's actions; not of sac.")
  smoothing_limit: float = config.flag(0.5, 'The most that it moves an action.')
  exploration: float = config.flag(0.1, 'Deviation of the noise that ddpg and td3 act with.')
  temperature: float = config.flag(1.0, "Where sac's α begins.")
  entropy: float | None = config.flag(None, 'The entropy that α holds the policy at; the negative size of an action.')
  train_frequency: int = config.flag(1, 'Steps of each environment between updates.')
  updates: int = config.flag(1, 'How many follow them.')
  replay_batch: int = config.flag(256, 'Transitions of an update, as many from each environment.')
  buffer: int = config.flag(20_000, 'Transitions that are kept, of all environments together.')
  learning_starts: int = config.flag(1000, 'No update before so many steps, whose actions are drawn evenly.')
  tau: float = config.flag(0.005, 'How far an update moves the target networks.')
  discount: float = config.flag(0.99, 'γ.')
  policy_rate: float | None = config.flag(None, "The policy's learning rate; that of the critics if not given.")
  body: str = config.flag('mlp', 'cnn for images; nature for those of Atari games.', choices=BODIES, group='Model')
  widths: tuple[int, ...] = config.flag((64, 64), 'Units of the hidden layers.', group='Model')
  activation: str = config.flag('relu', 'tanh, relu or gelu.', group='Model')
  steps: config.Duration = config.run_flag('20000', 'How often --train_frequency steps are made and learnt from.')
  log_every: config.Duration = config.run_flag('1000', 'A row of training metrics this often.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '10000', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  learning_rate: float = config.optimiser_flag(1e-3, 'The peak of the schedule.')


def chosen(config: Config, name: str):
  """The flag's value, or the algorithm's own."""
  value = getattr(config, name)
  return ALGORITHMS[config.algorithm][name] if value is None else value


def method(config: Config, size: int) -> methods.Method:
  """The algorithm that the flags describe, for actions of `size` numbers; raises UsageError where they do not fit together."""
  counts = ('train_frequency', 'updates', 'replay_batch', 'buffer', 'critics', 'policy_every')
  for name in (*counts, 'learning_starts', 'exploration', 'smoothing', 'smoothing_limit'):
    value, low = chosen(config, name), int(name in counts)
    if not (math.isfinite(value) and value >= low):
      raise errors.UsageError(f'--{name}={value}: at least {low} is needed')
  runs.check_shares(config, 'discount', 'tau')
  for name in ('temperature', 'policy_rate'):
    value = getattr(config, name)
    if value is not None and not (math.isfinite(value) and value > 0):
      raise errors.UsageError(f'--{name}={value}: a positive number is needed')
  runs.check_replay(config)
  worlds = config.batch_size
  return methods.Method(
    environments=worlds,
    rollout=config.train_frequency,
    updates=config.updates,
    batch=config.replay_batch // worlds,
    learning_starts=config.learning_starts,
    tau=config.tau,
    discount=config.discount,
    stochastic=config.algorithm == 'sac',
    policy_every=chosen(config, 'policy_every'),
    exploration=config.exploration,
    smoothing=chosen(config, 'smoothing'),
    smoothing_limit=config.smoothing_limit,
    entropy=-float(size) if config.entropy is None else config.entropy,
    microbatches=config.microbatches,
  )


data = runs.data


def build(config: Config, environment: Environment) -> tuple[Callable, Callable, Callable]:
  """init: key -> params; actor: (params, observation) -> outputs; critics: (params, observation, action) -> values."""
  size, stochastic = environment.action.shape[0], config.algorithm == 'sac'
  options = dict(dtype=jnp.dtype(config.dtype), **config.model_options())
  acting, judging = Actor((1 + stochastic) * size, **options), critics(chosen(config, 'critics'), **options)
  first, action = jnp.zeros((1, *environment.observation.shape)), jnp.zeros((1, size))

  def init(key):
    policy, values = jax.random.split(key)
    fresh = nn.meta.unbox({'policy': acting.init(policy, first), 'critics': judging.init(values, first, action)})
    own = {'temperature': jnp.log(jnp.asarray(config.temperature, jnp.float32))} if stochastic else {}
    return {'critics': fresh['critics']['params'], 'policy': {'actor': fresh['policy']['params'], **own}}

  actor = lambda params, observation: acting.apply({'params': params}, observation)
  return init, actor, lambda params, *given: judging.apply({'params': params}, *given)


def player(config: Config) -> tuple[Environment, Callable, Callable]:
  """(environment, acting, noise): what an episode of a run's policy needs, see `rollout.episodes`."""
  environment = scale_action(environments.make(config.environment))
  algorithm, (_, actor, _) = method(config, *environment.action.shape), build(config, environment)

  def acting(state, greedy):
    def act(observation, noise):
      outputs = actor(state.params['policy']['actor'], observation)
      return methods.mode(algorithm, outputs) if greedy else methods.act(algorithm, outputs, noise)

    return act

  return environment, acting, jax.vmap(lambda key: jax.random.normal(key, environment.action.shape))


def optimisers(config: Config) -> dict:
  """Of the critics and the policy, whose schedules end with the run; raises UsageError where no update is made."""
  updates = runs.updates(config, config.learning_starts)
  warmup, every = config.warmup * config.updates, chosen(config, 'policy_every')
  critics = dataclasses.replace(config, steps=updates, warmup=warmup)
  rate = config.policy_rate or config.learning_rate
  policy = dataclasses.replace(
    config, steps=max(updates // every, 1), warmup=min(warmup // every, updates // every), learning_rate=rate
  )
  return {'critics': optim.configured(critics), 'policy': optim.configured(policy)}


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: environments and replay in the state, some steps and the updates from them in a step."""
  environment, *_ = player(config)
  algorithm, both = method(config, *environment.action.shape), optimisers(config)
  fresh, actor, judges = build(config, environment)

  def init(key):
    rings = replay.empty(environment, config.batch_size, config.buffer // config.batch_size)
    params = fresh(key)
    target = {name: jax.tree.map(jnp.copy, params[name]) for name in methods.followed(algorithm)}
    running = runs.begin(environment, key, config.batch_size)
    variables = {name: {'params': x} for name, x in params.items()}
    return TrainState.create(key, variables, both, target=target, carried={'running': running}, buffers=rings)

  def predict(state, batch, key):
    """The actions at the first observation of each world."""
    observation = jax.vmap(environment.reset)(metrics.world_keys(key, batch))[1]
    return methods.mode(algorithm, actor(state.params['policy']['actor'], observation))

  return Program(
    init=init,
    step=methods.train_step(environment, actor, judges, both, algorithm),
    evaluate=functools.partial(metrics.evaluate, *player(config)),
    summarise=metrics.summarise,
    predict=predict,
    report=functools.partial(report.draw, *player(config)),
    collecting=runs.collecting(config, config.learning_starts),
  )
