"""Runs on other machines: `tpu` on the workers of a TPU VM, `slurm` as a job. What both check before anything starts."""

import importlib
import shlex
import subprocess
from pathlib import Path

from karpjax import command_line, errors

ROOT = Path(__file__).parents[3]


def split(argv: list[str], example: str) -> tuple[list[str], str, list[str]]:
  """The launcher's own flags, the experiment's name and its flags: what stands before, at and after `-- NAME`.

  Hyphens in the names of the launcher's flags are underscores: --gpus-per-node is --gpus_per_node.

  Args:
    argv: the command line.
    example: the launcher with the flags that it cannot do without, for the message.

  Raises:
    UsageError: where `--` is missing or nothing follows it, or for what is no flag.
  """
  at = argv.index('--') if '--' in argv else len(argv)
  if not argv[at + 1 :]:
    raise errors.UsageError(f'`-- EXPERIMENT` is missing: type launch.py {example} -- image_classification --steps=100')
  own = []
  for flag in argv[:at]:
    if not flag.startswith('--'):
      raise errors.UsageError(f'stray argument {flag!r}: flags are typed --name=value')
    name, equals, value = flag.removeprefix('--').partition('=')
    own.append('--' + name.replace('-', '_') + equals + value)
  return own, argv[at + 1], argv[at + 2 :]


def wants_help(argv: list[str]) -> bool:
  """Whether --help is asked of the launcher, and not of the experiment after `--`."""
  return bool({'--help', '-h'} & set(argv[: argv.index('--')] if '--' in argv else argv))


def checked(experiment: str, flags: list[str]):
  """The Config that these flags give the experiment: what it would refuse must not wait in a queue first.

  Raises:
    UsageError: an unknown experiment or flag, or a value that is not of the flag's type.
  """
  errors.choose('experiment', experiment, {path.stem: path for path in (ROOT / 'experiments').glob('[a-z]*.py')})
  try:
    return command_line.parse(importlib.import_module(f'experiments.{experiment}').Config, flags)
  except errors.UsageError as error:
    raise errors.UsageError(f'{experiment}: {error}') from None


def check_tree(needed: list[str]) -> None:
  """Raises UsageError where the files that git knows, and so a copy of the tree, lack one of these."""
  ls = ['git', '-C', str(ROOT), 'ls-files', '-z']
  try:
    said = [subprocess.run([*ls, *more], capture_output=True, check=True, text=True).stdout for more in ((), ('-d',))]
  except (OSError, subprocess.CalledProcessError):
    raise errors.UsageError(f'{ROOT} is no git checkout: what is copied are the files that git knows') from None
  tracked, deleted = (text.split('\0')[:-1] for text in said)
  for path in needed:
    if path not in tracked:
      raise errors.UsageError(f'git does not know {path}, so it would not be copied: git add {shlex.quote(path)}')
  if deleted:
    raise errors.UsageError(f'{deleted[0]} is gone, but git still lists it: git rm it, or git checkout it')
