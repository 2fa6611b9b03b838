"""What a user typed wrongly, said in one line."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class UsageError(ValueError):
  """Bad input that is found before anything is compiled; the command line prints its one line and exits 2."""


class Diverged(RuntimeError):
  """Every seed of a run has met NaN or infinity; its last good state is kept, and the command line exits 1."""


class Failed(RuntimeError):
  """What a run has met in the midst of its work, as in an environment of another package; the command line exits 1."""


@contextlib.contextmanager
def plainly() -> Iterator[None]:
  """A `Failed` that is raised in a callback to the host comes out as itself, not as JAX's error around its traceback."""
  try:
    yield
  except RuntimeError as error:
    found = re.search(r'^(?:\S+\.)?Failed: (.*)', str(error), re.MULTILINE)
    if not found:
      raise
    raise Failed(found[1]) from None


def nearest(name: str, known: Iterable[str]) -> str:
  """' Did you mean …?' for a misspelt name, or the list of known names when none is near."""
  known = sorted(known)
  close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
  return f' Did you mean {close[0]}?' if close else f' Known: {", ".join(known)}.'


def choose(what: str, name: str, known: dict):
  """`known[name]`, or a UsageError which offers the nearest name, such as «unknown model 'resnet2'. Did you mean resnet20?»."""
  if name not in known:
    raise UsageError(f'unknown {what} {name!r}.{nearest(name, known)}')
  return known[name]
