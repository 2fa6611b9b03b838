"""The settings of a sweep as an Optuna study: drawn or listed, run, compared; what was interrupted goes on.

A search's are drawn (TPE), and those that are worse than the median of the others so far end early. One at a time runs in
a process of its own, which is stopped. Several that share a program (a grid's numbers, `--together`) are masked: nothing
of what is worse is looked at from then on, and the program is stopped when no other is left.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.trial import TrialState

from karpjax import errors
from karpjax.commands.sweep import processes, settings
from karpjax.commands.sweep.outcome import Trial
from karpjax.commands.sweep.settings import Sweep
from karpjax.report import progress

SPEAK = 5  # seconds between two lines about a program at work


@contextlib.contextmanager
def full_disk():
  """OSError, as of any other file, where SQLite has no room for the database."""
  try:
    yield
  except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as error:
    if 'disk is full' not in f'{error} {error.__cause__}':
      raise
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'the database') from None


@full_disk()
def run(sweep: Sweep, asks: dict[str, Any], folder: Path, say: Callable[[str], None]) -> list[Trial]:
  """Runs settings until all of a grid, or as many of a search as asked, have run, over all machines that share the database.

  Args:
    asks: the `Sweep.asks` it began with, which name the study.
  """
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  # The same command on any machine means the same study.
  asks = json.dumps({**asks, '--storage': ''}, sort_keys=True)
  study = optuna.create_study(
    storage=database(sweep.storage or f'sqlite:///{(folder / "optuna.db").absolute()}'),
    study_name=f'{sweep.experiment}-{hashlib.sha256(asks.encode()).hexdigest()[:12]}',
    direction='minimize' if sweep.sign == 1 else 'maximize',
    pruner=optuna.pruners.MedianPruner() if sweep.trials else optuna.pruners.NopPruner(),
    load_if_exists=True,
  )
  here = str(folder.absolute())
  known = [trial.params for trial in study.get_trials(deepcopy=False) if 'part' in trial.user_attrs]
  for count, part in enumerate([] if sweep.trials else settings.parts(sweep), start=1):
    for setting in (setting for setting in part if setting not in known):
      study.enqueue_trial(setting)  # to be drawn next
      _draw(study, sweep, here, f'part-{count:03d}')
  for trials in _unfinished(study, here):
    _run(study, trials, sweep, folder, say, 'goes on with ' if known else '')
  while (left := sweep.trials - len(study.get_trials(deepcopy=False))) > 0:
    trials = [_draw(study, sweep, here)]
    while len(trials) < min(left, sweep.settings_together):
      trials.append(_draw(study, sweep, here, trials[0].user_attrs['part']))
    _run(study, trials, sweep, folder, say)
  return [_outcome(frozen, sweep) for frozen in study.get_trials(deepcopy=False)]


def _draw(study, sweep: Sweep, here: str, part: str = ''):
  """A trial of the folder `here` with a value for each axis; `part` is the folder of its program, by default its own."""
  trial = study.ask()
  trial.set_user_attr('workdir', here)
  # A seed of each trial's own: a search that was stopped draws what it would have drawn, and machines draw apart.
  own = np.random.SeedSequence((sweep.base.seed, trial.number)).generate_state(1)[0]
  # Those that run beside it count as bad where they are, so that settings drawn together differ.
  study.sampler = optuna.samplers.TPESampler(seed=int(own), constant_liar=sweep.settings_together > 1)
  for name, axis in sweep.axes.items():
    axis.draw(name, trial)
  trial.set_user_attr('part', part or f'trial-{trial.number:04d}')
  return trial


def _unfinished(study, here: str) -> list[list]:
  """The trials that this folder began and did not end: those of a program in one list."""
  parts: dict[str, list] = {}
  for frozen in study.get_trials(deepcopy=False):
    if frozen.user_attrs.get('workdir') == here and 'part' in frozen.user_attrs:
      parts.setdefault(frozen.user_attrs['part'], []).append(frozen)
    elif frozen.user_attrs.get('workdir') == here and frozen.state == TrialState.RUNNING:
      study.tell(frozen.number, state=TrialState.FAIL)  # stopped while it was drawn
  began = [part for part in parts.values() if any(frozen.state == TrialState.RUNNING for frozen in part)]
  # The only way to take a trial up again.
  return [[optuna.trial.Trial(study, frozen._trial_id) for frozen in part] for part in began]


def _run(study, trials: list, sweep: Sweep, folder: Path, say: Callable[[str], None], how: str = '') -> None:
  """Runs trials that share a program, and tells the study how each ended."""
  seeds, place = sweep.base.seeds, folder / trials[0].user_attrs['part']
  chosen = [_setting(trial, sweep) for trial in trials]
  rows = [slice(n * seeds, (n + 1) * seeds) for n in range(len(trials))]
  for trial, setting in zip(trials, chosen):
    shown = ' '.join(f'{name}={text}' for name, text in setting.items())
    say(f'{how}trial {trial.number + 1}: {shown}; output in {place / processes.OUTPUT}')
  worse = {n: trial.user_attrs['worse'] for n, trial in enumerate(trials) if 'worse' in trial.user_attrs}
  watch = _watch(study, trials, rows, worse, sweep, say)
  ended = processes.run(place, processes.command(sweep, chosen, place), watch, sweep.metric)
  numbers, diverged = processes.numbers(place), processes.diverged(place)
  for n, (trial, setting) in enumerate(zip(trials, chosen)):
    own = {name: values[rows[n]] for name, values in numbers.items()}
    first = sweep.base.seed + rows[n].start
    steps = {sweep.base.seed + s: diverged[first + s] for s in range(seeds) if first + s in diverged}
    (status, reason), member = ended, rows[n].start if len(trials) > 1 else None
    if n in worse:
      status, reason = 'stopped', f'worse than the median at step {worse[n]}'
    elif steps:
      whose = ' of ' + ', '.join(f'seed {s}' for s in steps) if seeds > 1 else ''
      status, reason = 'failed', f'NaN or infinity at step {", ".join(map(str, steps.values()))}{whose}'
    elif status == 'stopped' or (status == 'done' and not np.isfinite(np.array(own[sweep.metric], float)).all()):
      status, reason = 'failed', f'{sweep.metric} is not finite'
    outcome = Trial(trial.number + 1, setting, status, reason, own, str(place), member)
    trial.set_user_attr('outcome', dataclasses.asdict(outcome))
    said = reason or f'{sweep.metric} {progress.number(own[sweep.metric])}'
    say(f'  trial {outcome.number}: {status}: {said}')
    if status == 'done':
      study.tell(trial.number, float(np.mean(own[sweep.metric])), skip_if_finished=True)
    elif status == 'stopped' or sweep.trials or steps:  # of a grid, what failed for another reason is tried again
      state = TrialState.PRUNED if status == 'stopped' else TrialState.FAIL
      study.tell(trial.number, state=state, skip_if_finished=True)


def _watch(study, trials, rows, worse: dict[int, int], sweep: Sweep, say) -> Callable[[int, list[float]], bool]:
  """A `watch` for `processes.run`: notes in `worse` what the pruner puts aside, and says the best value now and then."""
  known = {frozen.number: set(frozen.intermediate_values) for frozen in study.get_trials(deepcopy=False)}
  spoken = time.monotonic()

  def watch(step: int, values: list[float]) -> bool:
    nonlocal spoken
    each = [float(np.mean(np.array(values[row], np.float64))) for row in rows]
    finite = [value for value in each if math.isfinite(value)]
    if finite and time.monotonic() - spoken > SPEAK:
      spoken, best = time.monotonic(), sweep.sign * min(sweep.sign * value for value in finite)
      say(f'  step {step}: {sweep.metric} {best:.4g}' + (' at best' if len(each) > 1 else ''))
    for n, (trial, value) in enumerate(zip(trials, each) if sweep.trials else ()):
      if n not in worse and step not in known[trial.number] and math.isfinite(value):
        trial.report(value, step)
        if trial.should_prune():
          trial.set_user_attr('worse', step)
          worse[n] = step
    return bool(worse) and all(n in worse or not math.isfinite(value) for n, value in enumerate(each))

  return watch


def _setting(trial, sweep: Sweep) -> settings.Setting:
  typed = lambda value: value if isinstance(value, str) else repr(value)
  return {name: typed(trial.params[name]) for name in sweep.axes if name in trial.params}


def _outcome(frozen, sweep: Sweep) -> Trial:
  """A trial as the database has it; those of other machines too."""
  if 'outcome' in frozen.user_attrs:
    return Trial(**frozen.user_attrs['outcome'])
  return Trial(frozen.number + 1, _setting(frozen, sweep), 'running' if frozen.state.name == 'RUNNING' else 'failed')


def database(url: str):
  """The database; raises UsageError where it does not open."""
  try:
    with contextlib.redirect_stderr(None), full_disk():
      return optuna.storages.RDBStorage(url)
  except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
    raise errors.UsageError(f'the database of --storage does not open: {errors.first_line(error)}') from None
