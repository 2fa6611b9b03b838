"""What a request holds -> the inputs of a verb. Nothing in a request is ever taken for the name of a file."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from karpjax.data import table_files, tokenisers
from karpjax.errors import UsageError, check_text

MOST_PIXELS = 2**26  # of the pictures of a request, decoded


class Picture(io.BytesIO):
  """The bytes of a picture, read as an open file."""

  def __init__(self, content: bytes, name: str):
    super().__init__(content)
    self.name = name

  def __str__(self):
    return self.name

  def __repr__(self):  # as what cannot read it quotes it
    return repr(self.name)


def pictures(run, given: Sequence[tuple[str, bytes]]) -> list[Picture]:
  """Pictures of (name, bytes); a UsageError for too many pixels, before they are decoded."""
  made, pixels = [Picture(content, name) for name, content in given], 0
  for each in made:
    try:
      with Image.open(each, formats=('PNG', 'JPEG')) as image:
        pixels += image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
      continue  # what decodes it says so better
    if pixels > MOST_PIXELS:
      raise UsageError(f'with {each} there are {pixels:,} pixels; of a request at most {MOST_PIXELS:,} are taken')
  return made


def texts(run, given: Any) -> list[str]:
  for number, each in enumerate(given, 1):
    if not isinstance(each, str):
      raise UsageError(f'input {number} is {_kind(each)}; a text is wanted')
    check_text(f'input {number}, ', each)
  return list(given)


def rows(run, given: Any) -> list[table_files.Table]:
  """One table of dicts {column: cell}, all with the same columns; None is a missing cell."""
  for number, each in enumerate(given, 1):
    if not isinstance(each, dict):
      raise UsageError(f'input {number} is {_kind(each)}; an object of columns and cells is wanted')
    if each.keys() != given[0].keys():
      raise UsageError(f'input {number} has other columns than input 1; null stands for a cell that is missing')
  cells = [[_cell(n, name, x) for name, x in each.items()] for n, each in enumerate(given, 1)]
  return [table_files.Table(Path('the request'), list(given[0]), list(enumerate(cells, 1)))]


def _cell(number: int, name: str, value: Any) -> str:
  if value is not None and not isinstance(value, str | int | float):
    raise UsageError(f'input {number}: {name!r} is {_kind(value)}; a number, a text or null is wanted')
  check_text(f'input {number}, {name!r}: ', text := '' if value is None else str(value).strip())
  return text


def _kind(value: Any) -> str:
  names = {bool: 'true or false', int: 'a number', float: 'a number', str: 'a text', list: 'a list', dict: 'an object'}
  return names.get(type(value), 'null')


# ---- what a run is asked once, so that what answers is compiled ----


def _grey(run) -> list[Picture]:
  file, shape = io.BytesIO(), run.spec.stored or run.spec.shape
  Image.new('L', (shape[1], shape[0]), 128).save(file, 'PNG')
  return pictures(run, [('example.png', file.getvalue())])


def _row(run) -> list[table_files.Table]:
  return rows(run, [dict.fromkeys(run.spec.columns)])


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a verb is asked about.

  Attributes:
    name: 'image', 'text' or 'row'.
    read: (run, what a request holds, a list) -> the verb's inputs; raises UsageError.
    example: run -> inputs of one example.
  """

  name: str
  read: Callable[[Any, Any], list]
  example: Callable[[Any], list]


KINDS = {  # by what a verb says of its inputs
  'IMAGE …': Kind('image', pictures, _grey),
  'TEXT …': Kind('text', texts, lambda run: [tokenisers.MASK]),
  'FILE.csv': Kind('row', rows, _row),
}


def filled(run, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A batch of a verb's `encode`, tokens filled up with 0, which is padding, to the run's length; without numbers."""
  lengths = getattr(run.spec, 'lengths', {})
  room = lengths.get('text') or lengths.get('source') or 0

  def fill(x):
    short = room - x.shape[1] if x.ndim > 1 else 0
    return np.pad(x, [(0, 0), (0, short), *[(0, 0)] * (x.ndim - 2)]) if short > 0 else x

  return {name: fill(x) if lengths else x for name, x in arrays.items() if name != 'index'}
