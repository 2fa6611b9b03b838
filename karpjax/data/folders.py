"""What counts in a folder of the user's, of pictures as of texts: nothing hidden, and names of files and suffixes of any case."""

from collections.abc import Collection
from pathlib import Path


def visible(folder: Path) -> list[Path]:
  """What is in a folder, sorted, without what begins with a dot."""
  return sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))


def is_file(path: Path, suffixes: Collection[str]) -> bool:
  """Whether it is a file with one of these suffixes, which are in lower case."""
  return path.suffix.lower() in suffixes and path.is_file()


def files(folder: Path, suffixes: Collection[str]) -> list[Path]:
  """The files with one of these suffixes in a folder and in those below, sorted, without all that is hidden."""
  shown = lambda path: not any(part.startswith('.') for part in path.relative_to(folder).parts)
  return sorted(path for path in folder.rglob('*') if shown(path) and is_file(path, suffixes))
