"""A frozen dataclass per experiment <-> absl flags. Flags exist only here, at the edge: what is traced never reads one."""

import dataclasses
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from karpjax import hosts, optim, start_up
from karpjax import mesh as meshes
from karpjax.errors import Diverged, UsageError

Duration = typing.NewType('Duration', str)  # '2000', '10epochs' or '50000examples'; an int once resolved


def flag(default, help, *, group='Experiment', free=False, choices=None):
  """A field of a Config, and so a flag.

  Args:
    default: its default value; the field's annotation is its type.
    help: one or two sentences for `--help`.
    group: the heading under which `--help` shows it.
    free: whether a run may go on in its workdir with another value (logging, paths, layout).
    choices: the values it may take, or None for any.
  """
  metadata = {'help': help, 'group': group, 'free': free, 'choices': tuple(choices) if choices else None}
  return dataclasses.field(default=default, metadata=metadata)


def run_flag(default, help, group='Run', **options):
  return flag(default, help, group=group, **options)


def data_flag(default, help, **options):
  return flag(default, help, group='Data', **options)


def optimiser_flag(default, help, **options):
  return flag(default, help, group='Optimiser', **options)


@dataclasses.dataclass(frozen=True)
class Train:
  """What every experiment has. Durations are in steps, epochs or examples: 2000, 10epochs, 50000examples."""

  steps: Duration = run_flag('10epochs', 'How long to train.')
  seed: int = run_flag(0, 'Of parameters, data order, augmentation and dropout.')
  seeds: int = run_flag(1, 'Train this many seeds (seed, seed + 1, …) in one program.')
  workdir: str = run_flag(
    '', 'Where the run leaves its files and goes on from. Default: runs/EXPERIMENT/DATE-TIME.', free=True
  )
  init_from: str = run_flag('', 'Start from the weights of another run (its workdir) or of a FILE.safetensors.')
  parallel: str = run_flag(
    'none',
    'How a step is spread over devices: pmap over those of this host; data, fsdp (parameters cut as well) or tensor '
    'over a mesh of all of them, of all hosts; seeds: each device (on a CPU: each core) trains some of the seeds.',
    choices=('none', 'pmap', 'seeds', *meshes.AXES),
    free=True,
  )
  mesh: str = run_flag('', 'Or a mesh of several axes: data:4,fsdp:2,tensor:1.', free=True)
  steps_per_call: str = run_flag(
    'auto', 'Steps in one call of the compiled program: a number, or auto, which measures.'
  )
  microbatches: int = run_flag(1, 'Cut each batch into this many parts, worked off one after the other.')
  dtype: str = run_flag(
    'float32',
    'Of the computation; parameters, norm statistics and losses stay float32.',
    choices=('float32', 'bfloat16'),
  )
  threads: int = run_flag(0, 'Of a CPU, that share an operation; 0: one for each core. 1 can be faster for tiny steps.')
  compilation_cache: str = run_flag(
    '', 'Folder of compiled programs, or off. Default: ~/.cache/karpjax/compiled.', free=True
  )
  compile_only: bool = run_flag(
    False, 'Compile the step, say what it costs and what each device holds, and stop.', free=True
  )
  topology: str = run_flag(
    '', '--compile_only for TPUs that are not there, as v5e:4x4; needs libtpu (requirements-tpu.txt).', free=True
  )
  profile: str = run_flag('', 'FIRST:LAST traces these steps, for TensorBoard or Perfetto.', free=True)
  distributed: bool = run_flag(
    False, 'Train with other processes that JAX finds: TPU pods, Slurm, Kubernetes.', group='Hosts', free=True
  )
  coordinator: str = run_flag('', 'HOST:PORT of process 0, where JAX cannot find it.', group='Hosts', free=True)
  num_processes: int | None = run_flag(None, 'How many processes train together.', group='Hosts', free=True)
  process_id: int | None = run_flag(None, 'Which of them this is, from 0.', group='Hosts', free=True)
  start_timeout: int = run_flag(120, 'Seconds to wait for the other processes.', group='Hosts', free=True)
  deterministic: bool = run_flag(False, 'On GPUs: only deterministic operations, so that resumes are exact to the bit.')
  log_every: Duration = run_flag('100', 'A row of training metrics this often.', free=True)
  eval_every: Duration = run_flag('1epochs', 'Evaluate this often; 0: at the end only.', free=True)
  checkpoint_every: Duration = run_flag('1epochs', 'Save this often; 0: at the end and when stopped.', free=True)
  report_every: Duration = run_flag('0', "Draw the experiment's plots this often; 0: at the end only.", free=True)
  select: str = run_flag(
    'validation/loss', 'The metric whose smallest value marks the best checkpoint; -NAME for the largest.'
  )
  keep: int = run_flag(2, 'How many of the last checkpoints to keep, beside the best.', free=True)
  eval_splits: tuple[str, ...] = run_flag(('validation',), 'Splits evaluated while training.', free=True)
  final_splits: tuple[str, ...] = run_flag(('validation', 'test'), 'Splits evaluated once, at the end.', free=True)
  eval_batch_size: int = run_flag(500, 'Examples in one call of the evaluation.', free=True)
  plots: bool = run_flag(True, 'Draw plots/ at the end.', free=True)
  tensorboard: bool = run_flag(True, 'Write tensorboard/ (scalars, text, plots).', free=True)
  wandb: str = run_flag('off', 'Log to Weights & Biases.', choices=('off', 'offline', 'online'), free=True)

  batch_size: int = data_flag(128, 'Examples in one step, over all devices; 0: the whole train split.')
  data_dir: str = data_flag(
    '',
    'Where prepared TFDS sets, usps.npz and the like are found. Default: ~/tensorflow_datasets.',
    free=True,
  )
  validation: float = data_flag(
    0.1, 'Share (below 1) or number of training examples set aside where the set has no validation split.'
  )
  split_seed: int = data_flag(0, "Of the splits that are drawn: validation, and a folder's test.")
  order: str = data_flag(
    'reshuffle',
    'Examples in a new order each epoch, in one shuffled order, as stored, or as streams: each place of a batch goes on '
    'where it was in the batch before; bucketed: batches of similar lengths, in a new order each epoch.',
    choices=('reshuffle', 'shuffle', 'stored', 'streams', 'bucketed'),
  )
  resident_mb: int = data_flag(2048, 'Sets up to this size live on the device; larger ones stream from the host.')
  workers: int = data_flag(0, 'Processes that decode streamed examples; 0: threads.', free=True)

  optimiser: str = optimiser_flag('adam', 'The update rule.', choices=optim.OPTIMISERS)
  learning_rate: float = optimiser_flag(1e-3, 'The peak of the schedule.')
  schedule: str = optimiser_flag('constant', 'How the learning rate changes.', choices=optim.SCHEDULES)
  warmup: Duration = optimiser_flag('0', 'Linear warm-up; its first step takes 1 / (warmup + 1) of the rate.')
  final_learning_rate: float = optimiser_flag(0.0, 'Where linear and cosine schedules end.')
  boundaries: tuple[Duration, ...] = optimiser_flag(
    (), 'Where the step schedule multiplies by --decay: 100epochs,150epochs.'
  )
  decay: float = optimiser_flag(0.1, 'Factor of the step and exponential schedules.')
  decay_every: Duration = optimiser_flag('1epochs', 'How often the exponential schedule multiplies by --decay.')
  momentum: float | None = optimiser_flag(None, "Of momentum, nesterov and muon; the optimiser's own if not given.")
  beta1: float | None = optimiser_flag(None, 'First-moment decay of adam, adamw, lion and muon.')
  beta2: float | None = optimiser_flag(None, 'Second-moment decay of adam, adamw, lion, muon, rmsprop and adadelta.')
  epsilon: float | None = optimiser_flag(None, 'Added to the denominators of the adaptive optimisers.')
  weight_decay: float = optimiser_flag(0.0, 'Spares biases and norms; decoupled for adamw, lion and muon, else L2.')
  decay_all: bool = optimiser_flag(
    False, "Whether weight decay takes biases and norms too, as PyTorch's optimisers do."
  )
  clip: float = optimiser_flag(0.0, 'Largest global norm of the gradient; 0: no clipping.')
  ema: float = optimiser_flag(0.0, 'Decay of a running average of the parameters, used in evaluation; 0: none.')

  def model_options(self) -> dict[str, typing.Any]:
    """{option: value} of an experiment's flags of the group Model; None leaves the model's own default."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata['group'] == 'Model'}


# ---- durations ----


def in_steps(duration, *, batch_size: int, examples: int, name: str = 'steps') -> int:
  """'2000', '10epochs' or '50000examples' in steps, rounded up.

  Raises:
    UsageError: for anything else, or a negative one.
  """
  match = re.fullmatch(r'(\d+(?:\.\d+)?(?:e\d+)?)\s*(steps?|epochs?|examples?)?', str(duration).strip())
  if not match:
    raise UsageError(
      f'--{name}={duration} is no duration: type steps, epochs or examples, as 2000, 10epochs or 50000examples'
    )
  number, unit = float(match[1]), (match[2] or 'steps').rstrip('s')
  examples_seen = {'step': number * batch_size, 'epoch': number * examples, 'example': number}[unit]
  # Rounded before the ceiling: 0.1 + 0.2 epochs must not become one step more.
  return math.ceil(round(examples_seen / batch_size, 6))


def resolve(config, examples: int):
  """The same config with every duration in steps, its numbers checked.

  Args:
    config: a Train, or a dataclass with its fields.
    examples: size of the train split.

  Raises:
    UsageError: naming the flag, for a value that no run can have.
  """
  if config.batch_size == 0:
    config = dataclasses.replace(config, batch_size=examples)
  for name, low in (
    ('batch_size', 1),
    ('seeds', 1),
    ('microbatches', 1),
    ('keep', 1),
    ('eval_batch_size', 1),
    ('workers', 0),
    ('threads', 0),
    ('resident_mb', 0),
  ):
    if getattr(config, name) < low:
      raise UsageError(f'--{name}={getattr(config, name)}: at least {low} is needed')
  for name in ('validation', 'weight_decay', 'clip', 'ema', 'final_learning_rate', 'decay'):
    value = getattr(config, name)
    if not (math.isfinite(value) and value >= 0):
      raise UsageError(f'--{name}={value}: a finite number, not negative, is needed')
  if not (math.isfinite(config.learning_rate) and config.learning_rate > 0):
    raise UsageError(f'--learning_rate={config.learning_rate}: a positive number is needed')
  if config.ema >= 1:
    raise UsageError(f'--ema={config.ema}: a decay below 1 is needed, as 0.999')
  if config.batch_size > examples:
    raise UsageError(f'--batch_size={config.batch_size} is larger than the train split of {examples} examples')
  if config.batch_size % config.microbatches:
    raise UsageError(f'--microbatches={config.microbatches} does not divide --batch_size={config.batch_size}')
  if config.steps_per_call != 'auto' and not (config.steps_per_call.isdigit() and int(config.steps_per_call) >= 1):
    raise UsageError(f'--steps_per_call={config.steps_per_call}: auto, or a number of at least 1, is needed')

  changes = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.type is Duration:
      changes[field.name] = in_steps(value, batch_size=config.batch_size, examples=examples, name=field.name)
    elif field.type == tuple[Duration, ...]:
      changes[field.name] = tuple(
        in_steps(v, batch_size=config.batch_size, examples=examples, name=field.name) for v in value
      )
  if changes['steps'] < 1:
    raise UsageError(f'--steps={config.steps}: at least one step is needed')
  return dataclasses.replace(config, **changes)


# ---- JSON ----


def to_json(config) -> dict:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(config_class, values: dict):
  """The Config that `to_json` gave; fields it does not know are left at their defaults."""
  known = {field.name: field for field in dataclasses.fields(config_class)}
  return config_class(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in known})


# ---- flags ----


class _Parser(flags.ArgumentParser):
  """absl's interface to `_parse`: strings to values of a field's type."""

  def __init__(self, annotation, choices):
    self.annotation, self.choices = annotation, choices

  def parse(self, argument):
    return _parse(argument, self.annotation, self.choices)

  def flag_type(self):
    return _type_name(self.annotation)


def _parse(argument, annotation, choices=None):
  if typing.get_origin(annotation) is tuple:
    items = argument.split(',') if isinstance(argument, str) else argument
    return tuple(_parse(item, typing.get_args(annotation)[0], choices) for item in items if item != '')
  if isinstance(annotation, types.UnionType):  # `int | None`: None stands for a default that is chosen elsewhere
    return None if argument is None else _parse(argument, typing.get_args(annotation)[0], choices)
  if annotation is Duration:
    return str(argument)
  value = annotation(argument)
  if choices and value not in choices:
    raise ValueError(f'one of {", ".join(map(str, choices))} is needed')
  return value


def _type_name(annotation) -> str:
  if typing.get_origin(annotation) is tuple:
    return f'{_type_name(typing.get_args(annotation)[0])},…'
  if isinstance(annotation, types.UnionType):
    return _type_name(typing.get_args(annotation)[0])
  return {int: 'int', float: 'number', str: 'text', bool: 'bool', Duration: 'duration'}[annotation]


def flag_values(config_class) -> flags.FlagValues:
  """The flags of a Config, in a FlagValues of their own: two experiments can live in one process."""
  values = flags.FlagValues()
  for field in dataclasses.fields(config_class):
    help_text = field.metadata['help']
    if field.type in (bool, bool | None):
      flags.DEFINE_boolean(field.name, field.default, help_text, flag_values=values)
    else:
      parser = _Parser(field.type, field.metadata['choices'])
      flags.DEFINE(parser, field.name, field.default, help_text, flag_values=values)
  return values


def parse(config_class, argv: Sequence[str], *, base=None):
  """The Config that the flags of `argv` (without the program's name) give; others keep `base`'s values.

  Raises:
    UsageError: an unknown flag (the nearest is offered), a value that is not of the flag's type, or a stray argument.
  """
  values = flag_values(config_class)
  try:
    rest = values(['', *argv])[1:]
  except flags.Error as error:
    raise UsageError(' '.join(str(error).split())) from None
  except OSError as error:
    raise UsageError(f'the flagfile cannot be read: {error}') from None
  if rest:
    raise UsageError(f'stray argument {rest[0]!r}: flags are typed --name=value')
  given = {name: values[name].value for name in values if values[name].present}
  return dataclasses.replace(base or config_class(), **given)


def as_flags(config, *, leave_out: Sequence[str] = ()) -> list[str]:
  """The flags that give this config: those that differ from their defaults."""
  lines = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if value != field.default and field.name not in leave_out:
      text = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
      lines.append(f'--{field.name}={text}')
  return lines


def usage(config_class, name: str, description: str) -> str:
  """The text of `--help`: every flag with type, default and help, grouped."""
  lines = [description.strip(), '', f'usage: python launch.py {name} [--flag=value …] [--flagfile=FILE]']
  fields = dataclasses.fields(config_class)
  groups = sorted(
    {f.metadata['group'] for f in fields},
    key=lambda g: (g != 'Experiment', [f.metadata['group'] for f in fields].index(g)),
  )
  for group in groups:
    lines += ['', f'{group}:']
    for field in (f for f in fields if f.metadata['group'] == group):
      default = ','.join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
      choices = field.metadata['choices']
      kind = '|'.join(map(str, choices)) if choices else _type_name(field.type)
      shown = f' (default {default})' if default not in ('', None) else ''
      lines += [f'  --{field.name}={kind}{shown}', f'      {field.metadata["help"]}']
  return '\n'.join(lines)


def saved(workdir: str | Path) -> dict | None:
  """The config.json of a workdir, or None."""
  path = Path(workdir) / 'config.json'
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise UsageError(f'{path} cannot be read: {error}') from None


def main(run: Callable, config_class, argv: Sequence[str] | None = None) -> int:
  """The command line of one experiment: parse, run, and turn errors of use into one line and exit code 2.

  A workdir that holds a run lends its flags, so `--workdir=DIR` alone goes on with it.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  module = sys.modules[run.__module__]
  name = Path(module.__file__).stem
  if {'--help', '-h', '-help', '--helpfull', '--helpshort'} & set(argv):
    print(usage(config_class, name, module.__doc__))
    return 0
  try:
    config = parse(config_class, argv)
    stored = saved(config.workdir) if config.workdir else None
    if stored:
      if stored['experiment'] != name:
        raise UsageError(
          f'{config.workdir} holds a run of {stored["experiment"]}, not of {name}; choose another --workdir'
        )
      # which processes train together is asked anew each time
      lent = {f.name: stored['flags'].get(f.name, f.default) for f in dataclasses.fields(config_class)}
      lent |= {f.name: f.default for f in dataclasses.fields(config_class) if f.metadata['group'] == 'Hosts'}
      config = parse(config_class, argv, base=from_json(config_class, lent))
    start_up.process(config)
    hosts.start(config)
    run(config)
  except UsageError as error:
    print(f'{name}: {error}', file=sys.stderr)
    return 2
  except Diverged as error:
    print(f'{name}: {error}', file=sys.stderr)
    return 1
  return 0
