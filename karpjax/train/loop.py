"""The training loop: it opens a run, trains, logs, evaluates, saves and stops, and closes the run."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from karpjax import config as configs
from karpjax import errors, options
from karpjax.data.dataset import Dataset
from karpjax.errors import Diverged
from karpjax.program import Program, divide
from karpjax.report import progress, writers
from karpjax.train import hosts, run_dir, runtime, weights
from karpjax.train.checkpoint import Checkpoints
from karpjax.train.clock import Clock
from karpjax.train.runner import Runner
from karpjax.train.transforms import describe_divergence, first_seed


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run came to: `numbers` are those of summary.json, `state` the final one in global form, `folder` the workdir."""

  numbers: dict[str, Any]
  state: Any
  folder: Path


def name_of(experiment) -> str:
  """An experiment's name: its module's."""
  return experiment.__name__.rpartition('.')[2]


def prepare(experiment, config) -> tuple[Program, Dataset, Any]:
  """(program, data, config with durations in steps) of an experiment, all checked; nothing is compiled."""
  options.check(config)
  data = experiment.data(config)
  config = configs.resolve(config, data.spec.examples)
  return experiment.program(config, data), data, config


def run(experiment, config, *, say: Callable = print) -> Summary:
  """Trains an experiment as its Config says.

  Args:
    experiment: a module of experiments/, or of the user's: `Config`; `data(config)` -> Dataset; `program(config, data)` ->
      Program, of a config whose durations are in steps, and of a Dataset whose splits are missing where a trained run
      is only asked something.
    config: one of its Configs.
    say: is given each line for the reader.
  """
  return train(*prepare(experiment, config), experiment=name_of(experiment), say=say)


def train(program: Program, dataset: Dataset, config, *, experiment: str, say: Callable = print) -> Summary:
  """Trains a Program and leaves a run in its workdir; goes on where an earlier one stopped, to the same bits.

  Args:
    program: what is trained.
    dataset: with a 'train' split and those that the config evaluates.
    config: a resolved `config.Train`.
    experiment: its name, for config.json and the default workdir.
    say: is given each line for the reader.

  Raises:
    UsageError: for what cannot work, before anything is compiled.
    CallbackError: for what a callback to the host has met; what was logged and saved stays.
    Diverged: when every seed has met NaN or infinity.
    SystemExit: 128 + signal, after saving, when stopped by SIGTERM or SIGINT; 1 when the disk does not take any more.
  """
  profiled = configs.step_range(config.profile, 'profile')
  if config.wandb != 'off':
    writers.require_wandb(config.wandb)
  runner = Runner(program, dataset, config)
  say = say if hosts.is_host0() else lambda line: None
  if config.compile_only or config.topology:
    for line in progress.costs(runner.compile_only()):
      say(line)
    return Summary({}, None, None)
  folder = Path(hosts.broadcast_str(config.workdir or str(run_dir.default(experiment))))
  with run_dir.claim(folder), runtime.stop_signals() as signals, errors.unwrap_callback_error():
    stored = hosts.run_on_host0(lambda: run_dir.refuse_changes(folder, experiment, config)) or {}
    say(f'workdir: {folder}')
    checkpoints = Checkpoints(folder / 'checkpoints', keep=config.keep, say=say)
    start, carry, information = checkpoints.restore(runner.shapes) or (0, None, {})
    finished = start == config.steps and hosts.run_on_host0(lambda: run_dir.summary(folder, start))
    if finished:
      say(f'this run is finished: {start} steps; its numbers are in {folder / "summary.json"}')
      return Summary(finished, carry.state, folder)
    if carry:
      say(f'goes on at step {start} of {config.steps}')
    carry = runner.placement.put(carry or first_carry(runner, config, say))
    checkpoints.forget_after(start)
    say('compiling …')
    description = compile_and_describe(runner, carry, experiment, folder, stored)
    for line in progress.start_up(description, dataset, config, runner.placement.layout):
      say(line)
    sinks = run_dir.open_sinks(folder, start, config, description, program.environment_steps, say)
    loop = Loop(runner, config, checkpoints, signals, sinks, folder, say, information, profiled)
    try:
      carry = loop.run(carry, start)
      numbers = loop.finish(carry, description)
    except OSError as error:
      raise SystemExit(f'stopped: {error}. What was saved is intact; the same command goes on from there.') from None
    finally:
      checkpoints.close()
      for sink in sinks:
        sink.close()
    for line in [*progress.final(numbers, folder, loop.information.get('best'), config), *loop.lines]:
      say(line)
    if checkpoints.failed:
      raise SystemExit(checkpoints.failed)
    return Summary(numbers, runner.placement.get(carry).state, folder)


