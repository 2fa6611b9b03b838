"""A Config <-> absl flags. Flags exist only here, at the edge: what is traced never reads one."""

import dataclasses
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from karpjax import config as configs
from karpjax import options, paths
from karpjax.errors import CallbackError, Diverged, UsageError, choose, nearest
from karpjax.train import hosts, loop, run_dir, runtime

# What other programs call flags of ours.
OTHER_NAMES = {'lr': 'learning_rate', 'epochs': 'steps=10epochs', 'batch': 'batch_size', 'optimizer': 'optimiser'}
# The flags of `config.Train` that a short --help shows.
COMMON = (
  'steps', 'seed', 'seeds', 'workdir', 'init_from', 'parallel', 'dtype', 'eval_every', 'select', 'batch_size', 'data_dir',
  'validation', 'optimiser', 'learning_rate', 'schedule', 'warmup', 'weight_decay', 'clip',
)  # fmt: skip
TYPES = {int: 'int', float: 'number', str: 'text', bool: 'bool', configs.Duration: 'duration'}  # as --help says them


class _Parser(flags.ArgumentParser):
  """absl's interface: texts, and defaults, to values of a field's type."""

  def __init__(self, field):
    (self.plain, self.several), meta = options.element(field.type), configs.metadata(field)
    self.choices, self.own = meta['choices'], meta['own']

  def parse(self, argument):
    if not self.several:
      return self._value(argument)
    items = argument.split(',') if isinstance(argument, str) else argument
    return tuple(self._value(item) for item in items if item != '')

  def _value(self, text):
    try:
      value = self.plain(text)
    except ValueError:
      raise ValueError(f'a {"whole " if self.plain is int else ""}number is needed') from None
    if self.choices and value not in self.choices and not (self.own and options.is_own(value)):
      own = ', or package.module:Class,' if self.own else ''
      raise ValueError(f'one of {", ".join(map(str, self.choices))}{own} is needed')
    return value

  def flag_type(self):
    return TYPES[self.plain] + ',…' * self.several


def flag_values(config_class) -> flags.FlagValues:
  """The flags of a Config, in a FlagValues of their own: two experiments can live in one process."""
  values = flags.FlagValues()
  for field in dataclasses.fields(config_class):
    help_text = configs.metadata(field)['help']
    if options.element(field.type) == (bool, False):
      flags.DEFINE_boolean(field.name, field.default, help_text, flag_values=values)
    else:
      flags.DEFINE(_Parser(field), field.name, field.default, help_text, flag_values=values)
  return values


def typed(argv: Sequence[str], flag: str) -> str:
  """What is typed for a flag, which may be one that a model of one's own adds to; '' for none."""
  values = [x.partition('=')[2] for x in argv if x.lstrip('-').startswith(f'{flag}=')]
  return values[-1] if values else ''


def asks_help(argv: Sequence[str]) -> bool:
  """Whether help is asked for, of all flags, of one or of the usual ones."""
  known = {'--help', '-h', '-help', '--helpfull', '--helpshort'}
  return any(x.partition('=')[0] in known for x in argv)


def parse(config_class, argv: Sequence[str], *, base=None):
  """The Config that the flags of `argv` (without the program's name) give; others keep `base`'s values.

  A model of one's own adds flags: the Config then is of a class that inherits from the one given.

  Raises:
    UsageError: an unknown flag (the nearest is offered), a value that is not of the flag's type, or a stray argument.
  """
  config_class = options.with_model(config_class, typed(argv, 'model') or getattr(base, 'model', ''))
  values = flag_values(config_class)
  try:
    rest = values(['', *argv])[1:]
  except flags.UnrecognizedFlagError as error:
    name, other = error.flagname, OTHER_NAMES.get(error.flagname)
    names = ['--help', *(f'--{field.name}' for field in dataclasses.fields(config_class))]
    near = f' Did you mean --{other}?' if other else nearest(f'--{name}', names, ' --help shows the flags.')
    raise UsageError(f'unknown flag --{name}.{near}') from None
  except flags.Error as error:
    raise UsageError(' '.join(str(error).split())) from None
  except OSError as error:
    raise UsageError(f'the flagfile cannot be read: {error}') from None
  if rest:
    raise UsageError(f'stray argument {rest[0]!r}: flags are typed --name=value')
  given = {name: values[name].value for name in values if values[name].present}
  parsed = dataclasses.replace(base or config_class(), **given)
  options.expand_paths(parsed)
  return parsed


def usage(config_class, name: str, description: str, which: str = '') -> str:
  """The text of `--help`: the experiment's own flags, its model's and the common ones, with type, default and help.

  Args:
    which: '' for these, 'all' for every flag, or the name of one.

  Raises:
    UsageError: for a name that is no flag's.
  """
  fields = {field.name: field for field in dataclasses.fields(config_class)}
  if which not in ('', 'all'):
    return '\n'.join(flag_lines([choose('flag', which.lstrip('-'), fields)]))
  lines = [description.strip(), '', f'usage: python launch.py {name} [--flag=value …] [--flagfile=FILE]']
  groups: dict[str, list] = {name: [] for name in ('Experiment', 'Model', 'Run', 'Hosts', 'Data', 'Optimiser')}
  train = {field.name for field in dataclasses.fields(configs.Train)}
  for field in fields.values():
    if which or field.name in COMMON or field.name not in train:
      groups.setdefault(configs.metadata(field)['group'], []).append(field)
  for group, own in groups.items():
    lines += ['', f'{group}:', *flag_lines(own)] if own else []
  return '\n'.join([*lines, *([] if which else ['', '--help=all shows every flag, --help=FLAG one of them.'])])


