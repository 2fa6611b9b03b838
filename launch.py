"""The front door of karpjax.

python launch.py                              list the experiments
python launch.py NAME [--flag=value …]        run one; --help shows its flags
python launch.py WORKDIR                      what a run is, and what it can do
python launch.py VERB WORKDIR [INPUT …]       have a run do it: predict, sample, translate, play, …
python launch.py check NAME [--flag=value …]  what a careful person checks before training
python launch.py reproduce NAME …|all         run flagfiles of experiments/papers/, ours beside theirs
python launch.py sweep NAME --grid FLAG=…     many settings, in one program where they can be
python launch.py runs [DIR]                   a table of runs
python launch.py compare WORKDIR …            one page of runs side by side
python launch.py serve WORKDIR [--port=8000]  a run behind HTTP, with a page that asks it
python launch.py export WORKDIR               files that run without karpjax
python launch.py card WORKDIR                 a model card, whose questions its author answers
python launch.py quantise WORKDIR --bits=8    a file of its weights in 8 or 4 bits
python launch.py audit [WORKDIR] FILE.csv …   whom decisions wrong, group by group
python launch.py shrink WORKDIR               the smaller network of a run that pruned channels
python launch.py bench NAME|all|start         our step, or our start, against PyTorch's
python launch.py tpu … -- NAME [flags]        run on all workers of a TPU VM
python launch.py slurm … -- NAME [flags]      submit to Slurm
python launch.py --processes=2 NAME [flags]   hosts as processes of this machine, to rehearse a pod
"""

import ast
import codecs
import gc
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = {
  'check': 'karpjax.commands.check',
  'reproduce': 'karpjax.commands.reproduce',
  'quantise': 'karpjax.commands.quantise',
  'audit': 'karpjax.commands.audit',
  'serve': 'karpjax.serving.command',
  'shrink': 'karpjax.commands.shrink',
  'bench': 'karpjax.bench.command',
  'sweep': 'karpjax.commands.sweep',
  'tpu': 'karpjax.commands.launchers.tpu',
  'slurm': 'karpjax.commands.launchers.slurm',
}
OF_ANY_RUN = 'evaluate', 'export', 'card'  # verbs
LISTS = 'runs', 'compare'  # of karpjax.commands.runs
PLAIN = {'±': '+-', '·': '-', '×': 'x', '–': '-', '—': '-', '−': '-', '…': '...', '→': '->', '«': '"', '»': '"'}


def experiments() -> dict[str, tuple[str, list[str]]]:
  """{name: (first line of its docstring, the verbs of its runs)}, read without importing anything."""
  found = {}
  # the second is one's own, where the package is installed
  folders = dict.fromkeys([ROOT / 'experiments', Path('experiments').resolve()])
  for file in sorted((file for folder in folders for file in folder.glob('[a-z]*.py')), key=lambda file: file.stem):
    try:
      tree = ast.parse(file.read_text('utf-8'))
    except (SyntaxError, ValueError) as error:  # one's own, half written, stands in no other's way
      found[file.stem] = f'does not parse: {error}', []
      continue
    tables = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == 'verbs']
    verbs = [key.value for table in tables if isinstance(table, ast.Dict) for key in table.keys]
    found[file.stem] = (ast.get_docstring(tree) or '').split('\n')[0], verbs
  return found


def module(name: str):
  """Imports one; all but a run of an experiment, which does it later, then look for garbage again."""
  found = importlib.import_module(name)
  if name != 'karpjax.command_line':
    gc.enable()
  return found


def main(argv: list[str]) -> int:
  known = experiments()
  if not argv or argv[0] in ('--help', '-h', 'list'):
    lines = (f'  {name:24} {line}' for name, (line, _) in known.items())
    print(__doc__.strip(), '', 'experiments:', *lines, sep='\n')
    return 0
  name, *rest = argv
  sys.path[:0] = [str(ROOT)]
  sys.path.append(os.getcwd())  # where experiments and models of one's own may lie
  if name.split('=')[0] in ('--processes', '--devices'):
    return module('karpjax.commands.local_cluster').main(argv)
  if name in known and name in (*COMMANDS, *LISTS):
    print(f'launch.py: {name} is the command; experiments/{name}.py needs another name', file=sys.stderr)
  if name in COMMANDS:
    return module(COMMANDS[name]).main(rest)
  if name in LISTS:
    return getattr(module('karpjax.commands.runs'), name)(rest)
  if name in known:
    return module('karpjax.command_line').by_name(name, rest)
  verbs = sorted({*OF_ANY_RUN, *(verb for _, own in known.values() for verb in own)})
  if name in verbs or (rest and os.path.isdir(rest[0])):  # False of a text too long for a name
    return module('karpjax.commands.use').main(name, rest)
  if os.path.isdir(name) and not rest:
    return module('karpjax.commands.use').describe(Path(name))
  if name.startswith('-'):
    why = f'{name} stands behind a name: python launch.py NAME {name}'
  elif '/' in name:
    why = f'{name}: no such folder'
  else:
    near = module('karpjax.errors').nearest(name, [*known, *COMMANDS, *LISTS, *verbs])
    why = f'unknown experiment {name!r}.{near}'
  print(f'launch.py: {why}', file=sys.stderr)
  return 2


def spell(error: UnicodeEncodeError) -> tuple[str, int]:
  """What stands for signs that a terminal, or what reads in its place, has not: none of them ends a command."""
  signs = error.object[error.start : error.end]
  return ''.join(PLAIN.get(sign) or ascii(sign)[1:-1] for sign in signs), error.end


def command(argv: list[str] | None = None) -> None:
  """The process: `python launch.py …`, and `karpjax …` where the package is installed."""
  codecs.register_error('karpjax.spell', spell)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):  # a notebook's has not
      stream.reconfigure(errors='karpjax.spell')
  gc.disable()  # what starting makes stays: looking through it again and again takes time
  try:
    code = main(sys.argv[1:] if argv is None else argv)
    sys.stdout.flush()
  except BrokenPipeError:  # the reader has seen enough, as `| head`
    code = 141  # as a shell says of SIGPIPE
  except SystemExit as stopped:
    code = stopped.code
  except OSError as error:  # of what was named; a run that writes has words of its own
    errors = importlib.import_module('karpjax.errors')
    print(f'launch.py: {errors.unusable(error)}', file=sys.stderr)
    code = 1 if errors.full_disk(error) else 2
  finally:
    gc.enable()
  try:
    sys.stdout.flush()
  except OSError:  # nor does it take what is left
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(code)


if __name__ == '__main__':
  command()
