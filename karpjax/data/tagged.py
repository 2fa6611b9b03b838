"""Sentences whose words have tags: read from CoNLL files or TFDS, or made by rule, and turned into arrays.

Tags that mark chunks, such as names, become BIO2 whatever they were (IOB1, BIO, IOBES, BILOU): B-TYPE begins a chunk,
I-TYPE goes on with it, O is outside of all. Other tags, such as parts of speech, stay as they are.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import bucketing, entities, folders, text, text_files, tokenisers
from karpjax.data.dataset import Dataset, Split
from karpjax.data.entities import Sentence
from karpjax.data.spacing import LETTER, MARKS
from karpjax.errors import UsageError

SOURCES = ('entities', 'conll:DIR')
SUFFIXES = ('.txt', '.conll')
CHUNK = re.compile(r'([BIESLU])-(.+)')
WORDS = re.compile(
  rf"(?:[A-Z]|Dr|Mrs?|Ms|Prof|St)\.|\w{LETTER}*(?:[-'.,/:]\w{LETTER}*)*|[^\w\s{MARKS}][{MARKS}]*|[{MARKS}]+"
)


# ---- reading ----


def parse(content: str, path: Path) -> list[Sentence]:
  """The sentences of a CoNLL file: a word a line, its tag in the last column, an empty line after each sentence.

  Columns are separated by tabs alone where these give as many as the first line has, else by spaces and tabs, and never
  by other blanks: a word may hold one that does not break. Lines that begin with -DOCSTART- are skipped.

  Raises:
    UsageError: which names the line that has other columns than the first, or no word.
  """
  sentences, width = [[]], 0
  for number, line in enumerate(content.split('\n'), start=1):
    columns = [column.strip(' ') for column in line.rstrip(' \t').split('\t')]
    if len(columns) == 1 or len(columns) != (width or len(columns)):
      columns = re.findall(r'[^ \t]+', line)
    if not line.strip() or columns[0] == '-DOCSTART-':
      sentences.append([])
      continue
    width = width or max(len(columns), 2)
    if len(columns) != width:
      found = f'{path} line {number} has {len(columns)} column(s), not {width}'
      raise UsageError(f'{found}: each needs a word and, last, its tag; an empty line ends a sentence')
    if not columns[0]:
      raise UsageError(f'{path} line {number} begins with a tab, where its word should be')
    sentences[-1].append((columns[0], columns[-1]))
  if not width:
    raise UsageError(f'{path} holds no sentence')
  return [tuple(map(list, zip(*each))) for each in sentences if each]


def read(config) -> tuple[dict[str, list[Sentence]], list[str]]:
  """{split: sentences} of a data set, and notes."""
  name, notes = config.dataset, []
  if name == 'entities':
    rows = {split: entities.sentences(split, size) for split, size in entities.SIZES.items()}
  elif name.startswith('conll:'):
    files = text_files.split_files(name.removeprefix('conll:'), SUFFIXES)
    rows = {split: parse(text_files.read_file(path, config.encoding), path) for split, path in files.items()}
  else:
    expected = 'tokens, and tags called ner or tags'
    rows = text_files.read_tfds(config, _tfds_reader, sources=SOURCES, expected=expected, such='conll2003')
  rows, drawn = text.hold_out(rows, {'test': config.test}, config.split_seed, least=1, rounding=round)
  rows, more = text.hold_out(rows, {'validation': config.validation}, config.split_seed)
  notes += drawn + more
  return {split: rows[split] for split in folders.SPLITS if split in rows}, notes


def _tfds_reader(features):
  """A reader of records; None for sets without the features 'tokens' and 'ner' or 'tags', which conll2003 has."""
  feature = next((f for f in ('ner', 'tags') if f in features), None)
  if 'tokens' not in features or not feature or not hasattr(features[feature], 'feature'):
    return None
  names = features[feature].feature.names

  def row(record):
    words = [word.decode() for word in record['tokens']]
    return (words, [names[tag] for tag in record[feature]]) if words and words != ['-DOCSTART-'] else None

  return row


# ---- tags ----


def bio2(tags: Sequence[str]) -> list[str]:
  """A sentence's chunk tags, each O or PREFIX-TYPE, in BIO2; an I- that follows nothing of its type begins a chunk,
  as in IOB1.
  """
  turned, inside = [], None  # inside: the type of the chunk before
  for tag in tags:
    prefix, kind = match.groups() if (match := CHUNK.fullmatch(tag)) else ('', None)
    turned.append((f'B-{kind}' if prefix in 'BSU' or kind != inside else f'I-{kind}') if kind else tag)
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
  from seqeval.metrics import sequence_labeling

  entities = sequence_labeling.get_entities(list(tags))
  return [(first, ' '.join(words[first : last + 1]), kind) for kind, first, last in entities]


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
  spelt = {word: number for number, word in enumerate(dict.fromkeys(word for each in sentences for word in each), 1)}
  kept = (word if len(word) <= width else word[: (width + 1) // 2] + word[len(word) - width // 2 :] for word in spelt)
  spellings = bucketing.padded([[], *map(characters.numbers, kept)], width)  # [1 + words, C]
  places = bucketing.padded([[spelt[word] for word in sentence] for sentence in sentences], length)
  spelling = spellings.astype(np.uint8 if characters.size <= 256 else np.uint16)[places]
  return {'tokens': bucketing.padded(rows, length), 'characters': spelling}


def load(config) -> Dataset:
  """A data set of tagged sentences.

  Returns:
    Splits of 'tokens' [n, L], 'characters' [n, L, C], 'targets' [n, L] int32, −1 behind a sentence's end, and 'begins'
    [n] bool: whether a sentence begins, or that before goes on, which was cut; `raw` has the words of whole sentences,
    'text', as strings with spaces between, and none that breaks inside of a word.
  """
  name, (rows, notes) = config.dataset, read(config)
  classes = classes_of(rows['train'])
  for split, sentences in rows.items():
    rows[split] = [(words, bio2(tags)) for words, tags in sentences] if marks_chunks(classes) else sentences
    if unknown := sorted({tag for _, tags in rows[split] for tag in tags} - set(classes)):
      known = ', '.join(classes)
      raise UsageError(f'{name}: tag {unknown[0]} of the {split} split is none of those expected by train: {known}')
  sizes, counts = [len(words) for sentences in rows.values() for words, _ in sentences], text_files.sizes(rows)
  longest = min(max(sizes), config.length or max(sizes))
  raw = {
    split: Split.of(text=np.array([_spaced(w) for w, _ in sentences], object)) for split, sentences in rows.items()
  }
  if longest < max(sizes):
    beyond = sum(size > longest for size in sizes)
    about = 'cut into pieces, and scored as whole sentences'
    notes.append(f'{beyond:,} sentence(s) of more than {longest} words, at most {max(sizes)}: {about}')
  cut = lambda words, tags: (
    (words[i : i + longest], tags[i : i + longest], i == 0) for i in range(0, len(words), longest)
  )
  rows = {split: [piece for each in sentences for piece in cut(*each)] for split, sentences in rows.items()}
  words = {split: [word for words, *_ in sentences for word in words] for split, sentences in rows.items()}
  vocabularies = {
    'text': text.make_tokeniser(config, words['train'], kind='words', split=False),
    'characters': tokenisers.make('characters', words['train'], specials=tokenisers.SPECIALS[:2]),
  }
  widest = max(len(word) for each in words.values() for word in each)
  lengths = {'text': longest, 'characters': min(config.word_length, widest)}
  spec = text.TextSpec(name, len(rows['train']), vocabularies, lengths, classes)
  splits = {}
  for split, sentences in rows.items():
    texts, tags, begins = zip(*sentences)
    targets = bucketing.padded([[classes.index(tag) for tag in each] for each in tags], longest, fill=-1)
    splits[split] = Split.of(**encode(spec, texts, longest), targets=targets, begins=np.array(begins))
  about = f'{len(classes)} tags, {vocabularies["text"].size:,} words'
  sizes = f'{counts} sentences of at most {max(sizes)} words'
  notes.append(f'{name}: {sizes}, {about}{_unseen(words, config.lower)}')
  return Dataset(spec, splits, tuple(notes), raw)


def _spaced(words: Sequence[str]) -> str:
  return ' '.join(word.replace(' ', '\xa0') for word in words)


def _unseen(words: Mapping[str, list[str]], lower: bool) -> str:
  """The fraction of the other splits' words that train has not, as text."""
  lowered = {split: [word.lower() if lower else word for word in each] for split, each in words.items()}
  train = set(lowered.pop('train'))
  shares = [f'{sum(w not in train for w in each) / len(each):.1%} of {split}' for split, each in lowered.items()]
  return f'; unseen in train: {", ".join(shares)}' if shares else ''
