"""`launch.py sweep NAME`: many settings of one experiment, compared by a validation metric.

python launch.py sweep NAME --grid learning_rate=1e-2,1e-3 --grid model=mlp,cnn [--seeds=3] [--flag=value …]
python launch.py sweep NAME --trials=50 --search learning_rate=log:1e-4:1e-1 --search model=mlp,cnn [--flag=value …]

A grid runs every combination. The optimiser's numbers (learning rate, decays, momentum, …) and seeds run together in
one program; of the others each combination is a program of its own. A search draws settings with Optuna (TPE), one
program each, and stops those that are worse than the median of the others so far; with --together=16, sixteen at a time
in one program, which masks them.

Settings are compared by the metric that --select names, as it is at the end of training, averaged over seeds. The same
command with the same --workdir goes on where it stopped. Values that are lists are separated by semicolons:
--grid 'widths=64;64,64'. With --together=1 each setting is an ordinary run, as an experiment needs that looks at an
optimiser's number itself. `launch.py VERB WORKDIR …` asks the best setting's run.
"""

import argparse
from pathlib import Path

import jax

from karpjax import command_line, config, errors
from karpjax.commands.sweep import outcome, settings, study
from karpjax.report import writers
from karpjax.train import run_dir


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """The sweep's own options, and the flags of the experiment; raises UsageError for an option without its value."""
  how = argparse.RawDescriptionHelpFormatter
  parser = errors.Parser(prog='launch.py sweep', description=__doc__, formatter_class=how, allow_abbrev=False)
  axes, add = parser.add_mutually_exclusive_group(required=True).add_argument, parser.add_argument
  axes('--grid', action='append', metavar='FLAG=VALUE,…', help='an axis of the grid')
  axes('--search', action='append', metavar='FLAG=RANGE', help='log:LOW:HIGH, uniform:LOW:HIGH, or values')
  add('name', help='the experiment; flags not listed here are given to all of its runs')
  add('--trials', type=int, help='how many settings a search draws, over all machines')
  storage = "the search's database, which machines share, as URL; default: SQLite in the workdir"
  add('--storage', default='', help=storage)
  together = "at most so many members (settings × seeds) in one program; default: a grid's all, a search's one setting"
  add('--together', type=int, default=0, help=together)
  return parser.parse_known_args(argv)


def main(argv: list[str]) -> int:
  """Runs the sweep: 0 where at least one setting succeeded, 1 where none did, 2 for bad input."""
  # The devices are for the programs that the sweep starts; what is looked at here needs none.
  jax.config.update('jax_platforms', 'cpu')
  flags = config.Train
  try:
    sweep = settings.parse(*arguments(argv))
    flags = type(sweep.base)
    data = settings.check(sweep)
    folder = Path(sweep.base.workdir) if sweep.base.workdir else run_dir.default(f'sweep-{sweep.experiment}')
    command = settings.without_password(' '.join(['python launch.py sweep', *argv]))
    asks = settings.refuse_changes(folder, sweep)
    run_dir.refuse_other_data(folder, data)
    if sweep.storage:
      study.database(sweep.storage)  # its errors
    with run_dir.claim(folder):
      print(f'workdir: {folder}', *settings.lines(sweep), sep='\n', flush=True)
      writers.write_json(folder / 'sweep.json', {'command': command, 'trials': sweep.trials, 'asks': asks})
      writers.write_json(folder / run_dir.DATA, data)
      trials = outcome.ranked(study.run(sweep, asks, folder, print), sweep)
      outcome.write_csv(trials, sweep, folder)
      print('', *outcome.lines(trials, sweep), sep='\n')
      if trials[0].status != 'done':
        print(f'table: {folder / "trials.csv"}')
        return 1
      outcome.draw(trials, sweep, folder)
      page = outcome.write_page(trials, sweep, folder)
      print('', *outcome.about_best(trials[0], sweep), f'table: {folder / "trials.csv"}', f'page: {page}', sep='\n')
      return 0
  except errors.UsageError as error:
    return command_line.refuse('sweep', error, flags)
