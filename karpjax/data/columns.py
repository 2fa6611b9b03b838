"""Columns of a table in a file: CSV with quotes as usual, or TSV without any."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from karpjax import errors
from karpjax.data import text

SUFFIXES = {'.csv': ',', '.tsv': '\t'}


def read(path: Path, encoding: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """The named columns of a table whose first line names its columns.

  Args:
    path: FILE.csv, with quotes as usual, or FILE.tsv, without.
    encoding: of the file.
    columns: names, found whatever their case.

  Returns:
    A tuple of stripped strings for each row.

  Raises:
    UsageError: where the file cannot be read, lacks a column, or has a row without one, by its line.
  """
  delimiter = SUFFIXES.get(path.suffix.lower())
  if delimiter is None:
    raise errors.UsageError(f'{path}: a table is FILE.csv or FILE.tsv')
  content = text.read_file(path, encoding)
  csv.field_size_limit(max(csv.field_size_limit(), len(content)))
  quoting = csv.QUOTE_MINIMAL if delimiter == ',' else csv.QUOTE_NONE
  reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter, quoting=quoting, strict=True)
  found = []
  try:
    heads = [head.strip().lower() for head in next(reader)]
    missing = [column for column in columns if column.lower() not in heads]
    if missing:
      raise errors.UsageError(
        f'{path} has no column {missing[0]!r} but {", ".join(map(repr, heads))}; name them in the first line, '
        f'or give --columns'
      )
    places = [heads.index(column.lower()) for column in columns]
    for row in reader:
      if not ''.join(row).strip():
        continue
      values = tuple(row[place].strip() if place < len(row) else '' for place in places)
      if '' in values:
        raise errors.UsageError(f'{path}, line {reader.line_num}: the {columns[values.index("")]} is empty')
      found.append(values)
  except csv.Error as error:
    raise errors.UsageError(f'{path}, line {reader.line_num}: {error}') from None
  if not found:
    raise errors.UsageError(f'{path} has one line, which names the columns, and no texts')
  return found
