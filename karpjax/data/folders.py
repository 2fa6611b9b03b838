"""What counts in a folder of the user's, of pictures as of texts: nothing hidden,
and names of files and suffixes of any case.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from karpjax.errors import UsageError

# split -> its names, of files, of folders and in TFDS
SPLITS = {'train': ('train',), 'validation': ('validation', 'val', 'valid', 'dev', 'testa'), 'test': ('test', 'testb')}


def visible(folder: Path) -> list[Path]:
  """What is in a folder, sorted, without what begins with a dot."""
  return sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))


def plain_or_gz(path: Path) -> Path | None:
  """The file, or the same with .gz, whichever is there."""
  return next((p for p in (path, path.with_name(f'{path.name}.gz')) if p.is_file()), None)


def is_file(path: Path, suffixes: Collection[str]) -> bool:
  """Whether it is a file with one of these suffixes, which are in lower case."""
  return path.suffix.lower() in suffixes and path.is_file()


def files(folder: Path, suffixes: Collection[str]) -> list[Path]:
  """The files with one of these suffixes in a folder and in those below, sorted, without all that is hidden or a run's."""
  runs = {path.parent for path in folder.rglob('metrics.jsonl')} - {folder}
  hidden = lambda path: any(part.startswith('.') for part in path.relative_to(folder).parts)
  shown = lambda path: not hidden(path) and runs.isdisjoint(path.parents)
  return sorted(path for path in folder.rglob('*') if shown(path) and is_file(path, suffixes))


def by_split(paths: Iterable[Path]) -> dict[str, Path]:
  """{split: path} of the files and folders that have a name in SPLITS, of any case;
  a UsageError where two are of one.
  """
  found: dict[str, Path] = {}
  for path in paths:
    name = (path.name if path.is_dir() else path.stem).lower()
    for split in (split for split, names in SPLITS.items() if name in names):
      if split in found:
        raise UsageError(f'{path.parent} has two of the {split} split, {found[split].name} and {path.name}')
      found[split] = path
  return {split: found[split] for split in SPLITS if split in found}
