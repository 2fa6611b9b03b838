"""What a sweep is asked: an experiment, its flags, and axes; checked before anything is started."""

import argparse
import dataclasses
import importlib
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from karpjax import command_line, config, errors
from karpjax.report import writers
from karpjax.train import loop


@dataclasses.dataclass(frozen=True)
class Range:
  """What a search draws a number from."""

  log: bool
  low: float
  high: float
  whole: bool

  def __str__(self):
    return f'{"log" if self.log else "uniform"}:{self.low!r}:{self.high!r}'


@dataclasses.dataclass(frozen=True)
class Question:
  """A sweep.

  Attributes:
    experiment: its name.
    base: the Config of the flags that all settings share.
    axes: {flag: its values as one would type them, or the Range a search draws from}.
    trials: how many settings a search draws; 0: a grid.
    storage: URL of the search's database; '': SQLite in the workdir.
    together: at most so many members (settings × seeds) in one program; 0: a grid's all, a search's settings one by one.
  """

  experiment: str
  base: Any
  axes: dict[str, tuple[str, ...] | Range]
  trials: int
  storage: str
  together: int

  @property
  def module(self):
    return importlib.import_module(f'experiments.{self.experiment}')

  @property
  def metric(self) -> str:
    return self.base.select.removeprefix('-')

  @property
  def sign(self) -> int:
    """1 where the smallest value of the metric is the best, -1 where the largest is."""
    return -1 if self.base.select.startswith('-') else 1

  def flags(self, setting: dict[str, str]) -> list[str]:
    """The flags to type for a setting, {flag: value as typed}."""
    return config.as_flags(self.config(setting), leave_out=('workdir',))

  def config(self, setting: dict[str, str]):
    """The Config of a setting.

    Raises:
      UsageError: for a value that is not of its flag's type.
    """
    return command_line.parse(type(self.base), [f'--{name}={text}' for name, text in setting.items()], base=self.base)

  def hidden(self, text: str) -> str:
    """The same without the password of the database."""
    return re.sub(r'(://[^:/@\s]*):[^@\s]*@', r'\1:…@', text)

  def described(self) -> dict:
    """What sweep.json holds of it."""
    free = {field.name for field in dataclasses.fields(self.base) if config.metadata(field)['may_change']}
    return {
      'experiment': self.experiment,
      'kind': 'search' if self.trials else 'grid',
      'axes': {name: str(axis) if isinstance(axis, Range) else list(axis) for name, axis in self.axes.items()},
      'flags': {name: value for name, value in config.to_json(self.base).items() if name not in free},
      'storage': self.hidden(self.storage),
      'together': self.together,
      'trials': self.trials,
    }


def ask(options: argparse.Namespace, flags: list[str]) -> Question:
  """The question that a command line asks.

  Raises:
    UsageError: for an unknown experiment or flag, a wrong axis, a value outside its flag's type, or what does not go
      together.
  """
  try:
    module = importlib.import_module(f'experiments.{options.name}')
  except ModuleNotFoundError:
    raise errors.UsageError(f'unknown experiment {options.name!r}; python launch.py lists them') from None
  typed = options.search or options.grid
  if options.grid and options.search:
    raise errors.UsageError('--grid runs every combination, --search draws some of them: give one of the two')
  if options.trials is not None and not options.search:
    raise errors.UsageError('--trials needs what to draw: --search FLAG=log:LOW:HIGH, uniform:LOW:HIGH or values')
  if options.search and (options.trials is None or options.trials < 1):
    raise errors.UsageError('--search needs the number of settings to draw: --trials=20')
  if not typed:
    raise errors.UsageError('a sweep needs axes: --grid FLAG=VALUE,… or --trials=20 --search FLAG=RANGE')
  if options.storage and not options.search:
    raise errors.UsageError('--storage is for --search; a grid needs no database')
  if options.together < 0:
    raise errors.UsageError(f'--together={options.together}: give a number of members (settings × seeds), or 0')
  base = command_line.parse(module.Config, flags)
  axes = {}
  for text in typed:
    name, axis = _axis(text, base, '--search' if options.search else '--grid')
    if name in axes:
      raise errors.UsageError(f'--{name} is swept twice; give all its values in one axis')
    axes[name] = axis
  asked = Question(options.name, base, axes, options.trials or 0, options.storage, options.together)
  _check_select(asked)
  return asked


def _axis(text: str, base, option: str) -> tuple[str, tuple[str, ...] | Range]:
  """FLAG=VALUES, checked one value at a time against the flag's type."""
  name, equals, given = text.removeprefix('--').partition('=')
  fields = {field.name: field for field in dataclasses.fields(base)}
  if name not in fields:
    raise errors.UsageError(f'{option} {text}: there is no flag --{name}.{errors.nearest(name, fields)}')
  if name in ('seed', 'seeds'):
    raise errors.UsageError(f'{option} {text}: seeds are no axis; give --seeds=N, and every setting has N of them')
  if config.metadata(fields[name])['may_change'] or name == 'select':
    raise errors.UsageError(f'{option} {text}: --{name} changes no number that could be compared')
  if not equals or not given.strip(';, '):
    raise errors.UsageError(f'{option} {text}: an axis needs values, as {option} {name}=…')
  if option == '--search' and (drawn := re.fullmatch(r'(\w+):([^:]+):([^:]+)', given)):
    return name, _range(drawn, text, fields[name])
  values = tuple(given.split(';' if ';' in given else ','))
  parsed = [getattr(command_line.parse(type(base), [f'--{name}={value}'], base=base), name) for value in values]
  for value, other in ((v, o) for i, v in enumerate(values) for o in values[:i]):
    if parsed[values.index(value)] == parsed[values.index(other)] or value == other:
      raise errors.UsageError(f'{option} {text}: {other} and {value} are the same value')
  return name, values


