"""`launch.py VERB WORKDIR [INPUT …] [--flag=value …]`: asks a trained run to do one of the things that it can.

An input `-` stands for the lines of standard input. `--json` prints an answer a line as JSON.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from karpjax import command_line, config, errors
from karpjax.report import writers
from karpjax.train import runtime


@dataclasses.dataclass(frozen=True)
class Asking:
  """What every verb takes."""

  json: bool = config.flag(False, 'Print each answer as a line of JSON.')
  checkpoint: str = config.flag('best', 'The weights to use: best, last, or the step of a checkpoint that is kept.')


def flags_of(verb) -> type:
  """The flags of a verb: its own options and those of all verbs."""
  return dataclasses.make_dataclass('Flags', [], bases=(verb.options, Asking), frozen=True)


def describe(folder: Path) -> int:
  """`launch.py WORKDIR`: prints what a run is, and what it can do; 2 where the folder holds no run."""
  from karpjax import verbs

  try:
    run = verbs.Run(folder)
  except errors.UsageError as error:
    print(f'launch.py: {error}', file=sys.stderr)
    return 2
  numbers, experiment = run.summary, run.stored['experiment']
  state = f'best {run.trial}' if run.trial else 'finished' if numbers else 'not finished'
  flags = config.as_flags(run.config, leave_out=('workdir',))
  lines = [f'{folder}: a {"sweep" if run.trial else "run"} of {experiment}, {state}']
  lines += ['  ' + ' '.join(['python launch.py', experiment, *flags])]
  for name, value in numbers.items():
    value = value['mean'] if isinstance(value, dict) else value
    if name.startswith(('test/', 'validation/')):
      lines.append(f'  {name:28} {value:.4f}' if isinstance(value, float) else f'  {name:28} {value}')
  lines += ['', 'It can:'] if run.verbs else ['', 'It has no verbs.']
  for name, verb in run.verbs.items():
    lines += [f'  python launch.py {name} {folder} {verb.inputs}'.rstrip(), f'      {verb.help}']
  pictures = [path for path in (folder / 'index.html', folder / 'plots' / 'response.png') if path.exists()]
  print(*lines, *(f'\nto look at: {path}' for path in pictures), sep='\n')
  return 0


def usage(name: str, verb) -> str:
  """The text of `launch.py VERB WORKDIR --help`."""
  fields = dataclasses.fields(flags_of(verb))
  lines = [verb.help, '', f'usage: python launch.py {name} WORKDIR {verb.inputs} [--flag=value …]', '']
  return '\n'.join(lines + command_line.flag_lines(fields))


def inputs_of(given: Sequence[str], wanted: str, name: str) -> list[str]:
  """The inputs, those of standard input included.

  Raises:
    UsageError: for none where some are wanted, or some where none is.
  """
  inputs = [line for x in given for line in (sys.stdin.read().splitlines() if x == '-' else [x])]
  if wanted and not inputs:
    raise errors.UsageError(f'{name} wants {wanted}, or - for the lines of standard input')
  if inputs and not wanted:
    raise errors.UsageError(f'stray argument {inputs[0]!r}: {name} takes flags alone, typed --name=value')
  return inputs


def main(name: str, argv: Sequence[str]) -> int:
  """The command line of a verb; 2 for bad input.

  Args:
    name: of the verb.
    argv: the run's folder, inputs and flags.
  """
  from karpjax import verbs

  given = [x for x in argv if not x.startswith('--')]
  flags = [x for x in argv if x.startswith('--')]
  known: type = Asking
  try:
    if not given:
      raise errors.UsageError(f'which run? python launch.py {name} WORKDIR …')
    runtime.tune_malloc()
    runtime.enable_compilation_cache('')
    verb = verbs.Run(given[0]).verb(name).verb
    known = flags_of(verb)
    if '--help' in flags:
      print(usage(name, verb))
      return 0
    chosen = command_line.parse(known, flags)
    run = verbs.Run(given[0], chosen.checkpoint)
    own = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(verb.options)}
    inputs, bound = inputs_of(given[1:], verb.inputs, name), run.verb(name)
    with errors.unwrap_callback_error():
      arrays = bound.encode(inputs, **own)
      print(f'weights of step {run.step} ({run.checkpoint}){run.whose}', file=sys.stderr)
      for answer in bound.decode(bound.function(run.state, arrays, **own), inputs, **own):
        text = json.dumps(writers.plain(answer)) + '\n' if chosen.json else verb.show(answer)
        print(text, end='', flush=True)
  except errors.UsageError as error:
    print(f'{name}: {command_line.flagged(error, known)}', file=sys.stderr)
    return 2
  except errors.CallbackError as error:
    print(f'{name}: {error}', file=sys.stderr)
    return 1
  return 0