def flag_lines(fields: Iterable[dataclasses.Field]) -> list[str]:
  """Each flag's name, type and default, and under them its help."""
  lines = []
  for field in fields:
    meta = configs.metadata(field)
    of_models, choices = meta['of_models'] or {'': field.default}, meta['choices']
    default = meta['means'] if of_models[''] is None else options.text(of_models[''])
    default += ''.join(f'; {model} {options.text(own)}' for model, own in of_models.items() if model)
    kind = '|'.join(map(str, choices)) if choices else _Parser(field).flag_type()
    lines.append(f'  --{field.name}={kind}' + (f' (default {default})' if default else ''))
    wrap = dict(initial_indent=' ' * 6, subsequent_indent=' ' * 6, break_on_hyphens=False)
    lines += textwrap.wrap(meta['help'], 110, **wrap)
  return lines


def experiment(name: str):
  """The module of an experiment.

  Raises:
    UsageError: where there is none of this name, or it lacks what an experiment has.
  """
  import experiments

  files = [path for folder in experiments.__path__ for path in Path(folder).glob('[a-z]*.py')]
  choose('experiment', name, {path.stem: path for path in files})
  return complete(options.imported(f'experiments.{name}'))


def by_name(name: str, argv: Sequence[str]) -> int:
  """As `main`, of the experiment of this name."""
  try:
    found = experiment(name)
  except UsageError as error:
    return refuse(name, error)
  return main(found, argv)


def complete(module):
  """The same module; raises UsageError where it lacks what an experiment has."""
  for part in ('Config', 'data', 'program'):
    if not hasattr(module, part):
      name = loop.name_of(module)
      raise UsageError(f'{name} has no {part}: an experiment is Config, data(config) and program(config, data)')
  check_config(module.Config)
  if not isinstance(getattr(module, 'verbs', {}), Mapping):
    raise UsageError('verbs is no dict: write verbs = {NAME: Verb, …}')
  return module


def check_config(config_class) -> None:
  """Refuses a Config of which flags cannot be made; annotations that are texts are looked up."""
  own = isinstance(config_class, type) and issubclass(config_class, configs.Train)
  if not own or '__dataclass_fields__' not in vars(config_class):
    raise UsageError(
      'Config must inherit from config.Train, below @dataclasses.dataclass(frozen=True) or @config.defaults()'
    )
  inherited = {field.name: options.element(field.type) for field in dataclasses.fields(configs.Train)}
  fields = dataclasses.fields(config_class)
  types = typing.get_type_hints(config_class) if any(isinstance(field.type, str) for field in fields) else {}
  for field in fields:
    field.type = types.get(field.name, field.type)
    kind = options.element(field.type)
    if kind[0] not in TYPES:
      kinds = 'bool, int, float, str or config.Duration, tuple[int, …] and the like, or one of these | None'
      raise UsageError(f'Config.{field.name} is of no kind that a flag has: {kinds}')
    if inherited.get(field.name, kind) != kind:
      raise UsageError(f'Config.{field.name} has the name of a flag that every experiment has; call it otherwise')


def flagged(text: object, config_class) -> str:
  """A message in which arguments of a Config, such as `steps=0`, read as the flags that they are: `--steps=0`.

  Not behind `--grid` and `--search`, where they are typed without.
  """
  names = '|'.join(field.name for field in dataclasses.fields(config_class))
  return re.sub(rf'(?<![\w-])(?<!--grid )(?<!--search )({names})=', r'--\1=', str(text))


def refuse(name: str, error: UsageError, config_class=configs.Train) -> int:
  """Prints bad input as one line, arguments as the flags that they are; the exit code."""
  print(f'{name}: {flagged(error, config_class)}', file=sys.stderr)
  return 2


def main(experiment, argv: Sequence[str]) -> int:
  """The command line of one experiment: parse, run, and turn errors of use into one line and exit code 2.

  A workdir that holds a run lends its flags, so `--workdir=DIR` alone goes on with it.
  """
  name, config_class = loop.name_of(experiment), configs.Train
  try:
    config_class = complete(experiment).Config
    config_class = options.with_model(config_class, typed(argv, 'model'))
    if asks_help(argv):
      which = typed(argv, 'help') or ('all' if '--helpfull' in argv else '')
      print(usage(config_class, name, experiment.__doc__ or name, which))
      return 0
    workdir, base = typed(argv, 'workdir') or (typed(argv, 'flagfile') and parse(config_class, argv).workdir), None
    workdir = paths.expand(workdir)
    if workdir and configs.saved(workdir) is not None:
      # which processes train together is asked anew each time
      anew = {f.name for f in dataclasses.fields(config_class) if configs.metadata(f)['group'] == 'Hosts'}
      lent = {n: x for n, x in run_dir.stored(workdir, name)['flags'].items() if n not in anew}
      base = configs.from_json(config_class, lent)
    config = parse(config_class, argv, base=base)
    config_class = type(config)
    runtime.set_up(config.threads, config.parallel, config.compilation_cache, config.deterministic)
    hosts.start(config)
    loop.run(experiment, config)
  except UsageError as error:
    return refuse(name, error, config_class)
  except (Diverged, CallbackError) as error:
    print(f'{name}: {error}', file=sys.stderr)
    return 1
  return 0
