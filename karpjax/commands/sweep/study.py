"""The settings of a sweep as an Optuna study: drawn or listed, run, compared; what was interrupted goes on.

A search's are drawn (TPE), and those that are worse than the median of the others so far end early. One at a time runs in
a process of its own, which is stopped. Several that share a program (a grid's numbers, `--together`) are masked: nothing
of what is worse is looked at from then on, and the program is stopped when no other is left.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.commands.sweep import processes, settings, table
from karpjax.commands.sweep.settings import Sweep

SPEAK = 5  # seconds between two lines about a program at work


def run(sweep: Sweep, folder: Path, say: Callable[[str], None]) -> list[table.Trial]:
  """Runs settings until all of a grid, or as many of a search as asked, have run, over all machines that share the database."""
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study = optuna.create_study(
    storage=database(sweep.storage or f'sqlite:///{(folder / "optuna.db").absolute()}'),
    study_name=_name(sweep),
    direction='minimize' if sweep.sign == 1 else 'maximize',
    pruner=optuna.pruners.MedianPruner() if sweep.trials else optuna.pruners.NopPruner(),
    load_if_exists=True,
  )
  here = str(folder.absolute())
  known = [trial.params for trial in study.get_trials(deepcopy=False) if 'part' in trial.user_attrs]
  for number, part in enumerate([] if sweep.trials else settings.parts(sweep), start=1):
    for setting in (setting for setting in part if setting not in known):
      study.enqueue_trial(setting)  # to be drawn next
      _draw(study, sweep, here).set_user_attr('part', f'part-{number:03d}')
  for trials in _unfinished(study, sweep, here):
    _run(study, trials, sweep, folder, say, 'goes on with ' if known else '')
  while (left := sweep.trials - len(study.get_trials(deepcopy=False))) > 0:
    trials = []
    for _ in range(min(left, sweep.settings_together)):
      trials.append(_draw(study, sweep, here))
      trials[-1].set_user_attr('part', f'trial-{trials[0].number:04d}')
    _run(study, trials, sweep, folder, say)
  return [_outcome(frozen, sweep) for frozen in study.get_trials(deepcopy=False)]


def _draw(study, sweep: Sweep, here: str):
  """A trial of the folder `here` with a value for each axis."""
  import optuna

  trial = study.ask()
  trial.set_user_attr('workdir', here)
  # A seed of each trial's own: a search that was stopped draws what it would have drawn, and machines draw apart.
  own = np.random.SeedSequence((sweep.base.seed, trial.number)).generate_state(1)[0]
  # Those that run beside it count as bad where they are, so that settings drawn together differ.
  study.sampler = optuna.samplers.TPESampler(seed=int(own), constant_liar=sweep.settings_together > 1)
  for name, axis in sweep.axes.items():
    axis.draw(name, trial)
  return trial


def _unfinished(study, sweep: Sweep, here: str) -> list[list]:
  """The trials that this folder began and did not end: those of a program in one list."""
  import optuna

  states = optuna.trial.TrialState
  parts: dict[str, list] = {}
  for frozen in study.get_trials(deepcopy=False):
    if frozen.user_attrs.get('workdir') != here:
      continue
    if frozen.state == states.RUNNING and not (set(frozen.params) == set(sweep.axes) and 'part' in frozen.user_attrs):
      study.tell(frozen.number, state=states.FAIL)  # stopped while it was drawn
    else:
      parts.setdefault(frozen.user_attrs.get('part'), []).append(frozen)
  return [
    [optuna.trial.Trial(study, frozen._trial_id) for frozen in part]  # the only way to take a trial up again
    for part in parts.values()
    if any(frozen.state == states.RUNNING for frozen in part)
  ]


def _run(study, trials: list, sweep: Sweep, folder: Path, say: Callable[[str], None], how: str = '') -> None:
  """Runs trials that share a program, and tells the study how each ended."""
  from optuna.trial import TrialState

  part, seeds = trials[0].user_attrs['part'], sweep.base.seeds
  place, chosen = folder / part, [_setting(trial, sweep) for trial in trials]
  rows = [slice(n * seeds, (n + 1) * seeds) for n in range(len(trials))]
  for trial, setting in zip(trials, chosen):
    shown = ' '.join(f'{name}={text}' for name, text in setting.items())
    say(f'{how}trial {trial.number + 1}: {shown}; output in {place / processes.OUTPUT}')
  worse = {n: trial.user_attrs['worse'] for n, trial in enumerate(trials) if 'worse' in trial.user_attrs}
  watch = _watch(study, trials, rows, worse, sweep, say)
  outcome = processes.run(place, processes.command(sweep, chosen, place), watch, sweep.metric)
  numbers, diverged = processes.numbers(place), processes.diverged(place)
  for n, (trial, setting) in enumerate(zip(trials, chosen)):
    own = {name: values[rows[n]] for name, values in numbers.items()}
    steps = {s: step for s in range(seeds) if (step := diverged.get(sweep.base.seed + rows[n].start + s)) is not None}
    status, reason = _ended(outcome, own, steps, worse.get(n), sweep)
    member = rows[n].start if len(trials) > 1 else None
    ended = table.Trial(trial.number + 1, setting, status, reason, own, str(place), member)
    trial.set_user_attr('outcome', dataclasses.asdict(ended))
    say(f'  trial {ended.number}: {status}: ' + (reason or table.value(ended, sweep)))
    if status == 'done':
      study.tell(trial.number, float(np.mean(own[sweep.metric])), skip_if_finished=True)
    elif status == 'stopped' or sweep.trials or steps:  # of a grid, what failed for another reason is tried again
      state = TrialState.PRUNED if status == 'stopped' else TrialState.FAIL
      study.tell(trial.number, state=state, skip_if_finished=True)


def _ended(
  outcome: tuple[str, str], numbers, diverged: dict[int, int], worse: int | None, sweep: Sweep
) -> tuple[str, str]:
  """(status, reason) of one setting.

  Args:
    outcome: what `processes.run` gave of its program.
    numbers: {metric: [one per seed]}, {} where the program is not finished.
    diverged: {which of its seeds: the first step that met NaN or infinity}.
    worse: the step at which the search put it aside, or None.
  """
  if worse is not None:
    return 'stopped', f'worse than the median at step {worse}'
  if diverged:
    seeds = ' of ' + ', '.join(f'seed {sweep.base.seed + s}' for s in diverged) if sweep.base.seeds > 1 else ''
    return 'failed', f'NaN or infinity at step {", ".join(map(str, diverged.values()))}{seeds}'
  if outcome[0] == 'stopped' or (
    outcome[0] == 'done' and not np.isfinite(np.array(numbers[sweep.metric], np.float64)).all()
  ):
    return 'failed', f'{sweep.metric} is not finite'
  return outcome


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
      if n in worse or step in known[trial.number] or not math.isfinite(value):
        continue
      trial.report(value, step)
      if trial.should_prune():
        trial.set_user_attr('worse', step)
        worse[n] = step
    return bool(worse) and all(n in worse or not math.isfinite(value) for n, value in enumerate(each))

  return watch


def _setting(trial, sweep: Sweep) -> settings.Setting:
  typed = lambda value: value if isinstance(value, str) else repr(value)
  return {name: typed(trial.params[name]) for name in sweep.axes if name in trial.params}


def _outcome(frozen, sweep: Sweep) -> table.Trial:
  """A trial as the database has it; those of other machines too."""
  if 'outcome' in frozen.user_attrs:
    return table.Trial(**frozen.user_attrs['outcome'])
  status = 'running' if frozen.state.name == 'RUNNING' else 'failed'
  return table.Trial(frozen.number + 1, _setting(frozen, sweep), status, '', {}, '', None)


def database(url: str):
  """The database; raises UsageError where it does not open."""
  import optuna
  import sqlalchemy

  try:
    with contextlib.redirect_stderr(None):
      return optuna.storages.RDBStorage(url)
  except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
    line = str(error).strip().splitlines()[0]
    raise errors.UsageError(f'the database of --storage does not open: {line}') from None


def _name(sweep: Sweep) -> str:
  """The study's name: the same command on any machine means the same study."""
  asks = json.dumps({**sweep.asks, '--storage': ''}, sort_keys=True)
  return f'{sweep.experiment}-{hashlib.sha256(asks.encode()).hexdigest()[:12]}'
