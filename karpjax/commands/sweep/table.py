"""The outcome of a sweep: each setting's, as a table and as trials.csv, best first."""

import csv
import dataclasses
import io
import shlex
from pathlib import Path

import numpy as np

from karpjax.commands.sweep.settings import Setting, Sweep
from karpjax.report import writers


@dataclasses.dataclass(frozen=True)
class Trial:
  """The outcome of one setting.

  Attributes:
    number: from 1, in the order they were listed or drawn.
    setting: {flag: value as typed}.
    status: 'done', 'failed', 'stopped' (by the search, as worse than the median) or 'running' (elsewhere).
    reason: why it failed or was stopped.
    numbers: {metric: [one per seed]}, of the end of training.
    folder: where its program ran.
    member: the number of its first seed among the members of that program; None where it has the program alone.
  """

  number: int
  setting: Setting
  status: str
  reason: str
  numbers: dict[str, list[float]]
  folder: str
  member: int | None


def ranked(trials: list[Trial], sweep: Sweep) -> list[Trial]:
  """Those that are done, best first by the mean over seeds; then the others in their order."""
  done = [trial for trial in trials if trial.status == 'done']
  others = [trial for trial in trials if trial.status != 'done']
  return sorted(done, key=lambda trial: sweep.sign * np.mean(trial.numbers[sweep.metric])) + others


def best(trials: list[Trial], sweep: Sweep) -> Trial | None:
  """The best; None where none is done."""
  first = ranked(trials, sweep)[:1]
  return first[0] if first and first[0].status == 'done' else None


def value(trial: Trial, sweep: Sweep, metric: str = '') -> str:
  """'validation/loss 0.1234 ± 0.0021'."""
  metric = metric or sweep.metric
  return f'{metric} {_number(trial.numbers[metric])}'


def lines(trials: list[Trial], sweep: Sweep) -> tuple[list[tuple], tuple[str, ...]]:
  """Rows and heads of the printed table; of the metrics only the one that selects."""
  rows = []
  for place, trial in enumerate(ranked(trials, sweep)):
    done = trial.status == 'done'
    last = _number(trial.numbers[sweep.metric]) if done else ''
    note = ('best' if place == 0 else '') if done else trial.status + (f': {trial.reason}' if trial.reason else '')
    rows.append((trial.number, *(_short(trial.setting.get(name, '')) for name in sweep.axes), last, note))
  return rows, ('trial', *sweep.axes, sweep.metric, '')


def about_best(trial: Trial, sweep: Sweep) -> list[str]:
  """The best setting's numbers, and how to run it."""
  shown = [n for n in trial.numbers if n == sweep.metric or n in ('validation/accuracy', 'test/loss', 'test/accuracy')]
  flags = ' '.join(map(shlex.quote, sweep.flags(trial.setting)))
  return [
    f'best: trial {trial.number}: ' + ', '.join(value(trial, sweep, name) for name in shown),
    f'python launch.py {sweep.experiment} {flags}',
  ]


def write_csv(trials: list[Trial], sweep: Sweep, folder: Path) -> None:
  """trials.csv: a line per setting, best first; of each metric mean and (sample) standard deviation over seeds.

  Those that are not done have no numbers: theirs would be of another step.
  """
  metrics = list(dict.fromkeys([sweep.metric, *(name for trial in trials for name in trial.numbers)]))
  text = io.StringIO()
  heads = [part for name in metrics for part in (name, f'{name}/std')]
  columns = ['trial', *sweep.axes, 'status', *heads, 'reason', 'folder', 'member']
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  for trial in ranked(trials, sweep):
    about = {name: getattr(trial, name) for name in ('status', 'reason', 'folder', 'member')}
    row = {'trial': trial.number, **trial.setting, **about}
    for name, values in trial.numbers.items() if trial.status == 'done' else ():
      values = np.array(values, np.float64)  # null is NaN
      row |= {name: values.mean(), f'{name}/std': values.std(ddof=1) if len(values) > 1 else ''}
    writer.writerow(row)
  writers.write_bytes(folder / 'trials.csv', text.getvalue().encode())


def _number(values: list[float]) -> str:
  return f'{np.mean(values):.4g}' + (f' ± {np.std(values, ddof=1):.2g}' if len(values) > 1 else '')


def _short(text: str) -> str:
  """A drawn number with four digits; what was typed stays."""
  try:
    return f'{float(text):.4g}' if len(text) > 8 else text
  except ValueError:
    return text
