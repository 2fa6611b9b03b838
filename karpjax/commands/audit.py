"""`launch.py audit`: whom a classifier, or anybody's scores in a table, judges wrongly, group by group.

python launch.py audit WORKDIR FILE.csv --group=COLUMN[,COLUMN …]               a run's, of rows, texts or image files
python launch.py audit FILE.csv --score=COLUMN --label=COLUMN --group=COLUMN    scores that are there
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from karpjax import command_line, config, errors, options, paths, verbs
from karpjax.commands import use
from karpjax.data import table_files
from karpjax.data.dataset import listed
from karpjax.errors import UsageError
from karpjax.metrics import fairness
from karpjax.report import tables, writers

YES = '1', '1.0', 'yes', 'true', 'y'  # a label that is the positive one, whatever its case


@dataclasses.dataclass(frozen=True)
class Options:
  group: tuple[str, ...] = config.flag((), 'The columns of groups; of several, their combinations too.', least=1)
  label: str = config.flag('', "The column of what was true. Default: the run's target.")
  positive: str = config.flag(
    '', 'The label whose decision is judged. Default: 1, yes or true; of more than two classes of a run, each.'
  )
  threshold: float | None = config.flag(None, 'Scores from here on are decisions for it.', means='0.5 of probabilities')
  score: str = config.flag('', 'Without a run: the column of scores.')
  selected: tuple[str, ...] = config.flag((), 'Without a run: the words of that column that are decisions for it.')
  least: int = config.flag(30, 'Rows of either label below which a group is too small to judge.', low=1)
  encoding: str = config.flag('', 'The encoding of the file. Default: as its byte-order mark says, or utf-8.')


@dataclasses.dataclass(frozen=True)
class OfColumn(Options):
  input: str = config.flag('', "The column of what is judged. Default: the run's texts, or file, of images beside it.")


@dataclasses.dataclass(frozen=True)
class Command(Options):
  json: bool = config.flag(False, 'Print each answer as a line of JSON.')


def groupings(table: table_files.Table, chosen: Options) -> dict[str, np.ndarray]:
  """{what the groups are of: the group of each row}; a UsageError where it tells no groups apart."""
  columns = {name: [cell or '(missing)' for cell in table.cells(name, 'group')] for name in chosen.group}
  if len(columns) > 1:
    columns[' × '.join(columns)] = [' · '.join(cells) for cells in zip(*columns.values())]
  for name, cells in columns.items():
    if (count := len(set(cells))) == 1:
      raise UsageError(f'group={name}: all rows have {cells[0]!r}; there is nothing to compare')
    elif count > table_files.MOST:
      raise UsageError(f'group={name}: {count:,} different values; at most {table_files.MOST} groups can be compared')
  return {name: np.array(cells) for name, cells in columns.items()}


def positives(cells: Sequence[str], name: str, chosen: Options, each: bool = False) -> list[str]:
  """The label whose decision is judged, or `each` one; a UsageError where a column is none of labels, or it is not clear which."""
  values = sorted({*cells} - {''})
  if len(values) < 2:
    raise UsageError(f'label={name}: all rows have {listed(values) or "none"}; a label has two or more values')
  if len(values) > table_files.MOST:
    raise UsageError(f'label={name}: {len(values):,} different values; it is no label')
  likely = [value for value in values if value.lower() in YES]
  if chosen.positive and chosen.positive not in values:
    raise UsageError(f'positive={chosen.positive}: the values of {name} are {listed(values)}')
  if each and not chosen.positive:
    return values
  if not chosen.positive and (len(values) > 2 or len(likely) != 1):
    raise UsageError(f'label={name}: which of {listed(values)} is to be judged? Give it as positive=')
  return [chosen.positive or likely[0]]


def decided(scores: np.ndarray, chosen: Options) -> tuple[np.ndarray, str]:
  """Which scores, numbers or words, are decisions for the positive label, and the rule in words."""
  if scores.dtype.kind != 'f':
    values, given = sorted({*scores}), f'selected={",".join(chosen.selected)}: ' * bool(chosen.selected)
    if len(values) > table_files.MOST:
      raise UsageError(f'score={chosen.score}: {len(values):,} different words; it is no score')
    if not chosen.selected or not {*chosen.selected} <= {*values}:
      raise UsageError(f'{given}score={chosen.score} holds {listed(values)}; name its decisions, as selected=WORD,WORD')
    if chosen.threshold is not None:
      raise UsageError(f'threshold={chosen.threshold:g}: it is of numbers; selected= names the decisions')
    return np.isin(scores, chosen.selected), f'{chosen.score} is {" or ".join(chosen.selected)}'
  if chosen.threshold is None and (scores.min() < 0 or scores.max() > 1):
    raise UsageError(f'score={chosen.score} goes from {scores.min():g} to {scores.max():g}; give its threshold=')
  threshold = 0.5 if chosen.threshold is None else chosen.threshold
  return scores >= threshold, f'{chosen.score or "probability"} ≥ {threshold:g}'


def judged(groups, cells: Sequence[str], scores, truth: str, name: str, chosen: Options, likeliest=None) -> list[dict]:
  """The answers, one for each of the groupings; rows without a label, or a score, are left out.

  Args:
    likeliest: [n] bool; where it is given, the decisions.
  """
  known = np.array([cell != '' for cell in cells]) & (np.isfinite(scores) if scores.dtype.kind == 'f' else scores != '')
  if not known.any():
    raise UsageError(f'no row has a {name} and a score')
  labels, scores = (np.array(cells) == truth)[known], scores[known]
  taken, rule = decided(scores, chosen) if likeliest is None else (likeliest[known], f'{truth} is the likeliest')
  about = {'label': f'{name} is {truth}', 'decision': rule, 'rows': len(labels), 'left_out': int((~known).sum())}
  return [
    {'group': of, **about, 'least': chosen.least, **fairness.by_group(labels, taken, each[known], chosen.least),
     'calibration': fairness.calibration(labels, scores, each[known])}
    for of, each in groups.items()
  ]  # fmt: skip


def show(answer) -> str:
  """Tables of the rates and of calibration, and sentences on what differs and what cannot be judged."""
  percent = lambda x: '–' if np.isnan(x[0]) else f'{100 * x[0]:.2f} ({100 * x[1]:.1f} to {100 * x[2]:.1f})'
  groups, least = answer['groups'], answer['least']
  rows = [(name, own['n'], *(percent(own[rate]) for rate in fairness.RATES)) for name, own in groups.items()]
  left = f', {answer["left_out"]:,} without label or score left out' if answer['left_out'] else ''
  lines = [f'{answer["rows"]:,} rows{left}; positive: {answer["label"]}; decision: {answer["decision"]}', '']
  lines += tables.table(rows, (answer['group'], 'n', *(f'{rate}, %' for rate in fairness.RATES)))
  small = [name for name, own in groups.items() if own['small']]
  lines += ['', 'in brackets: 95 % (Wilson)']
  lines += [f'too small to judge, with fewer than {least} rows of either label: {", ".join(small)}'] if small else []
  among = ' among the others' if small else ''
  for name, x in answer['differences'].items():
    lines.append(f'{name} difference{among}: ' + ('there are no two groups to compare' if x is None else f'{x:.4f}'))
  large = [name for name in groups if name not in small]
  cell = lambda own: f'{percent(own["positives"])} of {own["n"]:,}' if own['n'] else '–'
  rows = [(score, *(cell(own[name]) for name in large)) for score, own in answer['calibration'].items()]
  lines += (
    ['', 'calibration: positive, % of those with a score', *tables.table(rows, ('score', *large))] if large else []
  )
  return '\n'.join([*lines, *([answer['file']] if 'file' in answer else []), '']) + '\n'


# ---- of a run ----


def verb(arrays: Callable, target: Callable, flags: type[Options] = OfColumn) -> verbs.Verb:
  """The verb of a classifier: a table holds its examples, or says where they are, with labels and groups.

  Args:
    arrays: (run, table, options) -> a batch, as the program's `predict` takes it.
    target: run -> the column of the label.
    flags: `Options`, or a dataclass that inherits from it.
  """

  def read(run, files, chosen):
    if given := [name for name in ('score', 'selected') if getattr(chosen, name)]:
      raise UsageError(f'{given[0]}= is of a file without a run: the scores are those of {run.folder}')
    if not run.spec.classes:
      raise UsageError(f'{run.folder} predicts numbers; audit judges decisions, of classes')
    if getattr(run.spec, 'multi_label', False):
      raise UsageError(f'{run.folder}: an image may have several tags there; audit judges decisions for one of classes')
    if chosen.threshold is not None and not 0 <= chosen.threshold <= 1:
      raise UsageError(f'threshold={chosen.threshold:g}: the scores are probabilities, from 0 to 1')
    table, name = table_files.Table.read(files[0], chosen.encoding), chosen.label or target(run)
    known = {cell: cell for cell in run.spec.classes}  # such as none, which is missing elsewhere
    both = zip(table.cells(name, 'label'), table.column(name, 'label'))
    cells = table_files.alike([known.get(written, cell) for written, cell in both], run.spec.classes)
    if unknown := sorted({*cells} - {'', *known}):
      raise UsageError(f'label={name}: {unknown[0]!r} is none of the classes, {listed(run.spec.classes)}')
    return table, groupings(table, chosen), cells, positives(cells, name, chosen, len(known) > 2), name

  def encode(run, files, chosen):
    return arrays(run, read(run, files, chosen)[0], chosen)

  def writes(run, files, chosen):
    return [run.own_path(run.folder / 'audit' / f'{Path(file).stem}.json') for file in files]

  def decode(run, probabilities, files, chosen):
    (_, groups, cells, truths, name), [place] = read(run, files, chosen), writes(run, files, chosen)
    several, most, answers = len(run.spec.classes) > 2 and chosen.threshold is None, probabilities.argmax(1), []
    about = {'weights': f'step {run.step} ({run.checkpoint}){run.whose}', 'member': run.member or 0}
    for truth in truths:
      at = run.spec.classes.index(truth)
      scores, likeliest = probabilities[:, at].astype(float), most == at if several else None
      answers += [about | each for each in judged(groups, cells, scores, truth, name, chosen, likeliest)]
    writers.write_json(place, answers)
    return [{**each, 'file': str(place)} for each in answers]

  text = 'Error rates of the decisions, group by group, with intervals; and calibration.'
  return verbs.Verb(text, encode, verbs.probabilities, decode, 'FILE.csv', flags, show, paths.one_file, writes)


# ---- of a file alone ----


def of_file(path: str, chosen: Options) -> list[dict]:
  """The answers of `launch.py audit FILE`; raises UsageError."""
  for name in ('score', 'label'):
    if not getattr(chosen, name):
      raise UsageError(f'{name}=COLUMN is needed, or a run before the file: python launch.py audit WORKDIR FILE.csv')
  table = table_files.Table.read(path, chosen.encoding)
  groups, cells = groupings(table, chosen), table.column(chosen.label, 'label')
  cells = table_files.alike(cells)
  [truth], scores = positives(cells, chosen.label, chosen), table.column(chosen.score, 'score')
  values = None if chosen.selected else table_files.numbers(scores)
  if values is None and not chosen.selected and table_files.seem_numbers(scores):
    raise table.refused(scores, f'{chosen.score} seems to be; name the decisions of words as selected=')
  return judged(groups, cells, np.array(scores) if values is None else values, truth, chosen.label, chosen)


def main(argv: Sequence[str]) -> int:
  given = [x for x in argv if not x.startswith('-')]
  if given and os.path.isdir(paths.expand(given[0])):
    return use.main('audit', argv)
  if command_line.asks_help(argv) or not argv:
    print(__doc__, *command_line.flag_lines(dataclasses.fields(Command)), sep='\n')
    return 0
  try:
    [file] = paths.one_file(given)
    chosen = command_line.parse(Command, [x for x in argv if x.startswith('-')])
    options.check(chosen)
    for answer in of_file(file, chosen):
      print(json.dumps(writers.plain(answer)) + '\n' if chosen.json else show(answer), end='')
  except errors.UsageError as error:
    return command_line.refuse('audit', error, Command)
  return 0
