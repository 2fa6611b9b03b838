"""CoNLL files, TFDS sets and made sentences become the same arrays; what is wrong with a file is said with its line."""

import numpy as np
import pytest

from experiments.token_classification import Config
from karpjax import errors
from karpjax.data import entities, tagged, text, tokenisers

NAMES = [names.split() for names in (entities.GIVEN, entities.SURNAMES, entities.PLACES)]
FOUR_COLUMNS = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def folder(tmp_path, **files):
  for name, content in files.items():
    path = tmp_path / (name.replace('_', '.') if '_' in name else f'{name}.txt')
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return f'conll:{tmp_path}'


def load(name, **flags):
  return tagged.load(Config(dataset=name, **flags))


def sentences(data, split):
  """[(words as their characters say, tags)] from a split's arrays."""
  arrays = data.splits[split].arrays
  spell = data.spec.tokenisers['characters'].decode
  return [
    ([spell(word) for word in words[targets >= 0]], [data.spec.classes[t] for t in targets if t >= 0])
    for words, targets in zip(arrays['characters'], arrays['targets'])
  ]


def test_columns_documents_and_empty_lines(tmp_path):
  content = '\n\n' + FOUR_COLUMNS.replace('call NN', 'call\tNN') + '\n\n-DOCSTART- -X- -X- O\nA DT B-NP O\n'
  parsed = tagged.parse(content, tmp_path)
  assert parsed == [
    (['EU', 'rejects', 'German', 'call'], ['B-ORG', 'O', 'B-MISC', 'O']),
    (['Peter', 'Blackburn'], ['B-PER', 'I-PER']),
    (['A'], ['O']),
  ]


def test_a_blank_that_does_not_break_is_part_of_a_word(tmp_path):
  content = 'New York\t_\tB-LOC\n10\xa0000\u2009km\t\tO \n\xa0\n \t \nso _\tO'  # the last has a space for a tab
  assert tagged.parse(content, tmp_path) == [
    (['New York', '10\xa0000\u2009km'], ['B-LOC', 'O']),
    (['so'], ['O']),
  ]
  assert tagged.parse('10\xa0000  O\n\u3000a O\n', tmp_path) == [(['10\xa0000', '\u3000a'], ['O', 'O'])]


@pytest.mark.parametrize('line, says', [('a\t', r'has 1 column\(s\), not 2'), ('\tO', 'begins with a tab')])
def test_an_empty_column_is_no_word_and_no_tag(tmp_path, line, says):
  with pytest.raises(errors.UsageError, match=f'line 2 {says}'):
    tagged.parse(f'b\tO\t\n{line}\n', tmp_path)


@pytest.mark.parametrize(
  'given, expected',
  [
    ('O I-PER I-PER O', 'O B-PER I-PER O'),  # IOB1
    ('I-PER B-PER I-PER', 'B-PER B-PER I-PER'),  # IOB1: two that touch
    ('I-PER I-ORG I-ORG', 'B-PER B-ORG I-ORG'),  # IOB1: another type begins another
    ('B-PER I-PER O B-LOC', 'B-PER I-PER O B-LOC'),  # already BIO2
    ('B-PER I-LOC', 'B-PER B-LOC'),
    ('S-PER B-LOC I-LOC E-LOC I-LOC O', 'B-PER B-LOC I-LOC I-LOC B-LOC O'),  # IOBES
    ('U-PER B-LOC L-LOC U-LOC', 'B-PER B-LOC I-LOC B-LOC'),  # BILOU
    ('O O', 'O O'),
    ('', ''),
  ],
)
def test_every_scheme_becomes_bio2(given, expected):
  assert tagged.bio2(given.split()) == expected.split()


