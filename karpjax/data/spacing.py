"""Where spaces stand between the words and marks of a text: what puts it together again as it was.

A mark does not say whether a space stands beside it. Rules of typography guess, from what is to the left alone, so that
a text can be printed while it grows; where they would be wrong in the texts that a tokeniser learns from, it remembers
the place.
"""

import collections
import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

MOST = 10_000  # places of each size that are learnt, the most frequent
SAMPLE = 10_000  # texts, spread over all, from which places are learnt
LONG = 10_000  # characters of a text that is taken line by line
ENDINGS = frozenset(
  ('com', 'org', 'net', 'edu', 'gov', 'info', 'io', 'eu', 'de', 'fr', 'uk', 'html', 'pdf', 'txt', 'csv', 'py')
)
AGAINST = frozenset('&@#/\\*†‡§¶¿¡·"\'')  # other punctuation follows what is before it without a space
LEAVES = frozenset(',;!"()[]{}<>«»“”')  # marks that are in no web address


def _class_of_marks() -> str:
  """The combining marks, as the inside of a class of a regular expression."""
  ranges: list[list[int]] = []
  for point in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):
    if unicodedata.category(chr(point))[0] == 'M':
      if ranges and ranges[-1][1] == point - 1:
        ranges[-1][1] = point
      else:
        ranges.append([point, point])
  return ''.join(f'{chr(first)}-{chr(last)}' for first, last in ranges)


MARKS = _class_of_marks()
LETTER = rf'[\w{MARKS}]'  # of words: letters, digits, underscores, and the marks that combine with them
WORD, MARK = re.compile(LETTER), re.compile(rf'[{MARKS}]')


@functools.lru_cache(maxsize=4096)
def _kind(character: str) -> str:
  """w of a word, d a digit, ( opens, ) closes, . follows, j joins both sides, s a symbol such as an emoji,
  or itself.
  """
  category = unicodedata.category(character)
  if character.isdigit():
    return 'd'
  if WORD.match(character):
    return 'w'
  if category == 'Cf' or '\u2e80' < character < '\ua000' or '\uff00' < character < '\uffef' or character in '־་':
    return 'j'
  if category in ('Ps', 'Pi'):
    return '('
  if category in ('Pe', 'Pf') and character != '’':
    return ')'
  if '\U0001f3fb' <= character <= '\U0001f3ff' or (category == 'Po' and character not in AGAINST):
    return '.'
  return 's' if category == 'So' else character


def _end(word: str) -> str:
  """The kind of a word's last character that is no combining mark."""
  return _kind(next((each for each in reversed(word) if not MARK.match(each)), word[-1]))


