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

import jax
import jax.numpy as jnp

from karpjax import config, optim, options
from karpjax.data.dataset import Dataset
from karpjax.models.q_network import Actor, critics
from karpjax.program import Program
from karpjax.rl import agents, environments, sac
from karpjax.rl.environment import scale_action
from karpjax.rl.rollout import Policy

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
class Config(agents.RLConfig, agents.ReplayFlags, config.model_flags(MODELS)):
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
  return agents.with_own_values(config, {'entropy': -float(size), **ALGORITHMS[config.algorithm]})


def policy(config: Config) -> Policy:
  """Actor, critics and the environment, whose actions lie within ±1."""
  environment = scale_action(environments.make(config.environment))
  (size,), stochastic = environment.action.shape, config.algorithm == 'sac'
  first, action = jnp.zeros((1, *environment.observation.shape)), jnp.zeros((1, size))
  dtype = jnp.dtype(config.dtype)
  actor = options.build(MODELS, 'actor', config, first, outputs=(1 + stochastic) * size, dtype=dtype)
  judges = critics(resolved(config, size).critics, actor)

  def init(key):
    for_policy, for_critics = jax.random.split(key)
    params = {'actor': actor.init(for_policy, first)['params']}
    if stochastic:
      params['temperature'] = jnp.log(jnp.asarray(config.temperature, jnp.float32))
    return {'critics': judges.init(for_critics, first, action), 'policy': {'params': params}}

  act = lambda params, observation: actor.apply({'params': params}, observation)
  judge = lambda params, *inputs: judges.apply({'params': params}, *inputs)
  return sac.policy(environment, init, act, judge, config)


def program(config: Config, data: Dataset) -> Program:
  """The method: environments and replay in the state, some steps and the updates from them in a step."""
  agent = policy(config)
  config = resolved(config, *agent.environment.action.shape)
  updates, warmup, every = agents.updates(config), config.warmup * config.updates, config.policy_every
  own = dict(steps=max(updates // every, 1), warmup=min(warmup // every, updates // every))
  changes = {
    'critics': dict(steps=updates, warmup=warmup),
    'policy': dict(learning_rate=config.policy_rate or config.learning_rate, **own),
  }
  optimisers = {name: optim.configured(dataclasses.replace(config, **each)) for name, each in changes.items()}
  target = lambda variables: {name: variables[name]['params'] for name in sac.target_players(config)}
  return agents.replay_program(config, agent, optimisers, sac.train_step(agent, optimisers, config), target)


verbs = {'play': agents.play}
