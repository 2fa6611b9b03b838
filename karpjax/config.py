"""What a run is told: a frozen dataclass per experiment, each field of which is a flag, and its form in JSON."""

import dataclasses
import functools
import json
import re
import typing
from pathlib import Path

from karpjax import model_defaults, optim, options
from karpjax.durations import MOST_STEPS, Duration, in_steps, step_range
from karpjax.errors import UsageError
from karpjax.lean import flags, privacy
from karpjax.train import mesh as meshes

SPLITS = ('train', 'validation', 'test')
EVALUATED = (*SPLITS, 'compositional')  # of scenes, see `data.scenes`
LAST_SEED = 2**32 - 1  # of JAX's keys: a larger number would draw as another one does


def flag(default, help='', *, group='Experiment', **ranges):
  """A field of a Config, and so a flag: see `options.option`, whose default group is another."""
  return options.option(default, help, group=group, **ranges)


def seed_flag(help: str, **others):
  """A flag that is the seed of JAX's draws."""
  return flag(0, help, low=0, high=LAST_SEED, **others)


run_flag = functools.partial(flag, group='Run')
free_flag = functools.partial(flag, group='Run', may_change=True)  # may differ when a run goes on
host_flag = functools.partial(flag, group='Hosts', may_change=True)
data_flag = functools.partial(flag, group='Data')
optimiser_flag = functools.partial(flag, group='Optimiser')
model_flags = options.model_flags
defaults, metadata, settled = model_defaults.defaults, model_defaults.metadata, model_defaults.settled


