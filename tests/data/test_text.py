import itertools
import json

import numpy as np
import pytest

from experiments.language_model import Config, data
from karpjax.data import batches, language, text, tokenisers
from karpjax.errors import UsageError


def read(dataset, **options):
  return data(Config(dataset=dataset, **options))


SENTENCES = ['The cat sat on the mat.', 'A dog – très bien – saw the cat!', 'the end']


@pytest.mark.parametrize('kind', ['characters', 'bytes', 'bpe'])
def test_what_is_encoded_decodes_to_the_same_text(kind):
  made = tokenisers.make(kind, SENTENCES, vocabulary=300)
  for sentence in SENTENCES:
    assert made.decode(made.encode(sentence)) == sentence
    assert made.characters()[made.encode(sentence)].sum() == len(sentence)
  again = tokenisers.from_json(json.loads(json.dumps(made.to_json())))
  assert again == made and again.encode(SENTENCES[1]).tolist() == made.encode(SENTENCES[1]).tolist()


@pytest.mark.parametrize('kind, specials', [('characters', '\n'), ('bytes', ()), ('bpe', tokenisers.SPECIALS)])
def test_a_lines_end_is_a_character_and_a_byte_by_every_tokeniser(kind, specials):
  made = tokenisers.make(kind, SENTENCES, vocabulary=300, specials=specials)
  targets = language.lined([made.encode(line) for line in SENTENCES], 60).arrays['targets']
  targets, content = targets[targets >= 0], '\n'.join([*SENTENCES, ''])
  assert made.characters(lines=True)[targets].sum() == len(content)
  assert made.bytes(lines=True)[targets].sum() == len(content.encode()) == len(content) + 5  # – twice, and è
  words = tokenisers.make('words', SENTENCES)
  assert not words.characters(lines=True).any() and not words.bytes(lines=True).any()  # spaces are of no token
  whole = made.encode(SENTENCES[1])  # of a running text
  assert made.characters()[whole].sum() == len(SENTENCES[1]) and made.bytes()[whole].sum() == len(SENTENCES[1].encode())


def test_what_a_published_tokeniser_of_word_pieces_spells_is_unknown():
  from tokenizers import Tokenizer, decoders, models

  library = Tokenizer(models.WordPiece({'[UNK]': 0, 'a': 1, '##b': 2}, unk_token='[UNK]'))
  library.decoder = decoders.WordPiece()
  made = tokenisers.Tokeniser('bpe', model=library.to_str())
  assert not made.characters().any() and not made.bytes().any()


def test_bytes_are_utf8():
  assert tokenisers.make('bytes', []).encode('aé').tolist() == [0x61, 0xC3, 0xA9]


def test_words_are_split_at_punctuation_and_rare_ones_are_unknown():
  made = tokenisers.make('words', SENTENCES, lower=True, minimum_frequency=2)
  assert made.symbols == (*tokenisers.SPECIALS, 'the', 'cat', '–')  # 4, 2 and 2 times; others once
  assert made.split("Don't stop, A-B") == ["don't", 'stop', ',', 'a', '-', 'b']
  assert made.encode('the dog – cat').tolist() == [4, tokenisers.UNKNOWN, 6, 5]
  assert made.decode([2, 4, 5, 3, 0]) == 'the cat'
  assert tokenisers.make('words', SENTENCES, lower=True, vocabulary=5).symbols[-1] == 'the'


def test_bpe_has_no_room_for_more_tokens_than_a_text_can_have():
  """The library takes it at once, and ends the process where there is not so much."""
  most = tokenisers.make('bpe', SENTENCES, vocabulary=2**31 - 1)
  assert most == tokenisers.make('bpe', SENTENCES, vocabulary=100_000) and most.size < 1000


def test_bpe_of_a_file_is_the_librarys(tmp_path):
  made = tokenisers.make('bpe', SENTENCES, vocabulary=280)
  (tmp_path / 'tokenizer.json').write_text(made.model)
  read = tokenisers.make(f'bpe:{tmp_path / "tokenizer.json"}', [])
  assert read.symbols == made.symbols and read.encode('the cat').tolist() == made.encode('the cat').tolist()
  with pytest.raises(UsageError, match='no tokenizer.json'):
    (tmp_path / 'other.json').write_text('{}')
    tokenisers.make(f'bpe:{tmp_path / "other.json"}', [])


