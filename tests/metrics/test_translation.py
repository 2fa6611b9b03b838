"""BLEU against its formula, chrF and exact match on texts worked out by hand, and sums that add up over any batches."""

import math
import types
from collections import Counter

import jax
import numpy as np
import pytest

from karpjax.data import spacing, tokenisers
from karpjax.metrics import translation

WORDS = tokenisers.make(
  'words', ['a man in a hat , with dogs .', 'two dogs run'], specials=tokenisers.SPECIALS, lower=True
)


def bleu(ours, theirs):
  """Papineni et al. 2002, of whole corpora with a match of every order; texts are words set apart by spaces."""
  logs, lengths = [], [sum(len(t.split()) for t in texts) for texts in (ours, theirs)]
  for n in range(1, 5):
    hits = total = 0
    for a, b in zip(ours, theirs):
      grams = [Counter(zip(*(t.split()[i:] for i in range(n)))) for t in (a, b)]
      hits += sum((grams[0] & grams[1]).values())
      total += sum(grams[0].values())
    logs.append(math.log(hits / total))
  return 100 * min(1, math.exp(1 - lengths[1] / lengths[0])) * math.exp(sum(logs) / 4)


def test_bleu_against_its_formula():
  ours = ['a man in a red hat walks a dog', 'two dogs run in the green grass']
  theirs = ['a man in a red hat walks the dog home', 'two dogs run through the green grass of a park']
  scores = translation.scores(ours, theirs)
  np.testing.assert_allclose(scores['bleu'], bleu(ours, theirs), rtol=1e-6)
  np.testing.assert_allclose(scores['bleu_13a'], bleu(ours, theirs), rtol=1e-6)  # nothing to cut here


def test_what_the_two_ways_of_cutting_see():
  same = translation.scores(['A man-made dog, too.'], ['a man-made dog, too.'])
  assert all(math.isclose(score, 100) for score in same.values())
  one = translation.scores(['there is a big man-made dog'], ['there is a big man made dog'])
  cut = bleu(['there is a big man - made dog'], ['there is a big man made dog'])
  np.testing.assert_allclose(one['bleu'], cut, rtol=1e-6)  # 13a leaves the hyphen
  assert one['bleu_13a'] < one['bleu']


def test_chrf_of_one_letter_against_its_formula():
  # 'abc' and 'abd': n-grams in common 2 of 3, 1 of 2, 0 of 1; F2 of equal precision and recall is that share
  np.testing.assert_allclose(translation.scores(['abc'], ['abd'])['chrf'], 100 * (2 / 3 + 1 / 2 + 0) / 3, atol=1e-2)


def test_signatures_say_how():
  signatures = {row['metric']: row['signature'] for row in translation.signatures()}
  assert 'case:lc' in signatures['bleu'] and 'tok:none' in signatures['bleu']
  assert 'tok:13a' in signatures['bleu_13a'] and 'version:' in signatures['chrf']


@pytest.mark.parametrize(
  'words, sentence',
  [
    ('a man - made dog , too .', 'a man-made dog, too.'),
    ('" no " , he said ( twice ) !', '"no", he said (twice)!'),
    ('a 5 " screen', 'a 5 " screen'),
    ("the man's dog doesn't run", "the man's dog doesn't run"),
  ],
)
def test_words_are_joined_and_cut_again(words, sentence):
  assert spacing.together(words.split()) == sentence
  assert translation.separated(sentence) == words


def test_a_text_ends_at_its_end():
  numbers = WORDS.numbers(['two', 'dogs', 'run', '.'])
  assert translation.text(np.array([*numbers, tokenisers.END, 0, 0]), WORDS) == 'two dogs run.'
  assert translation.text(np.array([*numbers[:2], tokenisers.END, *numbers[2:]]), WORDS) == 'two dogs'
  assert translation.text(np.array(numbers), WORDS) == 'two dogs run.'


def test_an_unknown_word_is_said_as_one_wrong_word():
  two, run = WORDS.numbers(['two', 'run'])
  said = translation.text(np.array([two, tokenisers.UNKNOWN, tokenisers.UNKNOWN, run, tokenisers.END, 0]), WORDS)
  assert said == 'two ⁇ ⁇ run' and translation.separated(said) == said
  wrong, right = ['two of many dogs ran ⁇'], ['two of many dogs ran home']
  scores = translation.scores(wrong, right)
  for name in ('bleu', 'bleu_13a'):
    np.testing.assert_allclose(scores[name], 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, rtol=1e-6)
  letters = tokenisers.make('characters', ['ab'], specials=tokenisers.SPECIALS)
  assert translation.text([*letters.numbers('a'), tokenisers.UNKNOWN, *letters.numbers('b')], letters) == 'a⁇b'


def test_exact_match_is_of_words_or_of_characters():
  letters = tokenisers.make('characters', ['abc '], specials=tokenisers.SPECIALS)
  assert translation.exact_match(['A dog, too.'], ['a  dog , too.'], WORDS) == 1
  assert translation.exact_match(['a b', 'ab', 'abc'], ['ab', 'ab', 'ABC'], letters) == pytest.approx(1 / 3)


def test_sums_of_batches_in_any_order_are_those_of_all():
  rng = np.random.default_rng(0)
  losses, targets = rng.random((7, 5)).astype(np.float32), rng.integers(-1, 9, (7, 5))
  tokens, reference = rng.integers(0, WORDS.size, (7, 5)), 100 + np.arange(7)
  sums, total = jax.jit(lambda *arrays: translation.sums(*arrays, 9)), []
  for index, mask in (([4, 6, 0], [True] * 3), ([5, 1, 3], [True] * 3), ([2, 0, 0], [True, False, False])):
    batch = {'index': np.array(index), 'mask': np.array(mask), 'reference': reference[index]}
    total.append(jax.device_get(sums(losses[index], targets[index], tokens[index], batch)))
  added = jax.tree.map(lambda *parts: sum(parts), *total)
  np.testing.assert_array_equal(added['tokens'][:7], tokens)
  np.testing.assert_array_equal(added['reference'], [*(reference + 1), 0, 0])
  np.testing.assert_allclose(added['loss'], [losses[targets >= 0].sum(), (targets >= 0).sum()], rtol=1e-6)


def test_summarise_compares_each_text_with_its_own_reference():
  references = ['unused', 'two dogs run', 'a man in a hat', 'a man with dogs']
  rows = np.zeros((4, 6), np.int32)
  for row, text in ((0, 'a man with dogs'), (2, 'two dogs in')):
    words = WORDS.numbers(text.split())
    rows[row, : len(words) + 1] = [*words, tokenisers.END]
  sums = {'loss': (np.float32(6), np.float32(3)), 'tokens': rows, 'reference': np.array([4, 0, 2, 0])}
  spec = lambda language: types.SimpleNamespace(tokenisers={'target': WORDS}, by_rule=not language)
  numbers = translation.summarise(sums, spec(True), references)
  assert numbers['accuracy'] == 0.5 and numbers['loss'] == 2 and numbers['perplexity'] == pytest.approx(math.exp(2))
  expected = translation.scores(['a man with dogs', 'two dogs in'], ['a man with dogs', 'two dogs run'])
  assert {name: numbers[name] for name in expected} == expected
  assert set(translation.summarise(sums, spec(False), references)) == {'loss', 'perplexity', 'accuracy'}
