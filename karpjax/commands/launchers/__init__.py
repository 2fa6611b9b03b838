"""Runs on other machines: `tpu` on the workers of a TPU VM, `slurm` as a job. The command line that both have."""

import re
from collections.abc import Callable
from pathlib import Path

from karpjax import command_line, errors, options

ROOT = Path(__file__).parents[3]


def main(argv: list[str], kind: type, about: str, example: str, launch: Callable[..., int]) -> int:
  """The command line of a launcher: its own flags, `--`, an experiment and its flags; 2 for bad input.

  Args:
    argv: hyphens in the names of the launcher's flags are underscores: --gpus-per-node is --gpus_per_node.
    kind: the dataclass of the launcher's flags; its name in small letters is the launcher's.
    about: for --help.
    example: the flags that it cannot do without, for the message.
    launch: (flags, experiment's name, its flags, its Config) -> exit code; raises UsageError before anything starts.
  """
  name, at = kind.__name__.lower(), argv.index('--') if '--' in argv else len(argv)
  own, given = argv[:at], argv[at + 1 :]
  try:
    if command_line.asks_help(own):
      print(command_line.usage(kind, name, about, command_line.typed(own, 'help') or 'all'))
      return 0
    if not given:
      example = f'launch.py {name} {example} -- image_classification --steps=100'
      raise errors.UsageError(f'`-- EXPERIMENT` is missing: type {example}')
    underscored = lambda flag: '--' + flag[0][2:].replace('-', '_')
    flags = command_line.parse(kind, [re.sub('^--[^=]+', underscored, flag) for flag in own])
    options.check(flags)
    module = command_line.experiment(given[0])
    try:
      config = command_line.parse(module.Config, given[1:])  # what it would refuse must not wait in a queue first
    except errors.UsageError as error:
      raise errors.UsageError(f'{given[0]}: {error}') from None
    return launch(flags, given[0], given[1:], config)
  except errors.UsageError as error:
    return command_line.refuse(name, error, kind)
