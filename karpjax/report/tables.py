"""Aligned tables of plain text, and what stands behind their headings."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from karpjax.errors import UsageError
from karpjax.report import writers

LONGEST = 24  # characters of a cell in a table of many settings


def is_number(cell) -> bool:
  """Whether a cell of a table is a number, or text of one: '1,234', '0.5 ± 0.1', '98.2 %', or that it is missing."""
  if isinstance(cell, int | float):
    return True
  digits = any(character.isdigit() for character in cell)
  return cell in ('', '–') or (digits and not cell.strip('0123456789.,-+ ±eE%'))


def decimal(x: float, sign: str = '') -> str:
  """A number with four decimals, or with four digits where these would say little of it; a `sign` of + is always shown."""
  return f'{x:{sign}.4f}' if x == 0 or 1e-3 <= abs(x) < 1e9 else f'{x:{sign}.4g}'


def table(rows: Sequence[tuple], heads: tuple[str, ...]) -> list[str]:
  """Lines of a table; columns of numbers are set flush right."""
  right = [bool(rows) and all(is_number(row[i]) for row in rows) for i in range(len(heads))]
  cells = [tuple(' '.join(str(cell).splitlines()) for cell in row) for row in (heads, *rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
  line = lambda row: '  '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)).rstrip()
  return [line(cells[0]), '  '.join('-' * w for w in widths), *(line(row) for row in cells[1:])]


def markdown(rows: Sequence[tuple], heads: tuple[str, ...]) -> list[str]:
  """Lines of a table of a Markdown page."""
  lines = [heads, ('---',) * len(heads), *rows]
  cell = lambda value: ' '.join(str(value).splitlines()).replace('|', '\\|')
  return ['| ' + ' | '.join(map(cell, line)) + ' |' for line in lines]


def write_between(path: Path, marks: tuple[str, str], lines: Sequence[str]) -> None:
  """Writes the lines between two marks of a text anew.

  Raises:
    UsageError: where it lacks one of them.
  """
  before, first, rest = path.read_text('utf-8').partition(marks[0])
  _, last, after = rest.partition(marks[1])
  if not first or not last:
    raise UsageError(f'{path} lacks the mark {marks[1] if first else marks[0]}')
  writers.write_bytes(path, ('\n'.join([before + first, *lines, last]) + after).encode())


def shortened(text: str, room: int = LONGEST) -> str:
  """A text of at most `room` characters, without its middle: the ends of paths tell them apart."""
  return text if len(text) <= room else f'{text[: room // 2]}…{text[len(text) - (room - 1) // 2 :]}'


def narrowed(
  rows: Sequence[tuple[str, ...]], heads: tuple[str, ...], keep: Collection[str]
) -> tuple[list[tuple[str, ...]], tuple[str, ...], str]:
  """The rows and heads of a table of many settings, its long cells shortened, and what is left out of it.

  Args:
    keep: the heads of columns that stay as they are; others stay where they do not read the same in all of several rows, and are
      shortened where this leaves different cells different.

  Returns:
    (rows, heads, 'alike in all: HEAD CELL, …', or '' where all columns stay).
  """
  columns, alike = {}, []
  for head, *cells in zip(heads, *rows):
    short = [*map(shortened, cells)]
    if head not in keep and len(rows) > 1 and len(set(cells)) == 1:
      alike.append(f'{head} {cells[0]}')
    else:
      columns[head] = short if head not in keep and len(set(short)) == len(set(cells)) else cells
  return [*zip(*columns.values())], tuple(columns), f'alike in all: {", ".join(alike)}' if alike else ''


def last_and_best(
  numbers: Mapping[str, Any], metrics: Sequence[str], shown: Callable[[str, Any], str], by: str = ''
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
  """(rows, heads) of final numbers: of the last weights, and beside them of the best, where these are others.

  Args:
    numbers: of summary.json.
    metrics: a row each.
    shown: (metric, its value) -> text.
    by: the metric that selects, where the heading is to say it.
  """
  steps, best, by = numbers.get('steps', 0), numbers.get('best/step'), by and f' by {by}'
  weights = {'': f'step {steps:,}, the last' + (f' and the best{by}' if best == steps else '')}
  weights |= {} if best in (None, steps) else {'best/': f'step {best:,}, the best{by}'}
  cell = lambda of, name: shown(name, numbers[of + name]) if of + name in numbers else ''
  return [(name, *(cell(of, name) for of in weights)) for name in metrics], ('metric', *weights.values())


def first_of(seeds: int) -> str:
  """' · first of 5 seeds', for the heading of what shows the first of several; else ''."""
  return f' · first of {seeds} seeds' if seeds > 1 else ''
