"""A search: Optuna draws settings (TPE), and those that are worse than the median of the others so far end early.

One at a time runs in a process of its own, which is stopped. Several that are drawn together (`--together`) are one
program, vmapped: what is worse is masked, which is to say that nothing of it is looked at from then on, and the program is
stopped when no other is left.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.commands.sweep import grid, processes, question, table, vmapped


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is said to the reader before a search."""

  lines: list[str]


def plan(asked: question.Question) -> Plan:
  """Looks at the ends of each range and at each value, one axis at a time; compiles nothing.

  Raises:
    UsageError: for one that no run can have, for a metric that there is not, and for a database that does not open.
  """
  ends = {
    name: (_typed(axis.low), _typed(axis.high)) if isinstance(axis, question.Range) else axis
    for name, axis in asked.axes.items()
  }
  first = {name: texts[0] for name, texts in ends.items()}
  program, dataset, resolved = question.examine(asked, first)
  question.check_metric(asked, program, dataset)
  if _settings_together(asked) > 1:
    make = functools.partial(asked.module.program, data=dataset)
    for name, texts in ends.items():
      if not vmapped.are_numbers(asked, name, texts) or not vmapped.can_be_traced(
        make, resolved, name, question.example(dataset)
      ):
        raise errors.UsageError(
          f'--together={asked.together}: values of --{name} change the program itself; leave --together out, and each '
          'setting is a program of its own'
        )
  for name, texts in ends.items():
    for text in texts[1:]:
      question.examine(asked, first | {name: text})
  if asked.storage:
    _storage(asked.storage)
  drawn = ', '.join(
    f'{name} from {axis if isinstance(axis, question.Range) else "|".join(axis)}' for name, axis in asked.axes.items()
  )
  seeds = f', each with {asked.base.seeds} seeds in one program' if asked.base.seeds > 1 else ''
  if _settings_together(asked) > 1:
    seeds += f', {_settings_together(asked)} settings at a time in one program'
  return Plan([f'search: {asked.trials} settings of {asked.experiment}{seeds}: {drawn}'])


def run(asked: question.Question, plan: Plan, folder: Path, say: Callable[[str], None]) -> list[table.Trial]:
  """Draws and runs settings until there are as many as asked, over all machines that share the database."""
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study = optuna.create_study(
    storage=_storage(asked.storage or f'sqlite:///{(folder / "optuna.db").absolute()}'),
    study_name=_name(asked),
    direction='minimize' if asked.sign == 1 else 'maximize',
    pruner=optuna.pruners.MedianPruner(),
    load_if_exists=True,
  )
  here = str(folder.absolute())
  for trials in _unfinished(study, asked, here):
    say(f'goes on with trial {", ".join(str(trial.number + 1) for trial in trials)}')
    _run(study, trials, asked, folder, say)
  while left := asked.trials - len(study.get_trials(deepcopy=False)):
    trials = []
    for _ in range(min(left, _settings_together(asked))):
      trials.append(_draw(study, asked, here))
      trials[-1].set_user_attr('part', f'trial-{trials[0].number:04d}')
    _run(study, trials, asked, folder, say)
  return [_outcome(frozen, asked) for frozen in study.get_trials(deepcopy=False)]


