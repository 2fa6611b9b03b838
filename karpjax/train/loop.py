"""The training loop: it opens a run, trains, logs, evaluates, saves and stops, and closes the run."""

import collections
import dataclasses
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from karpjax import config as configs
from karpjax import errors
from karpjax.data.dataset import Dataset
from karpjax.errors import Diverged
from karpjax.program import Program, divide
from karpjax.report import progress, rendering, writers
from karpjax.train import hosts, run_dir, runtime
from karpjax.train.checkpoint import Checkpoints
from karpjax.train.prepare import check_select, compiled_and_begun, name_of, prepare, refuse_select
from karpjax.train.runner import Runner
from karpjax.train.transforms import first_seed


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run came to: `numbers` are those of summary.json, `state` the final one in global form, `folder` the workdir."""

  numbers: dict[str, Any]
  state: Any = dataclasses.field(repr=False)
  folder: Path


def run(experiment, config, *, say: Callable = print) -> Summary:
  """Trains an experiment as its Config says; as `train` does.

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
    dataset: with a 'train' split and those that the config evaluates.
    config: a resolved `config.Train`.
    experiment: its name, for config.json and the default workdir.

  Raises:
    UsageError: for what cannot work, before anything is compiled.
    CallbackError: for what a callback to the host has met; what was logged and saved stays.
    Diverged: when every seed has met NaN or infinity.
    SystemExit: 128 + signal, after saving, when stopped by SIGTERM or SIGINT; 1 when the disk does not take any more.
  """
  if config.wandb != 'off':
    writers.require_wandb(config.wandb)
  say = say if hosts.is_host0() else lambda line: None
  tell = lambda lines: [say(line) for line in lines]
  if config.compile_only or config.topology:
    tell(progress.costs(Runner(program, dataset, config).compile_only()))
    return Summary({}, None, None)
  folder = Path(hosts.run_on_host0(lambda: config.workdir or str(run_dir.default(experiment))))
  with run_dir.claim(folder), runtime.stop_signals() as signals, errors.unwrap_callback_error(), ExitStack() as stack:
    stored = hosts.run_on_host0(lambda: run_dir.refuse_changes(folder, experiment, config, dataset.spec)) or {}
    data = run_dir.fingerprint_of(folder, stored, dataset, program.lent)
    runner = Runner(program, dataset, config)
    if not stored:
      check_select(runner)
    say(f'workdir: {folder}')
    checkpoints = Checkpoints(folder / 'checkpoints', keep=config.keep, seconds=config.checkpoint_seconds, say=say)
    start, carry, information = checkpoints.restore(runner.shapes) or (0, None, {})
    finished = start == config.steps and hosts.run_on_host0(lambda: run_dir.summary(folder, start))
    if finished:
      hosts.run_on_host0(lambda: run_dir.keep_places(folder, stored, config))
      say(f'this run is finished: {start} steps; its numbers are in {folder / "summary.json"}')
      return Summary(finished, carry.state, folder)
    if carry:
      say(f'goes on at step {start} of {config.steps}')
    stack.enter_context(rendering.aside(config.plots and hosts.is_host0()))
    chosen = stored.get('choices', {}).get('steps_per_call', config.steps_per_call)
    carry, compiled = compiled_and_begun(runner, carry, chosen, say)
    checkpoints.forget_after(start)
    description = run_dir.describe(folder, experiment, runner, compiled, stored, data)
    tell([*progress.start_up(description, dataset, config, runner.placement.layout), *program.notes()])
    sinks = run_dir.open_sinks(folder, start, config, description, say, program.uninformed_loss)
    again = f'python launch.py {experiment} --workdir={folder}'
    loop = Loop(runner, checkpoints, signals, sinks, folder, say, information, again)
    try:
      with run_dir.failure_said(folder):
        carry = loop.run(carry, start)
        checkpoints.flush()
        numbers = loop.finish(carry, description)
        checkpoints.wait()
    finally:
      checkpoints.close()
      for sink in sinks:
        sink.close()
    tell([*progress.final(numbers, folder, config), *loop.lines])
    return Summary(numbers, runner.placement.get(carry).state, folder)


def due(t: int, every: int) -> bool:
  return every > 0 and t % every == 0


def better(values: list[float], best: dict | None) -> bool:
  """Whether a metric is less than at the best step, in the mean of the seeds that are finite at both; NaN never is.

  Args:
    values: one per seed; none where it was not measured.
    best: what a checkpoint says of the best step, or None.
  """
  now, both = np.array(values, np.float64), np.isfinite(values)
  if best and both.any():
    # older checkpoints have the mean alone
    before = np.broadcast_to(np.array(best.get('values', best.get('value')), np.float64), now.shape)
    both &= np.isfinite(before)
    return not np.isfinite(before).any() or bool(both.any() and now[both].mean() < before[both].mean())
  return bool(both.any())


class Loop:
  """THE loop and its clock; what is trained is the Program's business.

  Attributes:
    again: the command that goes on with the run.
    information: of the checkpoint gone on from: 'seconds' of training before it, and the 'best'.
    spent: seconds, by what took them.
    lines: of the last report.
  """

  def __init__(self, runner: Runner, checkpoints: Checkpoints, signals, sinks, folder: Path, say, information, again):
    self.runner, self.config, self.checkpoints, self.signals = runner, runner.config, checkpoints, signals
    self.sinks, self.folder, self.say, self.information, self.again = sinks, folder, say, information, again
    self.steps, self.diverged, self.lines, self.spent = 0, (), (), collections.Counter()
    self.start_time = self.mark = time.perf_counter()

  def run(self, carry, t: int):
    """Trains from step t to the last; returns the final carry."""
    config, saved, logged = self.config, t, t
    first, end = configs.step_range(config.profile)
    while t < config.steps:
      stop = min(self.next_stop(t), *(edge for edge in (first, end) if edge > t), config.steps)
      if t == first:
        jax.profiler.start_trace(self.folder / 'profile')
      carry = self.runner.run_steps(carry, t, stop, due(t, config.log_every) or due(t, config.eval_every))
      t = stop
      if t == end:
        jax.block_until_ready(carry)
        jax.profiler.stop_trace()
        self.say(f'trace of steps {first} to {t}: tensorboard --logdir={self.folder / "profile"}')
      last, stops = t == config.steps, self.must_stop(t)
      evaluates, logs = last or due(t, config.eval_every), due(t, config.log_every)
      saves = last or stops or due(t, config.checkpoint_every)
      if not (evaluates or saves or logs or due(t, config.report_every)):
        continue
      totals, nonfinite = self.runner.to_host((carry.totals, carry.state.nonfinite_step))
      self.steps += t - logged
      epoch = t * config.batch_size / self.runner.dataset.spec.examples
      row = {'step': t, 'epoch': epoch, 'steps_per_second': (t - logged) / self.lap('step')}
      row |= {f'train/{name}': x for name, x in {**divide(totals), **self.runner.program.of_step(t)}.items()}
      if evaluates and (np.asarray(nonfinite) < 0).any():
        row |= self.evaluate(carry, last)
        self.lap('evaluation')
      if evaluates or logs:
        for sink in self.sinks:
          sink.append(row)
        self.lap('logging')
      self.stop_if_diverged(np.atleast_1d(nonfinite), totals, saved)
      if evaluates:
        self.keep_best(carry, t, row)
      if saves:
        self.checkpoints.save(t, self.runner.placement.get(carry), self.about())
        saved = t
      self.checkpoints.check()
      self.lap('saving')
      if due(t, config.report_every) and not last:
        self.report(carry, t)
      if stops and not last:
        self.stop(t)
      self.lap('report')
      logged = t
    return carry

  def lap(self, what: str) -> float:
    """The seconds since the last lap, which this has taken."""
    now = time.perf_counter()
    seconds, self.mark = now - self.mark, now
    self.spent[what] += seconds
    return seconds

  def next_stop(self, t: int) -> int:
    """The step at which the call that begins at step t has to end."""
    every = (getattr(self.config, f'{what}_every') for what in ('log', 'eval', 'checkpoint', 'report'))
    return min([self.runner.next_boundary(t), *((t // n + 1) * n for n in every if n > 0)])

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
    seconds = self.information.get('seconds', 0.0) + time.perf_counter() - self.start_time
    return {'seconds': seconds, 'best': self.information.get('best'), 'seeds': self.config.seeds}

  def keep_best(self, carry, t: int, row: dict) -> None:
    name, sign = self.config.select.removeprefix('-'), -1 if self.config.select.startswith('-') else 1
    evaluated = name.partition('/')[0] in ('train', *self.config.eval_splits) and t < self.config.steps
    if evaluated and not self.information and self.config.select != type(self.config)().select:
      refuse_select(self.config, [n for n in row if '/' in n])  # what has gone on from a checkpoint is not stopped
    values = [sign * x for x in np.atleast_1d(row[name]).tolist()] if name in row else []
    if t >= self.runner.program.settled and better(values, self.information.get('best')):
      self.information = {**self.information, 'best': {'step': t, 'values': values}}
      self.checkpoints.save(t, self.runner.placement.get(carry), self.about(), kind='best')

  def stop_if_diverged(self, nonfinite: np.ndarray, totals, saved: int) -> None:
    """Raises Diverged when no seed is left; says so where some have met NaN or infinity."""
    diverged = tuple(np.flatnonzero(nonfinite >= 0).tolist())
    if diverged == self.diverged:
      return
    bad = [name for name, (total, _) in totals.items() if not np.isfinite(total).all()] or ['the gradient']
    seeds = {self.config.seed + i: int(nonfinite[i]) for i in diverged}
    if hosts.is_host0():
      writers.write_json(self.folder / run_dir.DIVERGED, seeds)
    text = f'NaN or infinity in {", ".join(bad)}: ' + ', '.join(f'seed {s} at step {n}' for s, n in seeds.items())
    advice = f'Try a lower learning_rate (now {self.config.learning_rate}), clip=1 or a warmup.'
    if len(diverged) < len(nonfinite):
      self.say(f'{text}; the other seeds go on. {advice}')
      self.diverged = diverged
      return
    self.checkpoints.wait()
    where = f'the last good checkpoint is of step {saved} in {self.folder / "checkpoints"}'
    raise Diverged(f'{text}; {where if saved else "no checkpoint was saved yet"}. {advice}')

  def stop(self, t: int) -> None:
    self.checkpoints.wait()
    if hosts.is_host0():
      writers.write_csv(self.folder)
    number = int(self.signals[0] if self.signals else signal.SIGTERM)  # which came to another host
    self.say(f'stopped by signal {number}: step {t} is saved; {self.again} goes on from it')
    hosts.any_host(False)  # whose answer comes when all hosts have saved
    raise SystemExit(128 + number)

  def report(self, carry, t: int) -> None:
    if self.runner.program.report:
      state = first_seed(self.runner.placement.get(carry).state, self.config.seeds)
      if hosts.is_host0():
        rendering.wait()  # for those of the report before
        self.lines = tuple(self.runner.program.report(state, t, self.folder) or ())

  def evaluate_best(self, carry) -> tuple[int, dict] | None:
    """(step, metrics) of the best checkpoint, {} where it is the last one; None where there is none, as of a sweep's members."""
    best = self.information.get('best')
    if not best or self.runner.program.population:
      return None
    if best['step'] == self.config.steps:
      return best['step'], {}
    self.checkpoints.wait()
    restored = self.checkpoints.restore(self.runner.shapes, 'best')
    return restored and (restored[0], self.evaluate(self.runner.placement.put(restored[1]), True))

  def finish(self, carry, description: dict) -> dict[str, Any]:
    """Plots, tables and the page, from what is on the disk: a run that was killed after its last step comes here too."""
    if self.config.plots:
      self.report(carry, self.config.steps)
      self.lap('report')
    best = self.evaluate_best(carry)
    self.lap('evaluation')
    training, waited = self.spent['step'], self.runner.feed.seconds_waited
    spent = {'input': waited, 'step': max(0.0, training - waited)}
    spent |= {name: self.spent[name] for name in ('evaluation', 'logging', 'saving')}
    times = {'seconds': self.about()['seconds'], 'compile_seconds': description['compiled']['compile_seconds']}
    times |= {'steps_per_second': self.steps / training} if training else {}
    times |= {f'{name}_share': seconds / (sum(spent.values()) or 1.0) for name, seconds in spent.items()}
    return hosts.run_on_host0(
      lambda: run_dir.write_results(self.folder, self.config, description, times, self.sinks, best)
    )