@dataclasses.dataclass(frozen=True)
class Train(flags.Flags):
  """What every experiment has. Durations: 2000 (steps), 10epochs, 50000examples or, of a run, 5%."""

  steps: Duration = run_flag('10epochs', 'How long to train.')
  seed: int = seed_flag('The seed of parameters, data order, augmentation and dropout.', group='Run')
  seeds: int = run_flag(1, 'Train this many seeds (seed, seed + 1, …) in one program.', low=1)
  workdir: str = free_flag('', "The run's folder, where it goes on. Default: runs/EXPERIMENT/DATE-TIME.", path=True)
  init_from: str = run_flag(
    '', 'Start from the weights of another run (its workdir) or of a FILE.safetensors.', path=True
  )
  parallel: str = free_flag(
    'none',
    'How a step is spread over devices: pmap over those of this host; data, fsdp (parameters cut as well) or tensor '
    'over a mesh of all of them, of all hosts; seeds: each device (on a CPU: each core) trains some of the seeds.',
    choices=('none', 'pmap', 'seeds', *meshes.AXES),
  )
  mesh: str = free_flag('', 'Or a mesh of several axes: data:4,fsdp:2,tensor:1.')
  steps_per_call: str = run_flag(
    'auto', 'Steps in one call of the compiled program at the most; auto: many of small ones.'
  )
  microbatches: int = run_flag(1, 'Gradient-accumulation steps per batch.', low=1)
  dtype: str = run_flag(
    'float32', 'The dtype of computation; parameters, norms and losses stay float32.', choices=('float32', 'bfloat16')
  )
  threads: int = run_flag(0, 'CPU threads per operation (0: all cores); 1 can be faster for tiny steps.', low=0)
  compilation_cache: str = free_flag(
    '', 'Folder of compiled programs, or off. Default: ~/.cache/karpjax/compiled.', path=True
  )
  compile_only: bool = free_flag(False, 'Compile the step, say what it costs and what devices hold, and stop.')
  topology: str = free_flag('', 'Compile only, for TPUs that are not there, as v5e:4x4; needs requirements-tpu.txt.')
  profile: str = free_flag('', 'FIRST:LAST traces these steps, for TensorBoard or Perfetto.')
  distributed: bool = host_flag(False, 'Train with other processes that JAX finds: TPU pods, Slurm, Kubernetes.')
  coordinator: str = host_flag('', 'HOST:PORT of process 0, where JAX cannot find it.')
  num_processes: int | None = host_flag(None, 'How many processes train together.', low=1)
  process_id: int | None = host_flag(None, 'Which of them this is, from 0.', low=0)
  start_timeout: int = host_flag(120, 'Seconds to wait for the other processes.', low=1)
  deterministic: bool = run_flag(False, 'On GPUs: only deterministic operations, so that resumes are exact to the bit.')
  log_every: Duration = free_flag('100', 'A row of training metrics this often.')
  eval_every: Duration = free_flag(
    'auto', 'Evaluate this often; 0: at the end only; auto: each epoch, 20 times at most.'
  )
  checkpoint_every: Duration = free_flag('auto', 'Save this often; 0: at the end and when stopped; auto: as above.')
  checkpoint_seconds: float = free_flag(
    2.0, 'Save once in so many seconds at the most, and at the end; 0: as often as is due.', low=0
  )
  report_every: Duration = free_flag('0', "Draw the experiment's plots this often; 0: at the end only.")
  select: str = run_flag('validation/loss', 'The metric whose least value is the best; -NAME for the largest.')
  keep: int = free_flag(2, 'How many of the last checkpoints to keep, beside the best.', low=1)
  eval_splits: tuple[str, ...] = free_flag(('validation',), 'Splits evaluated while training.', choices=EVALUATED)
  final_splits: tuple[str, ...] = free_flag(SPLITS[1:], 'Splits evaluated once, at the end.', choices=EVALUATED)
  eval_batch_size: int = free_flag(500, 'Examples in one call of the evaluation.', low=1)
  plots: bool = free_flag(True, 'Draw plots/ at the end.')
  tensorboard: bool = free_flag(True, 'Write tensorboard/ (scalars, text, plots).')
  wandb: str = free_flag('off', 'Log to Weights & Biases.', choices=('off', 'offline', 'online'))

  batch_size: int = data_flag(128, 'Examples in one step, over all devices; 0: the whole train split.', low=0)
  data_dir: str = data_flag(
    '', 'Folder of published files and of sets of TFDS. Default: ~/tensorflow_datasets.', may_change=True, path=True
  )
  validation: float = data_flag(
    0.1, 'Fraction (below 1) or number of training examples held out where the set has no validation split.', low=0
  )
  split_seed: int = data_flag(
    0, "The seed of the splits that are drawn: validation, and a folder's test.", low=0, high=2**64 - 1
  )
  order: str = data_flag(
    'reshuffle',
    'Examples in a new order each epoch, in one shuffled order, as stored, or as streams: each place of a batch goes on '
    'where it was in the batch before; bucketed: batches of similar lengths, in a new order each epoch; poisson: each example '
    'in a batch by chance, batch_size of them in the mean, for private training.',
    choices=('reshuffle', 'shuffle', 'stored', 'streams', 'bucketed', 'poisson'),
  )
  resident_mb: int = data_flag(2048, 'Sets up to this size live on the device; larger ones are streamed.', low=0)
  workers: int = data_flag(0, 'Processes that decode streamed examples; 0: threads.', low=0, may_change=True)

  optimiser: str = optimiser_flag('adam', 'The update rule.', choices=optim.OPTIMISERS)
  learning_rate: float = optimiser_flag(1e-3, 'The peak of the schedule.', above=0)
  schedule: str = optimiser_flag('constant', 'How the learning rate changes.', choices=optim.SCHEDULES)
  warmup: Duration = optimiser_flag('0', 'Linear warm-up; its first step takes 1 / (warmup + 1) of the rate.')
  final_learning_rate: float = optimiser_flag(0.0, 'The last rate of the linear and cosine schedules.', low=0)
  boundaries: tuple[Duration, ...] = optimiser_flag((), 'When the step schedule decays, as 100epochs,150epochs.')
  decay: float = optimiser_flag(0.1, 'The factor of the step and exponential schedules.', low=0)
  decay_every: Duration = optimiser_flag('1epochs', 'How often the exponential schedule decays.')
  momentum: float | None = optimiser_flag(None, "Momentum; the optimiser's own if not given.", low=0, below=1)
  beta1: float | None = optimiser_flag(None, 'First-moment decay of adam, adamw, lion and muon.', low=0, below=1)
  beta2: float | None = optimiser_flag(None, 'Decay of second moments (adam …, rmsprop, adadelta).', low=0, below=1)
  epsilon: float | None = optimiser_flag(None, 'Added to the denominators of the adaptive optimisers.', low=0)
  weight_decay: float = optimiser_flag(
    0.0, 'Weight decay, which spares biases and norms: decoupled for adamw, lion and muon, else L2.', low=0
  )
  decay_all: bool = optimiser_flag(False, "Weight decay takes biases and norms too, as PyTorch's optimisers do.")
  clip: float = optimiser_flag(0.0, 'Largest global norm of the gradient; 0: no clipping.', low=0)
  clip_values: float = optimiser_flag(0.0, 'Largest absolute value of a number of the gradient; 0: no clipping.', low=0)
  freeze: tuple[str, ...] = optimiser_flag(
    (), 'Parameters that stay as they are: names or patterns, as conv1,block*, or trunk: all but the last layer.'
  )
  layer_decay: float = optimiser_flag(
    1.0, 'Each layer learns so much more slowly than the one behind it, as 0.75.', above=0, high=1
  )
  head_learning_rate: float = optimiser_flag(
    1.0, 'The rate of the last layer, as a multiple of learning_rate.', above=0
  )
  ema: float = optimiser_flag(
    0.0,
    'Decay of running averages of parameters and of batch-norm statistics, which are evaluated; 0: none.',
    low=0,
    below=1,
  )

  def __post_init__(self):
    options.expand_paths(self)

  def environment_steps(self) -> int:
    """How many steps of environments a step makes, of all of them together; 0 where there are none, or no fixed number."""
    return 0

  def model_options(self) -> dict[str, typing.Any]:
    """{option: value} of an experiment's flags of the group Model; None leaves the model's own default."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if metadata(f)['group'] == 'Model'}


def watched(config, read: set[str]):
  """The same config, which notes in `read` the names of the flags that it is asked for, but for those `replace` takes over."""
  plain, before, first = type(config), set(read), set(read)

  def getattribute(self, name):
    if name == '__dataclass_fields__':  # of `dataclasses.replace`, which then reads all, and makes another
      before.clear()
      before.update(read)
    read.add(name)
    return plain.__getattribute__(self, name)

  def post_init(self):
    kept = set(before)
    plain.__post_init__(self)
    read.intersection_update(kept)

  methods = {'__getattribute__': getattribute, '__post_init__': post_init, '__module__': plain.__module__}
  kind = type(plain.__name__, (plain,), methods)
  same = kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
  read.intersection_update(first)  # without what making it has read
  return same


def unread(config, examples: int, read: set[str]) -> list[str]:
  """The flags that were given and that nothing has read, or that are of another schedule: accepted, they would mislead.

  Looked at are the experiment's own, the optimiser's (all or none of which are read), `flags.Flags`, and those of every
  experiment that only a program can heed, or its data: `workers` where sets may be streamed. Not those of logging and
  reports, which may change.
  """
  own = {f.name for f in dataclasses.fields(config)} - {f.name for f in dataclasses.fields(Train)}
  own -= {f.name for f in dataclasses.fields(config) if metadata(f)['may_change']}
  rule = {f.name for f in dataclasses.fields(config) if metadata(f)['group'] == 'Optimiser'} - {'ema', 'clip'}
  leans = {f.name for f in dataclasses.fields(flags.Flags)}
  data = {'data_dir', 'validation', 'split_seed', 'resident_mb', *(() if 'resident_mb' in read else ('workers',))}
  names = ({'dtype', 'microbatches', 'ema'} | data | own | leans | (set() if 'optimiser' in read else rule)) - read
  names |= {name for flags in optim.SCHEDULES.values() for name in flags} - {*optim.SCHEDULES[config.schedule]}
  return [name for name in changed(config, examples) if name in names]


# ---- resolved ----


def resolve(config, examples: int):
  """The same config with every duration in steps and its model's own defaults, its numbers checked.

  Args:
    config: a Train, or a dataclass with its fields.
    examples: size of the train split.

  Raises:
    UsageError: naming the flag, for a value that no run can have.
  """
  config = settled(config)
  if config.batch_size == 0:
    config = dataclasses.replace(config, batch_size=examples)
  options.check(config)
  if config.batch_size > examples:
    raise UsageError(
      f'batch_size={config.batch_size} is larger than the train split of {examples} examples; 0 takes all of it'
    )
  if config.batch_size % config.microbatches:
    raise UsageError(f'microbatches={config.microbatches} does not divide batch_size={config.batch_size}')
  if config.steps_per_call != 'auto' and not (
    re.fullmatch('[0-9]+', config.steps_per_call) and 1 <= int(config.steps_per_call) <= MOST_STEPS
  ):
    raise UsageError(f'steps_per_call={config.steps_per_call}: auto, or a number from 1 to {MOST_STEPS}, is needed')

  step_range(config.profile)
  sizes = {'batch_size': config.batch_size, 'examples': examples}
  steps_of = functools.partial(in_steps, **sizes, environment_steps=config.environment_steps)
  steps = steps_of(config.steps)
  if steps < 1:
    raise UsageError(f'steps={config.steps}: at least one step is needed')
  if steps > MOST_STEPS:
    raise UsageError(f'steps={config.steps}: at most {MOST_STEPS} steps can be counted')
  durations = [field.name for field in dataclasses.fields(config) if field.type is Duration and field.name != 'steps']
  changes = {'steps': steps, **{name: steps_of(getattr(config, name), name=name, run=steps) for name in durations}}
  changes['boundaries'] = tuple(steps_of(x, name='boundaries', run=steps) for x in config.boundaries)
  return dataclasses.replace(config, **changes, dp_noise=_noise(config, steps, examples))


def _noise(config, steps: int, examples: int) -> float:
  """The noise of private training: that given, or that which keeps dp_epsilon."""
  if not config.dp_epsilon:
    return config.dp_noise
  noise = privacy.least_noise(config.dp_epsilon, config.batch_size / examples, steps, config.dp_delta)
  if config.dp_noise not in (0, noise):
    text = f'dp_epsilon={config.dp_epsilon:g} over {steps:,} steps is dp_noise={noise:g}'
    raise UsageError(f'{text}, not {config.dp_noise:g}; give one of them alone')
  return noise


# ---- flags and JSON ----


def changed(config, examples: int = 0) -> dict[str, typing.Any]:
  """{flag: value} of those that differ from their defaults, but for the workdir.

  Args:
    examples: size of the train split, where the config is resolved: defaults then are compared in steps as well.
  """
  config, plain, values = settled(config), type(config)(), {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    default = model_defaults.of(config, field) if metadata(field).get('of_models') else getattr(plain, field.name)
    if examples and field.type is Duration:
      default = in_steps(default, batch_size=config.batch_size, examples=examples, run=config.steps)
    if value != default and field.name != 'workdir':
      values[field.name] = value
  return values


def as_flags(config) -> list[str]:
  """The flags that give this config, but for its workdir: those that differ from their defaults."""
  return options.as_flags(changed(config))


def to_json(config) -> dict:
  """The same in what JSON holds: of a Config, or of {flag: value}."""
  return json.loads(json.dumps(config if isinstance(config, dict) else dataclasses.asdict(config)))


def from_json(config_class, values: dict):
  """The Config that `to_json` gave; fields it does not know are left at their defaults."""
  config_class = options.with_model(config_class, values.get('model'))
  known = {field.name for field in dataclasses.fields(config_class)}
  return config_class(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n in known})


def saved(workdir: str | Path) -> dict | None:
  """The config.json of a workdir, or None."""
  path = Path(workdir) / 'config.json'
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise UsageError(f'{path} cannot be read: {error}') from None
