"""Error rates by group: by hand, as ProPublica published them, of a run, and what is refused."""

import json

import numpy as np
import pytest

import karpjax
import launch
from experiments import regression
from karpjax.commands import audit
from karpjax.metrics import fairness
from karpjax.train import loop

COMPAS = ['--score=score_text', '--selected=Medium,High', '--label=two_year_recid', '--group=race']


@pytest.fixture
def fairlearn():
  return pytest.importorskip('fairlearn', reason='fairlearn is not installed: requirements-fairness.txt')


def made() -> list[str]:
  """Group a: 3 right and 1 wrong of its positives, 4 and 2 of its negatives; b: 2, 2 and 5, 0; c: one of each."""
  kinds = {'a': {'11': 3, '10': 1, '00': 4, '01': 2}, 'b': {'11': 2, '10': 2, '00': 5}, 'c': {'11': 1, '00': 1}}
  return [
    f'{group},{x[0]},{0.9 if x[1] == "1" else 0.2}' for group, own in kinds.items() for x in own for _ in range(own[x])
  ]


@pytest.fixture
def table(tmp_path):
  (tmp_path / 'made.csv').write_text('\n'.join(['who,true,p', *made(), 'a,,0.9', 'b,1,']) + '\n')
  return str(tmp_path / 'made.csv')


def test_wilsons_interval_has_its_known_values():
  np.testing.assert_allclose(fairness.wilson(0.5, 10), [0.5, 0.23659, 0.76341], atol=1e-5)
  np.testing.assert_allclose(fairness.wilson(0.0, 10), [0, 0, 0.27753], atol=1e-5)
  assert np.isnan(fairness.wilson(0.0, 0)).all()


def test_rates_are_those_counted_by_hand(fairlearn, table):
  [found] = audit.of_file(table, audit.Options(group=('who',), label='true', score='p', least=4))
  assert (found['rows'], found['left_out']) == (21, 2)
  rates = {name: [own[rate][0] for rate in fairness.RATES] for name, own in found['groups'].items()}
  np.testing.assert_allclose(rates['a'], [7 / 10, 2 / 6, 1 / 4, 3 / 5, 5 / 10])
  np.testing.assert_allclose(rates['b'], [7 / 9, 0, 2 / 4, 1, 2 / 9])
  assert [own['small'] for own in found['groups'].values()] == [False, False, True]
  np.testing.assert_allclose(found['differences']['demographic parity'], 1 / 2 - 2 / 9)
  np.testing.assert_allclose(found['differences']['equalised odds'], 1 / 3)  # of FPR; of true positives it is 1/4
  assert found['calibration']['0.9']['a']['positives'][0] == 3 / 5 and found['calibration']['0.2']['b']['n'] == 7


def test_scores_and_bins_that_are_near_each_other_stay_apart():
  labels, groups = np.arange(60) % 3 == 0, np.array(['a', 'b'])[np.arange(60) % 2]
  for scores in (0.5 + np.arange(60) * 1e-7, 0.5 + np.arange(60) % 8 * 1e-8, np.where(np.arange(60) < 45, 0.5, 0.7)):
    found = fairness.calibration(labels, scores, groups)
    assert sum(own['n'] for each in found.values() for own in each.values()) == 60, list(found)


def test_a_group_of_one_label_has_rates_of_the_other_alone(fairlearn):
  true, groups = np.array([1, 1, 0, 1]) > 0, np.array(['a', 'a', 'b', 'b'])
  found = fairness.by_group(true, np.array([1, 0, 0, 0]) > 0, groups, 1)
  assert np.isnan(found['groups']['a']['FPR']).all() and found['groups']['a']['FNR'][0] == 0.5
  assert np.isnan(found['groups']['b']['PPV']).all() and found['differences']['equalised odds'] is None


