"""Rows of strings by split: texts read from files, folders, tables and TensorFlow Datasets."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from karpjax.data import tfds
from karpjax.errors import UsageError

SPLITS = {  # split -> its names in files and in TFDS
  'train': ('train',),
  'validation': ('validation', 'valid', 'dev', 'testa'),
  'test': ('test', 'testb'),
}
DELIMITERS = {'.csv': ',', '.tsv': '\t'}
TEXTS = ('python_docs', 'tiny_shakespeare', 'names', 'text:PATH', 'lines:PATH')


def read_file(path: Path, encoding: str = 'utf-8') -> str:
  """A file's text, with \\n for the ends of lines; a .gz is unpacked.

  Raises:
    UsageError: where there is none, it is empty, or its bytes are not of that encoding.
  """
  try:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == '.gz' else data).decode(encoding)
  except UnicodeDecodeError as error:
    raise UsageError(
      f'{path} is not {encoding}: byte {error.start:,} is 0x{error.object[error.start]:02x}; '
      'name its encoding, as encoding=latin-1'
    ) from None
  except LookupError:
    raise UsageError(f'encoding={encoding}: there is no such encoding; utf-8, latin-1 and utf-16 are common') from None
  except (OSError, EOFError, zlib.error) as error:
    raise UsageError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from None
  text = text.removeprefix('\ufeff').replace('\r\n', '\n')
  if not text.strip():
    raise UsageError(f'{path} is empty')
  return text


def read_lines(path: Path, encoding: str = 'utf-8') -> list[tuple[int, str]]:
  """(number, line) of a file's lines that are not empty; \\n alone ends a line."""
  lines = read_file(path, encoding).split('\n')
  return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def find(name: str, data_dir: str | Path | None) -> Path:
  """The file `name` in the folder of data, or in its subfolder files/.

  Raises:
    UsageError: where it is in neither.
  """
  if not data_dir:
    raise UsageError(f'{name} is needed: name the folder that holds it, as data_dir=DIR')
  root = Path(data_dir).expanduser()
  for path in (root / name, root / 'files' / name):
    if path.exists():
      return path
  raise UsageError(f'{name} is neither in {root} nor in {root / "files"}')


def split_files(folder: str | Path, suffixes: Sequence[str]) -> dict[str, Path]:
  """{split: file} of a folder whose files have the names in SPLITS and one of the suffixes.

  Raises:
    UsageError: where there is no folder, no file of train, or two files of a split.
  """
  folder, files = Path(folder).expanduser(), {}
  wanted = ' nor '.join(f'train{suffix}' for suffix in suffixes)
  if not folder.is_dir():
    raise UsageError(f'{folder} is not a folder that holds train{suffixes[0]}, and perhaps validation and test')
  for split, names in SPLITS.items():
    found = [path for name in names for suffix in suffixes if (path := folder / f'{name}{suffix}').is_file()]
    if len(found) > 1:
      raise UsageError(f'{folder} has two files of the {split} split, {found[0].name} and {found[1].name}')
    if found:
      files[split] = found[0]
  if 'train' not in files:
    raise UsageError(f'{folder} has neither {wanted}')
  return files


def read_table(path: Path, encoding: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """The named columns of a table, a tuple of stripped strings for each row.

  Args:
    path: FILE.csv, with quotes as usual, or FILE.tsv, without; its first line names the columns.
    encoding: of the file.
    columns: names, whatever their case.

  Raises:
    UsageError: where the file cannot be read, lacks a column, or has a row without one, by its line.
  """
  delimiter = DELIMITERS.get(path.suffix.lower())
  if delimiter is None:
    raise UsageError(f'{path}: a table is FILE.csv or FILE.tsv')
  content = read_file(path, encoding)
  csv.field_size_limit(max(csv.field_size_limit(), len(content)))
  quoting = csv.QUOTE_MINIMAL if delimiter == ',' else csv.QUOTE_NONE
  reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter, quoting=quoting, strict=True)
  rows = []
  try:
    heads = [head.strip().lower() for head in next(reader)]
    missing = [column for column in columns if column.lower() not in heads]
    if missing:
      raise UsageError(
        f'{path} has no column {missing[0]!r} but {", ".join(map(repr, heads))}; name them in the first line, '
        'or give columns=NAME,NAME'
      )
    places = [heads.index(column.lower()) for column in columns]
    for row in reader:
      if not ''.join(row).strip():
        continue
      values = tuple(row[place].strip() if place < len(row) else '' for place in places)
      if '' in values:
        raise UsageError(f'{path}, line {reader.line_num}: the {columns[values.index("")]} is empty')
      rows.append(values)
  except csv.Error as error:
    raise UsageError(f'{path}, line {reader.line_num}: {error}') from None
  if not rows:
    raise UsageError(f'{path} has one line, which names the columns, and no texts')
  return rows


def read_tfds(
  name: str, data_dir: str | Path | None, reader: Callable[[Any], Callable], *, sources: Sequence[str], suiting: str
) -> dict[str, list]:
  """{split: rows} of a prepared set of TensorFlow Datasets.

  Args:
    name, data_dir: as `tfds.opened`'s.
    reader: the set's features -> a function record -> row, or None for a record to leave out; raises UsageError for features
      that it cannot use.
    sources: other names that the user could have meant.
    suiting: which sets of TFDS would do.

  Raises:
    UsageError: where the set isn't known or prepared, or has no rows to train on.
  """
  folder = Path(data_dir).expanduser() if data_dir else None
  builder, prepared = tfds.opened(name, folder, sources=sources, suiting=suiting)
  row, splits = reader(builder.info.features), {}
  for split, names in SPLITS.items():
    for there in [each for each in names if each in prepared][:1]:
      source = builder.as_data_source(split=there)
      rows = [row(record) for record in source.__getitems__(list(range(len(source))))]
      splits[split] = [each for each in rows if each is not None]
  if not splits.get('train'):
    raise UsageError(f'{name} has no train split to learn from; it has: {", ".join(prepared) or "none"}')
  return splits


def read_texts(name: str, data_dir: str, encoding: str) -> dict[str, str]:
  """{split: text} of a data set; one that has no splits of its own gives 'train' alone.

  Args:
    name: one of TEXTS, or a set of TFDS with a feature 'text'.
    data_dir: where names.txt and prepared sets are found.
    encoding: of files.
  """
  if name == 'python_docs':
    from pydoc_data import topics

    return {'train': '\n'.join(topics.topics[topic] for topic in sorted(topics.topics))}
  if name == 'names':
    return {'train': read_file(find('names.txt', data_dir), encoding)}
  kind, _, path = name.partition(':')
  if path and kind in ('text', 'lines'):
    place = Path(path).expanduser()
    files = sorted(place.rglob('*.txt')) if place.is_dir() else [place]
    if not files:
      raise UsageError(f'{place} holds no .txt file')
    return {'train': '\n'.join(read_file(file, encoding) for file in files)}

  def reader(features):
    if 'text' not in features:
      raise UsageError(f'{name} has features {", ".join(features)}; expected one called text')
    return lambda record: record['text'].decode()

  suiting = 'sets of TFDS with texts such as tiny_shakespeare'
  texts = read_tfds(name, data_dir, reader, sources=TEXTS, suiting=suiting)
  texts = {split: '\n'.join(rows) for split, rows in texts.items()}
  if kind == 'tiny_shakespeare':  # its splits are the parts of one text, and a run may cut it elsewhere
    return {'train': ''.join(texts[split] for split in SPLITS)}
  return texts
