"""Many settings of one experiment as one Program, whose hyperparameters are numbers in the state."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from karpjax.program import Population, Program


def vary(make: Callable, config, hyper: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> Program:
  """A Program whose state carries the hyperparameters `hyper`: under `vmap`, each member's are its own.

  Args:
    make: Config -> Program; takes traced numbers for the fields that `hyper` names.
    config: the resolved Config; its `seeds` is the number of members.
    hyper: {field: one number per member}.
    seeds: one per member.

  Returns:
    The Program, its `population` set; it has no `report`, which would show the first member alone.
  """

  def of(values):
    # Within a step of `pmap`, Linen would take the replicas for a mesh, and look there for the axes of parameters.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
      return make(dataclasses.replace(config, **values))

  def init(key):
    first = {name: jnp.asarray(values[0], jnp.float32) for name, values in hyper.items()}
    # Of traced numbers too: an optimiser that never sees 0 has all its parts.
    return of(first).init(key).replace(hyper=first)

  plain = make(config)
  with_key = lambda name: lambda state, batch, key: getattr(of(state.hyper), name)(state, batch, key)
  return dataclasses.replace(
    plain,
    init=init,
    step=lambda state, batch: of(state.hyper).step(state, batch),
    evaluate=with_key('evaluate'),
    predict=plain.predict and with_key('predict'),
    example_losses=plain.example_losses and with_key('example_losses'),
    report=None,
    population=Population(tuple(seeds), {name: tuple(values) for name, values in hyper.items()}),
  )


def varied(experiment, hyper: Mapping[str, Sequence[float]], seeds: Sequence[int]):
  """The experiment whose seeds are members: each has its own seed and hyperparameters, as in `vary`."""
  program = lambda config, data: vary(lambda config: experiment.program(config, data), config, hyper, seeds)
  return types.SimpleNamespace(**{**vars(experiment), 'program': program})
