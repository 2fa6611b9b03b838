"""From text to numbers and back: characters, bytes, words, and byte-pair encoding.

A tokeniser is an immutable record, saved with a run as JSON, so that sampling and predicting need no data.
"""

import collections
import contextvars
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.data import fingerprint, spacing
from karpjax.data.spacing import LETTER, MARKS
from karpjax.errors import UsageError, nearest

KINDS = ('characters', 'bytes', 'words', 'bpe')
PAD, UNKNOWN, BEGIN, END = range(4)
SPECIALS = ('<pad>', '<unk>', '<s>', '</s>')  # of words and bpe, in this order
MASK = '<mask>'  # follows them where a masked language model asks for it
quiet = contextvars.ContextVar('quiet', default=False)  # as in a server, whose log is not for what strangers write
LINE_END = '\n'  # symbol 0 of characters and bytes on lines: begins and ends each of them
WORDS = re.compile(rf"\w{LETTER}*(?:'\w{LETTER}*)*|[^\w\s{MARKS}][{MARKS}]*|[{MARKS}]+")


@dataclasses.dataclass(frozen=True)
class Tokeniser:
  """Attributes:
  kind: one of KINDS.
  symbols: the text of each token, by its number; () for bytes; of bpe those of the model.
  specials: how many of the first symbols stand for no text.
  lower: whether texts are lower-cased first.
  model: for bpe, the JSON of the `tokenizers` library.
  places: of words, where spaces stand against the rules; see `spacing.together`.
  """

  kind: str
  symbols: tuple[str, ...] = ()
  specials: int = 0
  lower: bool = False
  model: str = ''
  places: tuple[tuple[str, ...], ...] = ()

  def __post_init__(self):
    if self.kind == 'bpe':
      vocabulary = _bpe(self.model).get_vocab()
      object.__setattr__(self, 'symbols', tuple(sorted(vocabulary, key=vocabulary.get)))

  @property
  def size(self) -> int:
    """How many tokens there are."""
    return 256 if self.kind == 'bytes' else len(self.symbols)

  @functools.cached_property
  def table(self) -> dict[str, int]:
    """The number of each symbol."""
    return {symbol: number for number, symbol in enumerate(self.symbols)}

  @functools.cached_property
  def _places(self) -> frozenset[tuple[str, ...]]:
    return frozenset(self.places)

  def split(self, text: str) -> list[str]:
    """The pieces of a text that `numbers` takes: characters, or words."""
    text = text.lower() if self.lower else text
    return WORDS.findall(text) if self.kind == 'words' else list(text)

  def numbers(self, pieces: Sequence[str]) -> list[int]:
    """The token of each piece; <unk> where it has none.

    Raises:
      UsageError: for an unknown piece, where the tokeniser has no <unk>.
    """
    table = self.table
    if self.specials <= UNKNOWN and (unknown := sorted(set(pieces) - table.keys())):
      count = f'{len(unknown)} characters are' if len(unknown) > 1 else '1 character is'
      known = f'{count} in none of the training texts: {listed(unknown)}'
      raise UsageError(f'{known}; leave them out, or train with tokeniser=bytes')
    return [table.get(piece, UNKNOWN) for piece in pieces]

  def unknown(self, texts: Iterable[str]) -> list[str]:
    """The pieces of texts that are no tokens, each once; of bytes and bpe there are none."""
    if self.kind in ('bytes', 'bpe'):
      return []
    return [piece for piece in dict.fromkeys(p for text in texts for p in self.split(text)) if piece not in self.table]

  def warn_of_unknown(self, texts: Iterable[str]) -> None:
    """Says on standard error which pieces of texts are no tokens, unless `quiet` is set."""
    if not quiet.get() and (unknown := self.unknown(texts)):
      print(f'never seen in training, so taken as unknown: {listed(unknown)}', file=sys.stderr)

  def encode(self, text: str) -> np.ndarray:
    """[n] int32, without <s> and </s>.

    Raises:
      UsageError: as `numbers`.
    """
    text = text.lower() if self.lower else text
    if self.kind == 'bytes':
      return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    if self.kind == 'bpe':
      return np.array(_bpe(self.model, self.specials > 0).encode(text, add_special_tokens=False).ids, np.int32)
    return np.array(self.numbers(self.split(text)), np.int32)

  def name(self, token: int) -> str:
    """A token as it is shown: its text, with spaces visible; or <pad> and the like."""
    text = self.decode([token]) if self.kind in ('bytes', 'bpe') else ''
    return (text or self.symbols[token]).replace(' ', '␣').replace('\n', '↵')

  def decode(self, tokens: Iterable[int]) -> str:
    """The text of tokens; specials have none. The inverse of `encode`; of words as far as `spacing.together` knows the
    spaces.

    Of more tokens it begins with the text of the first ones, where these are no part of a character.
    """
    tokens = [int(token) for token in tokens if token >= self.specials]
    if self.kind == 'bytes':
      return bytes(tokens).decode(errors='replace')
    if self.kind == 'bpe':
      return _bpe(self.model).decode(tokens)
    pieces = [self.symbols[token] for token in tokens]
    return spacing.together(pieces, self._places) if self.kind == 'words' else ''.join(pieces)

  def pieces(self, tokens: Iterable[int]) -> list[str]:
    """What each token adds to a text: of words with the space before it."""
    tokens = [*map(int, tokens)]
    if self.kind != 'words':
      return [self.decode([token]) for token in tokens]
    words = iter(spacing.pieces((self.symbols[x] for x in tokens if x >= self.specials), self._places))
    return [next(words) if token >= self.specials else '' for token in tokens]

  def characters(self, *, lines: bool = False) -> np.ndarray:
    """[size] float32: how many characters each token adds to a text; all 0 where that is unknown, as of words.

    Args:
      lines: whether token 0 ends a line, which is one character of a file, and one byte, by every tokeniser.
    """
    starts = lambda byte: (byte & 0xC0) != 0x80  # the bytes 10xxxxxx go on with a character
    return self._counted(lines, lambda text: 1, lambda values: sum(map(starts, values)))

  def bytes(self, *, lines: bool = False) -> np.ndarray:
    """[size] float32: how many bytes of UTF-8 each token adds to a text; all 0, and `lines`, as for `characters`."""
    return self._counted(lines, lambda text: len(text.encode()), len)

  def _counted(self, lines: bool, of_character: Callable[[str], int], of_bytes: Callable[[Sequence[int]], int]):
    if self.kind == 'words' or (self.kind == 'bpe' and not _is_byte_level(self.model)):
      return np.zeros(self.size, np.float32)
    if self.kind == 'characters':
      counts = [*map(of_character, self.symbols)]
    elif self.kind == 'bytes':
      counts = [of_bytes([byte]) for byte in range(256)]
    else:
      table = _bytes_of_letters()
      counts = [of_bytes([table[each] for each in symbol if each in table]) for symbol in self.symbols]
    counts = np.array(counts, np.float32)
    counts[: self.specials] = 0
    counts[:1] = np.where(lines, 1, counts[:1])
    return counts

  def to_json(self) -> dict[str, Any]:
    """A dict that json.dumps takes and `from_json` reads back."""
    return {**dataclasses.asdict(self), 'symbols': [] if self.kind == 'bpe' else list(self.symbols)}


