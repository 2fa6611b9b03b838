"""Many settings of one experiment as one Program, whose hyperparameters are numbers in the state; and how it is run."""

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import command_line, errors
from karpjax.program import Population, Program
from karpjax.report import writers
from karpjax.train import loop, runtime

# Flags whose numbers scale or mix what a step computes, and so may be traced. All others change the program itself.
TRACEABLE = (
  'learning_rate',
  'final_learning_rate',
  'decay',
  'momentum',
  'beta1',
  'beta2',
  'epsilon',
  'weight_decay',
  'clip',
)


def vary(make: Callable, settings, hyper: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> Program:
  """A Program whose state carries the hyperparameters `hyper`: under `vmap`, each member's are its own.

  Args:
    make: Config -> Program; takes traced numbers for the fields that `hyper` names.
    settings: the resolved Config; its `seeds` is the number of members.
    hyper: {field: one number per member}.
    seeds: one per member.

  Returns:
    The Program, its `population` set; it has no `report`, which would show the first member alone.
  """
  several = {f.name for f in dataclasses.fields(settings) if 'tuple' in str(f.type)}

  def made(values):
    return make(dataclasses.replace(settings, **{n: (v,) if n in several else v for n, v in values.items()}))

  def init(key):
    first = {name: jnp.asarray(values[0], jnp.float32) for name, values in hyper.items()}
    # Made with traced numbers too: an optimiser that is never told 0 has all its parts.
    return made(first).init(key).replace(hyper=first)

  plain = make(settings)
  with_key = lambda name: lambda state, batch, key: getattr(made(state.hyper), name)(state, batch, key)
  return dataclasses.replace(
    plain,
    init=init,
    step=lambda state, batch: made(state.hyper).step(state, batch),
    evaluate=with_key('evaluate'),
    predict=plain.predict and with_key('predict'),
    example_losses=plain.example_losses and with_key('example_losses'),
    report=None,
    population=Population(tuple(seeds), {name: tuple(values) for name, values in hyper.items()}),
  )


def are_numbers(asked, name: str, values: Sequence[str]) -> bool:
  """Whether an axis of a `question.Question` has several values, each one number, for a flag that may be traced."""
  parsed = [getattr(asked.config({name: text}), name) for text in values]
  single = all(not isinstance(value, tuple) or len(value) == 1 for value in parsed)
  return name in TRACEABLE and len(values) > 1 and single


def can_be_traced(make: Callable, settings, name: str, batch) -> bool:
  """Whether the experiment's step and evaluation take a traced number for this field; nothing is compiled."""
  values = getattr(settings, name)
  value = values[0] if isinstance(values, tuple) else values
  try:
    program = vary(make, settings, {name: (value,)}, (0,))
    state = jax.eval_shape(program.init, jax.random.key(0))
    after, _ = jax.eval_shape(program.step, state, batch)
    mask = np.ones(len(batch['index']), bool)
    jax.eval_shape(program.evaluate, state, {**batch, 'mask': mask}, jax.random.key(0))
  except TypeError:  # JAX's own, of a tracer that Python looks at; or of a state that has no `hyper`
    return False
  return jax.tree.structure(after) == jax.tree.structure(state)


def run(folder: Path, part: dict) -> dict:
  """Trains the members of a part, settings × seeds in this order, and returns what members.json holds.

  Raises:
    UsageError: as the experiment does.
  """
  experiment = importlib.import_module(f'experiments.{part["experiment"]}')
  settings = command_line.parse(experiment.Config, [*part['flags'], f'--workdir={folder}'])
  seeds = [settings.seed + s for s in range(settings.seeds)]
  count = len(next(iter(part['hyper'].values()), [0]))
  members = count * len(seeds)
  runtime.process(settings)

  try:
    program, dataset, resolved = loop.prepare(experiment, settings)
    if part['hyper']:
      make = lambda settings: experiment.program(settings, dataset)
      # Curves of all members together, as of so many seeds, would mislead.
      resolved = dataclasses.replace(resolved, seeds=members, plots=False)
      hyper = {name: np.repeat(values, len(seeds)).tolist() for name, values in part['hyper'].items()}
      program = vary(make, resolved, hyper, seeds * count)
    summary = loop.train(program, dataset, resolved, experiment=part['experiment'])
  except errors.Diverged as error:
    steps = dict(re.findall(r'seed (\d+) at step (\d+)', str(error)))
    return {'numbers': {}, 'nonfinite_step': [int(steps.get(str(settings.seed + m), 0)) for m in range(members)]}
  each = lambda value: value['values'] if isinstance(value, dict) else [value]
  numbers = {name: each(value) for name, value in summary.numbers.items() if '/' in name}
  nonfinite = np.atleast_1d(jax.device_get(summary.state.nonfinite_step)).tolist()
  return {'numbers': numbers, 'nonfinite_step': nonfinite, 'seconds': summary.numbers['seconds']}


def main(folder: Path) -> int:
  """Runs a part as its part.json says, and leaves members.json; 2 for bad input."""
  try:
    writers.write_json(folder / 'members.json', run(folder, json.loads((folder / 'part.json').read_text())))
  except errors.UsageError as error:
    print(f'sweep: {error}', file=sys.stderr)
    return 2
  return 0
