"""Labelled texts: what is read is what the file says, and what cannot be is refused in one line that names the place."""

import numpy as np
import pytest

from experiments.text_classification import Config
from karpjax import errors
from karpjax.data import labelled_text, text, tokenisers


def read(name, validation=0.0, **flags):
  return labelled_text.read(Config(dataset=str(name), validation=validation, **flags))


def pairs(split, classes):
  return [(words, classes[label]) for words, label in zip(split.arrays['text'], split.arrays['label'])]


def words_of(*texts):
  return tokenisers.make('words', texts, lower=True)


TREC = {'train': '0 What is an atom ?\n3 Who was Galileo ?\n5 How far is \x85 it ?\n', 'test': '5 How tall is he ?\n'}


@pytest.fixture
def trec(tmp_path):
  (tmp_path / 'files').mkdir()
  for split, content in TREC.items():
    (tmp_path / 'files' / f'TREC.{split}.all').write_bytes(content.encode('latin-1'))
  return tmp_path


def test_trec_lines_end_in_newlines_only_and_numbers_become_names(trec):
  made = read('trec', data_dir=str(trec))
  assert made.spec.classes == ('DESC', 'HUM', 'NUM')
  assert pairs(made.splits['train'], made.spec.classes) == [
    ('What is an atom ?', 'DESC'), ('Who was Galileo ?', 'HUM'), ('How far is \x85 it ?', 'NUM')
  ]  # fmt: skip
  assert pairs(made.splits['test'], made.spec.classes) == [('How tall is he ?', 'NUM')]


def test_trec_as_li_and_roth_write_it_gives_the_coarse_label(trec):
  (trec / 'files' / 'TREC.train.all').write_text('DESC:def What is an atom ?\nNUM:dist How far ?\n')
  made = read('trec', data_dir=str(trec))
  assert pairs(made.splits['train'], made.spec.classes) == [('What is an atom ?', 'DESC'), ('How far ?', 'NUM')]


@pytest.mark.parametrize('line', ['7 What is it ?', 'What is it ?', '3 ', 'NUM:dist'])
def test_a_trec_line_without_a_label_or_a_question_is_named(trec, line):
  (trec / 'files' / 'TREC.train.all').write_text(f'0 What is it ?\n\n{line}\n')
  with pytest.raises(errors.UsageError, match=r'TREC\.train\.all, line 3: .* is not a label and a question'):
    read('trec', data_dir=str(trec))


def test_the_real_trec(shared_data):
  made = read('trec', data_dir=str(shared_data))
  assert [made.splits[split].size for split in ('train', 'test')] == [5452, 500]
  counts = dict(zip(made.spec.classes, np.bincount(made.splits['test'].arrays['label']).tolist()))
  assert counts == {'ABBR': 9, 'DESC': 138, 'ENTY': 94, 'HUM': 65, 'LOC': 81, 'NUM': 113}  # Li & Roth 2002


def test_the_real_phrasebank_has_the_published_shares(shared_data):
  made = read('financial_phrasebank', data_dir=str(shared_data))
  labels = np.concatenate([made.splits[split].arrays['label'] for split in ('train', 'test')])
  counts = dict(zip(made.spec.classes, np.bincount(labels).tolist()))
  assert counts == {'negative': 604, 'neutral': 2879, 'positive': 1363}  # Malo et al. 2014, at least half agree
  test = np.bincount(made.splits['test'].arrays['label'])
  np.testing.assert_allclose(test / test.sum(), np.bincount(labels) / len(labels), atol=1e-3)


def test_a_phrasebank_sentence_may_hold_an_at_sign(tmp_path):
  lines = [f'up {i}@x@positive\r\n' for i in range(5)] + [f'down {i}@negative\r\n' for i in range(5)]
  (tmp_path / 'financial_phrasebank.txt').write_bytes(''.join(lines).encode('latin-1'))
  made = read('financial_phrasebank', data_dir=str(tmp_path))
  everything = sorted(p for split in ('train', 'test') for p in pairs(made.splits[split], made.spec.classes))
  assert everything == sorted(
    [(f'up {i}@x', 'positive') for i in range(5)] + [(f'down {i}', 'negative') for i in range(5)]
  )
  (tmp_path / 'financial_phrasebank.txt').write_text('up@positive\nno label\n')
  with pytest.raises(errors.UsageError, match=r"line 2: 'no label' is not sentence@label"):
    read('financial_phrasebank', data_dir=str(tmp_path))


