"""Evolution strategies as one pure step: a population of perturbed policies, their returns, and a gradient from their ranks.

An example is a pair of perturbations and the worlds that both play in. Its noise comes from the example's number, so a
population is the same on any number of devices, which then sum what their pairs say of the gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from karpjax import collectives
from karpjax.program import PERTURB, ROLLOUT, TrainState, example_keys, pair, step_key
from karpjax.rl import rollout
from karpjax.rl.environment import Environment


@dataclasses.dataclass(frozen=True)
class Method:
  """The numbers of an evolution strategy.

  Attributes:
    deviation: σ of the perturbations.
    worlds: episodes of each member of the population.
    ranked: whether ranks stand for returns.
    parts: in how many parts, one after the other, a device's pairs play.
  """

  deviation: Any = 0.1
  worlds: int = 1
  ranked: bool = True
  parts: int = 1


def centred_ranks(values, population):
  """Ranks in a population from -½, the least, to ½; those of equal values are their mean (Salimans et al. 2017, section 2.1, and
  appendix).

  Args:
    values: […], members of the population.
    population: [size].

  Returns:
    […] float32.
  """
  less = (population < values[..., None]).sum(-1)
  equal = (population == values[..., None]).sum(-1)  # the member itself is among them
  return (less + (equal - 1) / 2) / max(population.size - 1, 1) - 0.5


def estimate(noise, utilities, deviation, count):
  """The gradient of the expected utility, by antithetic pairs: 1 / (2 n σ) Σ (u⁺ - u⁻) ε (Salimans et al. 2017, eq. 1).

  Args:
    noise: [pairs, params], ε, of this replica's pairs.
    utilities: [pairs, 2], at params + σ ε and params - σ ε.
    deviation: σ.
    count: n, pairs of all replicas.

  Returns:
    [params], alike on every replica.
  """
  return collectives.total((utilities[:, 0] - utilities[:, 1]) @ noise) / (2 * count * deviation)


def train_step(
  environment: Environment, act: Callable, optimiser: optax.GradientTransformation, method: Method
) -> Callable:
  """The step of evolution strategies (Salimans et al. 2017, algorithm 2, with antithetic pairs and centred ranks).

  Args:
    environment: of one world.
    act: (params, observation [worlds, …]) -> action [worlds, …].
    optimiser: descends; it is given the negative of the estimate.
    method: the algorithm.

  Returns:
    (TrainState, batch) -> (TrainState, metrics). The batch is only the pairs' numbers; all that they play begins anew.
    Metrics are of the perturbed policies.
  """

  def play(flat, unravel, keys):
    """Returns and lengths of a member of the population, each [worlds]."""
    params = unravel(flat)
    ends = rollout.episodes(environment, lambda seen, noise: act(params, seen), keys, lambda keys: keys)
    return ends.total, ends.length

  def step(state: TrainState, batch):
    flat, unravel = ravel_pytree(state.params)
    drawn = jax.vmap(lambda key: jax.random.normal(key, flat.shape))
    noise = drawn(example_keys(step_key(state, PERTURB), batch))  # [pairs, params]
    worlds = example_keys(step_key(state, ROLLOUT), batch)  # [pairs]

    def both(x):
      """A pair in the same worlds, so that luck is no difference between them."""
      noise, world = x
      members = flat + jnp.array([[1], [-1]]) * method.deviation * noise  # [2, params]
      keys = jax.random.split(world, method.worlds)
      return jax.vmap(lambda member: play(member, unravel, keys))(members)

    pairs = len(noise)
    total, length = jax.lax.map(both, (noise, worlds), batch_size=-(-pairs // method.parts))  # [pairs, 2, worlds]
    fitness = total.mean(-1)  # [pairs, 2]
    population = collectives.gather(fitness).reshape(-1)
    utilities = centred_ranks(fitness, population) if method.ranked else fitness
    gradient = unravel(-estimate(noise, utilities, method.deviation, population.size // 2))
    updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = collectives.total({'episode_return': pair(total), 'episode_length': pair(length)})
    metrics |= {
      'best_return': (population.max(), jnp.ones(())),
      'return_deviation': (population.std(), jnp.ones(())),
      'gradient_norm': (optax.global_norm(gradient), jnp.ones(())),
      'parameter_norm': (optax.global_norm(params), jnp.ones(())),
    }
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return step
