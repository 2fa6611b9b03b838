"""Texts with masked tokens, to be guessed from those around them (Devlin et al. 2019, section 3.1).

An example is {'tokens', 'targets'}, both [length] int32 and the same: <s>, then a window of a running text or a line,
then padding. Which tokens are masked is drawn inside the step, from keys of the examples.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import program
from karpjax.data import language, text, tokenisers
from karpjax.data.bucketing import padded
from karpjax.data.dataset import Dataset, Split
from karpjax.data.spacing import WORD
from karpjax.errors import UsageError

SPECIALS = (*tokenisers.SPECIALS, tokenisers.MASK)
MASK = SPECIALS.index(tokenisers.MASK)
TOKENISERS = ('characters', 'words', 'bpe')
LONGEST_WORD = 16  # tokens; a longer one is masked where there is room for it


# ---- examples ----


def windows(arrays, numbers, *, length: int, stride: int, overlap: int):
  """<s> and length − 1 tokens from token number · stride on, as a Split's `gather`; padded behind the text's end.

  The `overlap` is <s> alone, or, in train, nothing that counts: targets are what is drawn in the step.
  """
  tokens = language.windows(arrays, numbers, length=length - 1, stride=stride)['tokens']
  xp = np if isinstance(tokens, np.ndarray) else jnp
  tokens = xp.pad(tokens, ((0, 0), (1, 0)), constant_values=tokenisers.BEGIN)  # [batch, length]
  return {'tokens': tokens, 'targets': tokens}


windowed = functools.partial(language.windowed, gather=windows, begin=1)


def lined(lines: Sequence[np.ndarray], length: int, overlap: int) -> Split:
  """A line an example; a longer one several, each behind a <s> of its own, which is the `overlap`."""
  pieces = [line[i : i + length - 1] for line in lines for i in range(0, max(len(line), 1), length - 1)]
  tokens = padded([[tokenisers.BEGIN, *piece] for piece in pieces], length)
  return Split.of(tokens=tokens, targets=tokens)


def load(config) -> Dataset:
  """A data set for masked language models, by the flags of a `language.LanguageFlags`.

  Raises:
    UsageError: as `language.load`, and for a tokeniser that has no <mask>.
  """
  if config.context == 1:
    raise UsageError('context=1 has room for <s> alone; choose one of at least 2')
  own = {'kinds': TOKENISERS, 'specials': SPECIALS, 'windowed': windowed, 'lined': lined}
  return language.load(config, overlap=min(config.context, 1), **own)  # of windows: <s>


# ---- words ----


def ends_of_tokens(tokeniser: tokenisers.Tokeniser) -> tuple[np.ndarray, np.ndarray]:
  """Whether a token's text begins, and whether it ends, with a letter, a digit or an underscore: two of [size] bool.

  A token goes on with the word before it where that ends so and itself begins so; of the tokeniser `words` none does.
  Part of a character counts as a letter.
  """
  if tokeniser.kind == 'words':
    return np.zeros(tokeniser.size, bool), np.zeros(tokeniser.size, bool)
  texts = [tokeniser.decode([token]) or ' ' for token in range(tokeniser.size)]
  inner = lambda character: bool(WORD.match(character)) or character == '\ufffd'
  return np.array([inner(t[0]) for t in texts]), np.array([inner(t[-1]) for t in texts])


def begin_words(tokens, ends: tuple[np.ndarray, np.ndarray]):
  """[time] bool: which of `tokens` [time] int32 begin a word; `ends` as `ends_of_tokens` gives them."""
  first, last = (jnp.asarray(each)[tokens] for each in ends)
  return ~jnp.concatenate([jnp.zeros(1, bool), last[:-1] & first[1:]])


# ---- masks ----


def draw_positions(key, ordinary, begins, *, share: float, size: int):
  """Draws words, one after the other, until `share` of the ordinary tokens are to be masked.

  The word that goes beyond the share is taken with the probability that makes the expected number exact.

  Args:
    key: of the example.
    ordinary: [time] bool; no other token is ever masked.
    begins: [time] bool: where a word begins; all True draws single tokens.
    share: of the tokens, in [0, 1].
    size: at most so many; a word that does not fit whole is not taken.

  Returns:
    Positions [size] int32, and which of them count [size] bool.
  """
  time = ordinary.shape[0]
  ranks = jnp.arange(time)
  order_key, last_key = jax.random.split(key)
  begins = begins | jnp.concatenate([jnp.ones(1, bool), ordinary[1:] != ordinary[:-1]])
  word = begins.cumsum() - 1  # [time]
  drawn = jax.random.uniform(order_key, (time,))[word]  # one number for each word
  order = jnp.argsort(jnp.where(ordinary, drawn, 2.0), stable=True)  # words in a drawn order, their tokens in their own
  sorted_word = word[order]
  starts = jnp.concatenate([jnp.ones(1, bool), sorted_word[1:] != sorted_word[:-1]])
  first = jax.lax.cummax(jnp.where(starts, ranks, 0))  # of each token's word, in the drawn order
  ends = jnp.concatenate([starts[1:], jnp.ones(1, bool)])
  behind = jax.lax.cummin(jnp.where(ends, ranks + 1, time), reverse=True)
  beyond = first + jax.random.uniform(last_key) * (behind - first)
  taken = (beyond < share * ordinary.sum()) & (behind <= size) & ordinary[order]
  return order[:size].astype(jnp.int32), taken[:size]


def corrupt(key, tokens, positions, taken, vocabulary: int):
  """Puts <mask> (80 %), a token drawn from all that are no specials (10 %), or what was there, at the positions.

  Args:
    key: of the example.
    tokens: [time] int32.
    positions, taken: as `draw_positions` gives them.
    vocabulary: how many tokens there are.

  Returns:
    [time] int32.
  """
  kind_key, token_key = jax.random.split(key)
  kind = jax.random.uniform(kind_key, positions.shape)
  others = jax.random.randint(token_key, positions.shape, len(SPECIALS), vocabulary, jnp.int32)
  true = tokens[positions]
  new = jnp.where(kind < 0.8, MASK, jnp.where(kind < 0.9, others, true))
  return tokens.at[positions].set(jnp.where(taken, new, true))


def fixed_keys(batch):
  """Keys for evaluation, one per example: the same positions at every step, for every seed."""
  return program.example_keys(jax.random.key(0), batch)


def mask_tokens(keys, batch, ends, *, share: float, vocabulary: int, whole_words: bool):
  """A batch for training or evaluation.

  Args:
    keys: [batch], one per example.
    batch: 'tokens' and 'targets' [batch, time] int32.
    ends: as `ends_of_tokens` gives them.
    share, vocabulary: as `draw_positions`' and `corrupt`'s.
    whole_words: whether all tokens of a word are masked together.

  Returns:
    inputs [batch, time], positions [batch, size] and targets [batch, size], all int32; a target of −1 is not scored.
  """
  length = batch['targets'].shape[1]
  size = min(length, math.ceil(share * length) + (LONGEST_WORD if whole_words else 0))

  def one(key, tokens, targets):
    position_key, corrupt_key = jax.random.split(key)
    ordinary = targets >= len(SPECIALS)
    begins = begin_words(targets, ends) if whole_words else jnp.ones(targets.shape, bool)
    positions, taken = draw_positions(position_key, ordinary, begins, share=share, size=size)
    inputs = corrupt(corrupt_key, tokens, positions, taken, vocabulary)
    return inputs, positions, jnp.where(taken, targets[positions], -1)

  return jax.vmap(one)(keys, batch['tokens'], batch['targets'])


# ---- a person's texts ----


def encode(texts: Sequence[str], spec: text.TextSpec) -> dict[str, np.ndarray]:
  """Texts with <mask>s as a batch of 'tokens' [n, context] int32.

  Raises:
    UsageError: for a text without <mask>, or with more tokens than the model has positions.
  """
  tokeniser, length, rows = spec.tokenisers['text'], spec.lengths['text'], []
  for each in texts:
    first, *parts = [tokeniser.encode(part).tolist() for part in each.split(tokenisers.MASK)]
    rows.append([tokenisers.BEGIN, *first, *(token for part in parts for token in (MASK, *part))])
    if not parts:
      raise UsageError(f'{each!r} has no {tokenisers.MASK}: write one for each token to be guessed')
    if len(rows[-1]) > length:
      raise UsageError(f'{each!r} has {len(rows[-1]) - 1} tokens; this model takes {length - 1}')
  return {'tokens': padded(rows, length), 'index': np.arange(len(rows), dtype=np.int32)}


def show_guesses(tokeniser: tokenisers.Tokeniser, tokens: Sequence[int], guesses: dict[int, tuple[int, int]]) -> str:
  """A text on one line, its guesses as [guess] where right, else [guess | truth].

  Args:
    tokeniser: of the tokens.
    tokens: [time], the true ones.
    guesses: position -> (guess, truth).
  """
  space = ' ' if tokeniser.kind == 'words' else ''
  name = lambda token: tokeniser.name(token).strip('␣') or '␣'
  pieces, run = [], []
  for position, token in enumerate(tokens):
    if position not in guesses:
      run.append(token)
      continue
    guess, truth = guesses[position]
    blank = ' ' if tokeniser.decode([truth]).startswith(' ') else ''
    shown = name(guess) if guess == truth else f'{name(guess)} | {name(truth)}'
    pieces, run = [*pieces, tokeniser.decode(run), f'{blank}[{shown}]'], []
  pieces.append(tokeniser.decode(run))
  return ' '.join(space.join(piece for piece in pieces if piece).split())
