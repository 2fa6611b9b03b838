"""Texts with a label each: read from files, tables, TFDS or the standard library, then made arrays of tokens.

An example is {'tokens' [length], 'label' []}, int32, padded with 0 behind.
"""

import dataclasses
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.data import bucketing, python_docs, splitting, text, text_files, tokenisers
from karpjax.data.dataset import Dataset, Split
from karpjax.errors import UsageError

SOURCES = ('python_docs', 'trec', 'financial_phrasebank', 'table:DIR', 'FILE.csv', 'FILE.tsv')
TREC = ('DESC', 'ENTY', 'ABBR', 'HUM', 'LOC', 'NUM')  # the labels 0 … 5 of TREC.*.all

Pairs = list[tuple[str, str]]  # (text, name of its label)


def read(config) -> Dataset:
  """The texts themselves: splits of 'text' [n] (strings) and 'label' [n] int32, with the classes in the spec.

  Where the set has no test split, a stratified one is drawn. Nothing is downloaded.
  """
  name, seed = config.dataset, config.split_seed
  parts, notes = _read(config)
  classes = _classes(name, parts)
  numbers = {label: number for number, label in enumerate(classes)}
  splits = {}
  for split, pairs in parts.items():
    texts, labels = (np.array(column, object) for column in zip(*pairs))
    splits[split] = Split.of(text=texts, label=np.array([numbers[label] for label in labels], np.int32))
  if 'test' not in splits and config.test:
    whole = splits['train']
    count = max(round(whole.size * config.test), 1) if config.test < 1 else int(config.test)
    if not 1 <= count < whole.size:
      raise UsageError(f'test={config.test:g} is {count:,} of {whole.size:,} texts: leave at least one on each side')
    train, test = splitting.stratified(whole.arrays['label'], count, seed)
    splits |= {'train': whole.select(np.sort(train)), 'test': whole.select(np.sort(test))}
    notes.append(f'{name}: has no test split; {count:,} texts, of each class alike, are drawn with seed {seed}')
  splits, more = splitting.hold_out(splits, config.validation, seed)
  sizes = ', '.join(f'{splits[split].size:,} {split}' for split in text_files.SPLITS if split in splits)
  notes = (*notes, *more, f'{name}: {sizes} texts of {len(classes)} classes')
  return Dataset(text.TextSpec(name, splits['train'].size, {}, {}, classes), splits, notes)


def load(
  config,
  *,
  tokeniser: tokenisers.Tokeniser | None = None,
  length: int = 0,
  pretrained: Mapping[str, Any] | None = None,
) -> Dataset:
  """A data set of texts as tokens; its `raw` splits are those of `read`.

  Args:
    config: with the flags of text classification.
    tokeniser: instead of a new one; its token 0 stands for padding.
    length: tokens kept of a text where the config has no `max_length`; 0: as many as the longest of train has.
    pretrained: the sizes of an encoder, before whose texts stands <s>.
  """
  texts, pretrained, notes = read(config), pretrained or {}, []
  if pretrained:
    notes.append('pretrained: the model is the encoder of init_from, with its tokens and its number of them')
  tokeniser = tokeniser or _tokeniser(config, texts.splits['train'].arrays['text'])
  begin = [tokenisers.BEGIN] if pretrained else []
  rows = {
    split: [[*begin, *tokeniser.encode(words)] for words in each.arrays['text']] for split, each in texts.splits.items()
  }
  longest = max(map(len, rows['train']))
  length = config.max_length or length or max(longest, 1)
  splits = {}
  for split, each in rows.items():
    sizes = np.array([len(row) for row in each])
    arrays = {'tokens': bucketing.padded(each, length), 'label': texts.splits[split].arrays['label']}
    splits[split] = dataclasses.replace(Split.of(**arrays), lengths=np.minimum(sizes, length))
    if beyond := (sizes > length).sum():
      reason = f'max_length={length}' if config.max_length else f'{length}, the longest of train,'
      notes.append(f'{beyond:,} of {len(each):,} {split} texts are cut to {reason} tokens')
  spec = dataclasses.replace(
    texts.spec,
    tokenisers={'text': tokeniser},
    lengths={'text': length},
    pretrained=pretrained,
    buckets=tuple(sorted({*bucketing.edges(splits['train'].lengths, config.buckets)[:-1], length})),
  )
  notes.append(
    f'{tokeniser.size:,} different tokens, {tokeniser.kind}; examples of {length}, {longest} in the longest of train'
  )
  return Dataset(spec, splits, (*texts.notes, *notes), texts.splits)


def tokens(texts: Sequence[str], spec: text.TextSpec) -> np.ndarray:
  """Any texts as a model of this spec takes them: [n, length] int32, cut or padded.

  Raises:
    UsageError: for an empty one.
  """
  for number, words in enumerate(texts, 1):
    if not words.strip():
      raise UsageError(f'text {number} is empty')
  begin, encode = [tokenisers.BEGIN] if spec.pretrained else [], spec.tokenisers['text'].encode
  return bucketing.padded([[*begin, *encode(words)] for words in texts], spec.lengths['text'])


def _tokeniser(config, texts: Sequence[str]) -> tokenisers.Tokeniser:
  if config.tokeniser == 'bpe' and not config.vocabulary:
    config = dataclasses.replace(config, vocabulary=4000)
  specials = () if config.tokeniser == 'bytes' else tokenisers.SPECIALS
  return text.make_tokeniser(config, texts, kinds=tokenisers.KINDS, specials=specials)