def test_a_folder_becomes_arrays(tmp_path):
  name = folder(tmp_path, train=FOUR_COLUMNS, dev_conll='Peter O\ngeht O\n', testb='EU I-ORG\nist O\nBRÜSSEL I-PER\n')
  data = load(name)
  assert data.spec.classes == ('O', 'B-MISC', 'I-MISC', 'B-ORG', 'I-ORG', 'B-PER', 'I-PER')
  assert data.spec.lengths == {'text': 4, 'characters': 9} and data.spec.examples == 2
  arrays = data.splits['train'].arrays
  np.testing.assert_array_equal(arrays['targets'], [[3, 0, 1, 0], [5, 6, -1, -1]])
  np.testing.assert_array_equal((arrays['tokens'] > 0), arrays['targets'] >= 0)
  np.testing.assert_array_equal((arrays['characters'] > 0).sum(-1), [[2, 7, 6, 4], [5, 9, 0, 0]])
  assert sentences(data, 'train') == [(list(w), t) for w, t in tagged.parse(FOUR_COLUMNS, tmp_path)]
  test = data.splits['test'].arrays
  assert data.spec.tokenisers['text'].symbols[test['tokens'][0, 0]] == 'eu'
  np.testing.assert_array_equal(test['tokens'][0, 1:], [tokenisers.UNKNOWN, tokenisers.UNKNOWN, 0])
  np.testing.assert_array_equal(test['targets'], [[3, 0, 5, -1]])
  assert data.spec.tokenisers['characters'].numbers('Ü') == [tokenisers.UNKNOWN]
  again = text.TextSpec.from_json(data.spec.to_json())
  assert again == data.spec


def test_tags_of_a_type_are_both_known_where_train_has_but_one(tmp_path):
  data = load(folder(tmp_path, train='Rom B-LOC\n', test='San B-LOC\nMarino I-LOC\n'), validation=0)
  np.testing.assert_array_equal(data.splits['test'].arrays['targets'], [[1, 2]])


def test_other_tags_stay_as_they_are(tmp_path):
  data = load(folder(tmp_path, train='the DT\ncat NN\n\nit PRP\n', test='it NN\n'), validation=0)
  assert data.spec.classes == ('DT', 'NN', 'PRP') and not tagged.marks_chunks(data.spec.classes)


def test_missing_splits_are_drawn_once_for_all(tmp_path):
  rows = [f'w{i} {"B-A" if i % 2 else "O"}\n' for i in range(50)]
  name = folder(tmp_path, train='\n'.join(rows))
  data, again, other = (load(name, validation=0.1, split_seed=seed) for seed in (0, 0, 1))
  assert {split: s.size for split, s in data.splits.items()} == {'train': 36, 'validation': 4, 'test': 10}
  found = [word for split in data.splits for words, _ in sentences(data, split) for word in words]
  digits = set('0123456789w') - set(data.spec.tokenisers['characters'].symbols)
  assert not digits and sorted(found) == sorted(f'w{i}' for i in range(50))
  assert sentences(data, 'test') == sentences(again, 'test') != sentences(other, 'test')
  assert data.spec.tokenisers['text'].size == 4 + 36  # nothing is learnt from the others


def test_long_sentences_are_cut_and_none_of_their_words_is_lost(tmp_path):
  train = ''.join(f'w{i} O\n' for i in range(7)) + '\nv O\n'
  data = load(folder(tmp_path, train=train, test='a O\n'), validation=0, length=3)
  assert [len(words) for words, _ in sentences(data, 'train')] == [3, 3, 1, 1]
  assert any('cut into pieces' in note for note in data.notes)
  assert data.splits['train'].column('begins').tolist() == [True, False, False, True]
  assert data.raw['train'].column('text').tolist() == ['w0 w1 w2 w3 w4 w5 w6', 'v']


def test_long_words_keep_both_ends(tmp_path):
  data = load(folder(tmp_path, train='abcdefghij O\nabcde O\n', test='a O\n'), validation=0, word_length=5)
  assert sentences(data, 'train')[0][0] == ['abcij', 'abcde']


def test_rare_words_are_unknown(tmp_path):
  name = folder(tmp_path, train='The O\nthe O\ncat O\n', test='a O\n')
  tokens = load(name, validation=0, minimum_frequency=2).splits['train'].arrays['tokens']
  np.testing.assert_array_equal(tokens, [[4, 4, 1]])
  tokens = load(name, validation=0, lower=False).splits['train'].arrays['tokens']
  assert len(set(tokens[0].tolist())) == 3


