"""Sentences whose words have tags: read from CoNLL files or TFDS, or made by rule, and turned into arrays.

Tags that mark chunks, such as names, become BIO2 whatever they were (IOB1, BIO, IOBES, BILOU): B-TYPE begins a chunk, I-TYPE goes
on with it, O is outside of all. Other tags, such as parts of speech, stay as they are.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import bucketing, entities, text, text_files, tokenisers
from karpjax.data.dataset import Dataset, Split
from karpjax.data.entities import Sentence
from karpjax.errors import UsageError

SOURCES = ('entities', 'conll:DIR')
SUFFIXES = ('.txt', '.conll')
CHUNK = re.compile(r'([BIESLU])-(.+)')
BEGINS = 'BSU'
WORDS = re.compile(r"(?:[A-Z]|Dr|Mrs?|Ms|Prof|St)\.|\w+(?:[-'.,/:]\w+)*|[^\w\s]")


# ---- reading ----


def parse(content: str, path: Path) -> list[Sentence]:
  """The sentences of a CoNLL file: a word a line, its tag in the last column, an empty line after each sentence.

  Columns are separated by spaces or tabs; lines that begin with -DOCSTART- are skipped.

  Raises:
    UsageError: which names the line that has other columns than the first.
  """
  sentences, words, tags, first = [], [], [], None
  for number, line in enumerate([*content.split('\n'), ''], start=1):
    columns = line.split()
    if not columns or columns[0] == '-DOCSTART-':
      if words:
        sentences.append((words, tags))
      words, tags = [], []
      continue
    first = first or (number, len(columns))
    if len(columns) != first[1]:
      raise UsageError(
        f'{path} line {number} has {_count(len(columns), "column")}, line {first[0]} has {first[1]}: each needs a word '
        'and, last, its tag; an empty line ends a sentence'
      )
    if len(columns) < 2:
      raise UsageError(f'{path} line {number} has one column: a word and, in the last one, its tag are needed')
    words.append(columns[0])
    tags.append(columns[-1])
  if not sentences:
    raise UsageError(f'{path} holds no sentence')
  return sentences


def read(config) -> tuple[dict[str, list[Sentence]], list[str]]:
  """{split: sentences} of a data set, and notes."""
  name, seed, notes = config.dataset, config.split_seed, []
  if name == 'entities':
    rows = {split: entities.sentences(split, size) for split, size in entities.SIZES.items()}
  elif name.startswith('conll:'):
    files = text_files.split_files(name.removeprefix('conll:'), SUFFIXES)
    encoding = config.encoding or 'utf-8'
    rows = {split: parse(text_files.read_file(path, encoding), path) for split, path in files.items()}
  else:
    rows = text_files.read_tfds(
      name, config.data_dir, _tfds_reader(name), sources=SOURCES, suiting='sets of TFDS such as conll2003'
    )
  for split in ('test', 'validation'):
    share = getattr(config, split)
    if split not in rows and share:
      if split == 'test' and share < 1:
        share = max(1, round(share * len(rows['train'])))
      rows = text.hold_out(rows, {split: share}, seed)
      notes.append(f'{split}: {len(rows[split]):,} sentences of train, drawn with seed {seed}')
  return {split: rows[split] for split in text_files.SPLITS if split in rows}, notes


def _tfds_reader(name: str):
  """A reader of sets with the features 'tokens' and 'ner' or 'tags', such as conll2003."""

  def reader(features):
    feature = next((f for f in ('ner', 'tags') if f in features), None)
    if 'tokens' not in features or not feature or not hasattr(features[feature], 'feature'):
      raise UsageError(f'{name} has features {", ".join(features)}; expected tokens, and tags called ner or tags')
    names = features[feature].feature.names

    def row(record):
      words = [word.decode() for word in record['tokens']]
      return (words, [names[tag] for tag in record[feature]]) if words and words != ['-DOCSTART-'] else None

    return row

  return reader


# ---- tags ----


def bio2(tags: Sequence[str]) -> list[str]:
  """A sentence's chunk tags, each O or PREFIX-TYPE, in BIO2; an I- that follows nothing of its type begins a chunk, as in IOB1."""
  turned, inside = [], None  # inside: the type of the chunk before
  for tag in tags:
    if tag == 'O':
      turned, inside = [*turned, tag], None
      continue
    prefix, kind = CHUNK.fullmatch(tag).groups()
    turned.append(f'B-{kind}' if prefix in BEGINS or kind != inside else f'I-{kind}')
    inside = None if prefix in 'ESLU' else kind
  return turned


def classes_of(sentences: Iterable[Sentence]) -> tuple[str, ...]:
  """The possible tags: O, then B- and I- of each type; or, where they mark no chunks, all that occur."""
  tags = {tag for _, tags in sentences for tag in tags}
  kinds = sorted({match[2] for tag in tags if (match := CHUNK.fullmatch(tag))})
  return ('O', *(f'{prefix}-{kind}' for kind in kinds for prefix in 'BI')) if kinds else tuple(sorted(tags))


def marks_chunks(classes: Sequence[str]) -> bool:
  """Whether the tags are BIO2."""
  return any(CHUNK.fullmatch(name) for name in classes)


def chunks(words: Sequence[str], tags: Sequence[str]) -> list[tuple[int, str, str]]:
  """(place of its first word, words, type) of each chunk; of tags that mark none, of each word."""
  if not marks_chunks(tags):
    return [(i, word, tag) for i, (word, tag) in enumerate(zip(words, tags)) if tag != 'O']
  listed = []
  for i, (word, tag) in enumerate(zip(words, bio2(tags))):
    if tag.startswith('B-'):
      listed.append((i, word, tag[2:]))
    elif tag.startswith('I-'):
      first, before, kind = listed[-1]
      listed[-1] = first, f'{before} {word}', kind
  return listed