def listed(pieces: Sequence[str]) -> str:
  """The first eight pieces, quoted."""
  return ' '.join(map(repr, pieces[:8])) + (' …' if len(pieces) > 8 else '')


def from_json(values: Mapping[str, Any]) -> Tokeniser:
  """The inverse of `Tokeniser.to_json`."""
  made = {'symbols': tuple(values['symbols']), 'places': tuple(map(tuple, values.get('places', ())))}
  return Tokeniser(**{**values, **made})


def make(
  kind: str,
  texts: Iterable[str],
  *,
  specials: Sequence[str] = (),
  lower=False,
  vocabulary=0,
  minimum_frequency=1,
  split=True,
) -> Tokeniser:
  """A tokeniser learnt from texts.

  Args:
    kind: one of KINDS, or bpe:FILE, which reads a JSON of the `tokenizers` library, as published models have it.
    texts: those of the train split, or all of them where no symbol may be unknown.
    specials: symbols before all others, such as SPECIALS, or (LINE_END,). Words and bpe have SPECIALS if none are
      given.
    lower: whether texts are lower-cased.
    vocabulary: of bpe, and of words if not 0: the largest number of tokens; the most frequent are kept.
    minimum_frequency: words that are rarer are <unk>.
    split: False where the texts are words already.

  Raises:
    UsageError: for an unknown kind, or a file that is no such JSON.
  """
  if kind.startswith('bpe:'):
    try:
      fingerprint.note([kind[4:]])
      return Tokeniser('bpe', model=Path(kind[4:]).read_text(encoding='utf-8'))
    except OSError as error:
      raise UsageError(f'tokeniser={kind} cannot be read: {error.strerror}') from None
    except Exception:
      raise UsageError(f'tokeniser={kind} is no tokenizer.json of the tokenizers library') from None
  if kind not in KINDS:
    raise UsageError(f'unknown tokeniser {kind!r}.{nearest(kind, [*KINDS, "bpe:FILE"])}')
  if kind == 'bytes':
    return Tokeniser('bytes', lower=lower)
  texts = [text.lower() if lower else text for text in texts]
  if kind == 'characters':
    return Tokeniser(kind, (*specials, *sorted(set().union(*texts) - set(specials))), len(specials), lower)
  specials = tuple(specials or SPECIALS)
  if kind == 'words':
    counts = collections.Counter(word for text in texts for word in (WORDS.findall(text) if split else [text]))
    kept = sorted((w for w, n in counts.items() if n >= minimum_frequency), key=lambda w: (-counts[w], w))
    kept = kept[: max(0, vocabulary - len(specials))] if vocabulary else kept
    places = spacing.learn(texts, WORDS) if split else ()
    return Tokeniser(kind, (*specials, *kept), len(specials), lower, places=places)
  if vocabulary < 256 + len(specials):
    raise UsageError(f'vocabulary={vocabulary}: bpe needs at least {256 + len(specials)}: the bytes, and specials')
  return Tokeniser(kind, (), len(specials), lower, _train_bpe(texts, specials, vocabulary))


