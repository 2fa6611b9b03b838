"""`launch.py sweep NAME`: many settings of one experiment, compared by a validation metric.

python launch.py sweep NAME --grid learning_rate=1e-2,1e-3 --grid model=mlp,cnn [--seeds=3] [--flag=value …]
python launch.py sweep NAME --trials=50 --search learning_rate=log:1e-4:1e-1 --search model=mlp,cnn [--flag=value …]

A grid runs every combination. Numbers that can be traced (learning rates, decays, dropout, …) and seeds run together in
one program; of the others each combination is a program of its own. A search draws settings with Optuna (TPE), one
program each, and stops those that are worse than the median of the others so far; with --together=16, sixteen at a time in
one program, which masks them.

Settings are compared by the metric that --select names, as it is at the end of training, averaged over seeds. The same
command with the same --workdir goes on where it stopped. Values that are lists are separated by semicolons:
--grid 'widths=64;64,64'.
"""

import argparse
import sys
from pathlib import Path

import jax

from karpjax import errors
from karpjax.commands.sweep import grid, question, response, search, table
from karpjax.report import progress, writers
from karpjax.train import run_dir as workdir


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise errors.UsageError(message)


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """The sweep's own options, and the flags of the experiment.

  Raises:
    UsageError: for an option without its value.
  """
  how = argparse.RawDescriptionHelpFormatter
  parser = _Parser(prog='launch.py sweep', description=__doc__, formatter_class=how, allow_abbrev=False)
  parser.add_argument('name', help='the experiment; flags not listed here are given to all of its runs')
  parser.add_argument('--grid', action='append', default=[], metavar='FLAG=VALUE,…', help='an axis of the grid')
  parser.add_argument(
    '--search', action='append', default=[], metavar='FLAG=RANGE', help='log:LOW:HIGH, uniform:LOW:HIGH, or values'
  )
  parser.add_argument('--trials', type=int, help='how many settings a search draws, over all machines')
  parser.add_argument(
    '--storage', default='', help="URL of the search's database, which machines share; default: SQLite in the workdir"
  )
  parser.add_argument(
    '--together',
    type=int,
    default=0,
    help="at most so many members (settings × seeds) in one program; default: a grid's all, a search's one setting",
  )
  return parser.parse_known_args(argv)


def main(argv: list[str]) -> int:
  """Runs the sweep: 0 where at least one setting succeeded, 1 where none did, 2 for bad input."""
  # The devices are for the programs that the sweep starts; what is looked at here needs none.
  jax.config.update('jax_platforms', 'cpu')
  try:
    options, flags = arguments(argv)
    asked = question.ask(options, flags)
    plan = (search if asked.trials else grid).plan(asked)
    folder = Path(asked.base.workdir) if asked.base.workdir else workdir.default(f'sweep-{asked.experiment}')
    command = ' '.join(['python launch.py sweep', *argv])
    question.refuse_changes(folder, asked)
    with workdir.claim(folder):
      print(f'workdir: {folder}', *plan.lines, sep='\n', flush=True)
      writers.write_json(folder / 'sweep.json', {**asked.described(), 'command': asked.hidden(command)})
      trials = (search if asked.trials else grid).run(asked, plan, folder, print)
      table.write_csv(trials, asked, folder)
      best = table.best(trials, asked)
      print('', *progress.table(*table.lines(trials, asked)), sep='\n')
      if best:
        response.draw(trials, asked, folder)
        print('', *table.about_best(best, asked), sep='\n')
      print(f'table: {folder / "trials.csv"}' + (f', plot: {folder / "plots" / "response.png"}' if best else ''))
      return 0 if best else 1
  except errors.UsageError as error:
    print(f'sweep: {error}', file=sys.stderr)
    return 2
