"""The only training loop: it logs, evaluates, saves and stops; what is trained is the Program's business."""

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from karpjax.data.dataset import Dataset
from karpjax.errors import Diverged
from karpjax.program import Program
from karpjax.report import page, plots, writers
from karpjax.train import checkpoint, hosts
from karpjax.train import runner as runners
from karpjax.train import transforms as transform


def divide(totals) -> dict[str, Any]:
  """{'train/name': sum / count}, each a number, or one per seed; NaN where nothing was counted."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return {
      f'train/{n}': (np.asarray(s, np.float64) / np.asarray(c, np.float64)).tolist() for n, (s, c) in totals.items()
    }


def summarise(program: Program, sums, split: str, seeds: int) -> dict[str, Any]:
  """{'split/name': number, or one per seed} from a split's sums on the host."""
  if seeds == 1:
    return {f'{split}/{n}': x for n, x in program.summarise(sums).items()}
  each = [program.summarise(jax.tree.map(lambda x: x[s], sums)) for s in range(seeds)]
  return {f'{split}/{n}': [one[n] for one in each] for n in each[0]}


def due(t: int, every: int) -> bool:
  return every > 0 and t % every == 0


def following(t: int, every: int) -> int:
  """The first multiple of `every` beyond t; without end where every is 0."""
  return (t // every + 1) * every if every > 0 else 2**62


@dataclasses.dataclass
class Run:
  """The loop and its clocks; everything with an effect is here or in what it calls."""

  program: Program
  dataset: Dataset
  config: Any
  runner: runners.Runner
  checkpoints: checkpoint.Checkpoints
  signals: list[int]
  sinks: list
  folder: Path
  say: Callable[[str], None]
  information: dict  # of the checkpoint gone on from: 'seconds' of training before it, and the 'best'
  profiled: tuple[int, int] | None = None  # the first and the last step that --profile traces
  warned: tuple[int, ...] = ()
  trained: int = 0  # steps of this process, and the seconds they took
  busy: float = 0.0
  spent: dict[str, float] = dataclasses.field(
    default_factory=lambda: {'evaluation': 0.0, 'logging': 0.0, 'saving': 0.0}
  )

  @contextlib.contextmanager
  def clocked(self, what: str):
    begun = time.perf_counter()
    try:
      yield
    finally:
      self.spent[what] += time.perf_counter() - begun

  def shares(self) -> dict[str, float]:
    """Where the time since the start went: {'input_share': …, 'step_share': …, …}, of the host's clock."""
    waited = self.runner.waited['input']
    seconds = {'input': waited, 'step': max(0.0, self.busy - waited), **self.spent}
    whole = sum(seconds.values()) or 1.0
    return {f'{name}_share': value / whole for name, value in seconds.items()}

  def steps(self, carry, t: int):
    """From step t to the last; returns the final carry."""
    config, saved = self.config, t
    begun = self.began = time.perf_counter()
    marked = t
    while t < config.steps:
      stop = min(
        config.steps,
        self.runner.call_end(t),
        *(
          following(t, every)
          for every in (config.log_every, config.eval_every, config.checkpoint_every, config.report_every)
        ),
        *(edge for edge in self.profiled or () if edge > t),
      )
      if self.profiled and t == self.profiled[0]:
        jax.profiler.start_trace(self.folder / 'profile')
      carry = self.runner.advance(carry, t, stop, due(t, config.log_every) or due(t, config.eval_every))
      t = stop
      if self.profiled and t == self.profiled[1]:
        jax.block_until_ready(carry)
        jax.profiler.stop_trace()
        self.say(f'trace of steps {self.profiled[0]} to {t}: tensorboard --logdir={self.folder / "profile"}')
      last = t == config.steps
      evaluates = last or due(t, config.eval_every)
      stops = self.stops(t)
      saves = last or due(t, config.checkpoint_every) or stops
      if not (evaluates or saves or due(t, config.log_every) or due(t, config.report_every)):
        continue
      totals, nonfinite = self.runner.fetch((carry.totals, carry.state.nonfinite_step))
      self.busy, self.trained = self.busy + time.perf_counter() - begun, self.trained + t - marked
      rate = (t - marked) / (time.perf_counter() - begun)
      if evaluates or due(t, config.log_every):
        row = {
          'step': t,
          'epoch': t * config.batch_size / self.dataset.spec.examples,
          **divide(totals),
          'steps_per_second': rate,
        }
        if evaluates and (np.asarray(nonfinite) < 0).any():
          with self.clocked('evaluation'):
            row |= self.evaluate(carry, last)
        with self.clocked('logging'):
          for sink in self.sinks:
            sink.append(row)
      self.stop_where_all_diverged(np.atleast_1d(nonfinite), totals, saved)
      if evaluates:
        with self.clocked('saving'):
          self.keep_best(carry, t, row)
      if saves:
        with self.clocked('saving'):
          self.checkpoints.save(t, self.runner.globalise(carry), self.about(t))
        saved = t
      if self.program.report and due(t, config.report_every) and not last:
        self.draw(carry, t)
      if stops and not last:
        self.stop(t)
      begun, marked = time.perf_counter(), t
    return carry

  def stops(self, t: int) -> bool:
    """Whether a signal has come; hosts ask each other only where they log, so that the asking costs nothing."""
    if jax.process_count() == 1:
      return bool(self.signals)
    every = self.config.log_every or 100
    return due(t, every) and hosts.any_of(bool(self.signals))

  def evaluate(self, carry, last: bool) -> dict[str, Any]:
    splits = dict.fromkeys(self.config.eval_splits + (self.config.final_splits if last else ()))
    numbers = {}
    for split in splits:
      if split in self.dataset.splits:
        numbers |= summarise(self.program, self.runner.evaluate(carry, split), split, self.config.seeds)
    return numbers

  def about(self, t: int) -> dict:
    seconds = self.information.get('seconds', 0.0) + time.perf_counter() - self.began
    return {'seconds': seconds, 'best': self.information.get('best'), 'seeds': self.config.seeds}

  def keep_best(self, carry, t: int, row: dict) -> None:
    name = self.config.select.removeprefix('-')
    if name not in row:
      return
    value = float(np.nanmean(row[name])) * (-1 if self.config.select.startswith('-') else 1)
    best = self.information.get('best')
    if best is None or value < best['value']:
      self.information = {**self.information, 'best': {'step': t, 'value': value}}
      self.checkpoints.save(t, self.runner.globalise(carry), self.about(t), kind='best')

  def stop_where_all_diverged(self, nonfinite: np.ndarray, totals, saved: int) -> None:
    """Raises Diverged when no seed is left; says so where some have gone."""
    gone = tuple(np.flatnonzero(nonfinite >= 0).tolist())
    if gone == self.warned:
      return
    bad = [name for name, (s, _) in totals.items() if not np.isfinite(s).all()] or ['the gradient']
    seeds = ', '.join(f'seed {self.config.seed + s} at step {nonfinite[s]}' for s in gone)
    advice = f'Try a lower --learning_rate (now {self.config.learning_rate}), --clip=1 or --warmup.'
    where = (
      f'the last good checkpoint is of step {saved} in {self.folder / "checkpoints"}'
      if saved
      else 'no checkpoint was saved yet'
    )
    text = f'NaN or infinity in {", ".join(bad)}: {seeds}'
    if len(gone) < len(nonfinite):
      self.say(f'{text}; the other seeds go on. {advice}')
      self.warned = gone
      return
    raise Diverged(f'{text}; {where}. {advice}')

  def stop(self, t: int) -> None:
    self.checkpoints.wait()
    if hosts.first():
      writers.write_csv(self.folder)
    number = self.signals[0] if self.signals else signal.SIGTERM  # which came to another host
    self.say(
      self.checkpoints.failed
      or f'stopped by signal {int(number)}: step {t} is saved; --workdir={self.folder} goes on from it'
    )
    hosts.wait('stopped')
    raise SystemExit(128 + number)

  def draw(self, carry, t: int) -> None:
    state = transform.first_seed(self.runner.globalise(carry).state, self.config.seeds)
    if hosts.first():
      self.program.report(state, t, self.folder)

  def finish(self, carry, description: dict) -> dict[str, Any]:
    """Plots, tables and the page, from what is on the disk: a run that was killed after its last step comes here too."""
    if self.program.report and self.config.plots:
      self.draw(carry, self.config.steps)
    if not hosts.first():
      return json.loads(hosts.told(''))
    rows = writers.read_rows(self.folder)
    final = {n: writers.final_of_seeds(x) if isinstance(x, list) else x for n, x in rows[-1].items() if '/' in n}
    numbers = {
      'steps': self.config.steps,
      'parameters': sum(p['count'] for p in description['parameters']),
      **final,
      'seconds': self.about(self.config.steps)['seconds'],
      'compile_seconds': description['compiled']['compile_seconds'],
      'steps_per_second': self.trained / self.busy if self.busy else rows[-1]['steps_per_second'],
      **self.shares(),
    }
    if self.config.plots:
      plots.curves(rows, self.folder)
    writers.write_csv(self.folder)
    writers.write_json(self.folder / 'summary.json', numbers)
    for sink in self.sinks:
      if isinstance(sink, writers.TensorBoard):
        sink.finish(self.config.steps)
      elif isinstance(sink, writers.Wandb):
        sink.finish(numbers)
    if not self.program.population:  # members of a sweep are no seeds, which a page would call them
      page.write_page(self.folder)
    hosts.told(json.dumps(numbers))
    return numbers
