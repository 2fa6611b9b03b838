"""Policy gradients: REINFORCE, A2C and PPO, thousands of environments and many seeds in one program.

python launch.py policy_gradient                                        # PPO balances a pole, 500,000 steps
python launch.py policy_gradient --environment=acrobot --seeds=10
python launch.py policy_gradient --algorithm=reinforce --batch_size=16 --steps=300
python launch.py policy_gradient --environment=cartpole_positions --memory=lstm     # velocities must be remembered
python launch.py play runs/policy_gradient/…                            # an episode of the policy as GIF

Williams 1992; Mnih et al. 2016 (A2C is its synchronous form); Schulman et al. 2016 and 2017. An example is an
environment, and a step is a rollout of all environments and the updates from it: --steps counts these.
"""

import jax.numpy as jnp

from karpjax import config, model_defaults, optim, options
from karpjax.data.dataset import Dataset
from karpjax.durations import Pace
from karpjax.errors import UsageError
from karpjax.models.actor_critic import MODELS
from karpjax.program import Program, TrainState
from karpjax.rl import agents, environments, ppo
from karpjax.rl.environment import Box
from karpjax.rl.returns import RunningMoments
from karpjax.rl.rollout import Policy, first_episodes

# what each algorithm has where a flag is not given; reinforce's rollout is as long as an episode may be
ALGORITHMS = {
  'ppo': {'rollout': 128, 'epochs': 4, 'minibatches': 4, 'clip_ratio': 0.2, 'gae': 0.95, 'normalise': True},
  'a2c': {'rollout': 5, 'epochs': 1, 'minibatches': 1, 'clip_ratio': 0.0, 'gae': 1.0, 'normalise': False},
  'reinforce': {'epochs': 1, 'minibatches': 1, 'clip_ratio': 0.0, 'gae': 1.0, 'normalise': True},
}


@config.defaults(
  steps='976', batch_size=4, log_every='50', checkpoint_every='250',
  learning_rate=2.5e-4, schedule='linear', epsilon=1e-5, clip=0.5,
)  # fmt: skip
class Config(agents.RLConfig, config.model_flags(MODELS)):
  algorithm: str = config.flag(
    'ppo', 'The algorithm; flags below that are not given have its own values.', choices=ALGORITHMS
  )
  rollout: int | None = config.flag(
    None, 'Steps of each environment in one update; reinforce: whole episodes.', low=1, high=2**24
  )
  epochs: int | None = config.flag(None, 'Passes over each rollout.', low=1)
  minibatches: int | None = config.flag(None, 'Parts into which a rollout is cut.', low=1)
  clip_ratio: float | None = config.flag(None, "ε of PPO's objective; 0: the plain policy gradient.", low=0)
  clip_value: bool = config.flag(True, "Whether PPO's value loss is clipped too.")
  discount: float = config.flag(0.99, 'Discount factor γ.', low=0, high=1)
  gae: float | None = config.flag(None, 'λ of the advantages; 1: whole returns.', low=0, high=1)
  baseline: bool = config.flag(True, 'Whether the value is taken off the returns.')
  entropy: float = config.flag(0.01, "Weight of the policy's entropy.")
  value: float = config.flag(0.5, "Weight of the value's loss.", low=0)
  normalise: bool | None = config.flag(None, "Whether a minibatch's advantages get mean 0 and deviation 1.")
  target_kl: float = config.flag(
    0.0, 'The rest of a rollout is skipped once a minibatch finds the policy over 1.5 times as far (KL) from the one that '
    'acted; 0: no limit.', low=0,
  )  # fmt: skip
  normalise_observations: bool = config.flag(False, 'Whether observations are standardised by their running moments.')
  points: bool = config.flag(False, 'Whether a reward other than 0 ends the return, as a point of Pong does.')
  scale_rewards: bool = config.flag(False, 'Whether rewards are divided by the deviation of their discounted sum.')

  def environment_steps(self):
    return self.batch_size * resolved(self, environments.make(self.environment).limit).rollout


data = agents.data


def policy(config: Config) -> Policy:
  """Actor and critic, and the environment, which holds their memory if they have one."""
  environment = environments.make(config.environment)
  continuous = isinstance(environment.action, Box)
  actions = environment.action.shape[0] if continuous else environment.action.size
  dtype = jnp.dtype(config.dtype)
  model = options.build(MODELS, 'actor_critic', config, actions=actions, continuous=continuous, dtype=dtype)
  return ppo.policy(environment, model)


def resolved(config: Config, limit: int) -> Config:
  """The config with the algorithm's own values, for episodes of up to `limit` steps."""
  config = model_defaults.with_own_values(config, {'rollout': limit, **ALGORITHMS[config.algorithm]})
  if config.algorithm == 'reinforce' and config.rollout < limit:
    raise UsageError(f'rollout={config.rollout}: reinforce needs whole episodes, here of up to {limit} steps')
  return config


def program(config: Config, data: Dataset) -> Program:
  """The method: environments in the state, a rollout and its updates in a step."""
  agent = policy(config)
  config = resolved(config, agent.environment.limit)
  optimiser = optim.configured(config, Pace(config.epochs * config.minibatches))

  def init(key):
    carried, moments = {'worlds': first_episodes(agent.environment, key, config.batch_size)}, {}
    if config.scale_rewards:
      carried['discounted'] = jnp.zeros(config.batch_size)
      moments['reward'] = RunningMoments.init(())
    if config.normalise_observations:
      moments['observation'] = RunningMoments.init(agent.environment.observation.shape)
    return TrainState.create(key, agent.init(key), optimiser, moments=moments, carried=carried)

  return Program(init=init, step=ppo.train_step(agent, optimiser, config), **agents.parts(agent, config))


verbs = {'play': agents.play}
