"""Tables: arrays of one's own as a data set, and files and scikit-learn's for linear and logistic regression."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import splitting, table_files, text_files
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.errors import UsageError, nearest

TABLES = ('diabetes', 'diabetes_bmi', 'breast_cancer')


def of_arrays(
  config, name: str, train: Mapping, test: Mapping | None = None, *, classes: Sequence[str] = ()
) -> Dataset:
  """A data set of arrays, {name: [size, …]} for each split; validation and, where there is none, test are drawn from
  train.

  The Spec's shape is one example's of the first array.

  Raises:
    UsageError: where the arrays of a split are not all of one size, or a 'label' is not the number of a class.
  """
  splits = {split: Split.of(**arrays) for split, arrays in (('train', train), ('test', test)) if arrays}
  for split, arrays in (('train', train), ('test', test or {})):
    if len({len(x) for x in arrays.values()}) > 1:
      raise UsageError(f'{name}: {split} has ' + ', '.join(f'{len(x)} rows of {key}' for key, x in arrays.items()))
  labels = {split: s.arrays['label'] for split, s in splits.items() if classes and 'label' in s.arrays}
  splits, hidden = splitting.labelled(name, splits, labels)
  splitting.check_labels(name, splits, classes)
  splits, tested = splitting.with_test(splits, round(len(next(iter(train.values()))) / 5), config.split_seed, purpose=0)
  splits, held_out = splitting.hold_out(splits, config.validation, config.split_seed)
  first = next(iter(train.values()))
  spec = Spec(name, first.shape[1:], tuple(classes), 1.0, examples=splits['train'].size, dtype=str(first.dtype))
  return Dataset(spec, splits, (*hidden, *tested, *held_out))


def load(config) -> Dataset:
  """The table that a config names: `table_files.load` of a file; else with 'features' [n, columns] float32 and 'target' [n], and a validation split.

  'diabetes': 442 patients, 10 columns, target float32, a fifth drawn for test. 'diabetes_bmi': its third column alone,
  the last 20 rows for test, as in scikit-learn's example of ordinary least squares (coefficient 938.24, test mean
  squared error 2548.07, R² 0.47). 'breast_cancer': 569 biopsies, 30 columns, target int32 of two classes, a fifth of
  each for test.

  The Spec's shape is (columns,), its classes are () for regression, its mean and std those of each column of train, so
  that `Spec.scale` standardises.

  Raises:
    UsageError: for another name, and as `table_files.load`.
  """
  from sklearn import datasets

  name, seed = config.dataset, config.split_seed
  if Path(name).suffix.lower() in text_files.DELIMITERS:
    return table_files.load(config)
  if name not in TABLES:
    raise UsageError(f'dataset={name}: unknown.{nearest(name, TABLES)} Or FILE.csv, FILE.tsv')
  table = datasets.load_breast_cancer() if name == 'breast_cancer' else datasets.load_diabetes()
  features, target, classes = table.data.astype(np.float32), table.target.astype(np.float32), ()
  columns = list(map(str, table.feature_names))
  size, fifth = len(target), round(len(target) / 5)
  if name == 'breast_cancer':
    target, classes = target.astype(np.int32), tuple(map(str, table.target_names))
    train, test = splitting.stratified(target, fifth, seed)
  elif name == 'diabetes_bmi':
    features, columns = features[:, [2]], columns[2:3]
    train, test = np.arange(size - 20), np.arange(size - 20, size)
  else:
    order = splitting.permutation(seed, 0, size)
    train, test = order[fifth:], order[:fifth]
  whole = Split.of(features=features, target=target)
  splits = {'train': whole.select(train), 'test': whole.select(test)}
  splits, held_out = splitting.hold_out(splits, config.validation, seed)
  seen = splits['train'].column('features')
  mean, std = (tuple(map(float, moment(seen, axis=0, dtype=float))) for moment in (np.mean, np.std))
  named = {'columns': dict.fromkeys(columns, ())}
  spec = table_files.TableSpec(
    name, features.shape[1:], classes, 1.0, mean, std, splits['train'].size, 'float32', **named
  )
  note = f'{name}: {splits["train"].size} train, {len(test)} test rows of {features.shape[1]} columns'
  return Dataset(spec, splits, (note, *held_out))
