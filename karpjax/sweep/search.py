"""A search: Optuna draws settings (TPE), each runs in a process of its own, and is stopped where the median is better."""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.sweep import grid, processes, question, table


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
  program, dataset, _ = question.examine(asked, first)
  question.check_metric(asked, program, dataset)
  for name, texts in ends.items():
    for text in texts[1:]:
      question.examine(asked, first | {name: text})
  if asked.storage:
    _storage(asked.storage)
  drawn = ', '.join(
    f'{name} from {axis if isinstance(axis, question.Range) else "|".join(axis)}' for name, axis in asked.axes.items()
  )
  seeds = f', each with {asked.base.seeds} seeds in one program' if asked.base.seeds > 1 else ''
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
  for trial in _unfinished(study, asked, here):
    say(f'goes on with trial {trial.number}')
    _one(study, trial, asked, folder, say)
  while len(study.get_trials(deepcopy=False)) < asked.trials:
    trial = study.ask()
    trial.set_user_attr('workdir', here)
    # A seed of each trial's own: a search that was stopped draws what it would have drawn, and machines draw apart.
    own = np.random.SeedSequence((asked.base.seed, trial.number)).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(own))
    for name, axis in asked.axes.items():
      if not isinstance(axis, question.Range):
        trial.suggest_categorical(name, axis)
      elif axis.whole:
        trial.suggest_int(name, axis.low, axis.high, log=axis.log)
      else:
        trial.suggest_float(name, axis.low, axis.high, log=axis.log)
    _one(study, trial, asked, folder, say)
  return [_outcome(frozen, asked) for frozen in study.get_trials(deepcopy=False)]


def _one(study, trial, asked: question.Question, folder: Path, say: Callable[[str], None]) -> None:
  """Runs one trial, and tells the study how it ended."""
  from optuna.trial import TrialState

  setting = {name: _typed(trial.params[name]) for name in asked.axes}
  place = folder / f'trial-{trial.number:04d}'
  before = {frozen.number: frozen for frozen in study.get_trials(deepcopy=False)}[trial.number]
  reported, worse = set(before.intermediate_values), []

  def watch(step: int, values: list[float]) -> bool:
    value = float(np.mean(values))
    if step in reported or not math.isfinite(value):
      return False
    trial.report(value, step)
    worse.extend([step] if trial.should_prune() else [])
    return bool(worse)

  shown = ' '.join(f'{name}={text}' for name, text in setting.items())
  say(f'trial {trial.number + 1} of {asked.trials}: {shown}; output in {place / processes.OUTPUT}')
  outcome, reason = processes.run(place, grid.part(asked, [setting]), watch, asked.metric)
  if outcome == 'stopped':
    reason = f'worse than the median at step {worse[0]}'
  found = processes.members(place) or {'numbers': {}, 'nonfinite_step': []}
  judged = table.judged(
    trial.number + 1, setting, found['numbers'], found['nonfinite_step'], outcome, reason, place, asked
  )
  trial.set_user_attr('numbers', judged.numbers)
  trial.set_user_attr('reason', judged.reason)
  say(f'  {judged.status}' + (f': {judged.reason}' if judged.reason else f': {table.value(judged, asked)}'))
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
  place = Path(about.get('workdir', '')) / f'trial-{frozen.number:04d}'
  return table.Trial(frozen.number + 1, setting, status, reason, about.get('numbers', {}), place)


def _unfinished(study, asked: question.Question, here: str) -> list:
  """The trials that this folder began and did not end, to go on with."""
  import optuna

  running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
  ours = [frozen for frozen in running if frozen.user_attrs.get('workdir') == here]
  whole = []
  for frozen in ours:
    if set(frozen.params) == set(asked.axes):
      whole.append(optuna.trial.Trial(study, frozen._trial_id))  # the only way to take a trial up again
    else:  # stopped while it was drawn
      study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
  return whole


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