def first_carry(runner: Runner, config, say):
  """The carry before the first step, with the weights that `init_from` lends, in global form."""
  arrays = weights.read(config.init_from, runner.program.rename_weights) if config.init_from else None
  carry = runner.init()
  if arrays:
    state, rows = weights.replace_weights(runner.placement.get(carry).state, arrays)
    carry = carry.replace(state=state)
    for line in progress.table(rows, ('array', 'shape', config.init_from)):
      say(line)
  return carry


def compile_and_describe(runner: Runner, carry, experiment: str, folder: Path, stored: dict) -> dict:
  """Compiles the step, as it was `stored` where the run goes on, and writes config.json; returns what it holds."""
  config = runner.config
  params = jax.eval_shape(lambda carry: first_seed(carry.state, config.seeds).params, runner.shapes)
  description = run_dir.describe(experiment, config, runner.dataset.spec, params)
  steps_per_call = stored.get('choices', {}).get('steps_per_call', config.steps_per_call)
  description['compiled'] = runner.compile(carry, steps_per_call)
  population = runner.program.population
  description['population'] = dataclasses.asdict(population) if population else None
  description['choices'] = {'steps_per_call': runner.steps_per_call}
  if hosts.is_host0():
    writers.write_json(folder / 'config.json', description)
  return description


def due(t: int, every: int) -> bool:
  return every > 0 and t % every == 0


