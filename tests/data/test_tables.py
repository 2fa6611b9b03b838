"""Arrays of one's own as a data set."""

import numpy as np
import pytest

from karpjax import config
from karpjax.data import tables
from karpjax.errors import UsageError


def test_splits_that_are_not_given_are_drawn_from_train():
  x, y = np.arange(20.0, dtype=np.float32).reshape(10, 2), np.arange(10)
  data = tables.of_arrays(config.Train(validation=2), 'mine', {'x': x, 'y': y}, classes=('a', 'b'))
  rows = np.concatenate([data.splits[split].column('y') for split in ('train', 'validation', 'test')])
  assert sorted(rows) == list(range(10)) and data.splits['validation'].size == data.splits['test'].size == 2
  for split in data.splits.values():
    np.testing.assert_array_equal(split.column('x')[:, 0], 2.0 * split.column('y'))
  assert (data.spec.shape, data.spec.examples, data.spec.classes) == ((2,), 6, ('a', 'b'))


def test_arrays_of_several_sizes_are_refused():
  with pytest.raises(UsageError, match='mine: test has 3 rows of x, 4 rows of y'):
    tables.of_arrays(config.Train(), 'mine', {'x': np.ones(9), 'y': np.ones(9)}, {'x': np.ones(3), 'y': np.ones(4)})


def test_arrays_whose_test_labels_are_hidden_are_tested_on_a_part_of_train():
  draw = np.random.default_rng(0)
  arrays = lambda size, label: {'x': draw.normal(size=(size, 3)), 'label': np.full(size, label, np.int32)}
  data = tables.of_arrays(config.Train(validation=0.0), 'mine', arrays(20, 1), arrays(5, -1), classes='ab')
  assert data.notes[0].startswith('test: its labels are hidden') and data.splits['test'].size == 4
  assert (data.splits['test'].column('label') == 1).all()


def test_a_label_that_is_no_class_is_refused():
  with pytest.raises(UsageError, match='mine: train has the label 2; there are 2 classes, from 0'):
    tables.of_arrays(config.Train(), 'mine', {'x': np.ones(9), 'label': np.full(9, 2)}, classes=('a', 'b'))


def test_columns_are_standardised_by_those_that_are_trained_on():
  from experiments import regression

  data = tables.load(regression.Config(dataset='diabetes', validation=0.3))
  train = data.splits['train'].column('features').astype(float)
  np.testing.assert_allclose(data.spec.mean, train.mean(0), rtol=1e-6)
  np.testing.assert_allclose(data.spec.std, train.std(0), rtol=1e-6)
