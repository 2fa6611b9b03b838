"""Sentences whose words have tags: read from CoNLL files or TFDS, or made, and turned into arrays.

Tags that mark chunks, such as names, become BIO2 whatever they were (IOB1, BIO, IOBES, BILOU): B-TYPE begins a chunk, I-TYPE goes
on with it, O is outside of all. Other tags, such as parts of speech, stay as they are.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax import errors
from karpjax.data import entities, text, text_files, tfds, tokenisers
from karpjax.data.dataset import Dataset, Split
from karpjax.data.entities import Sentence

SOURCES = ('entities', 'conll:DIR')
FILES = {  # split -> the names of its file, without .txt or .conll
  'train': ('train',),
  'validation': ('validation', 'valid', 'dev', 'testa'),
  'test': ('test', 'testb'),
}
SUFFIXES = ('.txt', '.conll')
CHUNK = re.compile(r'([BIESLU])-(.+)')
BEGINS = 'BSU'
WORDS = re.compile(r"(?:[A-Z]|Dr|Mrs?|Ms|Prof|St)\.|\w+(?:[-'.,/:]\w+)*|[^\w\s]")
HELD_OUT = 0.2  # share of train that is test, where there is no such split


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
      raise errors.UsageError(
        f'{path} line {number} has {_count(len(columns), "column")}, line {first[0]} has {first[1]}: each needs a word '
        'and, last, its tag; an empty line ends a sentence'
      )
    if len(columns) < 2:
      raise errors.UsageError(f'{path} line {number} has one column: a word and, in the last one, its tag are needed')
    words.append(columns[0])
    tags.append(columns[-1])
  if not sentences:
    raise errors.UsageError(f'{path} holds no sentence')
  return sentences


def read_folder(folder: Path, encoding: str = 'utf-8') -> dict[str, list[Sentence]]:
  """{split: sentences} of the files in a folder, named as in FILES.

  Raises:
    UsageError: where train is missing, or a split has two files.
  """
  if not folder.is_dir():
    raise errors.UsageError(
      f'{folder} is not a folder: --dataset=conll:DIR wants train.txt, and perhaps others, in DIR'
    )
  read = {}
  for split, names in FILES.items():
    found = [path for name in names for suffix in SUFFIXES if (path := folder / f'{name}{suffix}').is_file()]
    if len(found) > 1:
      raise errors.UsageError(f'{folder} has two files of the {split} split, {found[0].name} and {found[1].name}')
    if found:
      read[split] = parse(text_files.read_file(found[0], encoding), found[0])
  if 'train' not in read:
    raise errors.UsageError(
      f'{folder} has no train.txt or train.conll; it may also have valid and test, with the same endings'
    )
  return read


def read_tfds(name: str, data_dir: Path | None) -> dict[str, list[Sentence]]:
  """{split: sentences} of a prepared TFDS set with the features 'tokens' and 'ner' or 'tags', such as conll2003.

  Raises:
    UsageError: where it isn't prepared, or has no such features.
  """
  builder, prepared = tfds.opened(name, data_dir, sources=SOURCES, suiting='sets of TFDS such as conll2003')
  features = builder.info.features
  feature = next((f for f in ('ner', 'tags') if f in features), None)
  if 'tokens' not in features or not feature or not hasattr(features[feature], 'feature'):
    raise errors.UsageError(f'{name} has features {", ".join(features)}; expected tokens, and tags called ner or tags')
  names = features[feature].feature.names
  read = {}
  for split, theirs in (('train', ('train',)), ('validation', ('validation', 'dev')), ('test', ('test',))):
    for there in (t for t in theirs if t in prepared):
      records = builder.as_data_source(split=there)
      rows = (([word.decode() for word in r['tokens']], [names[tag] for tag in r[feature]]) for r in records)
      read[split] = [row for row in rows if row[0] and row[0] != ['-DOCSTART-']]
  if not read.get('train'):
    raise errors.UsageError(f'{name} has no train split')
  return read


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
  """The tags there may be: O, then B- and I- of each type; or, where they mark no chunks, all that occur."""
  tags = {tag for _, tags in sentences for tag in tags}
  kinds = sorted({match[2] for tag in tags if (match := CHUNK.fullmatch(tag))})
  return ('O', *(f'{prefix}-{kind}' for kind in kinds for prefix in 'BI')) if kinds else tuple(sorted(tags))


def marks_chunks(classes: Sequence[str]) -> bool:
  """Whether the tags are BIO2."""
  return any(CHUNK.fullmatch(name) for name in classes)


# ---- arrays ----


def words_of(text: str) -> list[str]:
  """The words of a plain text, marks apart; a UsageError where it has none."""
  found = WORDS.findall(text)
  if not found:
    raise errors.UsageError(f'{text!r} has no words')
  return found


def encode(spec: text.TextSpec, sentences: Sequence[Sequence[str]], length: int = 0) -> dict[str, np.ndarray]:
  """What a model sees of sentences.

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
  tokens = np.zeros((len(sentences), length), np.int32)
  shapes = np.zeros((len(sentences), length, width), np.uint8 if characters.size <= 256 else np.uint16)
  spelt = {}
  for row, sentence in enumerate(sentences):
    tokens[row, : len(sentence)] = words.numbers([word.lower() if words.lower else word for word in sentence])
    for column, word in enumerate(sentence):
      if word not in spelt:
        kept = word if len(word) <= width else word[: (width + 1) // 2] + word[len(word) - width // 2 :]
        spelt[word] = np.array(characters.numbers(kept))
      shapes[row, column, : len(spelt[word])] = spelt[word]
  return {'tokens': tokens, 'characters': shapes}


def load(
  name: str,
  *,
  data_dir: str | Path | None = None,
  encoding: str = 'utf-8',
  validation: float = 0.1,
  seed: int = 0,
  minimum_frequency: int = 1,
  lower: bool = True,
  length: int = 0,
  word_length: int = 20,
) -> Dataset:
  """A data set of tagged sentences.

  Args:
    name: entities, which is made; conll:DIR, a folder of files; or a prepared TFDS set such as conll2003.
    data_dir: where prepared TFDS sets are found.
    encoding: of files.
    validation: share or number of train's sentences that become validation, where the set has none.
    seed: of that draw.
    minimum_frequency: a rarer word of train is <unk>.
    lower: whether words are lower-cased; their characters never are.
    length: longer sentences are cut into pieces of so many words; 0: none is cut.
    word_length: characters of a word.

  Returns:
    Splits of 'tokens' [n, L], 'characters' [n, L, C] and 'targets' [n, L] int32, −1 behind a sentence's end. The spec's
    'evaluated' is the size of the largest split.

  Raises:
    UsageError: in one line, for whatever is wrong.
  """
  if length < 0 or word_length < 2:
    raise errors.UsageError(f'--length={length}, --word_length={word_length}: 0 or more, and 2 or more, are needed')
  if name == 'entities':
    read = {split: entities.sentences(split, size) for split, size in entities.SIZES.items()}
  elif name.startswith('conll:'):
    read = read_folder(Path(name.removeprefix('conll:')).expanduser(), encoding)
  else:
    read = read_tfds(name, Path(data_dir).expanduser() if data_dir else None)
  notes = []
  if 'test' not in read:
    held = text.hold_out(read, {'test': max(1, round(HELD_OUT * len(read['train'])))}, seed)
    read |= held
    notes.append(f'{name}: no test split; {len(held["test"]):,} sentences of train, drawn with seed {seed}, are it')
  if 'validation' not in read and validation:
    held = text.hold_out(read, {'validation': validation}, seed)
    read |= held
    notes.append(f'validation: {len(held["validation"]):,} sentences of train, drawn with seed {seed}')
  read = {split: read[split] for split in FILES if split in read}
  classes = classes_of(read['train'])
  read = {split: _tagged(name, split, sentences, classes) for split, sentences in read.items()}
  longest = max(len(words) for sentences in read.values() for words, _ in sentences)
  if 0 < length < longest:
    cut = sum(len(words) > length for sentences in read.values() for words, _ in sentences)
    notes.append(f'{_count(cut, "sentence")} of more than {length} words, at most {longest}: cut into pieces')
    read = {split: [piece for s in sentences for piece in _pieces(s, length)] for split, sentences in read.items()}
  longest = max(len(words) for sentences in read.values() for words, _ in sentences)

  spec = text.TextSpec(
    name,
    len(read['train']),
    _vocabularies(read['train'], minimum_frequency, lower),
    {'text': longest, 'characters': min(word_length, max(len(w) for s in read.values() for ws, _ in s for w in ws))},
    classes,
    {'evaluated': max(map(len, read.values()))},
  )
  numbers = {tag: number for number, tag in enumerate(classes)}
  splits = {}
  for split, sentences in read.items():
    targets = np.full((len(sentences), longest), -1, np.int32)
    for row, (_, tags) in enumerate(sentences):
      targets[row, : len(tags)] = [numbers[tag] for tag in tags]
    splits[split] = Split.of(**encode(spec, [words for words, _ in sentences], longest), targets=targets)
  unseen = _unseen(read, lower)
  notes.append(
    f'{name}: '
    + ', '.join(f'{len(s):,} {split}' for split, s in read.items())
    + f' sentences of at most {longest} words, '
    f'{len(classes)} tags, {spec.tokenisers["text"].size:,} words' + (f'; unseen in train: {unseen}' if unseen else '')
  )
  return Dataset(spec, splits, tuple(notes))


def _tagged(name, split, sentences, classes) -> list[Sentence]:
  """The sentences with their tags in BIO2, if they mark chunks; raises where one isn't among the classes."""
  if marks_chunks(classes):
    odd = next((tag for _, tags in sentences for tag in tags if tag != 'O' and not CHUNK.fullmatch(tag)), None)
    if odd:
      raise errors.UsageError(
        f'{name}: tag {odd!r} of the {split} split beside others as B-TYPE: O, B-TYPE, I-TYPE are expected'
      )
    sentences = [(words, bio2(tags)) for words, tags in sentences]
  unknown = next((tag for _, tags in sentences for tag in tags if tag not in classes), None)
  if unknown:
    raise errors.UsageError(f'{name}: tag {unknown} of the {split} split does not occur in train')
  return sentences


def _vocabularies(sentences, minimum_frequency, lower) -> Mapping[str, tokenisers.Tokeniser]:
  words = [word for words, _ in sentences for word in words]
  return {
    'text': tokenisers.of_words(words, minimum_frequency=minimum_frequency, lower=lower),
    'characters': tokenisers.make('characters', words, specials=tokenisers.SPECIALS[:2]),
  }


def _pieces(sentence: Sentence, length: int) -> list[Sentence]:
  words, tags = sentence
  return [(words[i : i + length], tags[i : i + length]) for i in range(0, len(words), length)]


def _unseen(read, lower) -> str:
  """How many words of the other splits train has not, in words."""
  seen = {word.lower() if lower else word for words, _ in read['train'] for word in words}
  shares = {}
  for split, sentences in read.items():
    if split != 'train':
      words = [word.lower() if lower else word for words, _ in sentences for word in words]
      shares[split] = sum(word not in seen for word in words) / len(words)
  return ', '.join(f'{share:.1%} of {split}' for split, share in shares.items())


def _count(number: int, noun: str) -> str:
  return f'{number:,} {noun}' + ('' if number == 1 else 's')