def _checked(name: str, rows: Mapping[str, list[Sentence]], classes) -> dict[str, list[Sentence]]:
  """The sentences, with tags that mark chunks in BIO2; raises where a tag is none of the classes."""
  checked = {}
  for split, sentences in rows.items():
    tags = {tag for _, tags in sentences for tag in tags}
    if marks_chunks(classes):
      odd = sorted(tag for tag in tags if tag != 'O' and not CHUNK.fullmatch(tag))
      if odd:
        raise UsageError(
          f'{name}: tag {odd[0]!r} of the {split} split beside others as B-TYPE: O, B-TYPE, I-TYPE are expected'
        )
      sentences = [(words, bio2(tags)) for words, tags in sentences]
      tags = {tag for _, tags in sentences for tag in tags}
    if unknown := sorted(tags - set(classes)):
      raise UsageError(f'{name}: tag {unknown[0]} of the {split} split does not occur in train')
    checked[split] = sentences
  return checked


# ---- arrays ----


def words_of(sentence: str) -> list[str]:
  """The words of a plain text, marks apart; a UsageError where it has none."""
  words = WORDS.findall(sentence)
  if not words:
    raise UsageError(f'{sentence!r} has no words')
  return words


def encode(spec: text.TextSpec, sentences: Sequence[Sequence[str]], length: int = 0) -> dict[str, np.ndarray]:
  """The model's inputs of sentences.

  Args:
    spec: of the data set.
    sentences: their words.
    length: of the arrays, in words; 0: of the longest sentence.

  Returns:
    'tokens' [n, length] int32 and 'characters' [n, length, C] uint8 or uint16, 0 where there is none. Of a word of more
    than C characters the first and the last are kept.
  """
  words, characters = spec.tokenisers['text'], spec.tokenisers['characters']
  length, width = length or max(map(len, sentences)), spec.lengths['characters']
  rows = [words.numbers([word.lower() if words.lower else word for word in sentence]) for sentence in sentences]
  spelling = np.zeros((len(sentences), length, width), np.uint8 if characters.size <= 256 else np.uint16)
  spelt = {}
  for row, sentence in enumerate(sentences):
    for column, word in enumerate(sentence):
      if word not in spelt:
        kept = word if len(word) <= width else word[: (width + 1) // 2] + word[len(word) - width // 2 :]
        spelt[word] = np.array(characters.numbers(kept))
      spelling[row, column, : len(spelt[word])] = spelt[word]
  return {'tokens': bucketing.padded(rows, length), 'characters': spelling}


def load(config) -> Dataset:
  """A data set of tagged sentences.

  Returns:
    Splits of 'tokens' [n, L], 'characters' [n, L, C] and 'targets' [n, L] int32, −1 behind a sentence's end; `raw` has their
    words and tags, 'text' and 'tags' [n], as strings with spaces between.
  """
  name, (rows, notes) = config.dataset, read(config)
  classes = classes_of(rows['train'])
  rows = _checked(name, rows, classes)
  sizes = [len(words) for sentences in rows.values() for words, _ in sentences]
  longest = min(max(sizes), config.length or max(sizes))
  if longest < max(sizes):
    beyond = _count(sum(size > longest for size in sizes), 'sentence')
    notes.append(f'{beyond} of more than {longest} words, at most {max(sizes)}: cut into pieces')
    rows = {split: [piece for s in sentences for piece in _pieces(s, longest)] for split, sentences in rows.items()}
  widest = max(len(word) for sentences in rows.values() for words, _ in sentences for word in words)
  train = [word for words, _ in rows['train'] for word in words]
  known = {flag: getattr(config, flag) for flag in ('minimum_frequency', 'vocabulary', 'lower')}
  vocabularies = {
    'text': tokenisers.of_words(train, **known),
    'characters': tokenisers.make('characters', train, specials=tokenisers.SPECIALS[:2]),
  }
  lengths = {'text': longest, 'characters': min(config.word_length, widest)}
  spec = text.TextSpec(name, len(rows['train']), vocabularies, lengths, classes)
  numbers, splits, raw = {tag: number for number, tag in enumerate(classes)}, {}, {}
  for split, sentences in rows.items():
    targets = bucketing.padded([[numbers[tag] for tag in tags] for _, tags in sentences], longest, fill=-1)
    splits[split] = Split.of(**encode(spec, [words for words, _ in sentences], longest), targets=targets)
    texts, tags = (np.array([' '.join(row) for row in column], object) for column in zip(*sentences))
    raw[split] = Split.of(text=texts, tags=tags)
  sizes = ', '.join(f'{len(sentences):,} {split}' for split, sentences in rows.items())
  about = f'{len(classes)} tags, {vocabularies["text"].size:,} words'
  notes.append(f'{name}: {sizes} sentences of at most {longest} words, {about}{_unseen(rows, config.lower)}')
  return Dataset(spec, splits, tuple(notes), raw)


def _pieces(sentence: Sentence, length: int) -> list[Sentence]:
  words, tags = sentence
  return [(words[i : i + length], tags[i : i + length]) for i in range(0, len(words), length)]


def _unseen(rows: Mapping[str, list[Sentence]], lower: bool) -> str:
  """The fraction of the other splits' words that train has not, as text."""
  words = {split: [w.lower() if lower else w for words, _ in rows[split] for w in words] for split in rows}
  train = set(words.pop('train'))
  shares = [f'{sum(w not in train for w in each) / len(each):.1%} of {split}' for split, each in words.items()]
  return f'; unseen in train: {", ".join(shares)}' if shares else ''


def _count(number: int, noun: str) -> str:
  return f'{number:,} {noun}' + ('' if number == 1 else 's')