# ---- sources ----


def _read(config) -> tuple[dict[str, Pairs], list[str]]:
  """{split: pairs} of a source, and notes."""
  name, encoding = config.dataset, config.encoding
  if name == 'python_docs':
    note = f'python_docs: the reference of Python {platform.python_version()}, of the standard library'
    return {'train': python_docs.sentences()}, [note]
  if name == 'trec' and (files := _trec_files(config.data_dir)):
    expected = f'a label and a question; labels are 0 to 5, or {", ".join(TREC)}'
    return {split: _labelled_lines(path, encoding, _question, expected) for split, path in files.items()}, []
  if name == 'financial_phrasebank':
    path = text_files.find('financial_phrasebank.txt', config.data_dir)
    return {'train': _labelled_lines(path, encoding, _phrase, 'sentence@label')}, []
  if name.startswith('table:'):
    files = text_files.split_files(name.removeprefix('table:'), tuple(text_files.DELIMITERS))
  elif Path(name).suffix.lower() in text_files.DELIMITERS:
    files = {'train': Path(name).expanduser()}
  else:
    return _tfds(name, config.data_dir)
  if len(config.columns) != 2:
    raise UsageError(f'columns={",".join(config.columns)}: two names are needed, as text,label')
  return {split: text_files.read_table(path, encoding or 'utf-8', config.columns) for split, path in files.items()}, []


def _labelled_lines(path: Path, encoding: str, parse: Callable[[str], tuple[str, str]], expected: str) -> Pairs:
  """The pairs of a file's lines; the published files are latin-1."""
  pairs = []
  for number, line in text_files.read_lines(path, encoding or 'latin-1'):
    pairs.append(parse(line.strip()))
    if not all(pairs[-1]):
      shown = line if len(line) <= 60 else line[:59] + '…'
      raise UsageError(f'{path}, line {number}: {shown!r} is not {expected}')
  return pairs


def _trec_files(data_dir: str) -> dict[str, Path]:
  """{split: file} where data_dir has TREC.*.all; {} where it has not, and TFDS may have the set."""
  try:
    return {split: text_files.find(f'TREC.{split}.all', data_dir) for split in ('train', 'test')}
  except UsageError:
    return {}


def _question(line: str) -> tuple[str, str]:
  """'label question': the label a number, or as Li & Roth 2002 write it, COARSE:fine, of which COARSE counts."""
  label, _, question = line.partition(' ')
  label = label.partition(':')[0]
  label = TREC[int(label)] if label.isdigit() and int(label) < len(TREC) else label
  return question.strip(), label if label in TREC else ''


def _phrase(line: str) -> tuple[str, str]:
  """'sentence@label' (Malo et al. 2014)."""
  sentence, _, label = line.rpartition('@')
  return sentence.strip(), label.strip()


def _tfds(name: str, data_dir: str) -> tuple[dict[str, Pairs], list[str]]:
  """Its text features, joined where there are several, and its first class label; hidden labels (−1) leave no example."""
  from tensorflow_datasets import features as kinds

  def reader(features):
    texts, labels = (
      [key for key in sorted(features) if isinstance(features[key], kind)] for kind in (kinds.Text, kinds.ClassLabel)
    )
    if not texts or not labels:
      raise UsageError(f'{name} has features {", ".join(sorted(features))}; expected texts and a class label')
    texts, label = ['text'] if 'text' in texts else texts, 'label' if 'label' in labels else labels[0]
    names = features[label].names or [str(number) for number in range(features[label].num_classes)]
    words = lambda record: ' '.join(record[key].decode() for key in texts)
    return lambda record: (words(record), names[record[label]]) if record[label] >= 0 else None

  suiting = 'sets of TFDS such as imdb_reviews'
  parts = text_files.read_tfds(name, data_dir, reader, sources=SOURCES, suiting=suiting)
  hidden = [split for split, pairs in parts.items() if not pairs]
  notes = [f'{name}: the labels of its {split} split are hidden, so it is left out' for split in hidden]
  parts = {split: pairs for split, pairs in parts.items() if pairs}
  if 'test' not in parts and 'validation' in parts:
    parts['test'] = parts.pop('validation')
    notes.append(f"{name}: has no test split, so the set's validation split is 'test'")
  return parts, notes


def _classes(name: str, parts: Mapping[str, Pairs]) -> tuple[str, ...]:
  """The labels of train, in order: as numbers where all are such.

  Raises:
    UsageError: for what no training can use.
  """
  known = {label for _, label in parts['train']}
  for split, pairs in parts.items():
    new = sorted({label for _, label in pairs} - known)
    if new:
      raise UsageError(f'{name}: labels in {split} that are not in train: {", ".join(map(repr, new[:8]))}')
    if any(not words.strip() for words, _ in pairs):
      raise UsageError(f'{name}: a {split} text is empty')
  if len(parts['train']) < 2:
    raise UsageError(f'{name} has one line; classification needs several texts of two or more classes')
  if len(known) < 2:
    raise UsageError(f'{name}: all texts have the label {known.pop()!r}; classification needs two or more')
  order: Callable = int if all(re.fullmatch(r'-?\d+', label) for label in known) else str
  return tuple(sorted(known, key=order))
