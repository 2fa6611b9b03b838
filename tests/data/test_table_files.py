"""Tables of the user's own: what their columns become, what is said of them, and what is refused."""

import numpy as np
import pytest

from experiments import regression
from karpjax.data import table_files, tables
from karpjax.errors import UsageError

HEAD = 'id,age,city,note,constant,price'
ROWS = [f'r{i},{i if i % 5 else "NA"},{("Rome", "Oslo", "")[i % 3]},text {i},7,{3 * i}' for i in range(100)]


@pytest.fixture
def load(tmp_path):
  def loaded(rows=ROWS, head=HEAD, **flags):
    (tmp_path / 'mine.csv').write_text('\n'.join([head, *rows]) + '\n')
    return tables.load(regression.Config(dataset=str(tmp_path / 'mine.csv'), **{'target': 'price'} | flags))

  return loaded


def test_columns_become_scaled_numbers_and_one_hot_words(load):
  data = load()
  assert data.spec.features == ['age', 'city=Oslo', 'city=Rome'] and data.spec.classes == ()
  age, oslo, rome = data.splits['train'].column('features').T
  price = data.splits['train'].column('target')
  number = (price / 3).astype(int)
  np.testing.assert_allclose(age[number % 5 == 0], np.mean(age[number % 5 > 0]), rtol=1e-6)  # by train alone
  np.testing.assert_array_equal(age[number % 5 > 0], number[number % 5 > 0])
  np.testing.assert_array_equal(oslo, number % 3 == 1)
  np.testing.assert_array_equal(rome, number % 3 == 0)
  scaled = np.asarray(data.spec.scale(data.splits['train'].column('features'), 'standard'))
  np.testing.assert_allclose([scaled[:, 0].mean(), scaled[:, 0].std()], [0, 1], atol=1e-5)
  np.testing.assert_array_equal(scaled[:, 1:].T, [oslo, rome])
  np.testing.assert_allclose([data.spec.target_mean, data.spec.target_std], [price.mean(), price.std()], rtol=1e-6)
  sizes = {split: s.size for split, s in data.splits.items()}
  assert sizes == {'train': 72, 'validation': 8, 'test': 20}


def test_start_up_says_what_the_columns_were(load):
  notes = '\n'.join(load([*ROWS, 'r,1,Rome,x,7,']).notes)
  for said in (
    'id (72 different words',
    'constant (the same',
    '20 of age, 33 of city; ',
    table_files.RULE,
    '1 rows without',
  ):
    assert said in notes, said
  assert '2 columns are 3 features; price is a number' in notes


def test_the_spec_comes_back_from_json(load):
  import json

  spec = load().spec
  again = table_files.TableSpec.from_json(json.loads(json.dumps(spec.to_json())))
  assert again.features == spec.features and again.to_learn(5.0) == spec.to_learn(5.0) and again.mean == spec.mean


def test_a_target_is_a_class_where_it_holds_words_or_two_values(load):
  data = load(target='city', columns=('age', 'price'))
  assert data.spec.classes == ('Oslo', 'Rome') and data.splits['train'].column('target').dtype == np.int32
  assert load([f'{i},{i % 2}' for i in range(20)], 'x,price').spec.classes == ('0', '1')
  assert load([f'{i},{i % 3}' for i in range(20)], 'x,price').spec.classes == ()
  assert load([f'{i},{i % 11}' for i in range(44)], 'x,price', task='classes').spec.classes[-2:] == ('9', '10')


def test_values_are_classes_however_they_are_written(load):
  data = load([f'{i},{("1", "1.0", "2")[i % 3]}' for i in range(30)], 'x,price')
  assert data.spec.classes == ('1', '2') and np.mean(data.splits['train'].column('target')) < 0.5


def test_numbers_that_are_not_read_as_such_are_said(load):
  """A slip in a column, what looks like a number of Python's, and what float32 does not tell apart."""
  row = lambda i: f'{i},{"inf" if i == 7 else i},{i}_{i % 3},{1_600_000_000 + i},{10**9 + 90 * i},{i / 7}'
  data = load([row(i) for i in range(40)], ',slip,code,time,far,price')
  notes = '\n'.join(data.notes)
  for said in (
    "taken as words, since not all are numbers: slip (as 'inf')",
    'left out: time (the same in all rows of train, as float32 has it)',
    '1 without a name in the first line: left out',
  ):
    assert said in notes, notes
  assert [column for column, words in data.spec.columns.items() if words] == ['slip', 'code']
  near = load([f'{10**9 + 20 * i},{i / 7}' for i in range(40)], 'far,price')
  assert any(note.startswith('float32 tells few of their values apart: far (') for note in near.notes), near.notes
  target = load([f'{i / 7},{10**9 + 20 * i}' for i in range(40)], 'far,price')
  assert any(note.startswith('float32 tells few of their values apart: price (') for note in target.notes), target.notes


def test_rows_of_test_that_train_has_too_are_said(load):
  data = load([f'{i % 30},{i % 30}' for i in range(60)], 'age,price')
  train = {(*row,) for row in zip(data.splits['train'].column('features')[:, 0], data.splits['train'].column('target'))}
  test = [*zip(data.splits['test'].column('features')[:, 0], data.splits['test'].column('target'))]
  again = sum(row in train for row in test)
  assert f'test: {again} of its {len(test)} rows ({again / len(test):.1%}) are in train too' in data.notes


REFUSED = {  # what is asked for -> what is said
  'name the column to predict, as target=NAME': {'target': ''},
  "mine.csv has no column 'cost' but .* give another target=": {'target': 'cost'},
  "no column 'size' .* give another columns=": {'columns': ('size',)},
  'columns=price: price is the target': {'columns': ('price',)},
  'line 4: 2 columns, where the first line has 6': {'rows': [*ROWS[:2], '1,2', *ROWS]},
  "line 2: 'text 0' is no number, as note is to be": {'target': 'note', 'task': 'numbers'},
  'target=note: 100 different values; of classes there are at most 50': {'target': 'note'},
  "target=constant: all rows have '7'": {'target': 'constant'},
  'has 3 rows with a price; at least 10': {'rows': ROWS[:3]},
  'no column to learn from; left out: id .72 different': {'columns': ('id',)},
  "has the column 'age' twice": {'head': 'id,age,city,note,age,price'},
  'has one line': {'rows': []},
  "line 6: 'inf' is no number, as price seems to be": {'rows': [*ROWS[:4], 'r,1,Rome,x,7,inf', *ROWS]},
  "'1,000' is no number, as price seems to be; write it as 1234.5, or give task=classes": {
    'rows': [f'r,{i},Rome,x,7,"{i + 1},000"' for i in range(60)]
  },
  'target=price: float32 tells none of its values apart; subtract': {
    'rows': [f'r,{i},Rome,x,7,{1_600_000_000 + i}' for i in range(60)]
  },
  'columns=age,Age: name each once': {'columns': ('age', 'Age')},
}


@pytest.mark.parametrize('said', REFUSED)
def test_what_cannot_be_learnt_is_refused_in_one_line(load, said):
  with pytest.raises(UsageError, match=said) as raised:
    load(**REFUSED[said])
  assert '\n' not in str(raised.value)


def test_a_name_that_is_neither_table_nor_file_is_refused():
  with pytest.raises(UsageError, match='dataset=houses: unknown.* Or FILE.csv, FILE.tsv'):
    tables.load(regression.Config(dataset='houses'))
