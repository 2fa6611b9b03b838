"""Evolution strategies: policies without backpropagation, by the returns of a population of perturbed ones.

python launch.py evolution                                              # balances a pole
python launch.py evolution --environment=pendulum --worlds=4 --steps=300
python launch.py play runs/evolution/…                                  # an episode of the policy as GIF

Salimans et al. 2017. An example is a pair of opposite perturbations, which play in the same worlds, and a step is a
whole population and the update from it: --steps counts these. A pair's noise comes from its number, so a population is
the same on any number of devices, which then sum what their pairs say of the gradient.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from karpjax import collectives, config, optim
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.models.q_network import Actor
from karpjax.program import PERTURB, ROLLOUT, Program, TrainState, example_keys, pair, step_key
from karpjax.rl import agents, environments, rollout
from karpjax.rl.environment import Box, scale_action
from karpjax.rl.rollout import Policy

MODELS = {'actor': functools.partial(Actor, widths=(32,), activation='tanh')}


@config.defaults(
  steps='100', batch_size=64, log_every='10', checkpoint_every='50', learning_rate=0.05, weight_decay=0.005
)
class Config(agents.RLConfig, config.model_flags(MODELS)):
  deviation: float = config.flag(0.1, 'σ of the perturbations.', above=0)
  worlds: int = config.flag(
    1, 'Episodes of each member of the population; --batch_size counts pairs of these.', low=1, high=2**24
  )
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


def centred_ranks(values, population):
  """Ranks of values […] in a population [size], from -½, the least, to ½; equal ones share their mean (Salimans et al.
  2017, section 2.1, and appendix).
  """
  less = (population < values[..., None]).sum(-1)
  equal = (population == values[..., None]).sum(-1)  # the member itself is among them
  return (less + (equal - 1) / 2) / max(population.size - 1, 1) - 0.5


def estimate(noise, utilities, deviation, count):
  """The gradient of the expected utility, by antithetic pairs: 1 / (2 n σ) Σ (u⁺ - u⁻) ε (Salimans et al. 2017, eq. 1).

  Args:
    noise: [pairs, params], ε, of this replica's pairs.
    utilities: [pairs, 2], at params + σ ε and params - σ ε; σ is the `deviation`.
    count: n, pairs of all replicas, on each of which the estimate [params] is the same.
  """
  return collectives.total((utilities[:, 0] - utilities[:, 1]) @ noise) / (2 * count * deviation)


def train_step(policy: Policy, optimiser: optax.GradientTransformation, config: Config) -> Callable:
  """The step of evolution strategies (Salimans et al. 2017, algorithm 2, with antithetic pairs and centred ranks).

  Args:
    policy: one that draws nothing, and acts by the state's params.
    optimiser: descends; it is given the negative of the estimate.
    config: its `microbatches` are parts in which a device's pairs play, one after the other.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The batch is only the pairs' numbers; all that they play begins anew.
    Metrics are of the perturbed policies.
  """

  def step(state: TrainState, batch):
    flat, unravel = ravel_pytree(state.params)
    drawn = jax.vmap(lambda key: jax.random.normal(key, flat.shape))
    noise = drawn(example_keys(step_key(state, PERTURB), batch))  # [pairs, params]
    worlds = example_keys(step_key(state, ROLLOUT), batch)  # [pairs]

    def both(x):
      """A pair in the same worlds, so that luck is no difference between them."""
      noise, world = x
      members = flat + jnp.array([[1], [-1]]) * config.deviation * noise  # [2, params]
      keys = jax.random.split(world, config.worlds)
      ends = jax.vmap(lambda member: rollout.episodes(policy, state.replace(params=unravel(member)), keys))(members)
      return ends.episode_return, ends.episode_length

    batch_size = -(-len(noise) // config.microbatches)
    total, length = jax.lax.map(both, (noise, worlds), batch_size=batch_size)  # [pairs, 2, worlds]
    fitness = total.mean(-1)  # [pairs, 2]
    population = collectives.gather(fitness).reshape(-1)
    utilities = centred_ranks(fitness, population) if config.ranked else fitness
    gradient = unravel(-estimate(noise, utilities, config.deviation, population.size // 2))
    updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = collectives.total({'episode_return': pair(total), 'episode_length': pair(length)})
    numbers = {'best_return': population.max(), 'return_deviation': population.std()}
    numbers |= {'gradient_norm': optax.global_norm(gradient), 'parameter_norm': optax.global_norm(params)}
    metrics |= {name: (x, jnp.ones(())) for name, x in numbers.items()}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return step


def program(config: Config, data: Dataset) -> Program:
  """The method: nothing but params in the state, a population and the update from it in a step."""
  agent, optimiser = policy(config), optim.configured(config)
  return Program(
    init=lambda key: TrainState.create(key, agent.init(key), optimiser),
    step=train_step(agent, optimiser, config),
    **agents.parts(agent, config),
  )


verbs = {'play': agents.play}
