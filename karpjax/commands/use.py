"""`launch.py VERB WORKDIR [INPUT …] [--flag=value …]`: asks a trained run to do one of the things that it can.

An input `-` stands for the lines of standard input. `--json` prints an answer a line as JSON.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from karpjax import command_line, config, errors, options
from karpjax.report import page, tables, writers
from karpjax.train import runtime


@dataclasses.dataclass(frozen=True)
class Asked:
  """Which weights of a run are asked."""

  checkpoint: str = config.flag(
    'best', 'The weights to use: best, last, the step of a checkpoint that is kept, int8, int4 or a FILE.safetensors.'
  )
  member: int | None = config.flag(None, "Which of several seeds, or of a sweep's part, from 0.", low=0)
  trial: int | None = config.flag(
    None, 'Which setting of a sweep, by its number in the table. Default: the best.', low=1
  )


@dataclasses.dataclass(frozen=True)
class Asking(Asked):
  """What every verb takes."""

  json: bool = config.flag(False, 'Print each answer as a line of JSON.')


def describe(folder: Path) -> int:
  """`launch.py WORKDIR`: prints what a run is, and what it can do; 2 where the folder holds no run."""
  from karpjax import verbs

  try:
    run = verbs.Run(folder)
  except errors.UsageError as error:
    print(f'launch.py: {error}', file=sys.stderr)
    return 2
  numbers = run.summary
  state = f'best {run.trial}' if run.trial else 'finished' if numbers else 'not finished'
  lines = [f'{folder}: a {"sweep" if run.trial else "run"} of {run.stored["experiment"]}, {state}']
  command = writers.read_json(folder / 'sweep.json').get('command') or run.stored['command']  # a part's is of a program
  lines += [f'  {command}', '']
  metrics = [name for name in numbers if name.startswith(('test/', 'validation/'))]
  table = tables.last_and_best(numbers, metrics, page.figure)
  lines += [f'  {line}' for line in tables.table(*table)] if metrics else []
  lines += ['', 'It can:'] if run.verbs else ['', 'It has no verbs.']
  for name, verb in run.verbs.items():
    lines += [f'  python launch.py {name} {shlex.quote(str(folder))} {verb.inputs}'.rstrip(), f'      {verb.help}']
  pictures = [path for path in (folder / 'index.html', folder / 'plots' / 'response.png') if path.exists()]
  print(*lines, *(f'\nto look at: {path}' for path in pictures), sep='\n')
  return 0


def main(name: str, argv: Sequence[str]) -> int:
  """The command line of a verb; 2 for bad input.

  Args:
    name: of the verb.
    argv: the run's folder, inputs and flags.
  """
  from karpjax import verbs

  is_flag = lambda x: x.startswith('--') or command_line.asks_help([x])
  flags = [x for x in argv if is_flag(x)]
  folder, *inputs = [x for x in argv if not is_flag(x)] or ['']
  known: type = Asking
  try:
    if not folder:
      raise errors.UsageError(f'which run? python launch.py {name} WORKDIR …; --help behind it shows the flags')
    runtime.set_up()
    verb = verbs.Run(folder, member=0).verb(name).verb
    known = dataclasses.make_dataclass('Flags', [], bases=(verb.options, Asking), frozen=True)
    if command_line.asks_help(argv):
      usage = f'{verb.help}\n\nusage: python launch.py {name} WORKDIR {verb.inputs} [--flag=value …]\n'
      print(usage, *command_line.flag_lines(dataclasses.fields(known)), sep='\n')
      return 0
    chosen = command_line.parse(known, flags)
    options.check(chosen)
    run = verbs.Run(folder, chosen.checkpoint, chosen.member, chosen.trial)
    own = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(verb.options)}
    ended = lambda line: line.removesuffix('\n')
    if hasattr(sys.stdin, 'reconfigure'):
      sys.stdin.reconfigure(errors='surrogateescape')  # as of arguments: the verb refuses what is no text
    bound, inputs = run.verb(name), [y for x in inputs for y in (map(ended, sys.stdin) if x == '-' else [x])]
    if verb.inputs and not inputs:
      raise errors.UsageError(f'{name} wants {verb.inputs}, or - for the lines of standard input')
    own_flags = ', '.join(f'--{name}=' for name in own)
    if inputs and not verb.inputs:
      raise errors.UsageError(f'stray argument {inputs[0]!r}: {name} takes flags alone: {own_flags}')
    with errors.unwrap_callback_error(), errors.refuse_too_large():
      arrays = bound.encode(inputs, **own)
      print(f'weights of step {run.step} ({run.checkpoint}){run.whose}', file=sys.stderr)
      for answer in bound.decode(bound.function(run.state, arrays, **own), inputs, **own):
        text = json.dumps(writers.plain(answer)) + '\n' if chosen.json else verb.show(answer)
        print(text, end='', flush=True)
  except errors.UsageError as error:
    return command_line.refuse(name, error, known)
  except OSError as error:  # such as an output where nothing may be written
    if isinstance(error, BrokenPipeError) or errors.full_disk(error):
      raise
    return command_line.refuse(name, errors.UsageError(errors.unusable(error)), known)
  except errors.CallbackError as error:
    print(f'{name}: {error}', file=sys.stderr)
    return 1
  return 0
