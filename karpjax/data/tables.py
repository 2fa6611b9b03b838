"""scikit-learn's tables for linear and logistic regression."""

import numpy as np

from karpjax.data import splitting
from karpjax.data.dataset import Dataset, Spec, Split

TABLES = ('diabetes', 'diabetes_bmi', 'breast_cancer')


def load(config) -> Dataset:
  """The table that a config names, with 'features' [n, columns] float32 and 'target' [n], and a validation split.

  'diabetes': 442 patients, 10 columns, target float32, a fifth drawn for test. 'diabetes_bmi': its third column alone, the
  last 20 rows for test, as in scikit-learn's example of ordinary least squares (coefficient 938.24, test mean squared error
  2548.07, R² 0.47). 'breast_cancer': 569 biopsies, 30 columns, target int32 of two classes, a fifth of each for test.

  The Spec's shape is (columns,), its classes are () for regression, its mean and std those of each column of train, so that
  `Spec.scale` standardises.
  """
  from sklearn import datasets

  name, seed = config.dataset, config.split_seed
  table = datasets.load_breast_cancer() if name == 'breast_cancer' else datasets.load_diabetes()
  features, target, classes = table.data.astype(np.float32), table.target.astype(np.float32), ()
  size, fifth = len(target), round(len(target) / 5)
  if name == 'breast_cancer':
    target, classes = target.astype(np.int32), tuple(map(str, table.target_names))
    train, test = splitting.stratified(target, fifth, seed)
  elif name == 'diabetes_bmi':
    features = features[:, [2]]
    train, test = np.arange(size - 20), np.arange(size - 20, size)
  else:
    order = splitting.permutation(seed, 0, size)
    train, test = order[fifth:], order[:fifth]
  mean, std = (tuple(map(float, moment(features[train], axis=0, dtype=float))) for moment in (np.mean, np.std))
  whole = Split.of(features=features, target=target)
  splits = {'train': whole.select(train), 'test': whole.select(test)}
  splits, held_out = splitting.hold_out(splits, config.validation, seed)
  spec = Spec(name, features.shape[1:], classes, 1.0, mean, std, splits['train'].size, 'float32')
  note = f'{name}: {len(train)} train, {len(test)} test rows of {features.shape[1]} columns'
  return Dataset(spec, splits, (note, *held_out))
