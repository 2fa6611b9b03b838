"""Texts with a label each: read from files, tables, TFDS or the standard library, then made arrays of tokens.

What is read is a Split of 'text' [n] (strings) and 'label' [n] int32, so that a TF-IDF baseline, and a list of mistakes, see
the very examples that a model sees as tokens.
"""

import dataclasses
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from karpjax import errors
from karpjax.data import bucketing as buckets
from karpjax.data import python_docs, splitting, text, text_files, tfds, tokenisers
from karpjax.data.dataset import Dataset, Split

SOURCES = ('python_docs', 'trec', 'financial_phrasebank')
SPLITS = ('train', 'validation', 'test')
TREC = ('DESC', 'ENTY', 'ABBR', 'HUM', 'LOC', 'NUM')  # what the numbers 0 … 5 of TREC.*.all stand for


@dataclasses.dataclass(frozen=True)
class Texts:
  """Attributes:
  name: as given to `read`.
  classes: names in the order of the labels.
  splits: 'train', 'test' and, where there is one, 'validation', of 'text' [n] object (str) and 'label' [n] int32.
  notes: lines for start-up to print.
  """

  name: str
  classes: tuple[str, ...]
  splits: dict[str, Split]
  notes: tuple[str, ...] = ()


Pairs = list[tuple[str, str]]  # (text, name of its label)


def read(
  name: str,
  *,
  data_dir: str | Path | None = None,
  encoding: str = '',
  columns: Sequence[str] = ('text', 'label'),
  validation: float = 0.0,
  seed: int = 0,
) -> Texts:
  """The labelled texts `name`.

  Args:
    name: 'python_docs': sentences of the Python reference inside the standard library, labelled with their chapter; they
      differ between Python versions. 'trec': TREC.train.all and TREC.test.all. 'financial_phrasebank':
      financial_phrasebank.txt. 'table:DIR': train, validation and test as .csv or .tsv. 'FILE.csv' or 'FILE.tsv'. Or a
      prepared set of TFDS, such as 'imdb_reviews', 'glue/sst2', 'ag_news_subset'.
    data_dir: where files and prepared TFDS sets are found.
    encoding: of files; '' is latin-1 for trec and financial_phrasebank, which are so published, else utf-8.
    columns: of tables: that of the texts, and that of the labels.
    validation: how much of train becomes the validation split, where the set has none of its own: a share or a count.
    seed: of the splits that are drawn: validation, and, where there is none, a stratified fifth as test.

  Raises:
    UsageError: in one line, for whatever is wrong with the name or the files. Nothing is downloaded.
  """
  if name == 'python_docs':
    parts = {'train': python_docs.sentences()}
    notes = [f'python_docs: the reference of Python {platform.python_version()}, of the standard library']
  elif name == 'trec' and (files := _trec_files(data_dir)):
    parts, notes = {split: _trec(path, encoding or 'latin-1') for split, path in files.items()}, []
  elif name == 'financial_phrasebank':
    path = text_files.find('financial_phrasebank.txt', data_dir)
    parts, notes = {'train': _phrasebank(path, encoding or 'latin-1')}, []
  elif name.startswith('table:') or Path(name).suffix.lower() in text_files.DELIMITERS:
    parts, notes = _tables(name, encoding or 'utf-8', columns), []
  else:
    parts, notes = _tfds(name, Path(data_dir).expanduser() if data_dir else None)
  classes = _classes(name, parts)
  numbers = {label: number for number, label in enumerate(classes)}
  splits = {
    split: Split.of(
      text=np.array([words for words, _ in pairs], object), label=np.array([numbers[x] for _, x in pairs], np.int32)
    )
    for split, pairs in parts.items()
  }
  if 'test' not in splits:
    whole = splits['train']
    train, test = splitting.stratified(whole.arrays['label'], max(round(whole.size / 5), 1), seed)
    splits |= {'train': whole.select(np.sort(train)), 'test': whole.select(np.sort(test))}
    notes = [*notes, f'{name}: has no test split; a fifth of each class is it, drawn with seed {seed}']
  splits, more = splitting.hold_out(splits, validation, seed)
  sizes = ', '.join(f'{splits[split].size:,} {split}' for split in SPLITS if split in splits)
  return Texts(name, classes, splits, (*notes, *more, f'{name}: {sizes} texts of {len(classes)} classes'))


