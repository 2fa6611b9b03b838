"""The axes of a sweep: flags with the values, or the range, that it tries."""

import dataclasses
import math
import re
from typing import Any

from karpjax import command_line, config, errors, options


@dataclasses.dataclass(frozen=True)
class Axis:
  """The values of one flag.

  Attributes:
    values: as typed; of a range, its ends.
    scale: 'log' or 'uniform' of a range that a search draws from, else ''.
    whole: whether whole numbers are drawn.
  """

  values: tuple[str, ...]
  scale: str = ''
  whole: bool = False

  def __str__(self):
    return (
      ':'.join([self.scale, *self.values])
      if self.scale
      else (';' if ',' in ''.join(self.values) else ',').join(self.values)
    )

  def draw(self, name: str, trial) -> None:
    """Has an Optuna trial draw a value."""
    if not self.scale:
      trial.suggest_categorical(name, self.values)
    elif self.whole:
      trial.suggest_int(name, *map(int, self.values), log=self.scale == 'log')
    else:
      trial.suggest_float(name, *map(float, self.values), log=self.scale == 'log')


def parse(text: str, base, option: str) -> tuple[str, Axis]:
  """(flag, its axis) of FLAG=VALUES, checked one value at a time against the flag's type.

  Args:
    text: as typed.
    base: a Config of the experiment.
    option: '--grid' or '--search'.

  Raises:
    UsageError: for an unknown flag, one that is no axis, or values that it cannot have.
  """
  where = f'{option} {text}'
  name, equals, given = text.removeprefix('--').partition('=')
  fields = {field.name: field for field in dataclasses.fields(base)}
  if name not in fields:
    raise errors.UsageError(f'{where}: there is no flag --{name}.{errors.nearest(name, fields)}')
  if name in ('seed', 'seeds'):
    raise errors.UsageError(f'{where}: seeds are no axis; give --seeds=N, and every setting has N of them')
  if config.metadata(fields[name])['may_change'] or name == 'select':
    raise errors.UsageError(f'{where}: --{name} changes no number that could be compared')
  if not equals or not given.strip(';, '):
    raise errors.UsageError(f'{where}: an axis needs values, as {option} {name}=…')
  if option == '--search' and (drawn := re.fullmatch(r'(\w+):([^:]+):([^:]+)', given)):
    return name, _range(*drawn.groups(), fields[name], where)
  values = tuple(given.split(';' if ';' in given else ','))
  parsed: dict[Any, str] = {}
  for value in values:
    meaning = getattr(command_line.parse(type(base), [f'--{name}={value}'], base=base), name)
    if meaning in parsed:
      raise errors.UsageError(f'{where}: {parsed[meaning]} and {value} are the same value')
    parsed[meaning] = value
  return name, Axis(values)


def _range(scale: str, low: str, high: str, field, where: str) -> Axis:
  kind, _ = options.element(field.type)
  try:
    ends = [kind(end) for end in (low, high)] if kind in (int, float) else []
  except ValueError:
    ends = []
  if (
    scale not in ('log', 'uniform')
    or not ends
    or not (0 if scale == 'log' else -math.inf) < ends[0] < ends[1] < math.inf
  ):
    what = f'numbers of --{field.name}' if kind in (int, float) else f'numbers, which --{field.name} takes not'
    raise errors.UsageError(
      f'{where}: type log:LOW:HIGH (positive) or uniform:LOW:HIGH of {what}, LOW < HIGH; or values'
    )
  return Axis(tuple(map(repr, ends)), scale, kind is int)
