"""What data a run has read, in short: kept in its folder, by it other data are refused, by name, when the run goes on.

What is in memory is told by its content; what is streamed by the names and sizes of its files, and the content of few.
"""

import contextlib
import contextvars
import os
import types
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.data.dataset import Dataset, Split

SMALL = 8 * 2**20  # bytes of all files, up to which their content is looked at
MANY = 1_000  # files; of more each folder is kept, and no content
# Of a spec: what another machine rounds otherwise, and what a flag says.
LEARNT = ('name', 'mean', 'std', 'target_mean', 'target_std')

_reading: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar('reading', default=None)


@contextlib.contextmanager
def noted() -> Iterator[dict[str, str]]:
  """{file: the folder from which it is named} of those that are read within, as far as their readers `note` them."""
  token = _reading.set({})
  try:
    yield _reading.get()
  finally:
    _reading.reset(token)


def note(files: Iterable[str | Path], folder: str | Path | None = None) -> None:
  """Says that files are read, of which a pipe is none; by default they are named from the folder that holds them all."""
  reading, files = _reading.get(), [os.path.abspath(file) for file in files if os.path.isfile(file)]
  if reading is not None and files:
    folder = folder or os.path.commonpath({os.path.dirname(file) for file in files})
    reading.update(dict.fromkeys(files, os.path.abspath(folder)))


def of(data: Dataset, lent: Mapping[str, int] = types.MappingProxyType({})) -> dict[str, Any]:
  """The fingerprint of a data set, as JSON: {'splits': {split: {'examples', array: checksum}}, 'files': {name: [size, checksum]}}.

  What is lent beside it, {what: checksum}, is kept as 'lent'.
  """
  splits = {split: {'examples': s.size, **_checksums(s)} for split, s in data.splits.items()}
  read = {f'{split} as read': _checksums(s) for split, s in data.raw.items()}
  return {'splits': splits | read, 'files': dict(data.files)} | ({'lent': dict(lent)} if lent else {})


def _checksums(split: Split | Mapping[str, Any]) -> dict[str, Any]:
  arrays = split.arrays if isinstance(split, Split) else split
  return {'streamed': True} if arrays is None else {str(name): checksum(x) for name, x in arrays.items()}


def checksum(value: Any, start: int = 0) -> int:
  """CRC-32, which runs at several gigabytes a second, of an array or of {name: array}."""
  if isinstance(value, Mapping):
    for name, each in value.items():
      start = checksum(each, zlib.crc32(str(name).encode(), start))
    return start
  value = np.asarray(value)
  start = zlib.crc32(f'{value.dtype} {value.shape}'.encode(), start)
  if value.dtype == object:  # texts
    return zlib.crc32('\0'.join(map(str, value.flat)).encode(errors='surrogatepass'), start)
  return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8), start)


def described(files: Mapping[str, str]) -> dict[str, list]:
  """{name: [size, checksum]} of files as they were `noted`; of many, by their folders, so that it stays small."""
  sizes = {file: os.stat(file).st_size for file in files}
  few = len(sizes) <= MANY
  small, root = few and sum(sizes.values()) <= SMALL, os.path.commonpath({*files.values()}) if files else ''
  told = lambda file, size: [size, zlib.crc32(Path(file).read_bytes()) if small else None]
  names = {file.removeprefix(root).lstrip(os.sep): told(file, size) for file, size in sorted(sizes.items())}
  if few:
    return names
  folders: dict[str, list] = {}
  for name, (size, _) in names.items():
    before, checksum = folders.get(os.path.dirname(name) + os.sep, (0, 0))
    folders[os.path.dirname(name) + os.sep] = [before + size, zlib.crc32(f'{name} {size}\n'.encode(), checksum)]
  return folders


def has(files: Mapping[str, list], path: Path) -> bool:
  """Whether a file has the name of one of a fingerprint's files; of many, whether it is in one of their folders."""
  ends = tuple(os.sep + name.lstrip(os.sep) for name in files)
  return str(path).endswith(ends) or f'{path.parent}{os.sep}'.endswith(ends)


def differences(before: Mapping, now: Mapping) -> list[str]:
  """How data differ, a line each: by their files where these have changed, else by split; [] where a run learns the same.

  Files alone make no difference where their content is in memory and the same: they may have been moved, or renamed.
  """
  contents = [line for split in before['splits'] | now['splits'] for line in _of_split(split, before, now)]
  files = [
    f'{name} is new'
    if name not in before['files']
    else f'{name} is gone'
    if name not in now['files']
    else f'{name} has changed'
    for name in before['files'] | now['files']
    if _differ(before['files'].get(name), now['files'].get(name))
  ]
  streamed = any('streamed' in arrays for arrays in now['splits'].values())
  before, now = before.get('lent', {}), now.get('lent', {})
  lent = [f'{what} have changed' for what in now if before.get(what, now[what]) != now[what]]
  return lent + (files or contents if contents or streamed else [])


def _of_split(split: str, before: Mapping, now: Mapping) -> list[str]:
  old, new = before['splits'].get(split), now['splits'].get(split)
  if old is None or new is None:
    return [f'there is {"no longer a" if new is None else "now a"} split {split}']
  if old.get('examples') != new.get('examples'):
    return [f'{split} has {new["examples"]:,} examples, had {old["examples"]:,}']
  return [f'{name} of {split} has changed' for name in old | new if old.get(name) != new.get(name)]


def _differ(old: list | None, new: list | None) -> bool:
  if old is None or new is None or old[0] != new[0]:
    return True
  return None not in (old[1], new[1]) and old[1] != new[1]


def other_spec(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Lines on what differs in the JSON of two specs, such as the vocabulary."""
  return [f'other {name}' for name, x in now.items() if name not in LEARNT and before.get(name, x) != x]
