"""Evolution strategies as one pure step: a population plays, its returns are ranked, and the gradient comes from their ranks.

An example is a pair of perturbations and the worlds that both play in. Its noise comes from the example's number, so a
population is the same on any number of devices, which then sum what their pairs say of the gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from karpjax import collectives
from karpjax.program import PERTURB, ROLLOUT, TrainState, example_keys, pair, step_key
from karpjax.rl import rollout


def centred_ranks(values, population):
  """Ranks of values […] in a population [size], from -½, the least, to ½; equal ones share their mean (Salimans et al. 2017,
  section 2.1, and appendix).
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


def train_step(policy: rollout.Policy, optimiser: optax.GradientTransformation, config) -> Callable:
  """The step of evolution strategies (Salimans et al. 2017, algorithm 2, with antithetic pairs and centred ranks).

  Args:
    policy: one that draws nothing, and acts by the state's params.
    optimiser: descends; it is given the negative of the estimate.
    config: of experiments/evolution.py; its `microbatches` are parts in which a device's pairs play, one after the other.

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
