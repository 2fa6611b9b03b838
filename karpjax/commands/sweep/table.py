"""What a sweep comes to: each setting's outcome, as a table and as trials.csv, best first."""

import csv
import dataclasses
import io
import shlex
from pathlib import Path

import numpy as np

from karpjax.commands.sweep import question
from karpjax.report import writers


@dataclasses.dataclass(frozen=True)
class Trial:
  """The outcome of one setting.

  Attributes:
    number: from 1, in the order they were run.
    setting: {flag: value as typed}.
    status: 'done', 'failed', 'stopped' (by the search, as worse than the median) or 'running' (elsewhere).
    reason: why it failed.
    numbers: {metric: [one per seed]}, of the end of training.
    folder: where its program ran.
  """

  number: int
  setting: dict[str, str]
  status: str
  reason: str
  numbers: dict[str, list[float]]
  folder: Path


def judged(number, setting, numbers, nonfinite, outcome, reason, folder, asked: question.Question) -> Trial:
  """The outcome of a setting whose program has ended; one that met NaN or infinity in any seed has failed.

  Args:
    number, setting, numbers, folder: as Trial's.
    nonfinite: per seed the first step that met NaN or infinity, or -1.
    outcome, reason: what `processes.run` gave.
    asked: names the metric.
  """
  gone = [(seed, step) for seed, step in enumerate(nonfinite, start=asked.base.seed) if step >= 0]
  if outcome == 'done' and gone:
    seeds = ' of ' + ', '.join(f'seed {seed}' for seed, _ in gone) if len(nonfinite) > 1 else ''
    outcome, reason = 'failed', f'NaN or infinity at step {", ".join(str(step) for _, step in gone)}{seeds}'
  elif outcome == 'done' and not np.isfinite(np.array(numbers[asked.metric], np.float64)).all():
    outcome, reason = 'failed', f'{asked.metric} is not finite'
  return Trial(number, setting, outcome, reason, numbers, folder)


def ranked(trials: list[Trial], asked: question.Question) -> list[Trial]:
  """Those that are done, best first; then the others in their order."""
  done = [trial for trial in trials if trial.status == 'done']
  others = [trial for trial in trials if trial.status != 'done']
  return sorted(done, key=lambda trial: asked.sign * np.mean(trial.numbers[asked.metric])) + others


def best(trials: list[Trial], asked: question.Question) -> Trial | None:
  """The best by the mean of the metric over seeds; None where none is done."""
  first = ranked(trials, asked)[:1]
  return first[0] if first and first[0].status == 'done' else None


def value(trial: Trial, asked: question.Question, metric: str = '') -> str:
  """'validation/loss 0.1234 ± 0.0021'."""
  metric = metric or asked.metric
  return f'{metric} {_number(trial.numbers[metric])}'


def lines(trials: list[Trial], asked: question.Question) -> tuple[list[tuple], tuple[str, ...]]:
  """Rows and heads of the printed table; of the metrics only the one that selects."""
  rows = []
  for place, trial in enumerate(ranked(trials, asked)):
    done = trial.status == 'done'
    last = _number(trial.numbers[asked.metric]) if done else ''
    note = ('best' if place == 0 else '') if done else trial.status + (f': {trial.reason}' if trial.reason else '')
    rows.append((trial.number, *(_short(trial.setting.get(name, '')) for name in asked.axes), last, note))
  return rows, ('trial', *asked.axes, asked.metric, '')


def about_best(trial: Trial, asked: question.Question) -> list[str]:
  """The best setting's numbers, and how to run it."""
  shown = [n for n in trial.numbers if n == asked.metric or n in ('validation/accuracy', 'test/loss', 'test/accuracy')]
  flags = ' '.join(map(shlex.quote, asked.flags(trial.setting)))
  return [
    f'best: trial {trial.number}: ' + ', '.join(value(trial, asked, name) for name in shown),
    f'python launch.py {asked.experiment} {flags}',
  ]


def write_csv(trials: list[Trial], asked: question.Question, folder: Path) -> None:
  """trials.csv: a line per setting, best first; of each metric mean and (sample) standard deviation over seeds.

  Those that are not done have no numbers: theirs would be of another step.
  """
  metrics = list(dict.fromkeys([asked.metric, *(name for trial in trials for name in trial.numbers)]))
  text = io.StringIO()
  heads = [part for name in metrics for part in (name, f'{name}/std')]
  writer = csv.DictWriter(text, ['trial', *asked.axes, 'status', *heads, 'reason', 'folder'], lineterminator='\n')
  writer.writeheader()
  for trial in ranked(trials, asked):
    row = {'trial': trial.number, **trial.setting, 'status': trial.status, 'reason': trial.reason}
    for name, values in trial.numbers.items() if trial.status == 'done' else ():
      values = np.array(values, np.float64)  # null is NaN
      row[name] = values.mean()
      row[f'{name}/std'] = values.std(ddof=1) if len(values) > 1 else ''
    writer.writerow({**row, 'folder': trial.folder})
  writers.write_bytes(folder / 'trials.csv', text.getvalue().encode())


def _number(values: list[float]) -> str:
  return f'{np.mean(values):.4g}' + (f' ± {np.std(values, ddof=1):.2g}' if len(values) > 1 else '')


def _short(text: str) -> str:
  """A drawn number with four digits; what was typed stays."""
  try:
    return f'{float(text):.4g}' if len(text) > 8 else text
  except ValueError:
    return text
