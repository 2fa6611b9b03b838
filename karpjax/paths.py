"""Where paths of the user's are read: `--workdir=~/runs`, which a shell leaves as it is, means a folder at home."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from karpjax.errors import UsageError


def expand(text: str | Path) -> str:
  """A path with homes for ~ and ~NAME, also behind a colon or a comma: folder:~/pictures, files:~/a,~/b."""
  return re.sub(r'(?:^|(?<=[:,]))~[\w.-]*(?=/|,|$)', lambda match: os.path.expanduser(match[0]), str(text))


def kind(text: str) -> str:
  """What a flag says besides where: folder: of folder:PATH, .csv of FILE.csv; all of it where it has no path."""
  start, colon, _ = text.partition(':')
  return start + colon if colon else Path(text).suffix.lower() or text


def named_in(text: str) -> list[Path]:
  """The files and folders that are there among the paths of a flag: FILE.csv, folder:FOLDER, files:FILE,FILE."""
  parts = [text, *text.partition(':')[2].split(',')]
  return [Path(part) for part in parts if part and os.path.exists(part)]


def in_package(package: str, file: str) -> Path | None:
  """A file that a package brings along, found without importing the package; None where either is missing."""
  spec = importlib.util.find_spec(package)
  path = Path(spec.origin).parent / file if spec else None
  return path if path and path.is_file() else None


def one_file(given: Sequence[str]) -> list[str]:
  """The file that is given, expanded; raises UsageError where there are none or several."""
  if len(given) != 1:
    raise UsageError(f'one file is read at a time; {len(given)} are given')
  return [expand(given[0])]


def keep(sources: Mapping[Path, str], places: Sequence[Path]) -> None:
  """Refuses to write where something would be lost.

  Args:
    sources: {file that is read: what it is, as a relative clause}.
    places: the files to be written.

  Raises:
    UsageError: where a place is a source, by whatever name, or the same as another place.
  """
  known, seen = {path.resolve(): (path, what) for path, what in sources.items()}, set()
  for place in places:
    own = place.resolve()
    same = next((path for path in known if path == own or (_exist(path, own) and path.samefile(own))), None)
    if same:
      path, what = known[same]
      raise UsageError(f'{path} would be written over, {what}; choose another output=')
    if own in seen:
      raise UsageError(f'two inputs would both become {place}; give them one after the other')
    seen.add(own)


def _exist(*paths: Path) -> bool:
  return all(path.exists() for path in paths)
