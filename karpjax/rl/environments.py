"""Environments by name: our own, and those of packages that a user may have."""

import numpy as np

from karpjax import errors
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.rl import classic_control
from karpjax.rl.driving import environment as driving
from karpjax.rl.environment import Box, Environment

ENVIRONMENTS = {**classic_control.ENVIRONMENTS, **driving.ENVIRONMENTS}
NAMES = tuple(ENVIRONMENTS)


def make(name: str) -> Environment:
  """The environment called `name`: one of NAMES, gymnax:NAME, brax:NAME, or gymnasium:NAME on the host.

  Raises:
    UsageError: for another name; the nearest is offered. Where a package is missing, its line of installation.
  """
  package, _, rest = name.partition(':')
  if package == 'gymnax' and rest:
    from karpjax.rl import gymnax_environments

    return gymnax_environments.make(rest)
  if package == 'brax' and rest:
    from karpjax.rl import brax_environments

    return brax_environments.make(rest)
  if package == 'gymnasium' and rest:
    from karpjax.rl import gymnasium_environments

    return gymnasium_environments.make(rest)
  return errors.choose('environment', name, ENVIRONMENTS)()


def worlds(environment: Environment, training: int, episodes: int) -> Dataset:
  """What stands for data: examples are worlds, each a number 'world' [] int32, from which its draws come.

  Args:
    environment: whose worlds they are.
    training: how many are trained in, side by side.
    episodes: how many the validation and the test split have, each its own.

  Raises:
    UsageError: where one of these is not positive.
  """
  for flag, value in (('batch_size', training), ('episodes', episodes)):
    if value < 1:
      raise errors.UsageError(f'--{flag}={value}: at least 1 is needed')
  numbers = lambda first, size: Split.of(world=np.arange(first, first + size, dtype=np.int32))
  notes = (describe(environment),)
  if environment.renew:
    # streamed, so that steps are made one a call, and none to find out how many a call should make
    numbers = lambda first, size: Split(size, None, lambda indices: {'world': np.int32(first + indices)})
    notes += ('it lives on the host: whatever of it a resumed run was in the midst of begins anew',)
  splits = {'train': numbers(0, training), 'validation': numbers(2**20, episodes), 'test': numbers(2**21, episodes)}
  spec = Spec(environment.name, environment.observation.shape, (), 1.0, (), (), training, 'float32')
  return Dataset(spec, splits, notes)


def describe(environment: Environment) -> str:
  """One line for start-up."""
  box, action = environment.observation, environment.action
  acts = f'actions {list(action.shape)} within {action.low} … {action.high}' if isinstance(action, Box) else (
    f'{action.size} actions'
  )  # fmt: skip
  return f'environment {environment.name}: observations {list(box.shape)}, {acts}, episodes of at most {environment.limit} steps'