def test_characters_never_seen_are_named():
  made = tokenisers.make('characters', ['abc'])
  with pytest.raises(UsageError, match="2 characters .* 'x' 'ß'"):
    made.encode('aßbx')


def test_every_token_but_the_first_is_scored_once():
  tokens = np.arange(1, 101)
  for length, overlap in ((10, 0), (10, 4), (7, 3), (99, 0), (200, 50), (10, 9), (2, 1), (1, 0), (99, 98)):
    split = language.windowed(tokens, length, overlap=overlap)
    batch = split.fetch(np.arange(split.size, dtype=np.int32))
    scored = batch['targets'] >= 0
    assert np.sort(batch['targets'][scored]).tolist() == list(range(2, 101))
    assert (batch['targets'][scored] == batch['tokens'][scored] + 1).all()
    if overlap:  # what is scored has so many tokens before it, where there are so many
      place = np.nonzero(scored[1:])[1]
      assert not place.size or place.min() == overlap


def test_training_windows_begin_everywhere_and_are_gathered_alike_on_the_device():
  import jax
  import jax.numpy as jnp

  tokens = np.random.default_rng(0).integers(0, 300, 50)
  split = language.windowed(tokens, 8, overlap=None)
  assert split.size == 42 and split.arrays['text'].dtype == np.uint16
  numbers = np.array([0, 41, 7], np.int32)
  batch = split.fetch(numbers)
  np.testing.assert_array_equal(batch['tokens'][1], tokens[41:49])
  np.testing.assert_array_equal(batch['targets'][1], tokens[42:50])
  there = jax.jit(split.gather)(jax.tree.map(jnp.asarray, split.arrays), numbers)
  jax.tree.map(np.testing.assert_array_equal, there, batch)
  assert {x.dtype for x in (*batch.values(), *there.values())} == {np.dtype(np.int32)}