class Gaps:
  """Whether a space stands before each next word or mark of a text, by rules.

  Attributes:
    before: the two last words.
    space: whether one stands before the last of them.
    quoted: the quotation marks that are open.
    address: whether this is within a web address.
  """

  def __init__(self):
    self.before, self.space, self.quoted, self.address = ('', ''), False, set(), False

  def follow(self, word: str, space: bool) -> None:
    """Goes on by a word."""
    last, mark = self.before[1], word[0]
    letters = _kind(mark) in 'wd'
    if space or mark in LEAVES:
      self.address = False
    if (self.before == ('/', '/') and letters) or (word.lower() == 'www'):
      self.address = True
    if mark in self.quoted:
      self.quoted.discard(mark)
    elif mark == '„':
      self.quoted.add('“')
    elif (mark == '"' and not last[-1:].isdigit()) or (mark == "'" and (space or not last)):
      self.quoted.add(mark)
    self.before, self.space = (last, word), space

  def guess(self, word: str) -> bool:
    """Whether a space stands before this word, which `follow` has not seen."""
    first, last = self.before
    if not last:
      return False
    left, right, mark = _end(last), _kind(word[0]), word[0]
    if last == '“' and not self.space and _end(first or '(') not in '(-':
      left = ')'  # as in German
    if right in 'wd':
      return left in 'wd' or self._after(first, last, left, word)
    if mark in '"\'“' and mark in self.quoted:
      return False
    if mark == '"' or (mark == "'" and not last.endswith(('s', 'S', 'z'))):
      return left not in '(/-' and not (left == '"' and last in self.quoted)
    if mark == "'":
      return left not in 'wd'
    if right == 'j' or left == 'j' or right in ').' or left == '(':
      return False
    if left in '"\'' and last in self.quoted:
      return False
    if self.address or (right == left == 's'):
      return False
    if right == '(':
      return left not in '/-' and not (left == 'w' and mark in '([' and len(word) > 1)
    if mark in '/\\-’@':
      return left not in 'wd' and last not in ('/', '\\', '-', '’', ':' if mark == '/' else '')
    return not (left == right and right in '*=+-/|<>')

  def _after(self, first: str, last: str, left: str, word: str) -> bool:
    """Whether a space stands between a mark and a word that follows it."""
    if left in '(j/\\#@¿¡' or (left in '"\'' and last in self.quoted):
      return False
    if last in ('$', '£', '€', '¥', '-', '+', '−') and word[0].isdigit() and (self.space or not first):
      return False
    if self.space or not first:
      return True  # a mark that stands alone
    if self.address:
      return last in '.?:' and word[0].isupper()
    if last in '.,:·' and word[0].isdigit() and first[-1].isdigit():
      return last == ',' and len(word) != 3
    if last == '.':
      return word not in ENDINGS and not (len(first) == len(word) == 1)
    return not (last in '-’–' and _end(first) in 'wd')


def pieces(words: Iterable[str], places: Collection[tuple[str, ...]] = ()) -> list[str]:
  """Words and marks, each with the space before it: joined they are their text.

  Args:
    words: as a tokeniser cuts them.
    places: (a word, the next) and (a word, the next, the one after) before the last of which the rules are wrong.
  """
  gaps, parts = Gaps(), []
  for word in words:
    space = _corrected(gaps, word, places)
    gaps.follow(word, space)
    parts.append(' ' * space + word)
  return parts


def together(words: Iterable[str], places: Collection[tuple[str, ...]] = ()) -> str:
  """The text of words and marks; the arguments are those of `pieces`."""
  return ''.join(pieces(words, places))


def _corrected(gaps: Gaps, word: str, places: Collection[tuple[str, ...]]) -> bool:
  first, last = gaps.before
  letters = _kind(word[0]) in 'wd' and last != ''
  one = MARK.match(word) or _end(last or ' ') in 'wd' or (last == "'" and not gaps.space and _end(first or ' ') in 'wd')
  if letters and one:
    return True  # else they would be one word
  wrong = ((last, word) in places) != ((first, last, word) in places)
  return gaps.guess(word) != wrong


def learn(texts: Sequence[str], pattern: re.Pattern) -> tuple[tuple[str, ...], ...]:
  """The places of `together` where the rules are wrong more often than right: of two words, and then of three.

  Args:
    texts: to learn from.
    pattern: of a word or mark.
  """
  places: frozenset[tuple[str, ...]] = frozenset()
  texts = [line for text in texts for line in (text.split('\n') if len(text) > LONG else [text])]
  for size in (2, 3):
    wrong: collections.Counter[tuple[str, ...]] = collections.Counter()
    for text in texts[:: -(-len(texts) // SAMPLE) or 1]:
      gaps = Gaps()
      for match in pattern.finditer(text):
        word, start = match[0], match.start()
        space = gaps.before[1] != '' and text[start - 1].isspace()
        wrong[(*gaps.before, word)[-size:]] += 1 if space != _corrected(gaps, word, places) else -1
        gaps.follow(word, space)
    worst = sorted((place for place, count in wrong.items() if count > 0), key=lambda place: (-wrong[place], place))
    places |= {*worst[:MOST]}
  return tuple(sorted(places))
