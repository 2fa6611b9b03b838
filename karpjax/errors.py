"""Exceptions that the command line prints as one line."""

import argparse
import contextlib
import difflib
import errno
import re
from collections.abc import Iterable, Iterator

NO_ROOM = {
  errno.ENOSPC: 'the disk is full',
  errno.EDQUOT: 'the quota of the disk is used up',
  errno.EFBIG: 'a file would be larger than is allowed',
}


class UsageError(ValueError):
  """Bad input, found before anything is compiled; the command line exits 2."""


class Parser(argparse.ArgumentParser):
  """argparse's, whose errors are bad input as any other."""

  def error(self, message):
    raise UsageError(message)


class Diverged(RuntimeError):
  """Every seed of a run has met NaN or infinity; the last good state is kept, and the command line exits 1."""


class CallbackError(RuntimeError):
  """A callback to the host has failed, as in an environment of another package; the command line exits 1."""


@contextlib.contextmanager
def unwrap_callback_error() -> Iterator[None]:
  """Raises a callback's CallbackError as itself, not as JAX's error around its traceback."""
  try:
    yield
  except RuntimeError as error:
    message = re.search(r'^(?:\S+\.)?CallbackError: (.*)', str(error), re.MULTILINE)
    if not message:
      raise
    raise CallbackError(message[1]) from None


def full_disk(error: OSError) -> str:
  """What a write that failed for want of room says, in a line; '' of another error."""
  why = NO_ROOM.get(error.errno, '')
  return why and f'{why}: {error.filename or "a file"} could not be written ({error.strerror})'


@contextlib.contextmanager
def refuse_too_large() -> Iterator[None]:
  """A UsageError for what fits neither in memory nor in a machine's integers, of NumPy or of JAX."""
  try:
    yield
  except (MemoryError, OverflowError, RuntimeError) as error:
    if isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise UsageError(f'a number is too large for this machine: {first_line(error)[:200]}') from None


def unusable(error: OSError) -> str:
  """One line on a file that cannot be read or written."""
  other = f'{error.filename} cannot be read or written: {error.strerror}' if error.filename else str(error)
  return full_disk(error) or other


@contextlib.contextmanager
def full_disk_said() -> Iterator[None]:
  """SystemExit, a line and exit code 1, for the first write that fails."""
  try:
    yield
  except BrokenPipeError:  # the reader has gone
    raise
  except OSError as error:
    text = f'stopped: {unusable(error)}'
    raise SystemExit(f'{text}. What was saved is intact; the same command goes on from there') from None


def check_text(what: str, text: str) -> None:
  """Refuses a text with bytes that are not of the encoding it was read in, which Python keeps as lone surrogates."""
  try:
    text.encode()
  except UnicodeEncodeError:
    raise UsageError(f'{what}{ascii(text)[1:-1]}: it has bytes that are no text; give UTF-8') from None


def first_line(error: Exception) -> str:
  """What another library's exception says first."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str], otherwise: str = '') -> str:
  """' Did you mean …?' for a misspelt name; when none is near, what is said otherwise, or the list of known names."""
  known = sorted(known)
  close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
  return f' Did you mean {close[0]}?' if close else otherwise or f' Known: {", ".join(known)}.'


def choose(what: str, name: str, known: dict):
  """`known[name]`, or a UsageError that offers the nearest name, such as «unknown model 'resnet2'. Did you mean
  resnet20?».
  """
  if name not in known:
    raise UsageError(f'unknown {what} {name!r}.{nearest(name, known)}')
  return known[name]
