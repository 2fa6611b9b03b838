"""Which tokens are left out, and what stands there instead: counted over many draws, and looked at one by one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.masked_language_model import Config, data
from karpjax import errors
from karpjax.data import batches, masking, tokenisers

VOCABULARY, TIME, SIZE = 40, 61, 2000  # the tests share sizes, and so what is compiled
SPECIAL = len(masking.SPECIALS)


def example_batch(lengths=None):
  """tokens [SIZE, 61]: <s>, ordinary tokens with an <unk> among them, and padding behind `lengths`."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(SPECIAL, VOCABULARY, (SIZE, TIME)).astype(np.int32)
  tokens[:, 0], tokens[:, 7] = tokenisers.BEGIN, tokenisers.UNKNOWN
  if lengths is not None:
    tokens = np.where(np.arange(TIME) < np.asarray(lengths)[:, None], tokens, 0)
  return {'tokens': tokens, 'targets': tokens, 'index': np.arange(SIZE)}


@functools.partial(jax.jit, static_argnames=('share', 'whole_words'))
def masked(key, batch, ends, share, whole_words):
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch['index'])
  return masking.mask_tokens(keys, batch, ends, share=share, vocabulary=VOCABULARY, whole_words=whole_words)


def drawn(batch, *, share=0.15, ends=None, whole_words=False, key=0):
  """tokens, places, targets as `mask` gives them."""
  ends = (np.zeros(VOCABULARY, bool),) * 2 if ends is None else ends
  return tuple(map(np.asarray, masked(jax.random.key(key), batch, ends, share, whole_words)))


def chosen(batch, places, targets):
  """[n, time] bool."""
  flags = np.zeros(batch['tokens'].shape, bool)
  for row, (p, y) in enumerate(zip(places, targets)):
    assert len(set(p.tolist())) == len(p)
    flags[row, p[y >= 0]] = True
  return flags


def test_the_share_is_exact():
  batch = example_batch()
  _, places, targets = drawn(batch)
  counts = (targets >= 0).sum(1)
  assert set(counts) == {8, 9}  # of 59 ordinary tokens 15 % are 8.85
  assert abs(counts.mean() - 8.85) < 4 * np.sqrt(0.85 * 0.15 / SIZE)
  each = chosen(batch, places, targets).mean(0)[[i for i in range(TIME) if i not in (0, 7)]]
  assert np.abs(each - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / SIZE)  # all places alike


def test_what_stands_at_the_chosen_places():
  batch = example_batch()
  tokens, places, targets = drawn(batch)
  flags = chosen(batch, places, targets)
  assert (tokens == batch['tokens'])[~flags].all()
  new, old = tokens[flags], batch['tokens'][flags]
  n, ordinary = flags.sum(), VOCABULARY - SPECIAL
  expected = {'mask': 0.8, 'same': 0.1 + 0.1 / ordinary, 'other': 0.1 - 0.1 / ordinary}
  found = {'mask': (new == masking.MASK).mean(), 'same': (new == old).mean()}
  found['other'] = 1 - found['mask'] - found['same']
  for kind, share in expected.items():
    assert abs(found[kind] - share) < 4 * np.sqrt(share * (1 - share) / n), kind
  others = new[(new != masking.MASK) & (new != old)]
  assert others.min() >= SPECIAL
  counts = np.bincount(others, minlength=VOCABULARY)[SPECIAL:]
  assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())  # uniform


def test_targets_are_what_stood_there_and_elsewhere_minus_one():
  batch = example_batch()
  _, places, targets = drawn(batch)
  assert targets.shape == places.shape == (SIZE, 10)  # room for 15 % of 61
  scored = targets >= 0
  np.testing.assert_array_equal(targets[scored], np.take_along_axis(batch['targets'], places, 1)[scored])
  assert (targets[~scored] == -1).all()


@pytest.mark.parametrize(
  'share, whole_words', [(0.15, False), pytest.param(1.0, False, marks=pytest.mark.slow), (1.0, True)]
)
def test_specials_and_padding_are_never_left_out(share, whole_words):
  lengths = np.arange(SIZE) % (TIME + 1)
  batch = example_batch(lengths)
  tokens, _, targets = drawn(batch, share=share, whole_words=whole_words)
  special = batch['tokens'] < SPECIAL
  np.testing.assert_array_equal(tokens[special], batch['tokens'][special])
  assert not ((targets >= 0) & (targets < SPECIAL)).any()
  if share == 1:
    np.testing.assert_array_equal((targets >= 0).sum(1), (~special).sum(1))


def test_a_tokens_place_says_nothing_about_zeroed_inputs():
  """Places are drawn by the targets, so that a model without inputs has the same to guess."""
  batch = example_batch()
  blind = {**batch, 'tokens': np.zeros_like(batch['tokens'])}
  for a, b in zip(drawn(batch)[1:], drawn(blind)[1:]):
    np.testing.assert_array_equal(a, b)


def test_an_example_is_masked_alike_wherever_it_stands():
  batch, order = example_batch(), np.random.default_rng(0).permutation(SIZE)
  whole = drawn(batch)
  for a, b in zip(whole, drawn({name: x[order] for name, x in batch.items()})):
    np.testing.assert_array_equal(a[order], b)
  assert any((a != b).any() for a, b in zip(whole, drawn(batch, key=1)))


