"""Rows of strings by split: texts read from files, folders, tables and TensorFlow Datasets."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from karpjax.data import fingerprint, folders, tfds
from karpjax.errors import UsageError

DELIMITERS = {'.csv': ',', '.tsv': '\t'}
MARKS = {  # of byte order, at a file's beginning -> the encoding; that of UTF-32 begins as that of UTF-16 does
  codecs.BOM_UTF32_LE: 'utf-32', codecs.BOM_UTF32_BE: 'utf-32', codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16',
  codecs.BOM_UTF8: 'utf-8',
}  # fmt: skip


def sizes(rows: Mapping[str, Sequence]) -> str:
  """The sizes of splits in words: '90 train, 10 test'."""
  return ', '.join(f'{len(rows[split]):,} {split}' for split in folders.SPLITS if split in rows)


def read_file(path: Path, encoding: str = '', usual: str = 'utf-8') -> str:
  """A file's text, with \\n for the ends of lines; a .gz is unpacked.

  Args:
    encoding: '': the one that a byte-order mark says at the file's beginning; where it has none, the `usual` one.

  Raises:
    UsageError: where there is none, it is empty, or its bytes are not of that encoding.
  """
  marked = ''
  try:
    data = path.read_bytes()
    fingerprint.note([path])
    data = gzip.decompress(data) if path.suffix.lower() == '.gz' else data
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), '')
    encoding = encoding or marked or usual
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    byte = f'byte {error.start:,} is 0x{error.object[error.start]:02x}'
    raise UsageError(
      f'{path} is not {encoding}: {byte}; name its encoding, as encoding={marked or "latin-1"}'
    ) from None
  except (LookupError, UnicodeError):  # such as undefined
    raise UsageError(f'encoding={encoding}: there is no such encoding; utf-8, latin-1 and utf-16 are common') from None
  except (OSError, EOFError, zlib.error) as error:
    raise UsageError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from None
  if not text.strip('\ufeff \r\n\t'):
    raise UsageError(f'{path} is empty')
  return text.removeprefix('\ufeff').replace('\r\n', '\n')


def find(name: str, data_dir: str, folder: str = '', *, needed: bool = True) -> Path | None:
  """The file `name` or name.gz in the folder of data, in its subfolder files/, or in the subfolder `folder` of either.

  Raises:
    UsageError: where it is in none, if it is needed.
  """
  if not data_dir and needed:
    raise UsageError(f'{name} is needed: name the folder that holds it, as data_dir=DIR')
  root = Path(data_dir)
  places = dict.fromkeys((root, root / 'files', root / folder, root / 'files' / folder)) if data_dir else ()
  path = next(filter(None, (folders.plain_or_gz(place / name) for place in places)), None)
  if not path and needed:
    raise UsageError(f'{name} (or .gz) is in none of {", ".join(map(str, places))}')
  return path


def split_files(folder: str | Path, suffixes: Sequence[str]) -> dict[str, Path]:
  """{split: file} of a folder whose files have the names in `folders.SPLITS` and one of the suffixes, of any case.

  Raises:
    UsageError: where there is no folder, no file of train, or two of a split.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UsageError(f'{folder} is not a folder that holds train{suffixes[0]}, and perhaps validation and test')
  files = folders.by_split(path for path in folders.visible(folder) if folders.is_file(path, suffixes))
  if 'train' not in files:
    raise UsageError(f'{folder} has neither {" nor ".join(f"train{suffix}" for suffix in suffixes)}')
  return files


