"""Error rates by group: by hand, as ProPublica published them, of a run, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

import karpjax
import launch
from experiments import regression, text_classification
from karpjax.commands import audit
from karpjax.metrics import fairness
from karpjax.train import loop

COMPAS = ['--score=score_text', '--selected=Medium,High', '--label=two_year_recid', '--group=race']


@pytest.fixture
def fairlearn():
  return pytest.importorskip('fairlearn.metrics', reason='fairlearn is not installed: requirements-fairness.txt')


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


TEXTS = {  # what is said, by a model that goes by the word -> (its true class, group), how often
  ('a good day', 'good', 'a'): 3, ('a good day', 'bad', 'a'): 1, ('a bad day', 'bad', 'a'): 2, ('none', 'none', 'a'): 2,
  ('a good day', 'good', 'b'): 2, ('a bad day', 'good', 'b'): 2, ('a bad day', 'bad', 'b'): 1, ('none', 'none', 'b'): 3,
}  # fmt: skip


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """A run that tells texts by a word, of classes of which one is called none, and a table to audit it by."""
  folder = tmp_path_factory.mktemp('texts')
  said = {'good': 'a good day', 'bad': 'a bad day', 'none': 'none'}
  (folder / 'mine.csv').write_text('\n'.join(['what,mood', *(f'{said[x]},{x}' for x in [*said] * 20)]))
  config = text_classification.Config(
    dataset=str(folder / 'mine.csv'), columns=('what', 'mood'), workdir=str(folder / 'run'), embedding=8, channels=4,
    windows=(1,), buckets=1, dropout=0.0, steps='60', batch_size=20, learning_rate=0.05, baseline=False, plots=False,
    tensorboard=False, eval_splits=(), final_splits=(),
  )  # fmt: skip
  loop.run(text_classification, config, say=lambda _: None)
  rows = [','.join([*row, '7']) for row, count in TEXTS.items() for _ in range(count)]
  (folder / 'made.csv').write_text('\n'.join(['what,mood,who,same', *rows, 'a good day,,None,7']))
  return folder


def test_texts_of_several_classes_are_audited_each_against_the_rest(fairlearn, texts):
  answers = karpjax.open(texts / 'run').audit(texts / 'made.csv', group='who', least=2)
  found = {each['label']: each for each in answers}
  assert [*found] == ['mood is bad', 'mood is good', 'mood is none']
  assert [(own['rows'], own['left_out']) for own in answers] == [(16, 1)] * 3  # none is a class here, '' is none
  assert found['mood is good']['decision'] == 'good is the likeliest' and answers[0]['weights'] == 'step 60 (best)'
  rates = {
    (c, who): [own[rate][0] for rate in fairness.RATES] for c, x in found.items() for who, own in x['groups'].items()
  }
  np.testing.assert_allclose(rates['mood is good', 'a'], [7 / 8, 1 / 5, 0, 3 / 4, 4 / 8])
  np.testing.assert_allclose(rates['mood is good', 'b'], [6 / 8, 0, 2 / 4, 1, 2 / 8])
  np.testing.assert_allclose(rates['mood is bad', 'b'], [6 / 8, 2 / 7, 0, 1 / 3, 3 / 8])
  np.testing.assert_allclose(rates['mood is none', 'b'], [1, 0, 0, 1, 3 / 8])
  differences = found['mood is good']['differences']
  np.testing.assert_allclose([*differences.values()], [4 / 8 - 2 / 8, 1 - 2 / 4])
  one = karpjax.open(texts / 'run').audit(texts / 'made.csv', group=('who',), positive='bad', threshold=0.5)
  assert [(each['label'], each['decision']) for each in one] == [('mood is bad', 'probability ≥ 0.5')]


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """Digits as files, in a folder beside a table of them."""
  folder, digits = tmp_path_factory.mktemp('pictures'), datasets.load_digits()
  (folder / 'all').mkdir()
  for i in range(60):
    Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).save(folder / 'all' / f'{i}.png')
  rows = [f'all/{i}.png,{digits.target[i]}.0,{"xyz"[i % 3]},{i}' for i in range(60)]  # labels as pandas writes them
  (folder / 'made.csv').write_text('\n'.join(['file,label,who,number', *rows]))
  (folder / 'gone.csv').write_text('file,label,who\nall/1.png,1,x\nall/none.png,2,y\n')
  (folder / 'no.csv').write_text('file,label,who\nall/1.png,1,x\nmade.csv,2,y\n')
  (folder / 'empty.csv').write_text('file,label,who\nall/1.png,1,x\n,2,y\n')
  return folder


def test_images_are_audited_by_what_predict_says_of_them(fairlearn, classifier, pictures):
  run, files = karpjax.open(classifier), [str(pictures / 'all' / f'{i}.png') for i in range(60)]
  said = [next(iter(each['classes'])) for each in run.predict(files, top=1)]
  true, who = datasets.load_digits().target[:60].astype(str), np.array([*'xyz'] * 20)
  answers = run.audit(pictures / 'made.csv', group=('who',), least=1)
  assert [each['label'] for each in answers] == [f'label is {digit}' for digit in range(10)]
  for digit, found in enumerate(answers):
    frame = fairlearn.MetricFrame(
      metrics={'selection rate': fairlearn.selection_rate, 'FNR': fairlearn.false_negative_rate},
      y_true=true == str(digit), y_pred=np.array(said) == str(digit), sensitive_features=who,
    )  # fmt: skip
    for name, row in frame.by_group.iterrows():
      assert {rate: found['groups'][name][rate][0] for rate in row.index} == pytest.approx(dict(row))


NUMBERS = [f'{"abc"[i % 3]},{i % 2},0.{i % 10},7,{i},0.5{"x" * (i == 9)}' for i in range(60)]
REFUSED = {  # kind, table, flags -> why
  ('run', 'loans', '--group=sex'): "loans.csv has no column 'sex' but",
  ('run', 'loans', '--group=income'): 'different values; at most 50 groups',
  ('run', 'loans', '--group=who --label=income'): 'is none of the classes, no, yes',
  ('run', 'loans', '--group=who --score=income'): '--score= is of a file without a run',
  ('run', 'loans', '--group=who --threshold=5'): '--threshold=5: the scores are probabilities, from 0 to 1',
  ('run', 'loans', ''): '--group=: at least 1 value is needed',
  ('texts', 'made', '--group=same'): "--group=same: all rows have '7'",
  ('texts', 'made', '--group=who --label=who'): "--label=who: 'a' is none of the classes, bad, good, none",
  ('texts', 'made', '--group=who --positive=fine'): '--positive=fine: the values of mood are bad, good, none',
  ('texts', 'made', '--group=who --input=text'): "no column 'text'",
  ('texts', 'made', '--group=mood --input=mood --label=what'): "--label=what: 'a bad day' is none of the classes",
  ('pictures', 'made', '--group=number'): '60 different values; at most 50 groups',
  ('pictures', 'made', '--group=who --input=label'): 'made.csv, line 2: ',
  ('pictures', 'gone', '--group=who'): 'none.png is no file',
  ('pictures', 'no', '--group=who'): 'is not a readable PNG or JPEG file',
  ('pictures', 'empty', '--group=who'): 'empty.csv, line 3: the file is empty',
  ('file', '', '--score=p --group=who'): '--label=COLUMN is needed',
  ('file', '', '--label=true --score=p --group=true2'): "no column 'true2'",
  ('file', '', '--label=true --score=p --group=same'): "--group=same: all rows have '7'",
  ('file', '', '--label=who --score=p --group=true'): 'which of a, b, c is to be judged? Give it as --positive=',
  ('file', '', '--label=who --positive=d --score=p --group=true'): '--positive=d: the values of who are a, b, c',
  ('file', '', '--label=same --score=p --group=who'): '--label=same: all rows have 7; a label has two',
  ('file', '', '--label=number --score=p --group=who'): 'different values; it is no label',
  ('file', '', '--label=true --score=number --group=who'): 'goes from 0 to 59; give its --threshold=',
  ('file', '', '--label=true --score=who --group=true'): 'holds a, b, c; name its decisions',
  ('file', '', '--label=true --score=who --selected=z --group=true'): '--selected=z: --score=who holds a, b, c',
  (
    'file',
    '',
    '--label=true --score=who --selected=a --threshold=0.5 --group=true',
  ): '--threshold=0.5: it is of numbers',
  ('file', '', '--label=true --score=slip --group=who'): "'0.5x' is no number, as slip seems to be",
  ('file', '', '--label=true --score=p --group=who --least=0'): 'at least 1 is needed',
  ('file', '', '--label=true --score=p --group=who --treshold=1'): 'Did you mean --threshold?',
}


@pytest.mark.parametrize('kind, table, flags', REFUSED)
def test_what_cannot_be_audited_is_refused_in_one_line(kind, table, flags, request, tmp_path, capsys):
  (tmp_path / 'made.csv').write_text('\n'.join(['who,true,p,same,number,slip', *NUMBERS]) + '\n')
  folder = tmp_path if kind == 'file' else request.getfixturevalue(kind)
  of = {'file': [], 'pictures': [request.getfixturevalue('classifier')]}.get(kind, [str(folder / 'run')])
  assert launch.main(['audit', *of, str(folder / f'{table or "made"}.csv'), *flags.split()]) == 2
  said = capsys.readouterr().err
  assert REFUSED[kind, table, flags] in said and said.count('\n') == 1


def test_numbers_that_are_equal_are_one_label_however_they_are_written(fairlearn, tmp_path):
  (tmp_path / 'made.csv').write_text('\n'.join(['who,true,p', *made(), 'a,1.0,0.9', 'b,0.0,0.2']) + '\n')
  [found] = audit.of_file(str(tmp_path / 'made.csv'), audit.Options(group=('who',), label='true', score='p'))
  assert [(own['positives'], own['negatives']) for own in found['groups'].values()] == [(5, 6), (4, 6), (1, 1)]


def test_a_group_called_none_is_one_and_not_missing(fairlearn, tmp_path):
  rows = ['none,1,0.9', 'None,0,0.1', 'nan,1,0.9', ',0,0.1']
  (tmp_path / 'made.csv').write_text('\n'.join(['faith,true,p', *rows]) + '\n')
  [found] = audit.of_file(str(tmp_path / 'made.csv'), audit.Options(group=('faith',), label='true', score='p'))
  assert {*found['groups']} == {'none', 'None', 'nan', '(missing)'}


def test_help_shows_the_flags_without_a_run(capsys):
  assert launch.main(['audit', '--help']) == 0
  assert '--group=text,…' in capsys.readouterr().out