def next_multiple(t: int, every: int) -> int:
  """The first multiple of `every` beyond t; without end where every is 0."""
  return (t // every + 1) * every if every > 0 else 2**62


@dataclasses.dataclass
class Loop:
  """THE loop and its clocks; what is trained is the Program's business."""

  runner: Runner
  config: Any
  checkpoints: Checkpoints
  signals: list[int]
  sinks: list
  folder: Path
  say: Callable[[str], None]
  information: dict  # of the checkpoint gone on from: 'seconds' of training before it, and the 'best'
  profiled: tuple[int, int]  # the first and the last step that are traced
  diverged: tuple[int, ...] = ()  # seeds
  clock: Clock = dataclasses.field(default_factory=Clock)
  lines: tuple[str, ...] = ()  # of the last report

  def run(self, carry, t: int):
    """Trains from step t to the last; returns the final carry."""
    config, saved, logged = self.config, t, t
    self.clock = Clock()
    while t < config.steps:
      stop = self.next_stop(t)
      if t == self.profiled[0]:
        jax.profiler.start_trace(self.folder / 'profile')
      carry = self.runner.run_steps(carry, t, stop, due(t, config.log_every) or due(t, config.eval_every))
      t = stop
      if t == self.profiled[1]:
        jax.block_until_ready(carry)
        jax.profiler.stop_trace()
        self.say(f'trace of steps {self.profiled[0]} to {t}: tensorboard --logdir={self.folder / "profile"}')
      last, stops = t == config.steps, self.must_stop(t)
      evaluates, logs = last or due(t, config.eval_every), due(t, config.log_every)
      saves = last or stops or due(t, config.checkpoint_every)
      if not (evaluates or saves or logs or due(t, config.report_every)):
        continue
      totals, nonfinite = self.runner.to_host((carry.totals, carry.state.nonfinite_step))
      rate = self.clock.trained(t - logged)
      epoch = t * config.batch_size / self.runner.dataset.spec.examples
      row = {'step': t, 'epoch': epoch, 'steps_per_second': rate}
      row |= {f'train/{name}': x for name, x in divide(totals).items()}
      if evaluates and (np.asarray(nonfinite) < 0).any():
        with self.clock.spend('evaluation'):
          row |= self.evaluate(carry, last)
      if evaluates or logs:
        with self.clock.spend('logging'):
          for sink in self.sinks:
            sink.append(row)
      self.stop_if_diverged(np.atleast_1d(nonfinite), totals, saved)
      with self.clock.spend('saving'):
        if evaluates:
          self.keep_best(carry, t, row)
        if saves:
          self.checkpoints.save(t, self.runner.placement.get(carry), self.about())
          saved = t
      if due(t, config.report_every) and not last:
        self.report(carry, t)
      if stops and not last:
        self.stop(t)
      self.clock.resume()
      logged = t
    return carry

  def next_stop(self, t: int) -> int:
    """The step at which the call that begins at step t has to end."""
    config = self.config
    every = config.log_every, config.eval_every, config.checkpoint_every, config.report_every
    edges = [edge for edge in self.profiled if edge > t]
    return min(config.steps, self.runner.next_boundary(t), *(next_multiple(t, n) for n in every), *edges)

  def must_stop(self, t: int) -> bool:
    """Whether a signal has come; hosts ask each other only where they log, so that the asking costs nothing."""
    if jax.process_count() == 1:
      return bool(self.signals)
    return due(t, self.config.log_every or 100) and hosts.any_host(bool(self.signals))

  def evaluate(self, carry, last: bool) -> dict[str, Any]:
    """{'split/name': number, or one per seed} of the splits that are to be evaluated."""
    numbers, seeds = {}, self.config.seeds
    for split in dict.fromkeys(self.config.eval_splits + (self.config.final_splits if last else ())):
      if split in self.runner.dataset.splits:
        sums = self.runner.evaluate(carry, split)
        each = [sums] if seeds == 1 else [jax.tree.map(lambda x: x[s], sums) for s in range(seeds)]
        each = [self.runner.program.summarise(one) for one in each]
        numbers |= {f'{split}/{n}': x if seeds == 1 else [one[n] for one in each] for n, x in each[0].items()}
    return numbers

  def about(self) -> dict:
    """What a checkpoint says beside its arrays."""
    seconds = self.information.get('seconds', 0.0) + self.clock.seconds()
    return {'seconds': seconds, 'best': self.information.get('best'), 'seeds': self.config.seeds}

  def keep_best(self, carry, t: int, row: dict) -> None:
    name = self.config.select.removeprefix('-')
    if name not in row:
      return
    value = float(np.nanmean(row[name])) * (-1 if self.config.select.startswith('-') else 1)
    best = self.information.get('best')
    if best is None or value < best['value']:
      self.information = {**self.information, 'best': {'step': t, 'value': value}}
      self.checkpoints.save(t, self.runner.placement.get(carry), self.about(), kind='best')

  def stop_if_diverged(self, nonfinite: np.ndarray, totals, saved: int) -> None:
    """Raises Diverged when no seed is left; says so where some have met NaN or infinity."""
    diverged = tuple(np.flatnonzero(nonfinite >= 0).tolist())
    if diverged == self.diverged:
      return
    advice = f'Try a lower learning_rate (now {self.config.learning_rate}), clip=1 or a warmup.'
    text = describe_divergence(nonfinite, totals, self.config.seed)
    if len(diverged) < len(nonfinite):
      self.say(f'{text}; the other seeds go on. {advice}')
      self.diverged = diverged
      return
    where = f'the last good checkpoint is of step {saved} in {self.folder / "checkpoints"}'
    raise Diverged(f'{text}; {where if saved else "no checkpoint was saved yet"}. {advice}')

  def stop(self, t: int) -> None:
    self.checkpoints.wait()
    if hosts.is_host0():
      writers.write_csv(self.folder)
    number = self.signals[0] if self.signals else signal.SIGTERM  # which came to another host
    self.say(
      self.checkpoints.failed
      or f'stopped by signal {int(number)}: step {t} is saved; --workdir={self.folder} goes on from it'
    )
    hosts.barrier('stopped')
    raise SystemExit(128 + number)

  def report(self, carry, t: int) -> None:
    if self.runner.program.report:
      state = first_seed(self.runner.placement.get(carry).state, self.config.seeds)
      if hosts.is_host0():
        self.lines = tuple(self.runner.program.report(state, t, self.folder) or ())

  def finish(self, carry, description: dict) -> dict[str, Any]:
    """Plots, tables and the page, from what is on the disk: a run that was killed after its last step comes here too."""
    if self.config.plots:
      self.report(carry, self.config.steps)
    clock = self.clock
    times = {'seconds': self.about()['seconds'], 'compile_seconds': description['compiled']['compile_seconds']}
    times |= {'steps_per_second': clock.steps / clock.training} if clock.steps else {}
    times |= clock.shares(self.runner.feed.seconds_waited)
    return hosts.run_on_host0(lambda: run_dir.write_results(self.folder, self.config, description, times, self.sinks))
