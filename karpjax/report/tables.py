"""Aligned tables of plain text, and what stands behind their headings."""

from collections.abc import Sequence


def is_number(cell) -> bool:
  """Whether a cell of a table is a number, or text of one: '1,234', '0.5 ± 0.1', '98.2 %', or that it is missing."""
  if isinstance(cell, int | float):
    return True
  digits = any(character.isdigit() for character in cell)
  return cell in ('', '–') or (digits and not cell.strip('0123456789.,-+ ±eE%'))


def table(rows: Sequence[tuple], heads: tuple[str, ...]) -> list[str]:
  """Lines of a table; columns of numbers are set flush right."""
  right = [bool(rows) and all(is_number(row[i]) for row in rows) for i in range(len(heads))]
  cells = [tuple(map(str, row)) for row in (heads, *rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
  line = lambda row: '  '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)).rstrip()
  return [line(cells[0]), '  '.join('-' * w for w in widths), *(line(row) for row in cells[1:])]


def first_of(seeds: int) -> str:
  """' · first of 5 seeds', for the heading of what shows the first of several; else ''."""
  return f' · first of {seeds} seeds' if seeds > 1 else ''
