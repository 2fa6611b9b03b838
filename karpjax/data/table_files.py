"""Tables of the user's own: columns of a FILE.csv or FILE.tsv as numbers, one-hot categories, and a target."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import splitting, text_files
from karpjax.data.dataset import Dataset, Spec, Split, listed, repeated
from karpjax.errors import UsageError

MISSING = '', '?', 'na', 'n/a', 'nan', 'null', 'none'  # a cell, whatever its case
MOST = 50  # different words of a column, classes, or groups
LEAST = 10  # rows
LARGEST = 3.4e38  # of float32
AS_WRITTEN = re.compile(r'[-−+]?[$€£]?\s*\d[\d.,\s]*[%€]?')
TASKS = 'auto', 'classes', 'numbers'
RULE = "a number is train's mean, a word none of the column's"


@dataclasses.dataclass(frozen=True)
class TableSpec(Spec):
  """What a model and a prediction must know of a table.

  Attributes:
    columns: {column: the words of train, each of which is a feature that is 0 or 1; () of numbers, one feature}.
    target: the column that is predicted.
    target_mean, target_std: of train, where a model learns (target - mean) / std; 0 and 1 where it learns the target.
  """

  columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  target: str = 'target'
  target_mean: float = 0.0
  target_std: float = 1.0

  @property
  def features(self) -> list[str]:
    """The names of the features: 'age', 'city=Rome'."""
    return [f'{name}={word}' if word else name for name, words in self.columns.items() for word in words or ('',)]

  @property
  def scaled_target(self) -> bool:
    return (self.target_mean, self.target_std) != (0.0, 1.0)

  def to_learn(self, target):
    """Targets in their own unit -> as a model learns them; pure."""
    return (target - self.target_mean) / self.target_std if self.scaled_target else target

  def in_unit(self, outputs):
    """The inverse of `to_learn`, of a model's outputs."""
    return outputs * self.target_std + self.target_mean if self.scaled_target else outputs


@dataclasses.dataclass(frozen=True)
class Table:
  """A file's heads and its rows, (line, cells)."""

  path: Path
  heads: list[str]
  rows: list[tuple[int, list[str]]]

  @classmethod
  def read(cls, path: str | Path, encoding: str = '') -> 'Table':
    """Raises UsageError as `text_files.read_rows`."""
    return cls(Path(path), *text_files.read_rows(Path(path), encoding))

  def cells(self, name: str, flag: str = 'columns') -> list[str]:
    """Those of one column, as they are written; a UsageError where there is none, or two."""
    [place] = text_files.places(self.path, self.heads, [name], f'give another {flag}=')
    return [row[place] for _, row in self.rows]

  def column(self, name: str, flag: str = 'columns') -> list[str]:
    """The same, '' where they are missing."""
    return ['' if cell.lower() in MISSING else cell for cell in self.cells(name, flag)]

  def filled(self, name: str, flag: str) -> list[str]:
    """The same, as they are written; a UsageError names the line of one that is empty."""
    if '' in (cells := self.cells(name, flag)):
      raise UsageError(f'{self.path}, line {self.rows[cells.index("")][0]}: the {name} is empty')
    return cells

  def refused(self, cells: Sequence[str], what: str) -> UsageError:
    """On the first of a column's cells that is no number."""
    at = next(i for i, cell in enumerate(cells) if number(cell) is None)
    return UsageError(f'{self.path}, line {self.rows[at][0]}: {cells[at]!r} is no number, as {what}')


def number(cell: str) -> float | None:
  """A cell's number, NaN where it is missing; None where it is none of float32: words, 1_2, inf."""
  if not cell:
    return np.nan
  try:
    value = float(cell)
  except ValueError:
    return None
  return value if abs(value) < LARGEST and '_' not in cell else None


def numbers(cells: Sequence[str]) -> np.ndarray | None:
  """[n] float64, by `number`; None where one cell is none."""
  values = [number(cell) for cell in cells]
  return None if None in values else np.array(values, float)


def alike(cells: Sequence[str], classes: Sequence[str] = ()) -> list[str]:
  """Cells that are equal as numbers, such as 1 and 1.0, written as the class, or the first of them, is."""
  first = {}
  for cell in (*classes, *cells):
    first.setdefault(number(cell), cell)
  return [cell if cell in classes else first[value] if (value := number(cell)) is not None else cell for cell in cells]


