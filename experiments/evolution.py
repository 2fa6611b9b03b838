"""Evolution strategies: policies without backpropagation, by the returns of a population of perturbed ones.

python launch.py evolution                                              # balances a pole
python launch.py evolution --environment=pendulum --worlds=4 --steps=300
python launch.py play runs/evolution/…                                  # an episode of the policy as GIF

Salimans et al. 2017. An example is a pair of opposite perturbations, which play in the same worlds, and a step is a whole
population and the update from it: --steps counts these.
"""

import functools

import jax.numpy as jnp

from karpjax import config, optim
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.models.q_network import Actor
from karpjax.program import Program, TrainState
from karpjax.rl import agents, environments, es
from karpjax.rl.environment import Box, scale_action
from karpjax.rl.rollout import Policy

MODELS = {'actor': functools.partial(Actor, widths=(32,), activation='tanh')}


@config.defaults(
  steps='100', batch_size=64, log_every='10', checkpoint_every='50', learning_rate=0.05, weight_decay=0.005
)
class Config(agents.RLConfig, config.model_flags(MODELS)):
  deviation: float = config.flag(0.1, 'σ of the perturbations.', above=0)
  worlds: int = config.flag(1, 'Episodes of each member of the population; --batch_size counts pairs of these.', low=1)
  ranked: bool = config.flag(True, 'Whether centred ranks stand for returns.')


data = agents.data


def policy(config: Config) -> Policy:
  """The network and its environment, continuous actions of which lie within ±1."""
  environment = environments.make(config.environment)
  if environment.reset_done:
    raise UsageError(f'{environment.name} lives on the host, outside of what is compiled: no population can play it')
  continuous = isinstance(environment.action, Box)
  if continuous:
    environment = scale_action(environment)
  outputs = environment.action.shape[0] if continuous else environment.action.size
  init, apply = agents.network(MODELS, config, environment, outputs=outputs)

  def act(state, observation, noise):
    outputs = apply(state.params, observation)
    return jnp.tanh(outputs) if continuous else outputs.argmax(-1).astype(jnp.int32)

  predict = lambda state, observation: apply(state.params, observation)
  return Policy(environment, act, predict=predict, init=init)


def program(config: Config, data: Dataset) -> Program:
  """The method: nothing but params in the state, a population and the update from it in a step."""
  agent, optimiser = policy(config), optim.configured(config)
  return Program(
    init=lambda key: TrainState.create(key, agent.init(key), optimiser),
    step=es.train_step(agent, optimiser, config),
    **agents.parts(agent),
  )


verbs = {'play': agents.play}