def test_compas_has_the_rates_that_propublica_published(fairlearn, shared_data, capsys):
  """Larson, Mattu, Kirchner, Angwin 2016; the counts are those of their notebook, where all but Low is high."""
  path = str(shared_data / 'files' / 'compas-scores-two-years.csv')
  assert launch.main(['audit', path, *COMPAS, '--json']) == 0
  groups = json.loads(capsys.readouterr().out)['groups']
  assert {name: own['n'] for name, own in groups.items() if own['n'] > 1000} == {
    'African-American': 3696,
    'Caucasian': 2454,
  }
  black, white = groups['African-American'], groups['Caucasian']
  assert [round(100 * own[rate][0], 2) for own in (black, white) for rate in ('FPR', 'FNR')] == [
    44.85,
    27.99,
    23.45,
    47.72,
  ]
  assert [name for name, own in groups.items() if own['small']] == ['Asian', 'Native American']
  assert launch.main(['audit', path, *COMPAS]) == 0
  said = capsys.readouterr().out
  assert (
    '44.85 (42.6 to 47.2)' in said and 'too small to judge, with fewer than 30 rows of either label: Asian, Nat' in said
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that tells loans that are paid back by income, and its table, with a column of groups that it does not see."""
  folder, draw = tmp_path_factory.mktemp('loans'), np.random.default_rng(0)
  income, who, where = draw.normal(size=400), draw.choice(['x', 'y'], 400), draw.choice(['n', 's'], 400)
  paid = income + 0.5 * draw.normal(size=400) > 0
  rows = [f'{a:.3f},{b},{c},{"yes" if d else "no"}' for a, b, c, d in zip(income, who, where, paid)]
  (folder / 'loans.csv').write_text('\n'.join(['income,who,where,paid', *rows]) + '\n')
  config = regression.Config(
    dataset=str(folder / 'loans.csv'), target='paid', columns=('income',), steps='100', eval_every='0', plots=False,
    tensorboard=False, workdir=str(folder / 'run'),
  )  # fmt: skip
  loop.run(regression, config, say=lambda _: None)
  return folder


def test_a_run_is_audited_by_its_own_predictions(fairlearn, run, capsys):
  who, where, both = karpjax.open(run / 'run').audit(run / 'loans.csv', group=('who', 'where'))
  assert (who['group'], where['group'], both['group']) == ('who', 'where', 'who × where')
  assert sum(own['n'] for own in both['groups'].values()) == 400 and set(both['groups']) == {
    'x · n',
    'x · s',
    'y · n',
    'y · s',
  }
  assert who['label'] == 'paid is yes' and who['decision'] == 'probability ≥ 0.5'
  assert all(own['accuracy'][0] > 0.75 for own in both['groups'].values())
  assert len(who['calibration']) == fairness.BINS
  assert json.loads((run / 'run' / 'audit' / 'loans.json').read_text())[0]['groups'].keys() == {'x', 'y'}
  assert launch.main(['audit', str(run / 'run'), str(run / 'loans.csv'), '--group=who']) == 0
  assert capsys.readouterr().out.startswith('400 rows; positive: paid is yes; decision: probability ≥ 0.5')


def refused(argv, why, capsys):
  assert launch.main(['audit', *argv]) == 2
  said = capsys.readouterr().err
  assert why in said and said.count('\n') == 1


OF_A_RUN = {
  '--group=sex': "loans.csv has no column 'sex' but",
  '--group=income': 'different values; at most 50 groups',
  '--group=who --label=income': 'is none of the classes, no, yes',
  '--group=who --score=income': '--score= is of a file without a run',
  '': '--group=: at least 1 value is needed',
}


@pytest.mark.parametrize('flags', OF_A_RUN)
def test_what_no_run_can_be_judged_by_is_refused_in_one_line(run, flags, capsys):
  refused([str(run / 'run'), str(run / 'loans.csv'), *flags.split()], OF_A_RUN[flags], capsys)


OF_A_FILE = {
  '--score=p --group=who': '--label=COLUMN is needed',
  '--label=true --score=p --group=true2': "no column 'true2'",
  '--label=true --score=p --group=same': "--group=same: all rows have '7'",
  '--label=who --score=p --group=true': 'which of a, b, c is to be judged? Give it as --positive=',
  '--label=who --positive=d --score=p --group=true': '--positive=d: the values of who are a, b, c',
  '--label=same --score=p --group=who': '--label=same: all rows have 7; a label has two',
  '--label=number --score=p --group=who': 'different values; it is no label',
  '--label=true --score=number --group=who': 'goes from 0 to 59; give its --threshold=',
  '--label=true --score=who --group=true': 'holds a, b, c; name its decisions',
  '--label=true --score=who --selected=z --group=true': '--selected=z: --score=who holds a, b, c',
  '--label=true --score=who --selected=a --threshold=0.5 --group=true': '--threshold=0.5: it is of numbers',
  '--label=true --score=slip --group=who': "'0.5x' is no number, as slip seems to be",
  '--label=true --score=p --group=who --least=0': 'at least 1 is needed',
  '--label=true --score=p --group=who --treshold=1': 'Did you mean --threshold?',
}


@pytest.mark.parametrize('flags', OF_A_FILE)
def test_columns_that_cannot_be_audited_are_refused_in_one_line(tmp_path, flags, capsys):
  rows = [f'{"abc"[i % 3]},{i % 2},0.{i % 10},7,{i},0.5{"x" * (i == 9)}' for i in range(60)]
  (tmp_path / 'made.csv').write_text('\n'.join(['who,true,p,same,number,slip', *rows]) + '\n')
  refused([str(tmp_path / 'made.csv'), *flags.split()], OF_A_FILE[flags], capsys)


def test_help_shows_the_flags_without_a_run(capsys):
  assert launch.main(['audit', '--help']) == 0
  assert '--group=text,…' in capsys.readouterr().out