def _settings_together(asked: question.Question) -> int:
  return max(1, asked.together // asked.base.seeds)


def _draw(study, asked: question.Question, here: str):
  """A trial of the folder `here` with a value for each axis."""
  import optuna

  trial = study.ask()
  trial.set_user_attr('workdir', here)
  # A seed of each trial's own: a search that was stopped draws what it would have drawn, and machines draw apart.
  own = np.random.SeedSequence((asked.base.seed, trial.number)).generate_state(1)[0]
  # Those that run beside it count as bad where they are, so that settings drawn together differ.
  study.sampler = optuna.samplers.TPESampler(seed=int(own), constant_liar=_settings_together(asked) > 1)
  for name, axis in asked.axes.items():
    if not isinstance(axis, question.Range):
      trial.suggest_categorical(name, axis)
    elif axis.whole:
      trial.suggest_int(name, axis.low, axis.high, log=axis.log)
    else:
      trial.suggest_float(name, axis.low, axis.high, log=axis.log)
  return trial


def _run(study, trials: list, asked: question.Question, folder: Path, say: Callable[[str], None]) -> None:
  """Runs trials that share a program, and tells the study how each ended."""
  from optuna.trial import TrialState

  settings = [{name: _typed(trial.params[name]) for name in asked.axes} for trial in trials]
  place = folder / trials[0].user_attrs['part']
  known = {frozen.number: set(frozen.intermediate_values) for frozen in study.get_trials(deepcopy=False)}
  worse = {n: trial.user_attrs['worse'] for n, trial in enumerate(trials) if 'worse' in trial.user_attrs}
  rows = [slice(n * asked.base.seeds, (n + 1) * asked.base.seeds) for n in range(len(trials))]

  def watch(step: int, values: list[float]) -> bool:
    each = [float(np.mean(values[row])) for row in rows]
    for n, (trial, value) in enumerate(zip(trials, each)):
      if n in worse or step in known[trial.number] or not math.isfinite(value):
        continue
      trial.report(value, step)
      if trial.should_prune():
        trial.set_user_attr('worse', step)
        worse[n] = step
    return bool(worse) and all(n in worse or not math.isfinite(value) for n, value in enumerate(each))

  for trial, setting in zip(trials, settings):
    shown = ' '.join(f'{name}={text}' for name, text in setting.items())
    say(f'trial {trial.number + 1} of {asked.trials}: {shown}; output in {place / processes.OUTPUT}')
  outcome, reason = processes.run(place, grid.part(asked, settings), watch, asked.metric)
  found = processes.members(place)
  for n, (trial, setting) in enumerate(zip(trials, settings)):
    numbers = {name: values[rows[n]] for name, values in found['numbers'].items()} if found else {}
    ended = ('stopped', f'worse than the median at step {worse[n]}') if n in worse else (outcome, reason)
    if ended[0] == 'stopped' and n not in worse:
      ended = 'failed', f'{asked.metric} is not finite'
    bad = found['nonfinite_step'][rows[n]] if found else ()
    judged = table.judged(trial.number + 1, setting, numbers, bad, *ended, place, asked)
    trial.set_user_attr('numbers', judged.numbers)
    trial.set_user_attr('reason', judged.reason)
    name = f'trial {trial.number + 1}: ' if len(trials) > 1 else ''
    say(f'  {name}{judged.status}' + (f': {judged.reason}' if judged.reason else f': {table.value(judged, asked)}'))
    if judged.status == 'done':
      study.tell(trial, float(np.mean(judged.numbers[asked.metric])))
    else:
      study.tell(trial, state=TrialState.PRUNED if judged.status == 'stopped' else TrialState.FAIL)


def _outcome(frozen, asked: question.Question) -> table.Trial:
  """A trial as the database has it; those of other machines too."""
  status = {'COMPLETE': 'done', 'PRUNED': 'stopped', 'FAIL': 'failed'}.get(frozen.state.name, 'running')
  about = frozen.user_attrs
  reason = about.get('reason', '')
  setting = {name: _typed(frozen.params[name]) for name in asked.axes if name in frozen.params}
  place = Path(about.get('workdir', '')) / about.get('part', f'trial-{frozen.number:04d}')
  return table.Trial(frozen.number + 1, setting, status, reason, about.get('numbers', {}), place)


def _unfinished(study, asked: question.Question, here: str) -> list[list]:
  """The trials that this folder began and did not end, to go on with: those of a program in one list."""
  import optuna

  running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
  parts = {}
  for frozen in (trial for trial in running if trial.user_attrs.get('workdir') == here):
    if set(frozen.params) == set(asked.axes) and 'part' in frozen.user_attrs:
      trial = optuna.trial.Trial(study, frozen._trial_id)  # the only way to take a trial up again
      parts.setdefault(frozen.user_attrs['part'], []).append(trial)
    else:  # stopped while it was drawn
      study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
  return list(parts.values())


def _storage(url: str):
  """The database.

  Raises:
    UsageError: where it does not open.
  """
  import optuna
  import sqlalchemy

  try:
    with contextlib.redirect_stderr(None):
      return optuna.storages.RDBStorage(url)
  except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
    line = str(error).strip().splitlines()[0]
    raise errors.UsageError(f'the database of --storage does not open: {line}') from None


def _name(asked: question.Question) -> str:
  """The study's name: the same command on any machine means the same study."""
  what = {name: value for name, value in asked.described().items() if name not in ('trials', 'storage')}
  return f'{asked.experiment}-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]}'


def _typed(value) -> str:
  return value if isinstance(value, str) else repr(value)