def test_whole_words_are_left_out_whole_and_the_share_is_exact():
  # tokens 5 … 14 go on with a word, the others begin one
  first, last = np.zeros((2, VOCABULARY), bool)
  first[5:15] = True
  last[5:] = True
  batch = example_batch()
  _, places, targets = drawn(batch, ends=(first, last), whole_words=True)
  flags = chosen(batch, places, targets)
  goes_on = (batch['tokens'][:, 1:] >= 5) & (batch['tokens'][:, 1:] < 15) & (batch['tokens'][:, :-1] >= 5)
  assert goes_on.mean() > 0.2
  np.testing.assert_array_equal(flags[:, 1:][goes_on], flags[:, :-1][goes_on])
  counts = flags.sum(1)
  assert abs(counts.mean() - 8.85) < 4 * counts.std() / np.sqrt(SIZE)


def test_words_that_do_not_fit_are_left_alone():
  every = np.ones(VOCABULARY, bool)  # all tokens in one word of 60
  batch = example_batch()
  batch['tokens'][:, 7] = batch['tokens'][:, 8]
  _, _, targets = drawn(batch, ends=(every, every), whole_words=True)
  assert (targets == -1).all()


@pytest.mark.parametrize('kind', ['characters', 'bpe', 'words'])
def test_where_words_begin(kind):
  text = 'The quick-brown fox_1 jumps, over 12 lazy dogs;\nÄpfel (and pears) cost 3.50!'
  made = tokenisers.make(kind, [text] * 3, specials=masking.SPECIALS, vocabulary=300)
  tokens = made.encode(text)
  begins = np.asarray(masking.begin_words(jnp.asarray(tokens), masking.ends_of_tokens(made)))
  if kind == 'words':
    assert begins.all()
    return
  words, inner = [], []
  for token, new in zip(tokens, begins):
    piece = made.decode([token])
    if new:
      words.append(piece)
    else:
      words[-1] += piece
      inner.append(piece)
  assert ''.join(words) == text and inner
  assert [w.strip() for w in words if w.strip()] == re.findall(r'\w+|[^\w\s]', text)


def test_part_of_a_character_goes_on_with_a_word():
  made = tokenisers.make('bpe', ['aé'], specials=masking.SPECIALS, vocabulary=261)
  tokens = made.encode('aéb')  # é is two bytes
  assert len(tokens) == 4
  assert np.asarray(masking.begin_words(jnp.asarray(tokens), masking.ends_of_tokens(made))).tolist() == [True] + 3 * [
    False
  ]


def test_windows_for_evaluation_hold_each_token_once():
  text = np.arange(5, 28)
  split = masking.windowed(text, 6, overlap=1)
  tokens = batches.fetch(split, np.arange(split.size))['tokens']
  assert tokens.shape == (5, 6) and (tokens[:, 0] == tokenisers.BEGIN).all()
  np.testing.assert_array_equal(tokens[:, 1:].reshape(-1), [*text, 0, 0])


def test_windows_for_training_begin_everywhere_and_are_whole():
  text = np.arange(5, 15)
  split = masking.windowed(text, 4, overlap=None)
  batch = batches.fetch(split, np.arange(split.size))
  np.testing.assert_array_equal(batch['tokens'][:, 1:], [[i, i + 1, i + 2] for i in range(5, 13)])
  np.testing.assert_array_equal(batch['tokens'], batch['targets'])
  traced = jax.jit(split.gather)({name: jnp.asarray(x) for name, x in split.arrays.items()}, jnp.arange(split.size))
  np.testing.assert_array_equal(traced['tokens'], batch['tokens'])


def test_lines_are_padded_and_long_ones_are_several_examples():
  split = masking.lined([np.array([5, 6]), np.arange(5, 13)], 4, 1)
  expected = [[2, 5, 6, 0], [2, 5, 6, 7], [2, 8, 9, 10], [2, 11, 12, 0]]
  np.testing.assert_array_equal(split.column('tokens'), expected)


def read(dataset, **options):
  return data(Config(dataset=dataset, **options))


def test_a_text_becomes_a_data_set(tmp_path):
  (tmp_path / 'a.txt').write_text('one two three four five six seven eight nine ten ' * 20)
  made = read(f'text:{tmp_path / "a.txt"}', context=8, tokeniser='words', validation=0.1, test=0.1)
  assert made.spec.tokenisers['text'].symbols[:5] == masking.SPECIALS and made.spec.lengths == {'text': 8}
  assert made.splits['train'].size == 160 - 7 + 1 and made.splits['test'].size == 3  # windows of 7 tokens
  (tmp_path / 'b.txt').write_text('one two\n\nthree\nfour five\n')
  lines = read(f'lines:{tmp_path / "b.txt"}', context=0, tokeniser='characters', validation=0.4, test=0)
  everything = [text for split in lines.splits.values() for text in split.arrays['tokens']]
  decoded = {lines.spec.tokenisers['text'].decode(tokens) for tokens in everything}
  assert decoded == {'one two', 'three', 'four five'} and lines.spec.lengths['text'] == 10


def test_bad_input(tmp_path):
  (tmp_path / 'a.txt').write_text('one two three')
  with pytest.raises(errors.UsageError, match='tokeniser=bytes: characters, words, bpe will do'):
    read('python_docs', context=8, tokeniser='bytes')
  with pytest.raises(errors.UsageError, match='context=64 is longer than the text of 3'):
    read(f'text:{tmp_path / "a.txt"}', context=64, tokeniser='words', validation=0, test=0)