def test_the_default_needs_nothing_and_no_sentence_is_in_two_splits():
  made = read('python_docs', validation=0.1)
  seen = [set(split.arrays['text']) for split in made.splits.values()]
  assert sum(map(len, seen)) == len(set.union(*seen)) == sum(split.size for split in made.splits.values()) > 1500
  assert set(made.spec.classes) == set(labelled_text.CHAPTERS)
  again = read('python_docs', validation=0.1)
  for name, split in made.splits.items():
    assert pairs(split, made.spec.classes) == pairs(again.splits[name], again.spec.classes)
  assert all(np.bincount(made.splits['train'].arrays['label']) > 80)


def test_a_table_of_ones_own_in_quotes_with_other_columns_and_a_byte_order_mark(tmp_path):
  path = tmp_path / 'mine.csv'
  path.write_bytes('\ufeffID,Body,Kind\n1,"red, and\nwarm",a\n2,blue,b\n3,blue too,b\n'.encode())
  made = read(str(path), columns=('body', 'kind'))
  everything = [p for split in ('train', 'test') for p in pairs(made.splits[split], made.spec.classes)]
  assert sorted(everything) == [('blue', 'b'), ('blue too', 'b'), ('red, and\nwarm', 'a')]


def test_a_tsv_has_no_quotes(tmp_path):
  path = tmp_path / 'mine.tsv'
  path.write_text('label\ttext\n1\t"half a quotation\n10\tno, none\n9\tthree\n')
  made = read(str(path))
  assert made.spec.classes == ('1', '9', '10')  # as numbers
  everything = dict(p for split in ('train', 'test') for p in pairs(made.splits[split], made.spec.classes))
  assert everything['"half a quotation'] == '1'


def table(folder, **contents):
  for name, rows in contents.items():
    lines = ['text,label', *(f'{words},{label}' for words, label in rows)]
    (folder / f'{name}.csv').write_text('\n'.join(lines) + '\n')
  return f'table:{folder}'


def test_a_folder_of_tables_keeps_its_splits_and_draws_those_that_lack(tmp_path):
  train = [(f'text {i}', 'ab'[i % 2]) for i in range(20)]
  name = table(tmp_path, train=train, test=[('text x', 'b')])
  made = read(name, validation=0.25, split_seed=3)
  assert pairs(made.splits['test'], made.spec.classes) == [('text x', 'b')]
  assert (made.splits['train'].size, made.splits['validation'].size) == (15, 5)
  table(tmp_path, validation=[('text y', 'a')])
  made = read(name, validation=0.25)
  assert pairs(made.splits['validation'], made.spec.classes) == [('text y', 'a')] and made.splits['train'].size == 20
  (tmp_path / 'test.csv').unlink()
  made = read(name)
  assert (made.splits['train'].size, made.splits['test'].size) == (16, 4)
  assert sorted(p for s in ('train', 'test') for p in pairs(made.splits[s], made.spec.classes)) == sorted(train)


def test_a_test_split_leaves_something_to_train_on(tmp_path):
  with pytest.raises(errors.UsageError, match='test=2 of 2 texts: leave at least one'):
    read(table(tmp_path, train=[('one', 'a'), ('two', 'b')]), test=2)
  with pytest.raises(errors.UsageError, match=r'test=1\.5: give a fraction below 1, or a whole number'):
    read(table(tmp_path, train=[('one', 'a'), ('two', 'b'), ('three', 'b')]), test=1.5)


def write(content, name='train.csv'):
  return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
  'spoil, says',
  [
    (write(b'text,label\n'), r'has one line, which names the columns'),
    (write(b'text,label\none,a\n'), r"all texts have the label 'a'"),
    (write(b'text,label\none,a\ntwo,a\n'), r"all texts have the label 'a'"),
    (write(b'text,label\none,a\n  ,b\n'), r'train\.csv, line 3: the text is empty'),
    (write(b'text,label\none,a\ntwo,\n'), r'train\.csv, line 3: the label is empty'),
    (write(b'text,label\none,a\ntwo\n'), r'train\.csv, line 3: 1 columns, where the first line has 2'),
    (write(b'text,label\n"one\ntwo",a\nwell, no,b\n'), r'line 4: 3 columns, .*; put a text with commas in quotes'),
    (write(b'text,label\n"one\ntwo",a,\n'), r'train\.csv, line 2: 3 columns'),  # where the row begins
    (write(b'text,label,Text\none,a,b\n'), r"has the column 'text' twice"),
    (write(b'sentence,label\none,a\n'), r"no column 'text' but 'sentence', 'label'.*columns="),
    (write(b'text,label\n"one,a\ntwo,b\n'), r'train\.csv, line 2: unexpected end of data'),
    (write(b'text,label\nthree,c\nfour,d\n', 'test.csv'), r"labels in test that are not in train: 'c', 'd'"),
    (write(b'text\tlabel\none\ta\n', 'train.tsv'), r'has two of the train split, train\.csv and train\.tsv'),
    (lambda folder: (folder / 'train.csv').rename(folder / 'training.csv'), r'neither train\.csv nor train\.tsv'),
  ],
)  # fmt: skip
def test_a_faulty_table_is_refused_by_line(tmp_path, spoil, says):
  name = table(tmp_path, train=[('one', 'a'), ('two', 'b')])
  read(name)
  spoil(tmp_path)
  with pytest.raises(errors.UsageError, match=says) as error:
    read(name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, says',
  [
    ('table:nowhere', 'nowhere is not a folder'),
    ('nowhere.csv', r'nowhere\.csv cannot be read: No such file'),
    ('financial_phrasebank', r'financial_phrasebank\.txt is needed.*data_dir'),
    ('python_dosc', 'Did you mean python_docs'),
  ],
)
def test_what_is_not_there_is_said(name, says):
  with pytest.raises(errors.UsageError, match=says):
    read(name)