# ---- byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), by the `tokenizers` library ----


def _train_bpe(texts: Sequence[str], specials: Sequence[str], vocabulary: int) -> str:
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  model, byte_level = tokenizers.Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.pre_tokenizer, model.decoder = byte_level, decoders.ByteLevel()
  options = {
    'special_tokens': list(specials),
    'initial_alphabet': sorted(byte_level.alphabet()),
    'show_progress': False,
  }
  # a merge for each byte; the library makes room for all it is told
  most = 256 + len(specials) + 4 * sum(map(len, texts))
  model.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=min(vocabulary, most), **options))
  return model.to_str()


def _bytes_of_letters() -> dict[str, int]:
  """How a byte is written: as the character of its number if that prints, else as one from 256 on."""
  from tokenizers import pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  printable = [ord(c) for c in alphabet if ord(c) < 256]
  return dict(zip(alphabet, [*printable, *sorted(set(range(256)) - set(printable))]))


def _is_byte_level(model: str) -> bool:
  return 'ByteLevel' in json.dumps(json.loads(model).get('decoder'))


@functools.lru_cache(maxsize=8)
def _bpe(model: str, plain: bool = False):
  """The library's tokeniser; `plain`: which reads <s> and the like as the characters that they are in a text."""
  import tokenizers

  made = tokenizers.Tokenizer.from_str(model)
  made.encode_special_tokens = plain
  return made