def encode(
  texts: Texts,
  tokeniser: tokenisers.Tokeniser,
  *,
  max_length: int = 0,
  count: int = 1,
  about: Mapping[str, Any] | None = None,
) -> Dataset:
  """Texts as arrays: 'tokens' [n, length] int32, padded with 0 behind, and 'label' [n] int32.

  Args:
    texts: as `read` gives them.
    tokeniser: whose token 0 stands for padding.
    max_length: tokens that are kept of a text; 0: as many as the longest of train has.
    count: to how many lengths batches may be cut: the spec's about['buckets'], rising.
    about: what else the spec shall hold; with 'pretrained' texts begin with <s>.
  """
  if max_length < 0:
    raise errors.UsageError(f'--max_length={max_length}: give a number of tokens, or 0 for the longest of train')
  if count < 1:
    raise errors.UsageError(f'--buckets={count}: at least 1 is needed')
  begin = _begin(about or {})
  numbers = {
    split: [np.append(begin, tokeniser.encode(words)) for words in each.arrays['text']]
    for split, each in texts.splits.items()
  }
  most = max(map(len, numbers['train']))
  length = max_length or max(most, 1)
  splits, notes = {}, []
  if about and 'pretrained' in about:
    notes.append('pretrained: the model is the encoder of --init_from, with its tokens and its number of them')
  for split, rows in numbers.items():
    made = Split.of(tokens=padded(rows, length), label=texts.splits[split].arrays['label'])
    splits[split] = dataclasses.replace(made, lengths=np.minimum([len(row) for row in rows], length))
    beyond = sum(len(row) > length for row in rows)
    if beyond:
      reason = f'--max_length={max_length}' if max_length else f'{length}, the longest of train'
      notes.append(f'{beyond:,} of {len(rows):,} {split} texts are cut to {reason} tokens')
  edges = sorted({*buckets.edges(splits['train'].lengths, count)[:-1], length})
  about = {**(about or {}), 'buckets': edges}
  lengths = {'text': length}
  spec = text.TextSpec(texts.name, splits['train'].size, {'text': tokeniser}, lengths, texts.classes, about)
  note = f'{tokeniser.size:,} different tokens, {tokeniser.kind}; examples of {length}, {most} in the longest of train'
  return Dataset(spec, splits, (*texts.notes, *notes, note))


def tokens(texts: Sequence[str], spec: text.TextSpec) -> np.ndarray:
  """Any texts as a model of this spec takes them: [n, length] int32, cut or padded.

  Raises:
    UsageError: for an empty one.
  """
  for number, words in enumerate(texts, 1):
    if not words.strip():
      raise errors.UsageError(f'text {number} is empty')
  begin = _begin(spec.about)
  return padded([np.append(begin, spec.tokenisers['text'].encode(words)) for words in texts], spec.lengths['text'])


def _begin(about: Mapping[str, Any]) -> np.ndarray:
  """What stands before a text: <s> where a pretrained encoder has always seen one there."""
  return np.array([tokenisers.BEGIN] if 'pretrained' in about else [], np.int32)


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
  """Token sequences as [n, length] int32: what is longer is cut, what is shorter padded with 0."""
  tokens = np.zeros((len(rows), length), np.int32)
  for out, row in zip(tokens, rows):
    out[: min(len(row), length)] = row[:length]
  return tokens


def longest(batch) -> jax.Array:
  """[] int32: tokens of the longest text of a batch."""
  return (batch['tokens'] != 0).sum(-1).max()


def cut(batch, length: int):
  """A batch whose texts have `length` tokens, padding included."""
  return {**batch, 'tokens': batch['tokens'][:, :length]}


# ---- sources ----


def _lines(path: Path, encoding: str) -> list[tuple[int, str]]:
  """(number, line) of a file's lines that are not empty. They end in \\n only: other ends of line are text in these files."""
  lines = text_files.read_file(path, encoding).split('\n')
  return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _trec_files(data_dir) -> dict[str, Path]:
  """{split: file} where data_dir has TREC.*.all; {} where it has not, and TFDS may have the set."""
  if not data_dir:
    return {}
  try:
    return {split: text_files.find(f'TREC.{split}.all', data_dir) for split in ('train', 'test')}
  except errors.UsageError:
    return {}


def _trec(path: Path, encoding: str) -> Pairs:
  """'label question' a line; the label a number, or as Li & Roth 2002 write it, COARSE:fine, of which COARSE counts."""
  pairs = []
  for number, line in _lines(path, encoding):
    label, _, question = line.strip().partition(' ')
    label = label.partition(':')[0]
    if label.isdigit() and int(label) < len(TREC):
      label = TREC[int(label)]
    if label not in TREC or not question.strip():
      raise errors.UsageError(
        f'{path}, line {number}: {plainly(line)} is not a label and a question; labels are 0 to 5, or {", ".join(TREC)}'
      )
    pairs.append((question.strip(), label))
  return pairs