def test_streams_go_on_from_batch_to_batch():
  tokens = np.arange(1000) % 250
  split = language.windowed(tokens, 10, overlap=0)
  numbers = batches.indices(0, 0, 2 * (split.size // 4) + 1, batch_size=4, size=split.size, order='streams')
  rows = [split.fetch(n) for n in numbers]
  for before, after in itertools.pairwise(rows[: split.size // 4]):
    np.testing.assert_array_equal(before['targets'][:, -1], after['tokens'][:, 0])
  np.testing.assert_array_equal(numbers[split.size // 4], numbers[0])  # the next epoch


def test_lines_begin_and_end_with_token_0(tmp_path):
  (tmp_path / 'names.txt').write_text('ab\nc\n\nabc\n')
  made = read('names', context=0, data_dir=str(tmp_path), validation=0, test=0)
  batch = made.splits['train'].fetch(np.arange(3))
  assert made.spec.tokenisers['text'].symbols == ('\n', 'a', 'b', 'c') and made.spec.lengths == {'text': 4}
  assert batch['tokens'].tolist() == [[0, 1, 2, 0], [0, 3, 0, 0], [0, 1, 2, 3]]
  assert batch['targets'].tolist() == [[1, 2, 0, -1], [3, 0, -1, -1], [1, 2, 3, 0]]


def test_of_a_long_line_every_token_is_scored_once(tmp_path):
  (tmp_path / 'names.txt').write_text('ab\nabcdefghij\n')
  made = read('names', context=4, data_dir=str(tmp_path), validation=0, test=0)
  assert '1 lines are read in pieces of context=4 tokens; the longest has 10' in made.notes
  lines = [np.array([1, 2]), np.arange(1, 11), np.arange(1, 4), np.array([], int)]
  for overlap in range(4):
    batch = language.lined(lines, 4, overlap).arrays
    scored = batch['targets'] >= 0
    assert batch['targets'][scored].tolist() == [1, 2, 0, *range(1, 11), 0, 1, 2, 3, 0, 0]
    before = np.where(batch['targets'] > 0, batch['targets'] - 1, batch['tokens'])  # of numbers that rise by one
    assert (batch['tokens'] == before)[scored].all()
    goes_on = batch['tokens'][:, 0] > 0
    assert goes_on.any() and (scored[goes_on].argmax(1) == overlap).all()


def test_splits_have_nothing_in_common_and_distinct_lines_do_not_return(tmp_path):
  (tmp_path / 'names.txt').write_text('\n'.join(f'n{i % 70}' for i in range(100)))
  made = read('names', context=0, data_dir=str(tmp_path), validation=0.1, test=7, distinct=True)
  lines = {n: {bytes(r) for r in s.arrays['tokens']} for n, s in made.splits.items()}
  assert {n: s.size for n, s in made.splits.items()} == {'train': 56, 'validation': 7, 'test': 7}
  assert len(set.union(*lines.values())) == 70
  again = read('names', context=0, data_dir=str(tmp_path), validation=0.1, test=7, distinct=True, split_seed=1)
  assert {bytes(r) for r in again.splits['test'].arrays['tokens']} != lines['test']
  assert not any('are in train too' in note for note in made.notes)


def test_lines_that_train_has_too_are_counted(tmp_path):
  (tmp_path / 'names.txt').write_text('\n'.join(['a', 'b'] * 30 + ['c']))
  made = read('names', context=0, data_dir=str(tmp_path), validation=0, test=11)
  train = {bytes(row) for row in made.splits['train'].arrays['tokens']}
  again = sum(bytes(r) in train for r in made.splits['test'].arrays['tokens'])
  share = f'test: {again} of its 11 lines ({again / 11:.1%}) are in train too; distinct leaves'
  assert 10 <= again <= 11 and any(note.startswith(share) for note in made.notes)


def test_tiny_shakespeare_is_cut_as_tfds_does(shared_data):
  made = read('tiny_shakespeare', context=64, data_dir=str(shared_data))
  assert [len(s.arrays['text']) for s in made.splits.values()] == [1_003_854, 55_770, 55_770]
  other = read('tiny_shakespeare', context=64, data_dir=str(shared_data), validation=0.1, test=0)
  assert [len(s.arrays['text']) for s in other.splits.values()] == [1_003_854, 111_540]  # nanoGPT's


@pytest.mark.parametrize(
  'content, options, message',
  [
    (b'', {}, 'is empty'),
    (b'  \n ', {}, 'is empty'),
    (b'one line', {'name': 'lines'}, 'has 1 line'),
    ('caf\u00e9 au lait'.encode('latin-1'), {}, r'byte 3 is 0xe9; name its encoding, as encoding=latin-1'),
    (b'short text', {'context': 64}, 'context=64 is longer than the text'),
    (b'a text', {'encoding': 'utf-9'}, 'no such encoding'),
    (b'a text', {'encoding': 'undefined'}, 'no such encoding'),
    (b'some text of a few words', {'context': 4, 'overlap': 4}, 'overlap=4'),
    (
      b'some text of a few words',
      {'context': 4, 'validation': 0.7, 'test': 0.5},
      'validation=0.7 and test=0.5 of 24 characters: leave at least one',
    ),
    (b'some text of a few words', {'context': 4, 'tokeniser': 'bpe', 'vocabulary': 100}, 'at least 260'),
    (b'some text of a few words', {'context': 4, 'tokeniser': 'wrods'}, 'Did you mean words'),
    (b'some text of a few words', {'context': 0}, 'needs a number of tokens'),
  ],
)
def test_bad_input_is_said_in_one_line(tmp_path, content, options, message):
  (tmp_path / 'a.txt').write_bytes(content)
  options = {'name': 'text', 'context': 4, **options}
  with pytest.raises(UsageError, match=message) as caught:
    read(f'{options.pop("name")}:{tmp_path / "a.txt"}', **options)
  assert '\n' not in str(caught.value)


def test_latin_1_reads_when_it_is_named(tmp_path):
  (tmp_path / 'a.txt').write_bytes('café au lait, café noir'.encode('latin-1'))
  made = read(f'text:{tmp_path / "a.txt"}', context=4, encoding='latin-1', validation=0, test=0)
  assert 'é' in made.spec.tokenisers['text'].symbols


def test_a_spec_survives_json():
  made = read('python_docs', context=16, tokeniser='bpe', vocabulary=400)
  assert text.TextSpec.from_json(json.loads(json.dumps(made.spec.to_json()))) == made.spec