def seem_numbers(cells: Sequence[str]) -> bool:
  """Whether more than half of what is not missing is a number, or written as people write one: 1,234, 5 %, −3."""
  there = [cell for cell in cells if cell]
  return 2 * sum(number(cell) is not None or AS_WRITTEN.fullmatch(cell) is not None for cell in there) > len(there)


def features(spec: TableSpec, table: Table) -> np.ndarray:
  """[rows, features] float32, raw, as a model of this spec takes them; what is missing by RULE, as unknown words are.

  Raises:
    UsageError: where the table lacks a column, or has words for numbers.
  """
  if not spec.columns:
    raise UsageError(f'this run has learnt {spec.name} without the names of its columns; train it again')
  heads, found = {head.lower() for head in table.heads}, []
  if missing := [name for name in spec.columns if name.lower() not in heads]:
    learnt = f'this run has learnt from {listed([*spec.columns])}: an empty cell, or null, is one that is missing'
    raise UsageError(f'{table.path} has no column {missing[0]!r}; {learnt}')
  for name, words in spec.columns.items():
    cells = table.column(name)
    if words:
      found += [np.array([cell == word for cell in cells], float) for word in words]
      continue
    values = numbers(cells)
    if values is None:
      raise table.refused(cells, f'{name} was in training')
    found.append(np.where(np.isnan(values), spec.mean[len(found)], values))
  return np.stack(found, 1).astype(np.float32)


def load(config) -> Dataset:
  """The table of a config, as `tables.load` gives one: 'features' [n, features] float32, 'target' [n], and a fifth for test.

  The target is a class where it holds words, or two values; of numbers a model learns the standardised ones. Numbers are
  standardised by train's mean and deviation, each word of a column is a feature. Rows without a target are left out, and
  so are columns that are alike in all rows of train, or of more than MOST words; the notes say so.

  Raises:
    UsageError: as `Table.read`; for a target that is missing, constant, or no class or number as `task` wants it.
  """
  if not config.target:
    raise UsageError(f'dataset={config.dataset}: name the column to predict, as target=NAME')
  table = Table.read(config.dataset, config.encoding)
  answers = table.column(config.target, 'target')
  known = [i for i, cell in enumerate(answers) if cell]
  without = len(answers) - len(known)
  table = dataclasses.replace(table, rows=[table.rows[i] for i in known])
  target, classes = _target(config, table, [answers[i] for i in known])
  splits, test = drawn(target, bool(classes), config.split_seed)
  splits, held_out = splitting.hold_out(splits, config.validation, config.split_seed)
  others = [name for name in table.heads if name and name.lower() != config.target.lower()]
  if len({name.lower() for name in config.columns}) < len(config.columns):
    raise UsageError(f'columns={",".join(config.columns)}: name each once')
  if config.target.lower() in map(str.lower, config.columns):
    raise UsageError(f'columns={",".join(config.columns)}: {config.target} is the target, and cannot be learnt from')
  coarse = [] if classes else _coarse(config.target, numbers([answers[i] for i in known]))
  columns, mean, std, notes = _columns(table, config.columns or others, splits['train'].column('row'), coarse)
  seen = splits['train'].column('target').astype(float)
  unit = {} if classes else {'target_mean': float(seen.mean()), 'target_std': float(seen.std()) or 1.0}
  spec = TableSpec(
    config.dataset, (len(mean),), classes, 1.0, mean, std, len(seen), 'float32', columns=columns, target=config.target, **unit
  )  # fmt: skip
  notes += repeated({name: [(*table.rows[i][1],) for i in s.column('row')] for name, s in splits.items()}, 'rows')
  x = features(spec, table)
  splits = {name: Split.of(features=x[s.column('row')], target=s.column('target')) for name, s in splits.items()}
  kind = f'one of {len(classes)} classes ({listed(classes)})' if classes else 'a number'
  about = f'{splits["train"].size:,} train, {test:,} test rows; {len(columns)} columns are {len(mean)} features; {config.target} is {kind}'
  notes += (
    [f'{without:,} rows without {config.target} (empty, or one of {", ".join(MISSING[1:])}) are left out']
    if without
    else []
  )
  unnamed = table.heads.count('')
  notes += [f'{unnamed:,} without a name in the first line: left out'] if unnamed and not config.columns else []
  return Dataset(spec, splits, (f'{config.dataset}: {about}', *notes, *held_out))


