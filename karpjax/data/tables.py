"""scikit-learn's tables for linear and logistic regression."""

import numpy as np

from karpjax import errors
from karpjax.data import splitting
from karpjax.data.dataset import Dataset, Spec, Split

TABLES = ('diabetes', 'diabetes_bmi', 'breast_cancer')


def load_table(name: str, *, seed: int = 0) -> Dataset:
  """A table with 'features' [n, columns] float32 and 'target' [n].

  Args:
    name: 'diabetes': 442 patients, 10 columns, target float32, a fifth drawn by `seed` for test.
      'diabetes_bmi': its third column alone, the last 20 rows for test, as in scikit-learn's example of
      ordinary least squares (coefficient 938.24, test mean squared error 2548.07, R² 0.47). 'breast_cancer':
      569 biopsies, 30 columns, target int32 of two classes, a fifth of each drawn by `seed` for test.
    seed: of the split.

  Returns:
    A Dataset with splits 'train' and 'test'. The Spec's shape is (columns,), its classes are () for
    regression, and its mean and std are those of each column of train, so that `preprocess(features, spec,
    'standard')` standardises.

  Raises:
    UsageError: for another name.
  """
  if name not in TABLES:
    raise errors.UsageError(f'unknown table {name!r}.{errors.nearest(name, TABLES)}')
  from sklearn import datasets

  table = datasets.load_breast_cancer() if name == 'breast_cancer' else datasets.load_diabetes()
  features, target, classes = table.data.astype(np.float32), table.target.astype(np.float32), ()
  size = len(target)
  if name == 'breast_cancer':
    target, classes = target.astype(np.int32), tuple(map(str, table.target_names))
    train, test = splitting.stratified(target, round(size / 5), seed)
  elif name == 'diabetes_bmi':
    features = features[:, [2]]
    train, test = np.arange(size - 20), np.arange(size - 20, size)
  else:
    order = splitting.permutation(seed, 0, size)
    train, test = order[round(size / 5) :], order[: round(size / 5)]
  splits = {
    split: Split.of(features=features[rows], target=target[rows])
    for split, rows in {'train': train, 'test': test}.items()
  }
  mean, std = (statistic(features[train], axis=0, dtype=np.float64) for statistic in (np.mean, np.std))
  spec = Spec(
    name,
    features.shape[1:],
    classes,
    1.0,
    tuple(map(float, mean)),
    tuple(map(float, std)),
    len(train),
    'float32',
  )
  return Dataset(spec, splits, (f'{name}: {len(train)} train, {len(test)} test rows of {features.shape[1]} columns',))
