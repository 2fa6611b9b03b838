"""What a run is told: a frozen dataclass per experiment, each field of which is a flag, and its form in JSON."""

import dataclasses
import json
import math
import re
import typing
from pathlib import Path

from karpjax import mesh as meshes
from karpjax import optim
from karpjax.errors import UsageError

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


def saved(workdir: str | Path) -> dict | None:
  """The config.json of a workdir, or None."""
  path = Path(workdir) / 'config.json'
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise UsageError(f'{path} cannot be read: {error}') from None