def test_another_encoding_is_read_where_it_is_named(tmp_path):
  (tmp_path / 'mine.csv').write_bytes('text,label\nschön,a\nroh,b\n'.encode('latin-1'))
  made = read(str(tmp_path / 'mine.csv'), encoding='latin-1')
  assert 'schön' in [*made.splits['train'].arrays['text'], *made.splits['test'].arrays['text']]


def test_tokens_are_those_of_the_texts_padded_behind_and_what_is_cut_is_said(tmp_path):
  name = table(tmp_path, train=[('one two three', 'a'), ('two', 'b')], test=[('four two one one two', 'b')])
  data = labelled_text.load(Config(dataset=name, validation=0))
  tokeniser = words_of('one two three', 'two')
  one, two, three = tokeniser.numbers(['one', 'two', 'three'])
  assert data.splits['train'].arrays['tokens'].tolist() == [[one, two, three], [two, 0, 0]]
  assert data.splits['test'].arrays['tokens'].tolist() == [[tokenisers.UNKNOWN, two, one]]
  assert data.raw['test'].arrays['text'].tolist() == ['four two one one two']
  assert '1 of 1 test texts are cut to 3, the longest of train, tokens' in data.notes
  assert text.TextSpec.from_json(data.spec.to_json()) == data.spec and data.spec.classes == ('a', 'b')
  short = labelled_text.load(Config(dataset=name, validation=0, max_length=2), tokeniser=tokeniser)
  assert short.splits['train'].arrays['tokens'].tolist() == [[one, two], [two, 0]]
  assert short.spec.lengths == {'text': 2}


def test_tfds_sets_of_texts_as_imdb_sst2_and_ag_news_have_them(tmp_path, prepare_tfds):
  from tensorflow_datasets import features

  label = features.ClassLabel(names=['neg', 'pos'])
  rows = [{'text': 'gut', 'label': 1}, {'text': 'schlecht, schön', 'label': 0}]
  prepare_tfds('films', {'text': features.Text(), 'label': label}, {'train': rows, 'test': rows[:1], 'more': rows})
  made = read('films', data_dir=str(tmp_path))
  assert sorted(pairs(made.splits['train'], made.spec.classes)) == [('gut', 'pos'), ('schlecht, schön', 'neg')]
  assert set(made.splits) == {'train', 'test'}

  hidden = [{'sentence': 'so so', 'label': -1}]
  rows = [{'sentence': 'good', 'label': 1}, {'sentence': 'bad', 'label': 0}]
  glued = {'sentence': features.Text(), 'label': label}
  prepare_tfds('glued', glued, {'train': rows, 'validation': rows, 'test': hidden})
  made = read('glued', data_dir=str(tmp_path))
  assert sorted(pairs(made.splits['test'], made.spec.classes)) == [('bad', 'neg'), ('good', 'pos')]
  assert 'labels of its test split are hidden' in made.notes[0] and 'validation' not in made.splits

  rows = [
    {'title': 'Rain', 'description': 'It rains', 'label': 0},
    {'title': 'Sun', 'description': 'It shines', 'label': 1},
  ]
  described = {'title': features.Text(), 'description': features.Text(), 'label': label}
  prepare_tfds('agencies', described, {'train': rows, 'test': rows})
  made = read('agencies', data_dir=str(tmp_path))
  assert ('It rains Rain', 'neg') in pairs(made.splits['train'], made.spec.classes)

  prepare_tfds('bare', {'text': features.Text()}, {'train': [{'text': 'x'}]})
  with pytest.raises(errors.UsageError, match='bare has features text; expected texts and a class label'):
    read('bare', data_dir=str(tmp_path))
