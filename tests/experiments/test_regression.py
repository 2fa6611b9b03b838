"""Gradient descent finds what linear algebra finds."""

import json

import numpy as np
import pytest

from experiments import regression as experiment
from karpjax import errors
from karpjax.train import loop


def run(folder, **changes):
  settings = experiment.Config(
    **dict(tensorboard=False, plots=False, steps_per_call='200', eval_every='0') | changes, workdir=str(folder)
  )
  return loop.run(experiment, settings, say=lambda _: None)


def test_one_column_gives_scikit_learns_published_numbers(tmp_path):
  numbers = run(tmp_path, dataset='diabetes_bmi', validation=0.0, steps='1000', plots=True).numbers
  np.testing.assert_allclose(numbers['test/mse'], 2548.07, atol=0.01)
  np.testing.assert_allclose(numbers['test/r2'], 0.4726, atol=1e-4)
  np.testing.assert_allclose(numbers['test/coefficient'], 938.24, atol=0.01)
  assert (tmp_path / 'plots' / 'predictions.png').exists()
  np.testing.assert_allclose(json.loads((tmp_path / 'report.json').read_text())['coefficients'], [938.24], atol=0.01)


def test_the_report_is_of_the_weights_that_are_evaluated(tmp_path):
  numbers = run(tmp_path, dataset='diabetes_bmi', steps='10', ema=0.9, plots=True).numbers
  report = json.loads((tmp_path / 'report.json').read_text())
  np.testing.assert_allclose(report['coefficients'], [numbers['test/coefficient']], rtol=1e-5)


def test_all_columns_equal_least_squares(tmp_path):
  from sklearn.linear_model import LinearRegression

  data = experiment.data(experiment.Config(validation=0.0))
  train = data.splits['train'].arrays
  exact = LinearRegression().fit(train['features'], train['target'])
  residual = np.mean((exact.predict(train['features']) - train['target']) ** 2)
  np.testing.assert_allclose(run(tmp_path, validation=0.0).numbers['train/mse'], residual, rtol=1e-3)


def test_logistic_regression_reads_biopsies(tmp_path):
  numbers = run(tmp_path, dataset='breast_cancer', steps='200', plots=True).numbers
  assert numbers['test/accuracy'] > 0.93
  assert (tmp_path / 'plots' / 'confusion_matrix.png').exists()


def test_an_unknown_table_is_named():
  with pytest.raises(errors.UsageError, match='Did you mean diabetes'):
    loop.prepare(experiment, experiment.Config(dataset='diabetis'))
