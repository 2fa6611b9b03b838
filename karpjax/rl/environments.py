"""Environments by name: our own, and those of packages that a user may have."""

from karpjax.errors import choose
from karpjax.rl import classic_control, external
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
  if rest and package in external.PACKAGES:
    return external.PACKAGES[package](rest)
  return choose('environment', name, ENVIRONMENTS)()


def describe(environment: Environment) -> str:
  """One line for start-up."""
  shape, action = list(environment.observation.shape), environment.action
  if isinstance(action, Box):
    acts = f'actions {list(action.shape)} within {action.low} … {action.high}'
  else:
    acts = f'{action.size} actions'
  return f'environment {environment.name}: observations {shape}, {acts}, episodes of at most {environment.limit} steps'