def _range(drawn: re.Match, text: str, field) -> Range:
  scale, low, high = drawn.groups()
  kind = element(field.type)
  try:
    low, high = float(low), float(high)
  except ValueError:
    low = high = math.nan
  if scale not in ('log', 'uniform') or not (math.isfinite(low) and math.isfinite(high)):
    raise errors.UsageError(f'--search {text}: type log:LOW:HIGH, uniform:LOW:HIGH, or values')
  if kind not in (int, float):
    raise errors.UsageError(
      f'--search {text}: --{field.name} is no number; give its values, as --search {field.name}=a,b'
    )
  if not low < high or (scale == 'log' and low <= 0):
    raise errors.UsageError(
      f'--search {text}: LOW must be less than HIGH' + (', and positive' if scale == 'log' else '')
    )
  if kind is int and (low % 1 or high % 1):
    raise errors.UsageError(f'--search {text}: --{field.name} is a whole number, and so are LOW and HIGH')
  return Range(scale == 'log', *((int(low), int(high)) if kind is int else (low, high)), kind is int)


def element(annotation):
  """The type of one value of a flag: float for `float | None` and for `tuple[float, …] | None`."""
  if isinstance(annotation, types.UnionType):
    annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
  return typing.get_args(annotation)[0] if typing.get_origin(annotation) is tuple else annotation


def _check_select(asked: Question) -> None:
  split = asked.metric.partition('/')[0]
  if split != 'validation':
    raise errors.UsageError(
      f'--select={asked.base.select}: a sweep selects by a validation metric, as validation/loss or -validation/accuracy'
    )
  if split not in (asked.base.eval_splits + asked.base.final_splits):
    raise errors.UsageError(f'--select={asked.base.select}, but neither --eval_splits nor --final_splits has {split}')


def examine(asked: Question, setting: dict[str, str]):
  """(program, dataset, resolved config) of a setting, checked as at the start of a run; nothing is compiled.

  Raises:
    UsageError: as the experiment does.
  """
  settings = asked.config(setting)
  try:
    return loop.prepare(asked.module, settings)
  except errors.UsageError as error:
    swept = ' '.join(f'{name}={text}' for name, text in setting.items())
    raise errors.UsageError(f'{swept}: {error}') from None


def check_metric(asked: Question, program, dataset) -> None:
  """Raises UsageError where the evaluation gives no such metric as --select names."""
  if 'validation' not in dataset.splits:
    raise errors.UsageError(f'--select={asked.base.select}: there is no validation split; give --validation=0.1')
  state, batch = jax.eval_shape(program.init, jax.random.key(0)), example(dataset)
  sums = jax.eval_shape(program.evaluate, state, {**batch, 'mask': np.ones(1, bool)}, jax.random.key(0))
  with np.errstate(all='ignore'):
    names = [f'validation/{n}' for n in program.summarise(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), sums))]
  if asked.metric not in names:
    raise errors.UsageError(
      f'--select={asked.base.select}: there is no such metric.{errors.nearest(asked.metric, names)}'
    )


def example(dataset) -> dict[str, np.ndarray]:
  """A batch of one training example."""
  return {**dataset.splits['train'].fetch(np.zeros(1, np.int32)), 'index': np.zeros(1, np.int32)}


def refuse_changes(folder: Path, asked: Question) -> None:
  """Raises UsageError, naming what has changed, where the folder holds another sweep. More --trials are no other."""
  if config.saved(folder):
    raise errors.UsageError(f'{folder} holds a run, not a sweep; choose another --workdir')
  path = folder / 'sweep.json'
  if not path.exists():
    return
  try:
    stored = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.UsageError(f'{path} cannot be read: {error}') from None
  changed = []
  for name, now in writers.plain(asked.described()).items():
    old = stored.get(name)
    if name == 'trials' or old == now:
      continue
    if isinstance(now, dict) and isinstance(old, dict):
      differ = [key for key in dict.fromkeys([*old, *now]) if old.get(key) != now.get(key)]
      changed += [f'--{key} was {_shown(old.get(key))}, now {_shown(now.get(key))}' for key in differ]
    else:
      changed.append(f'{name} was {_shown(old)}, now {_shown(now)}')
  if changed:
    raise errors.UsageError(
      f'{folder} holds a sweep that asks something else: {"; ".join(changed)}. Ask the same, or give another --workdir'
    )


def _shown(value) -> str:
  return ','.join(map(str, value)) if isinstance(value, list) else 'not given' if value in (None, '') else str(value)
