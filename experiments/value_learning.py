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

from karpjax import config, optim
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.models.q_network import QNetwork
from karpjax.program import Program
from karpjax.rl import agents, dqn, environments
from karpjax.rl.environment import Discrete
from karpjax.rl.rollout import Policy

MODELS = {'q_network': functools.partial(QNetwork, widths=(120, 84))}


@config.defaults(
  steps='50000', log_every='1000', checkpoint_every='10000', learning_rate=2.5e-4, train_frequency=10,
)  # fmt: skip
class Config(agents.RLConfig, agents.ReplayFlags, config.model_flags(MODELS)):
  target_every: int = config.flag(500, 'Steps between two renewals of the target network.', low=1)
  loss: str = config.flag(
    'squared', 'The loss of an error; huber: on cartpole values diverge by it.', choices=dqn.LOSSES
  )
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


def policy(config: Config) -> Policy:
  """The network of the actions' values, and its environment; raises UsageError where these do not fit together."""
  environment = environments.make(config.environment)
  if not isinstance(environment.action, Discrete):
    raise UsageError(
      f'environment={config.environment}: its actions are continuous, and values are learnt of discrete ones; '
      'policy_gradient acts in it'
    )
  if config.atoms == 1 or (config.atoms and config.lowest >= config.highest):
    raise UsageError(f'atoms={config.atoms} from {config.lowest} to {config.highest}: two that differ are needed')
  init, apply = agents.network(MODELS, config, environment, actions=environment.action.size)
  return dqn.policy(environment, init, apply, config)


def program(config: Config, data: Dataset) -> Program:
  """The method: environments and replay in the state, some steps and the updates from them in a step."""
  agent = policy(config)
  config = dataclasses.replace(config, learning_starts=max(config.learning_starts, config.batch_size * config.n_step))
  schedule = dict(steps=agents.updates(config), warmup=config.warmup * config.updates)
  optimiser = optim.configured(dataclasses.replace(config, **schedule))
  step = dqn.train_step(agent, optimiser, config)
  return agents.replay_program(config, agent, optimiser, step, target=lambda variables: variables['params'])


verbs = {'play': agents.play}
