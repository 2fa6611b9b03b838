"""Texts with tokens left out, to be guessed from those around them (Devlin et al. 2019, section 3.1).

An example is {'tokens', 'targets'}, both [length] int32 and the same: <s>, then a window of a running text or a line, then
padding. Which tokens are left out is drawn inside the step, from keys of the examples.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import errors, program
from karpjax.data import text, tokenisers
from karpjax.data.bucketing import padded
from karpjax.data.dataset import Dataset, Split, take

SPECIALS = (*tokenisers.SPECIALS, tokenisers.MASK)
MASK = SPECIALS.index(tokenisers.MASK)
TOKENISERS = ('characters', 'words', 'bpe')
LONGEST_WORD = 16  # tokens; a longer one is left out where there is room for it


# ---- examples ----


def windows(arrays, numbers, *, length: int, stride: int):
  """<s> and length − 1 tokens from token number · stride on, as a Split's `gather`; padded behind the text's end."""
  stored = arrays['text']
  at = numbers[:, None] * stride + np.arange(length - 1, dtype=np.int32)  # [batch, length - 1]
  inside = at < stored.shape[0]
  values = take(stored, at * inside).astype(np.int32) * inside
  xp = np if isinstance(values, np.ndarray) else jnp
  tokens = xp.pad(values, ((0, 0), (1, 0)), constant_values=tokenisers.BEGIN)  # [batch, length]
  return {'tokens': tokens, 'targets': tokens}


def windowed(tokens: np.ndarray, length: int, *, stride: int) -> Split:
  """The windows of one text: with a stride of 1 all whole ones, else as many as hold each token at least once."""
  whole = len(tokens) - (length - 1) + 1
  if length < 2 or whole < 1:
    raise errors.UsageError(
      f'context={length}: choose one of at least 2, and no longer than the text of {len(tokens):,} tokens'
    )
  size = whole if stride == 1 else -(-len(tokens) // stride)
  return Split.made(size, {'text': text.compact(tokens)}, functools.partial(windows, length=length, stride=stride))


def lined(lines: Sequence[np.ndarray], length: int) -> Split:
  """A line an example."""
  rows = padded([[tokenisers.BEGIN, *line] for line in lines], length)
  return Split.made(len(rows), {'tokens': rows}, both)


def both(arrays, numbers):
  """The same tokens under both names, as a Split's `gather`."""
  tokens = take(arrays['tokens'], numbers)
  return {'tokens': tokens, 'targets': tokens}


def load(config) -> Dataset:
  """A data set for masked language models, by the flags of a `text.LanguageFlags`.

  Raises:
    UsageError: as `text.load`, and for a tokeniser that has no <mask>.
  """
  if config.context == 1:
    raise errors.UsageError('context=1 has room for <s> alone; choose one of at least 2')
  own = {'kinds': TOKENISERS, 'specials': SPECIALS, 'windowed': windowed, 'lined': lined}
  return text.load(config, overlap=min(config.context, 1), **own)  # of windows: <s>


# ---- words ----


def ends_of_tokens(tokeniser: tokenisers.Tokeniser) -> tuple[np.ndarray, np.ndarray]:
  """Whether a token's text begins, and whether it ends, with a letter, a digit or an underscore: two of [size] bool.

  A token goes on with the word before it where that ends so and itself begins so; of the tokeniser `words` none does. Part of
  a character counts as a letter.
  """
  if tokeniser.kind == 'words':
    return np.zeros(tokeniser.size, bool), np.zeros(tokeniser.size, bool)
  texts = [tokeniser.decode([token]) or ' ' for token in range(tokeniser.size)]
  inner = lambda character: character.isalnum() or character in '_\ufffd'
  return np.array([inner(t[0]) for t in texts]), np.array([inner(t[-1]) for t in texts])


def begin_words(tokens, ends: tuple[np.ndarray, np.ndarray]):
  """[time] bool: which of `tokens` [time] int32 begin a word; `ends` as `ends_of_tokens` gives them."""
  first, last = (jnp.asarray(each)[tokens] for each in ends)
  return ~jnp.concatenate([jnp.zeros(1, bool), last[:-1] & first[1:]])


# ---- masks ----


def room(length: int, share: float, whole_words: bool) -> int:
  """How many tokens of an example can be left out at the most."""
  return min(length, math.ceil(share * length) + (LONGEST_WORD if whole_words else 0))


def choose(key, ordinary, begins, *, share: float, places: int):
  """Draws words, one after the other, until `share` of the ordinary tokens are left out.

  The word that goes beyond the share is taken with the probability that makes the expected number exact.

  Args:
    key: of the example.
    ordinary: [time] bool; no other token is ever chosen.
    begins: [time] bool: where a word begins; all True draws single tokens.
    share: of the tokens, in [0, 1].
    places: at most so many; a word that does not fit whole is not taken.

  Returns:
    Places [places] int32, and which of them count [places] bool.
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
  taken = (beyond < share * ordinary.sum()) & (behind <= places) & ordinary[order]
  return order[:places].astype(jnp.int32), taken[:places]


def replace(key, tokens, places, taken, *, vocabulary: int, masked: float = 0.8, random: float = 0.1):
  """What stands at the chosen places: <mask>, a token drawn from all that are no specials, or what stood there.

  Args:
    key: of the example.
    tokens: [time] int32.
    places, taken: as `choose` gives them.
    vocabulary: how many tokens there are.
    masked, random: shares of the chosen places.

  Returns:
    [time] int32.
  """
  kind_key, token_key = jax.random.split(key)
  kind = jax.random.uniform(kind_key, places.shape)
  others = jax.random.randint(token_key, places.shape, len(SPECIALS), vocabulary, jnp.int32)
  stood = tokens[places]
  new = jnp.where(kind < masked, MASK, jnp.where(kind < masked + random, others, stood))
  return tokens.at[places].set(jnp.where(taken, new, stood))


def fixed_keys(batch):
  """Keys for evaluation, one per example: the same places at every step, for every seed."""
  return program.example_keys(jax.random.key(0), batch)


def mask(keys, batch, ends, *, share: float, vocabulary: int, whole_words: bool):
  """A batch for training or evaluation.

  Args:
    keys: [batch], one per example.
    batch: 'tokens' and 'targets' [batch, time] int32.
    ends: as `ends_of_tokens` gives them.
    share, vocabulary: as `choose`'s and `replace`'s.
    whole_words: whether all tokens of a word are left out together.

  Returns:
    tokens [batch, time], places [batch, room] and targets [batch, room], all int32; a target of −1 is not scored.
  """
  count = room(batch['targets'].shape[1], share, whole_words)

  def one(key, tokens, targets):
    choose_key, replace_key = jax.random.split(key)
    ordinary = targets >= len(SPECIALS)
    begins = begin_words(targets, ends) if whole_words else jnp.ones(targets.shape, bool)
    places, taken = choose(choose_key, ordinary, begins, share=share, places=count)
    left = replace(replace_key, tokens, places, taken, vocabulary=vocabulary)
    return left, places, jnp.where(taken, targets[places], -1)

  return jax.vmap(one)(keys, batch['tokens'], batch['targets'])