def read_table(path: Path, encoding: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """Two columns of a table, a tuple of stripped strings for each row.

  Args:
    path, encoding: as for `read_rows`.
    columns: two names, whatever their case.

  Raises:
    UsageError: as `read_rows` and `places`, and for an empty cell where a text is needed, by its line.
  """
  if len(columns) != 2:
    raise UsageError(f'columns={",".join(columns)}: two names are needed, as text,label or time,text')
  heads, lines = read_rows(path, encoding)
  found, rows = places(path, heads, columns, 'give columns=NAME,NAME'), []
  for line, row in lines:
    rows.append(tuple(row[place] for place in found))
    if '' in rows[-1]:
      raise UsageError(f'{path}, line {line}: the {columns[rows[-1].index("")]} is empty')
  return rows


def places(path: Path, heads: Sequence[str], columns: Sequence[str], advice: str) -> list[int]:
  """Where columns are among the heads of a table, whatever their case; a UsageError where one is missing or there twice."""
  heads = [head.lower() for head in heads]
  if missing := [column for column in columns if column.lower() not in heads]:
    known = ', '.join(map(repr, heads))
    raise UsageError(f'{path} has no column {missing[0]!r} but {known} in its first line; {advice}')
  if twice := [column for column in columns if heads.count(column.lower()) > 1]:
    raise UsageError(f'{path} has the column {twice[0]!r} twice in its first line; name each once')
  return [heads.index(column.lower()) for column in columns]


def read_rows(path: Path, encoding: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """The heads of a table, and (line, cells) of each of its rows, all stripped; rows without any text are left out.

  Args:
    path: FILE.csv, with quotes as usual, or FILE.tsv, without; its first line names the columns.
    encoding: of the file.

  Raises:
    UsageError: where the file cannot be read or has no rows; and for a row that is longer or shorter than the first line,
      by its line.
  """
  delimiter = DELIMITERS.get(path.suffix.lower())
  if delimiter is None:
    raise UsageError(f'{path}: a table is FILE.csv or FILE.tsv')
  content = read_file(path, encoding)
  csv.field_size_limit(max(csv.field_size_limit(), len(content)))
  quoting = csv.QUOTE_MINIMAL if delimiter == ',' else csv.QUOTE_NONE
  reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter, quoting=quoting, strict=True)
  rows, end = [], 0
  try:
    heads = [head.strip() for head in next(reader)]
    end = reader.line_num  # of the row before
    for row in reader:
      line, end = end + 1, reader.line_num
      if not ''.join(row).strip():
        continue
      if len(row) != len(heads):
        advice = 'put a text with commas in quotes' if delimiter == ',' else 'a text may hold no tab'
        raise UsageError(f'{path}, line {line}: {len(row)} columns, where the first line has {len(heads)}; {advice}')
      rows.append((line, [cell.strip() for cell in row]))
  except csv.Error as error:
    raise UsageError(f'{path}, line {end + 1}: {error}, in the row that begins here') from None
  if not rows:
    raise UsageError(f'{path} has one line, which names the columns, and no rows')
  return heads, rows


def read_tfds(
  config, reader: Callable[[Any], Callable | None], *, sources: Sequence[str], expected: str, such: str
) -> dict:
  """{split: rows} of a prepared set of TensorFlow Datasets.

  Args:
    config: with its name as `dataset`, and `data_dir`.
    reader: the set's features -> a function record -> row, or None for a record to leave out; None for features that it
      cannot use.
    sources: other names that the user could have meant.
    expected: the features that it can use, in words.
    such: a set that has them.

  Raises:
    UsageError: where the set isn't known, prepared or of such features, or has no rows to train on.
  """
  name, folder = config.dataset, Path(config.data_dir) if config.data_dir else None
  builder, prepared = tfds.opened(name, folder, sources=sources, suiting=f'sets of TFDS of {expected}, such as {such}')
  features, splits = builder.info.features, {}
  row = reader(features)
  if not row:
    raise UsageError(f'{name} has features {", ".join(features)}; expected {expected}')
  for split, names in folders.SPLITS.items():
    if there := next((each for each in names if each in prepared), None):
      source = builder.as_data_source(split=there)
      rows = (row(record) for record in source.__getitems__(list(range(len(source)))))
      splits[split] = [each for each in rows if each is not None]
  if not splits.get('train'):
    raise UsageError(f'{name} has no train split to learn from; it has: {", ".join(prepared) or "none"}')
  return splits
