"""Verbs of experiments on tables: the number, or the classes, of each row of a file."""

import numpy as np

from karpjax import paths
from karpjax.data import table_files
from karpjax.report import tables
from karpjax.verbs import Top, Verb, likeliest, predictions, probabilities


def read(run, files) -> table_files.Table:
  """The one file that is given, as the run's own was read; or a table already."""
  return files[0] if isinstance(files[0], table_files.Table) else table_files.Table.read(files[0], run.config.encoding)


def arrays(run, table: table_files.Table) -> dict[str, np.ndarray]:
  """{'features' [rows, features]}, by the columns that the run has learnt."""
  return {'features': table_files.features(run.spec, table)}


def encode(run, files, chosen=None) -> dict[str, np.ndarray]:
  return arrays(run, read(run, files))


def decode(run, outputs, files, chosen):
  names = run.spec.classes
  for (line, _), row in zip(read(run, files).rows, outputs):
    found = likeliest(names, row, chosen.top) if names else {run.spec.target: float(row[0])}
    yield {'line': line, 'classes' if names else 'numbers': found}


def show(answer) -> str:
  numbers = (f'{name} {tables.decimal(x)}' for name, x in [*answer.values()][1].items())
  return '  '.join([f'line {answer["line"]}', *numbers]) + '\n'


HELP = 'The number, or the likeliest classes, of each row of a table with the columns of training.'
function = lambda run, chosen: (probabilities if run.spec.classes else predictions)(run)
PREDICT = Verb(HELP, encode, function, decode, 'FILE.csv', Top, show, paths.one_file)