def _phrasebank(path: Path, encoding: str) -> Pairs:
  """'sentence@label' a line (Malo et al. 2014)."""
  pairs = []
  for number, line in _lines(path, encoding):
    sentence, at, label = line.strip().rpartition('@')
    if not at or not sentence.strip() or not label.strip():
      raise errors.UsageError(f'{path}, line {number}: {plainly(line)} is not sentence@label')
    pairs.append((sentence.strip(), label.strip()))
  return pairs


def _tables(name: str, encoding: str, columns: Sequence[str]) -> dict[str, Pairs]:
  if not name.startswith('table:'):
    return {'train': _table(Path(name).expanduser(), encoding, columns)}
  folder = Path(name.removeprefix('table:')).expanduser()
  if not folder.is_dir():
    raise errors.UsageError(f'{folder} is not a folder: --dataset=table:DIR wants train.csv or train.tsv in DIR')
  parts = {}
  for split in SPLITS:
    files = [path for suffix in text_files.DELIMITERS if (path := folder / f'{split}{suffix}').is_file()]
    if len(files) > 1:
      raise errors.UsageError(f'{folder} has both {files[0].name} and {files[1].name}: take one of them away')
    if files:
      parts[split] = _table(files[0], encoding, columns)
  if 'train' not in parts:
    raise errors.UsageError(f'{folder} has neither train.csv nor train.tsv')
  return parts


def _table(path: Path, encoding: str, columns: Sequence[str]) -> Pairs:
  if len(columns) != 2:
    raise errors.UsageError(f'--columns={",".join(columns)}: two names are needed, as text,label')
  return [(words, label) for words, label in text_files.read_table(path, encoding, columns)]


def _tfds(name: str, data_dir: Path | None) -> tuple[dict[str, Pairs], list[str]]:
  """Its text features, joined where there are several, and its first class label; hidden labels (−1) leave no example."""
  import tensorflow_datasets

  features = tensorflow_datasets.features
  known = (*SOURCES, 'table:DIR', 'FILE.csv', 'FILE.tsv')
  builder, splits = tfds.opened(name, data_dir, sources=known, suiting='sets of TFDS such as imdb_reviews')
  described = dict(sorted(builder.info.features.items()))  # their order on disk is that of a hash
  texts = [key for key, feature in described.items() if isinstance(feature, features.Text)]
  labels = [key for key, feature in described.items() if isinstance(feature, features.ClassLabel)]
  if not texts or not labels:
    raise errors.UsageError(f'{name} has features {", ".join(described)}; expected texts and a class label')
  texts = ['text'] if 'text' in texts else texts
  label = 'label' if 'label' in labels else labels[0]
  names = described[label].names or [str(number) for number in range(described[label].num_classes)]
  parts, notes = {}, []
  for split in (split for split in SPLITS if split in splits):
    source = builder.as_data_source(split=split)
    pairs = []
    for record in source.__getitems__(list(range(len(source)))):
      if record[label] >= 0:
        pairs.append((' '.join(record[key].decode() for key in texts), names[record[label]]))
    if pairs:
      parts[split] = pairs
    else:
      notes.append(f'{name}: the labels of its {split} split are hidden, so it is left out')
  if 'train' not in parts:
    raise errors.UsageError(f'{name} has no train split with labels; it has: {", ".join(splits) or "none"}')
  if 'test' not in parts and 'validation' in parts:
    parts['test'] = parts.pop('validation')
    notes.append(f"{name}: has no test split, so the set's validation split is 'test'")
  return parts, notes


# ---- checks ----


def _classes(name: str, parts: dict[str, Pairs]) -> tuple[str, ...]:
  """The labels of train, in order: as numbers where all are such; refuses what no training can use."""
  known = {label for _, label in parts['train']}
  for split, pairs in parts.items():
    new = sorted({label for _, label in pairs} - known)
    if new:
      raise errors.UsageError(f'{name}: labels in {split} that are not in train: {", ".join(map(repr, new[:8]))}')
    if any(not words.strip() for words, _ in pairs):
      raise errors.UsageError(f'{name}: a {split} text is empty')
  if len(parts['train']) < 2:
    raise errors.UsageError(f'{name} has one line; classification needs several texts of two or more classes')
  if len(known) < 2:
    raise errors.UsageError(f'{name}: all texts have the label {known.pop()!r}; classification needs two or more')
  order: Callable = int if all(re.fullmatch(r'-?\d+', label) for label in known) else str
  return tuple(sorted(known, key=order))


def plainly(line: str, length: int = 60) -> str:
  """A line as it stands in an error: quoted, and cut."""
  return repr(line if len(line) <= length else line[: length - 1] + '…')
