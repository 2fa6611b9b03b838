"""Many settings of one experiment as one Program, whose hyperparameters are numbers in the state."""

import dataclasses
import types
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from karpjax.program import Population


def varied(experiment, hyper: Mapping[str, Sequence[float]], seeds: Sequence[int]):
  """The experiment whose seeds are members: under `vmap`, each has its own seed and hyperparameters, numbers in its
  state.

  Args:
    experiment: a module; its `program` takes traced numbers for the fields that `hyper` names.
    hyper: {field: one number per member}.
    seeds: one per member; the Config's `seeds` is their number.

  Returns:
    The same names; its Programs have a `population`, and no `report`, which would show the first member alone.
  """

  def program(config, data):
    plain = experiment.program(config, data)

    def of(values):
      # Within a step of `pmap`, Linen would take the replicas for a mesh, and look there for the axes of parameters.
      with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        return experiment.program(dataclasses.replace(config, **values), data)

    def init(key):
      first = {name: jnp.asarray(values[0], jnp.float32) for name, values in hyper.items()}
      # Of traced numbers too: an optimiser that never sees 0 has all its parts.
      return of(first).init(key).replace(hyper=first)

    def with_own(name):
      return getattr(plain, name) and (lambda state, *inputs: getattr(of(state.hyper), name)(state, *inputs))

    functions = {name: with_own(name) for name in ('step', 'evaluate', 'predict', 'example_losses')}
    population = Population(tuple(seeds), {name: tuple(values) for name, values in hyper.items()})
    return dataclasses.replace(plain, init=init, report=None, population=population, **functions)

  return types.SimpleNamespace(**{**vars(experiment), 'program': program})
