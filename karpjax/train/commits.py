"""The commits of the code that a run comes from."""

import subprocess
from pathlib import Path

from karpjax import config as configs


def current(folder: Path = Path(__file__).parent) -> str | None:
  """The commit of the checkout that a folder is in, with -dirty where code or flagfiles differ from it; None outside of git."""
  ask = lambda *words: subprocess.run(['git', '-C', str(folder), *words], **options).stdout.strip()
  options = {'capture_output': True, 'text': True, 'timeout': 5, 'check': True}
  try:
    changed = ask('status', '--porcelain', '--', ':(top)*.py', ':(top)*.flags')
    return ask('describe', '--always') + ('-dirty' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return None


def of_run(folder: Path) -> str | None:
  """The commits of the code that a run has come from, one after the other; None where none is known."""
  known = (configs.saved(folder) or {}).get('git') or ''
  return ', '.join(dict.fromkeys(filter(None, [*known.split(', '), current()]))) or None
