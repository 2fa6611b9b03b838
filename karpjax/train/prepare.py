"""Before the first step: an experiment's Program and data, checked; the state that training begins with; what is compiled."""

import dataclasses
import gc
import importlib
from concurrent import futures
from typing import Any

from karpjax import config as configs
from karpjax import fine_tuning, options
from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError, nearest, refuse_too_large
from karpjax.lean import quantisation, structure
from karpjax.program import Program, evaluated_names
from karpjax.report.tables import table
from karpjax.train import masks, private, weights
from karpjax.train.runner import Runner


def name_of(experiment) -> str:
  """An experiment's name: its module's."""
  return experiment.__name__.rpartition('.')[2]


def read_data(experiment, config) -> Dataset:
  """The data of an experiment, and the files that they were read from."""
  with fingerprint.noted() as files:
    data = experiment.data(config)
  if not isinstance(data, Dataset):
    raise UsageError(f'data(config) must give a Dataset, not {type(data).__name__}')
  return dataclasses.replace(data, files=fingerprint.described(files))


@refuse_too_large()
def prepare(experiment, config) -> tuple[Program, Dataset, Any]:
  """(program, data, config with durations in steps) of an experiment, all checked; compiled is at most a trial of `structure`."""
  config = configs.settled(config)
  options.check(config)
  read = set()
  data = read_data(experiment, configs.watched(config, read))
  if any(split.arrays is None for split in data.splits.values()):
    read.add('workers')
  config = configs.resolve(config, data.spec.examples)
  program = experiment.program(configs.watched(config, read), data)
  if not isinstance(program, Program):
    raise UsageError(f'program(config, data) must give a Program, not {type(program).__name__}')
  program = dataclasses.replace(program, unread=lambda: configs.unread(config, data.spec.examples, read))
  if config.structured and config.sparsity and not config.mask_from:
    program = structure.channelled(experiment, config, data, program)
  program = masks.reported(program, data, config) if config.sparsity or config.mask_from else program
  program = fine_tuning.said(quantisation.seen(program, config), config)
  if config.dp_noise and 'dp_noise' in read:
    program = private.accounted(program, data.spec.examples, configs.watched(config, read))
  elif config.order == 'poisson':
    raise UsageError('order=poisson is for private training, which dp_noise asks for, where the program can')
  seeds = program.population.seeds if program.population else [config.seed + config.seeds - 1]
  if max(seeds) > configs.LAST_SEED:
    text = f'seed={config.seed} and seeds={config.seeds}: the last seed would be {max(seeds)}'
    raise UsageError(f'{text}, and at most {configs.LAST_SEED} is there')
  return program, data, config


def refuse_select(config, names) -> None:
  """Raises UsageError where `select` is none of the metrics that there are, and offers the nearest."""
  name = config.select.removeprefix('-')
  if name not in names:
    raise UsageError(f'select={config.select}: there is no such metric.{nearest(name, names)}')


def check_select(runner: Runner) -> None:
  """Refuses a `select` that was given and that the run does not measure; a default may be of what it has not.

  What an evaluation gives may be known only when it is made: then the first one refuses.
  """
  config = runner.config
  if config.select in ('', type(config)().select):
    return
  refuse_select(config, measured(runner, [config.select]))


def measured(runner: Runner, else_names) -> list[str]:
  """The metrics that a run will have; where only an evaluation can tell, those of `else_names` of the splits that there are."""
  config, names = runner.config, evaluated_names(runner.program, runner.sums)
  names = [name.rpartition('/')[2] for name in else_names] if names is None else names
  splits = [s for s in dict.fromkeys(config.eval_splits + config.final_splits) if s in runner.dataset.splits]
  return [f'{split}/{name}' for split in splits for name in names] + [
    f'train/{name}' for name in (*runner.metrics, *runner.program.of_step(0))
  ]


def first_carry(runner: Runner, config, say):
  """The carry before the first step, with the weights that `init_from` and the masks that `mask_from` lend, in global form."""
  arrays = weights.read(config.init_from, runner.program.rename_weights) if config.init_from else None
  carry = runner.init()
  if not (arrays or config.mask_from):
    return carry
  carry = runner.placement.get(carry)
  if arrays:
    state, rows = weights.replace_weights(carry.state, arrays)
    carry = carry.replace(state=state)
    for line in table(rows, ('array', 'shape', config.init_from)):
      say(line)
  return carry.replace(state=masks.lend(carry.state, config.mask_from, config.seeds)) if config.mask_from else carry


def compiled_and_begun(runner: Runner, carry, steps_per_call: str | int, say) -> tuple[Any, dict]:
  """(the carry on the devices, the figures of the compiled step): the step and the evaluation are compiled side by side.

  Args:
    carry: in global form, or None for the one before the first step.
    steps_per_call: as for `Runner.compile`.
    say: is given each line for the reader.
  """
  config = runner.config
  if (config.init_from or config.mask_from) and carry is None:  # which may be refused: before anything is compiled
    carry = first_carry(runner, config, say)
  say('compiling …')
  threads = futures.ThreadPoolExecutor()  # a compiler lets others work
  step, evaluation = threads.submit(runner.compile, steps_per_call), threads.submit(runner.compile_evaluation)
  threads.shutdown(wait=False)
  warm_up(config)
  carry = runner.placement.put(first_carry(runner, config, say) if carry is None else carry)
  compiled, _ = step.result(), evaluation.result()
  if not gc.isenabled():  # since the process began
    gc.freeze()  # what starting has made stays
    gc.enable()
  return carry, compiled


def warm_up(config) -> None:
  """Imports what is needed later, while others compile; one thread alone imports, for modules may need each other."""
  wanted = {
    'orbax.checkpoint': True,
    'tensorboardX.event_file_writer': config.tensorboard,
    'matplotlib.figure': config.plots,
  }
  for name in [name for name, is_wanted in wanted.items() if is_wanted]:
    importlib.import_module(name)
