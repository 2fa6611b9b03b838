"""How a run begins and ends: its workdir, what it goes on from, what is compiled, and who is told. Its steps are in `run`."""

import contextlib
import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from karpjax import config as configs
from karpjax import errors, options
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.program import Program
from karpjax.report import progress, writers
from karpjax.train import checkpoint, hosts, profile, weights
from karpjax.train import run as steps
from karpjax.train import run_dir as workdir
from karpjax.train import runner as runners
from karpjax.train import transforms as transform


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run came to: `numbers` are those of summary.json, `state` the final one in global form, `folder` the workdir."""

  numbers: dict[str, Any]
  state: Any
  folder: Path


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """The signals that have come, for the loop to look at between calls. A second one interrupts at once."""
  came: list[int] = []

  def handler(number, _):
    if came:
      raise KeyboardInterrupt
    came.append(number)

  previous = {}
  with contextlib.suppress(ValueError):  # only the main thread may set handlers
    previous = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield came
  finally:
    for number, old in previous.items():
      signal.signal(number, old)


def name_of(experiment) -> str:
  """An experiment's name: its module's."""
  return experiment.__name__.rpartition('.')[2]


def prepare(experiment, config) -> tuple[Program, Dataset, Any]:
  """(program, data, config with durations in steps) of an experiment, all checked; nothing is compiled."""
  options.check(config)
  data = experiment.data(config)
  config = configs.resolve(config, data.spec.examples)
  return experiment.program(config, data), data, config


def run(experiment, config, *, say: Callable[[str], None] = print) -> Summary:
  """Trains an experiment as its Config says.

  Args:
    experiment: a module of experiments/, or of the user's: `Config`; `data(config)` -> Dataset; `program(config, data)` ->
      Program, of a config whose durations are in steps, and of a Dataset whose splits are missing where a trained run
      is only asked something.
    config: one of its Configs.
    say: is given each line for the reader.

  Raises:
    as `train`.
  """
  return train(*prepare(experiment, config), experiment=name_of(experiment), say=say)


def train(
  program: Program, dataset: Dataset, config, *, experiment: str, say: Callable[[str], None] = print
) -> Summary:
  """Trains a Program and leaves a run in its workdir; goes on where an earlier one stopped, to the same bits.

  Args:
    program: what is trained.
    dataset: with a 'train' split and those that the config evaluates.
    config: a resolved `config.Train`.
    experiment: its name, for config.json and the default workdir.
    say: is given each line for the reader.

  Raises:
    UsageError: for what cannot work, before anything is compiled.
    Failed: for what a callback to the host has met; what was logged and saved stays.
    Diverged: when every seed has met NaN or infinity.
    SystemExit: 128 + signal, after saving, when stopped by SIGTERM or SIGINT; 1 when the disk does not take any more.
  """
  for flag in ('eval_splits', 'final_splits'):
    for split in getattr(config, flag):
      if split not in ('train', 'validation', 'test'):
        raise UsageError(f'--{flag}={split}: splits are train, validation and test')
  if config.wandb != 'off':
    writers.require_wandb(config.wandb)
  runner = runners.bind(program, dataset, config)
  if config.compile_only or config.topology:
    for line in progress.costs(runner.compile_only()) if hosts.first() else ():
      say(line)
    return Summary({}, None, None)
  profiled = profile.steps(config.profile)
  found = weights.read(config.init_from) if config.init_from else None
  folder = Path(hosts.told(config.workdir or str(workdir.default(experiment))))
  if not hosts.first():
    say = _silent
  with workdir.claim(folder), stop_signals() as signals, errors.plainly():
    stored = json.loads(
      hosts.on_first(lambda: json.dumps(_choices(workdir.refuse_changes(folder, experiment, config))))
    )
    say(f'workdir: {folder}')
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', keep=config.keep, say=say)
    restored = checkpoints.restore(runner.shapes)
    start, carry, information = restored or (0, None, {})
    finished = json.loads(hosts.told(json.dumps(_finished(folder, config.steps) if start == config.steps else None)))
    if finished:
      say(f'this run is finished: {start} steps; its numbers are in {folder / "summary.json"}')
      return Summary(finished, carry.state, folder)
    if restored:
      say(f'goes on at step {start} of {config.steps}')
    else:
      carry = runner.init()
      if found:
        state, rows = weights.replace_weights(runner.globalise(carry).state, found)
        carry = carry.replace(state=state)
        for line in progress.table(rows, ('array', 'shape', config.init_from)):
          say(line)
    checkpoints.forget_after(start)
    params = jax.eval_shape(lambda c: transform.first_seed(c.state, config.seeds).params, runner.shapes)
    description = workdir.describe(experiment, config, spec=dataset.spec)
    description |= {
      'choices': stored,
      'parameters': progress.parameter_table(params),
      'population': dataclasses.asdict(program.population) if program.population else None,
    }
    carry = runner.place(carry)
    description['compiled'] = runner.prepare(carry, description['choices'])
    if hosts.first():
      workdir.write_config(folder, description)
    for line in progress.start_up(description, dataset, config):
      say(line)

    sinks = _sinks(folder, start, config, description, say) if hosts.first() else []
    try:
      going = steps.Run(
        program, dataset, config, runner, checkpoints, signals, sinks, folder, say, information, profiled
      )
      carry = going.steps(carry, start)
      numbers = going.finish(carry, description)
    except OSError as error:
      raise SystemExit(
        f'stopped: {error}. What was saved before is intact; the same command goes on from there.'
      ) from None
    finally:
      checkpoints.close()
      for sink in sinks:
        sink.close()
    for line in progress.final(numbers, folder):
      say(line)
    if checkpoints.failed:
      raise SystemExit(checkpoints.failed)
    return Summary(numbers, runner.globalise(carry).state, folder)


def _choices(stored: dict | None) -> dict:
  """What an earlier start of the run has measured and chosen."""
  return (stored or {}).get('choices', {})


def _silent(line: str) -> None:
  """Only the first host speaks."""


def _sinks(folder, start, config, description, say) -> list:
  """Who is given the metric rows."""
  sinks = [writers.Rows(folder, start), progress.Progress(start, config.steps, say)]
  if config.tensorboard:
    sinks.append(writers.TensorBoard(folder))
  if config.wandb != 'off':
    sinks.append(writers.Wandb(folder, config.wandb, description))
  return sinks


def _finished(folder: Path, steps: int) -> dict | None:
  path = folder / 'summary.json'
  with contextlib.suppress(OSError, ValueError):
    numbers = json.loads(path.read_text())
    return numbers if numbers['steps'] == steps else None
  return None
