"""The settings of a sweep: an experiment, its flags, and axes; checked before anything is started."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

from karpjax import command_line, config, errors, optim, options
from karpjax.data import fingerprint
from karpjax.report import writers
from karpjax.train import loop, prepare, run_dir
from karpjax.train.runner import Runner

Setting = dict[str, str]  # {flag: value as typed}


@dataclasses.dataclass(frozen=True)
class Axis:
  """The values of one flag.

  Attributes:
    text: all of them, as typed.
    values: each as typed; of a range that a search draws from, its ends.
    scale: 'log' or 'uniform' of such a range, else ''.
  """

  text: str
  values: tuple
  scale: str = ''

  def draw(self, name: str, trial) -> None:
    """Has an Optuna trial draw a value."""
    if self.scale:
      suggest = trial.suggest_int if isinstance(self.values[0], int) else trial.suggest_float
      suggest(name, *self.values, log=self.scale == 'log')
    else:
      trial.suggest_categorical(name, self.values)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is asked.

  Attributes:
    experiment: its name.
    base: the Config of the flags that all settings share.
    axes: by flag.
    trials: how many settings a search draws; 0: a grid.
    storage: URL of the search's database; '': SQLite in the workdir.
    together: at most so many members (settings × seeds) in one program; 0: a grid's all, a search's settings one by one.
  """

  experiment: str
  base: Any
  axes: dict[str, Axis]
  trials: int
  storage: str
  together: int

  @property
  def metric(self) -> str:
    return self.base.select.removeprefix('-')

  @property
  def sign(self) -> int:
    """1 where the smallest value of the metric is the best, -1 where the largest is."""
    return -1 if self.base.select.startswith('-') else 1

  @property
  def settings_together(self) -> int:
    """How many settings share a program at most, where `together` says so; else 1."""
    return max(1, self.together // self.base.seeds)

  @property
  def traced(self) -> list[str]:
    """The axes whose values can share a program."""
    return [name for name, axis in self.axes.items() if name in optim.TRACEABLE and len(axis.values) > 1]

  def config(self, setting: Setting):
    """The Config of a setting; raises UsageError for a value that is not of its flag's type."""
    return command_line.parse(type(self.base), [f'--{name}={text}' for name, text in setting.items()], base=self.base)

  def flags(self, setting: Setting) -> list[str]:
    """The flags to type for a setting."""
    return config.as_flags(self.config(setting))

  @property
  def asks(self) -> dict[str, Any]:
    """What tells one sweep from another, by flag; more trials make no other."""
    flags = {field.name for field in dataclasses.fields(self.base) if not config.metadata(field)['may_change']}
    base = self.base if 'model' in self.axes else config.settled(self.base)
    fixed = {f'--{name}': value for name, value in config.to_json(base).items() if name in flags}
    own = {'experiment': self.experiment, 'kind': 'search' if self.trials else 'grid', '--together': self.together}
    axes = {f'--{name}': axis.text for name, axis in self.axes.items()}
    return {**own, '--storage': without_password(self.storage), **fixed, **axes}


def without_password(text: str) -> str:
  """The same without the password of a database's URL."""
  return re.sub(r'(://[^:/@\s]*):[^@\s]*@', r'\1:…@', text)


# ---- from the command line ----


def parse_axis(text: str, base, option: str) -> tuple[str, Axis]:
  """(flag, its axis) of FLAG=VALUES, checked one value at a time against the flag's type.

  Args:
    text: as typed.
    base: a Config of the experiment.
    option: '--grid' or '--search'.

  Raises:
    UsageError: for an unknown flag, one that is no axis, or values that it cannot have.
  """
  wrong = lambda why: errors.UsageError(f'{option} {text}: {why}')
  name, _, given = text.removeprefix('--').partition('=')
  fields = {field.name: field for field in dataclasses.fields(base)}
  if name not in fields:
    raise wrong(f'there is no flag --{name}.{errors.nearest(name, fields)}')
  if name in ('seed', 'seeds'):
    raise wrong('seeds are no axis; give --seeds=N, and every setting has N of them')
  if config.metadata(fields[name])['may_change'] or name == 'select':
    raise wrong(f'--{name} changes no number that could be compared')
  if not given.strip(';, '):
    raise wrong(f'an axis needs values, as {option} {name}=…')
  if option == '--search' and (drawn := re.fullmatch(r'(\w+):([^:]+):([^:]+)', given)):
    scale, number = drawn[1], options.element(fields[name].type)[0] in (int, float)
    with contextlib.suppress(ValueError):
      low, high = map(options.element(fields[name].type)[0], drawn.groups()[1:])
      if number and scale in ('log', 'uniform') and (0 if scale == 'log' else -math.inf) < low < high < math.inf:
        return name, Axis(given, (low, high), scale)
    what = f'numbers of --{name}' if number else f'numbers, which --{name} takes not'
    raise wrong(f'type log:LOW:HIGH (positive) or uniform:LOW:HIGH of {what}, LOW < HIGH; or values')
  parsed: dict[Any, str] = {}
  for value in given.split(';' if ';' in given else ','):
    meaning = getattr(command_line.parse(type(base), [f'--{name}={value}'], base=base), name)
    if meaning in parsed:
      raise wrong(f'{parsed[meaning]} and {value} are the same value')
    parsed[meaning] = value
  return name, Axis(given, tuple(parsed.values()))


def parse(given: argparse.Namespace, flags: list[str]) -> Sweep:
  """The sweep of a command line.

  Raises:
    UsageError: for an unknown experiment or flag, a wrong axis, a value outside its flag's type, or what does not go
      together.
  """
  module = command_line.experiment(given.name)
  if bool(given.search) != (given.trials is not None) or (given.search and given.trials < 1):
    raise errors.UsageError('--search and the number of settings to draw go together: --trials=20 --search FLAG=RANGE')
  if given.together < 0:
    raise errors.UsageError(f'--together={given.together}: give a number of members (settings × seeds), or 0')
  base, option = command_line.parse(module.Config, flags), '--search' if given.search else '--grid'
  axes: dict[str, Axis] = {}
  for name, axis in (parse_axis(text, base, option) for text in given.search or given.grid):
    if name in axes:
      raise errors.UsageError(f'--{name} is swept twice; give all its values in one axis')
    axes[name] = axis
  split = base.select.removeprefix('-').partition('/')[0]
  if split != 'validation' or split not in base.eval_splits + base.final_splits:
    text = 'a sweep selects by a validation metric that is evaluated, as validation/loss or -validation/accuracy'
    raise errors.UsageError(f'select={base.select}: {text}')
  return Sweep(given.name, base, axes, given.trials or 0, given.storage, given.together)


def check(sweep: Sweep) -> dict[str, Any]:
  """Looks at every program that a grid needs, at the ends of each range, and at every value; compiles nothing.

  Returns:
    The `fingerprint.of` the data of the first.

  Raises:
    UsageError: for a value that no run can have, a metric that there is not, or --together of what cannot be traced.
  """
  module, first = command_line.experiment(sweep.experiment), {name: axis.values[0] for name, axis in sweep.axes.items()}
  fixed = [name for name in sweep.axes if name not in sweep.traced]
  looks = product(sweep, fixed)
  if sweep.trials:  # one axis at a time
    looks = [{}, *({name: text} for name in fixed for text in sweep.axes[name].values[1:])]
    if sweep.settings_together > 1 and fixed:
      why = f'values of --{fixed[0]} change the program itself'
      raise errors.UsageError(f'--together={sweep.together}: {why}; without it each setting is a program of its own')
  for number, look in enumerate(looks):
    with _named(first | look):
      program, data, resolved = loop.prepare(module, sweep.config(first | look))
    if number == 0:
      _check_metric(sweep, program, data, resolved)
      read = fingerprint.of(data)
    for one in ({name: text} for name in sweep.traced for text in sweep.axes[name].values[1:]):
      with _named(look | one):
        changed = dataclasses.replace(resolved, **{name: getattr(sweep.config(one), name) for name in one})
        options.check(changed)
        module.program(changed, data)
  return read


@contextlib.contextmanager
def _named(setting: Setting):
  """UsageErrors within name the setting."""
  try:
    yield
  except errors.UsageError as error:
    flags = ' '.join(f'--{name}={text}' for name, text in setting.items())
    raise errors.UsageError(f'{flags}: {error}') from None


def _check_metric(sweep: Sweep, program, data, resolved) -> None:
  """Raises UsageError where the evaluation gives no such metric as --select names."""
  if 'validation' not in data.splits:
    raise errors.UsageError(f'select={sweep.base.select}: there is no validation split; give --validation=0.1')
  here = dataclasses.replace(resolved, seeds=1, parallel='none', mesh='', topology='')
  names = prepare.measured(Runner(program, data, here), [sweep.metric])
  prepare.refuse_select(sweep.base, [name for name in names if name.startswith('validation/')])


# ---- its programs ----


def product(sweep: Sweep, names: list[str]) -> list[Setting]:
  """Every combination of the values of some axes."""
  return [dict(zip(names, texts)) for texts in itertools.product(*(sweep.axes[name].values for name in names))]


def parts(sweep: Sweep) -> list[list[Setting]]:
  """The settings of a grid, by the program that they share."""
  every, programs = product(sweep, list(sweep.axes)), {}
  for setting in every:
    programs.setdefault(tuple(x for name, x in setting.items() if name not in sweep.traced), []).append(setting)
  size = sweep.settings_together if sweep.together else len(every)
  return [settings[i : i + size] for settings in programs.values() for i in range(0, len(settings), size)]


def lines(sweep: Sweep) -> list[str]:
  """What is said to the reader before a sweep."""
  seeds, together = sweep.base.seeds, sweep.settings_together
  if sweep.trials:
    each = [f'{seeds} seeds'] * (seeds > 1) + [f'{together} settings'] * (together > 1)
    shared = f', {" of ".join(each)} in one program' if each else ''
    drawn = ', '.join(f'{name} from {axis.text}' for name, axis in sweep.axes.items())
    return [f'search: {sweep.trials} settings of {sweep.experiment}{shared}: {drawn}']
  programs, vmapped = parts(sweep), [*sweep.traced, *['seeds'] * (seeds > 1)]
  each, s = f' × {seeds} seeds' * (seeds > 1), 's' * (len(programs) > 1)
  text = f'sweep: {sum(map(len, programs))} settings{each} of {sweep.experiment}, in {len(programs)} program{s}'
  fixed = [name for name, axis in sweep.axes.items() if name not in sweep.traced and len(axis.values) > 1]
  about = [f'vmapped, in one program: {", ".join(vmapped)}'] if vmapped else []
  about += [f'one program each, as they change the program itself: {", ".join(fixed)}'] if fixed else []
  return [text, *about]


def refuse_changes(folder: Path, sweep: Sweep) -> dict[str, Any]:
  """What the sweep in a folder was asked when it began, if with data at another place; now, in a fresh folder.

  Raises:
    UsageError: naming what has changed, where the folder holds a run or another sweep.
  """
  if config.saved(folder):
    raise errors.UsageError(f'{folder} holds a run, not a sweep; choose another --workdir')
  path, now = folder / 'sweep.json', writers.plain(sweep.asks)
  if not path.exists():
    run_dir.refuse_foreign(folder)
    return now
  try:
    old = json.loads(path.read_text())['asks']
  except (OSError, ValueError, LookupError) as error:
    raise errors.UsageError(f'{path} cannot be read: {error}') from None
  moved = lambda name, x, y: name == '--dataset' and x and y and run_dir.elsewhere(folder, x, y)
  different = [n for n in old | now if old.get(n) != now.get(n) and not moved(n, old.get(n), now.get(n))]
  changed = [f'{n} was {old.get(n)}, now {now.get(n)}' for n in different]
  if changed:
    what = '; '.join(changed)
    raise errors.UsageError(f'{folder} holds another sweep: {what}. Ask the same, or give another --workdir')
  return old
