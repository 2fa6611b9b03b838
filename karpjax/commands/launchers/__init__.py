"""Runs on other machines: `tpu` on the workers of a TPU VM, `slurm` as a job. What both do before anything starts."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from karpjax import command_line, errors, options

ROOT = Path(__file__).parents[3]


def main(argv: list[str], kind: type, about: str, example: str, prepare: Callable[..., Callable[[], int]]) -> int:
  """The command line of a launcher: its own flags, `--`, an experiment and its flags; 2 for bad input.

  Args:
    argv: hyphens in the names of the launcher's flags are underscores: --gpus-per-node is --gpus_per_node.
    kind: the dataclass of the launcher's flags; its name in small letters is the launcher's.
    about: for --help.
    example: the flags that it cannot do without, for the message.
    prepare: (flags, experiment's name, its flags, its Config) -> what launches, an exit code; raises UsageError.
  """
  name, at = kind.__name__.lower(), argv.index('--') if '--' in argv else len(argv)
  if {'--help', '-h'} & set(argv[:at]):
    print(command_line.usage(kind, name, about))
    return 0
  try:
    if not argv[at + 1 :]:
      example = f'launch.py {name} {example} -- image_classification --steps=100'
      raise errors.UsageError(f'`-- EXPERIMENT` is missing: type {example}')
    spelt = lambda flag: flag.partition('=')[0].replace('-', '_').replace('__', '--', 1)
    own = [spelt(flag) + ''.join(flag.partition('=')[1:]) if flag.startswith('--') else flag for flag in argv[:at]]
    flags, experiment, rest = command_line.parse(kind, own), argv[at + 1], argv[at + 2 :]
    options.check(flags)
    start = prepare(flags, experiment, rest, _config(experiment, rest))
  except errors.UsageError as error:
    print(f'{name}: {command_line.flagged(error, kind)}', file=sys.stderr)
    return 2
  return start()


def _config(experiment: str, flags: list[str]):
  """The Config that these flags give the experiment: what it would refuse must not wait in a queue first."""
  module = command_line.experiment(experiment)
  try:
    return command_line.parse(module.Config, flags)
  except errors.UsageError as error:
    raise errors.UsageError(f'{experiment}: {error}') from None


def check_tree(needed: list[str]) -> None:
  """Raises UsageError where the files that git knows, and so a copy of the tree, lack one of these."""
  ls = ['git', '-C', str(ROOT), 'ls-files', '-z']
  try:
    outputs = [
      subprocess.run([*ls, *more], capture_output=True, check=True, text=True).stdout for more in ((), ('-d',))
    ]
  except (OSError, subprocess.CalledProcessError):
    raise errors.UsageError(f'{ROOT} is no git checkout: what is copied are the files that git knows') from None
  tracked, deleted = (text.split('\0')[:-1] for text in outputs)
  for path in needed:
    if path not in tracked:
      raise errors.UsageError(f'git does not know {path}, so it would not be copied: git add {shlex.quote(path)}')
  if deleted:
    raise errors.UsageError(f'{deleted[0]} is gone, but git still lists it: git rm it, or git checkout it')
