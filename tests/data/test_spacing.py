"""Texts come back from their tokens as they were: scripts, numbers, web addresses, quotes and emoji, by every tokeniser."""

import json
import re
import types
import unicodedata

import numpy as np
import pytest

from experiments import language_model
from karpjax.data import masking, spacing, tagged, tokenisers
from karpjax.data.text import TextSpec
from karpjax.metrics import translation

PLAIN = [  # what the rules put together alone
  'It costs 3.5 euros, or 1,000 dollars at 10:30.', 'Version 1.2.3 was released (on 5/6/2020).', "Don't stop: the man's hat!",
  'See https://www.example.com/a/b?x=1&y=2 for more, or www.foo.org.', 'Write to joe@example.com, please.',
  'He said "no", and she said \'yes\' (twice)!', '„Guten Tag“, sagte er.', 'Das „Wort“ steht da (“so”).', '“Quoted text,” he said. It’s fine — really.',
  '50% of $5 is $2.50; a man-made dog, too.', 'U.S. troops at 5 p.m. on the 3rd.', '¿Qué tal? ¡Muy bien!', '你好，世界。',
  'Hello 👩‍👩‍👧 and 👍🏽 😀😀!', 'I ❤️ it; a flag 🇩🇪.', 'می‌خواهم بروم.', 'मैं हिन्दी में लिखता हूँ। यह किताब है।',
  unicodedata.normalize('NFD', 'Schöne Grüße aus Köln, müde Männer!'), 'السَّلَامُ عَلَيْكُمْ، كَيْفَ حَالُكَ؟', 'สวัสดีครับ',
]  # fmt: skip
TEXTS = [
  *PLAIN,
  'Rock & roll / jazz, C++ and f(x)=2',
  '3,5 km and 3, 7 or 9',
  'a 5" screen',
  'plain </s> and <unk>',
  '-5 +3.2 %',
]


@pytest.mark.parametrize('kind', tokenisers.KINDS)
def test_every_text_comes_back(kind):
  special = tokenisers.SPECIALS if kind in ('words', 'bpe') else ()
  made = tokenisers.make(kind, TEXTS, vocabulary=400 if kind == 'bpe' else 0, specials=special)
  again = tokenisers.from_json(json.loads(json.dumps(made.to_json())))
  assert again == made
  for text in TEXTS:
    tokens = again.encode(text)
    assert again.decode(tokens) == text
    if text.isascii():
      assert ''.join(again.pieces([*range(len(special)), *tokens])) == text
    if kind != 'bytes':  # of which four may be one character
      assert all(text.startswith(again.decode(tokens[:n]).rstrip('\ufffd')) for n in range(len(tokens)))


def test_rules_alone_know_usual_texts():
  made = tokenisers.make('words', TEXTS)
  made = tokenisers.Tokeniser('words', made.symbols, made.specials)  # as of runs that remember no places
  assert [made.decode(made.encode(text)) for text in PLAIN] == PLAIN


def test_a_perfect_translation_has_a_bleu_of_100():
  made = tokenisers.make('words', PLAIN, lower=True)
  spec = types.SimpleNamespace(tokenisers={'target': made}, by_rule=False)
  ours = [translation.text([*made.encode(text), tokenisers.END, 0], made) for text in PLAIN]
  scores = translation.compare(ours, PLAIN, spec)
  assert scores == pytest.approx({'accuracy': 1, 'bleu': 100, 'bleu_13a': 100, 'chrf': 100})


def test_whatever_words_come_together_they_are_cut_alike_again():
  rng = np.random.default_rng(0)
  letters = [
    *'ab3é \'".,-/:@(“’',
    'e\u0301',
    '\u0301',
    'क्षि',
    '\u200d',
    '❤\ufe0f',
    '🇩',
    'www',
    "don't",
    "s'",
    'https://',
  ]
  texts = [''.join(rng.choice(letters, 12)) for _ in range(2000)]
  made = tokenisers.make('words', texts[:1000])
  for text in texts:
    words = made.split(text)
    assert made.split(spacing.together(words)) == made.split(spacing.together(words, frozenset(made.places))) == words


def test_marks_belong_to_their_letters_and_all_else_is_cut_as_ever():
  assert tokenisers.WORDS.findall('हिन्दी, e\u0301te\u0301s') == tagged.WORDS.findall('हिन्दी, e\u0301te\u0301s') == [
    'हिन्दी', ',', 'e\u0301te\u0301s'
  ]  # fmt: skip
  before = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
  unmarked = [text for text in TEXTS if not any(unicodedata.category(c)[0] == 'M' for c in text)]
  assert len(unmarked) > 15 and all(tokenisers.WORDS.findall(text) == before.findall(text) for text in unmarked)
  made = tokenisers.make('characters', ['ए\u0947 a.'], specials=masking.SPECIALS)
  begins, ends = masking.ends_of_tokens(made)
  assert {made.symbols[i] for i in range(5, made.size) if begins[i] and ends[i]} == {'ए', '\u0947', 'a'}


@pytest.mark.parametrize('kind', tokenisers.KINDS)
def test_a_sample_goes_on_from_its_prompt_as_one_text(kind):
  made = tokenisers.make(kind, ['the cat sat, "well"'], vocabulary=300)
  run = types.SimpleNamespace(spec=TextSpec('made', 1, {'text': made}, {'text': 9}))
  before, whole = (made.encode(text) for text in ('the cat', 'the cat sat, "well"'))
  chunks = [token[None, None] for token in whole[len(before) :]]
  pieces = language_model.decode(run, [chunks], [], language_model.Sampling(prompt='the cat'))
  assert ''.join(piece['text'] for piece in pieces) == 'the cat sat, "well"'
