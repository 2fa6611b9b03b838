"""Gradient descent finds what linear algebra finds."""

import json

import numpy as np
import pytest

import karpjax
import launch
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


# ---- tables of one's own ----


@pytest.fixture
def houses(tmp_path):
  """A table whose prices are 50,000 + 30,000 rooms, in Oslo 40,000 more; line 2 lacks its rooms."""
  draw = np.random.default_rng(0)
  rooms, towns = draw.integers(1, 8, 200), draw.choice(['Rome', 'Oslo'], 200)
  price = 50_000 + 30_000 * rooms + 40_000 * (towns == 'Oslo')
  rows = [f'{i},{n if i else "NA"},{town},{x}' for i, (n, town, x) in enumerate(zip(rooms, towns, price))]
  (tmp_path / 'houses.csv').write_text('\n'.join(['number,rooms,town,price', *rows]) + '\n')
  return tmp_path / 'houses.csv'


def test_a_table_of_ones_own_is_learnt_and_asked_without_it(houses, tmp_path, capsys):
  flags = dict(dataset=str(houses), target='price', columns=('rooms', 'town'), plots=True)
  numbers = run(tmp_path / 'run', **flags).numbers
  assert numbers['test/r2'] > 0.98 and 1 < numbers['test/mae'] < 5000  # in the prices' own unit
  report = json.loads((tmp_path / 'run' / 'report.json').read_text())
  assert report['columns'] == ['rooms', 'town=Oslo', 'town=Rome']
  rooms, oslo, rome = report['coefficients']
  np.testing.assert_allclose([rooms, oslo - rome], [30_000, 40_000], rtol=0.05)
  assert karpjax.open(tmp_path / 'run').evaluate(split='test')[0]['test/r2'] == pytest.approx(
    numbers['best/test/r2'] if 'best/test/r2' in numbers else numbers['test/r2']
  )
  houses.unlink()
  (tmp_path / 'new.csv').write_text('town,rooms\nOslo,2\nRome,\nParis,3\n')  # another order; missing, unknown
  found = karpjax.open(tmp_path / 'run').predict(tmp_path / 'new.csv')
  assert [each['line'] for each in found] == [2, 3, 4] and found[0]['numbers']['price'] == pytest.approx(
    150_000, rel=0.05
  )
  assert launch.main(['predict', str(tmp_path / 'run'), str(tmp_path / 'new.csv')]) == 0
  assert capsys.readouterr().out.startswith('line 2  price 1')
  (tmp_path / 'new.csv').write_text('town,rooms\nOslo,two\n')
  assert launch.main(['predict', str(tmp_path / 'run'), str(tmp_path / 'new.csv')]) == 2
  assert capsys.readouterr().err.endswith("new.csv, line 2: 'two' is no number, as rooms was in training\n")


def test_other_rows_of_a_table_are_other_data(houses, tmp_path):
  flags = dict(dataset=str(houses), target='town', columns=('rooms', 'price'), steps='20')
  numbers = run(tmp_path / 'run', **flags).numbers
  assert 'test/accuracy' in numbers
  houses.write_text(houses.read_text().replace('Rome', 'Oslo', 1))
  with pytest.raises(errors.UsageError, match='houses.csv has changed'):
    run(tmp_path / 'run', **{**flags, 'steps': '40'})