def drawn(target: np.ndarray, stratify: bool, seed: int) -> tuple[dict[str, Split], int]:
  """Train and test as splits of 'row' and 'target', and the size of test: a fifth, of each class alike if asked."""
  fifth, whole = round(len(target) / 5), Split.of(row=np.arange(len(target)), target=target)
  order = splitting.permutation(seed, 0, len(target))
  train, test = splitting.stratified(target, fifth, seed) if stratify else (order[fifth:], order[:fifth])
  return {'train': whole.select(train), 'test': whole.select(test)}, fifth


def _target(config, table: Table, cells: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
  """([n] int32, the classes), or ([n] float32, ())."""
  name, values = config.target, numbers(cells)
  cells = cells if values is None else alike(cells)
  different = set(cells)
  if len(cells) < LEAST:
    raise UsageError(f'{table.path} has {len(cells)} rows with a {name}; at least {LEAST} are needed')
  if len(different) == 1:
    raise UsageError(f'target={name}: all rows have {cells[0]!r}; there is nothing to learn')
  if config.task == 'numbers' and values is None:
    raise table.refused(cells, f'{name} is to be')
  if config.task == 'numbers' or (config.task == 'auto' and values is not None and len(different) > 2):
    if not np.ptp(values.astype(np.float32)):
      raise UsageError(f'target={name}: float32 tells none of its values apart; subtract what they have in common')
    return values.astype(np.float32), ()
  if config.task == 'auto' and values is None and seem_numbers(cells):
    raise table.refused(cells, f'{name} seems to be; write it as 1234.5, or give task=classes')
  if len(different) > MOST:
    raise UsageError(f'target={name}: {len(different):,} different values; of classes there are at most {MOST}')
  classes = sorted(different, key=lambda cell: (0 if values is None else float(cell), cell))
  return np.array([classes.index(cell) for cell in cells], np.int32), tuple(classes)


def _coarse(name: str, values: np.ndarray) -> list[str]:
  """What is told apart of a column's different numbers, where float32 tells less than half of them."""
  own = np.unique(values[~np.isnan(values)])
  different = len(np.unique(own.astype(np.float32)))
  return [f'{name} ({different:,} of {len(own):,})'] if different < len(own) / 2 else []


def _columns(table: Table, names: Sequence[str], train: np.ndarray, coarse: list[str]):
  """(columns, mean, std) of a spec, of the rows of train, and notes; `coarse` has what the target's says."""
  columns, mean, std, out, missing, mixed = {}, [], [], [], [], []
  for name in names:
    cells = table.column(name)
    values, seen = numbers(cells), {cells[i] for i in train}
    words = sorted(seen - {''}) if values is None else []
    own = np.unique(values[train][~np.isnan(values[train])]) if values is not None else np.zeros(0)
    different = len(np.unique(own.astype(np.float32)))
    if len(seen) == 1 or (values is not None and different < 2):
      out.append(f'{name} (the same in all rows of train{", as float32 has it" * (len(own) > 1)})')
      continue
    if len(words) > MOST:
      out.append(f'{name} ({len(words):,} different words, such as {words[0][:20]!r})')
      continue
    missing += [f'{cells.count(""):,} of {name}'] if '' in cells else []
    mixed += [f'{name} (as {next(x for x in cells if number(x) is None)!r})'] if words and seem_numbers(cells) else []
    coarse += [] if values is None else _coarse(name, values[train])
    columns[name] = tuple(words)
    mean += [0.0] * len(words) or [float(np.nanmean(values[train]))]
    filled = values is not None and np.where(np.isnan(values[train]), mean[-1], values[train])
    std += [1.0] * len(words) or [float(np.std(filled))]
  if not columns:
    raise UsageError(f'{table.path} has no column to learn from; left out: {listed(out)}')
  notes = [f'columns that are left out: {listed(out)}'] if out else []
  notes += [f'missing: {listed(missing)}; {RULE}'] if missing else []
  notes += [f'taken as words, since not all are numbers: {listed(mixed)}'] if mixed else []
  notes += (
    [f'float32 tells few of their values apart: {listed(coarse)}; subtract what they have in common'] if coarse else []
  )
  return columns, tuple(mean), tuple(std), notes