@pytest.mark.parametrize(
  'files, said',
  [
    (dict(train='a O\nb B-X I-X\n'), r'line 2 has 3 column\(s\), not 2'),
    (dict(train='a O\n', test='x\ty\tO\n\nb O\n'), r'test.txt line 3 has 2 column\(s\), not 3'),
    (dict(train='a\nb\n'), r'train.txt line 1 has 1 column\(s\), not 2'),
    (dict(train='a O\nb B-X\n', test='a B-Y\n'), 'tag B-Y of the test split is none of .*: O, B-X, I-X'),
    (dict(train='a DT\n', test='a NN\n'), 'tag NN of the test split is none of .*: DT'),
    (dict(train='a PER\n\nb B-PER\n', test='a O\n'), 'tag PER of the train split is none of .*: O, B-PER, I-PER'),
    (dict(train='a O\n', test='\n -DOCSTART- O\n'), 'test.txt holds no sentence'),
    (dict(test='a O\n'), 'has neither train.txt nor train.conll'),
    (dict(train='a O\n', dev='a O\n', valid='a O\n'), 'two of the validation split, dev.txt and valid.txt'),
    (dict(train='a O\n'), 'of 1 examples: leave at least one'),
  ],
)
def test_bad_files_are_one_clear_line(tmp_path, files, said):
  with pytest.raises(errors.UsageError, match=said) as raised:
    load(folder(tmp_path, **files), validation=0)
  assert '\n' not in str(raised.value)


def test_other_encodings_are_read(tmp_path):
  data = load(folder(tmp_path, train='café O\n'.encode('latin-1'), test='a O\n'), encoding='latin-1', validation=0)
  assert sentences(data, 'train') == [(['café'], ['O'])]


def test_bad_names():
  with pytest.raises(errors.UsageError, match='is not a folder'):
    load('conll:/nowhere')
  with pytest.raises(errors.UsageError, match='entities'):
    load('entitties')


def test_tfds_sets_of_tokens_and_tags(tmp_path, prepare_tfds):
  from tensorflow_datasets import features

  names = ['O', 'B-PER', 'I-PER']
  rows = {
    'train': [(['Ann', 'Lee', 'sang'], [1, 2, 0]), (['-DOCSTART-'], [0])],
    'dev': [(['He'], [0])],
    'test': [(['Bo'], [1])],
  }
  shape = {'tokens': features.Sequence(features.Text()), 'ner': features.Sequence(features.ClassLabel(names=names))}
  named = {split: [{'tokens': words, 'ner': tags} for words, tags in part] for split, part in rows.items()}
  prepare_tfds('conll2003', shape, named)
  data = load('conll2003', data_dir=str(tmp_path))
  assert sentences(data, 'train') == [(['Ann', 'Lee', 'sang'], ['B-PER', 'I-PER', 'O'])]
  assert data.splits['validation'].size == data.splits['test'].size == 1
  with pytest.raises(errors.UsageError, match='conll2003'):
    load('conll2003', data_dir=str(tmp_path / 'conll2003'))


def test_made_sentences_have_names_that_train_has_not():
  parts = {split: entities.sentences(split, size) for split, size in entities.SIZES.items()}
  words = {
    split: {w for ws, ts in part for w, t in zip(ws, ts) if t[2:] in ('PER', 'LOC', 'ORG')}
    for split, part in parts.items()
  }
  lists = {name for each in NAMES for name in each}
  assert len(lists) == sum(map(len, NAMES))
  assert words['train'] & lists and words['test'] & lists
  assert not words['train'] & words['test'] & lists and not words['train'] & words['validation'] & lists
  assert {w for w in words['train'] if w in lists} == _train_names()
  for part in parts.values():
    assert all(tagged.bio2(tags) == tags and len(words) == len(tags) for words, tags in part)
    assert {tag for _, tags in part for tag in tags} == set(load('entities').spec.classes)


def _train_names():
  return {name for each in NAMES for i, name in enumerate(each) if i % 6 < 4}


def test_made_sentences_are_the_same_everywhere():
  assert entities.sentences('test', 3) == entities.sentences('test', 1000)[:3]
  words, tags = entities.sentences('test', 2)[1]
  assert ' '.join(words).startswith('On 10 June 2019 ,') and tags[:5] == ['O', 'B-DATE', 'I-DATE', 'I-DATE', 'O']
