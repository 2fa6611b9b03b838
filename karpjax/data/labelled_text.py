"""Texts with a label each: read from files, tables, TFDS or the standard library, then made arrays of tokens.

An example is {'tokens' [length], 'label' []}, int32, padded with 0 behind.
"""

import dataclasses
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax.data import bucketing, dataset, splitting, text, text_files, tokenisers
from karpjax.data.dataset import Dataset, Split
from karpjax.errors import UsageError

SOURCES = ('python_docs', 'trec', 'financial_phrasebank', 'table:DIR', 'FILE.csv', 'FILE.tsv')
TREC = ('DESC', 'ENTY', 'ABBR', 'HUM', 'LOC', 'NUM')  # the labels 0 … 5 of TREC.*.all
# A label as a number or as Li & Roth 2002 write it, COARSE:fine, of which COARSE counts; and sentence@label (Malo et al. 2014).
QUESTION = re.compile(rf'(?P<label>[0-5]|{"|".join(TREC)})(:\S*)?\s+(?P<text>.+)')
PHRASE = re.compile(r'(?P<text>.*\S)\s*@\s*(?P<label>[^@]+)')
CHAPTERS = {  # of the Python reference -> its pages among the standard library's help topics
  'statements': 'compound assert assignment augassign del global nonlocal import raise return',
  'expressions': 'calls comparisons binary bitwise shifting unary power booleans lambda conversions in attribute-references '
  'subscriptions slicings exprlists lists dict atom-identifiers await',
  'special methods': 'specialnames',
  'types': 'types objects',
  'containers': 'typesseq typesmapping typesseq-mutable',
  'strings': 'string-methods formatstrings strings',
  'debugger': 'debugger',
}

Pairs = list[tuple[str, str]]  # (text, name of its label)


def read(config) -> Dataset:
  """The texts themselves: splits of 'text' [n] (strings) and 'label' [n] int32, with the classes in the spec.

  Where the set has no test split, a stratified one is drawn. Nothing is downloaded.
  """
  name, seed = config.dataset, config.split_seed
  parts, notes = _read(config)
  classes = _classes(name, parts)
  splits = {}
  for split, pairs in parts.items():
    texts, labels = zip(*pairs)
    labels = np.array([classes.index(label) for label in labels], np.int32)
    splits[split] = Split.of(text=np.array(texts, object), label=labels)
  if 'test' not in splits and config.test:
    whole = splits['train']
    [count] = splitting.counts({'test': config.test}, whole.size, 'texts', least=1)
    numbers = splitting.stratified(whole.arrays['label'], count, seed)
    splits |= {split: whole.select(np.sort(each)) for split, each in zip(('train', 'test'), numbers)}
    notes.append(f'{name}: has no test split; {count:,} texts, of each class alike, are drawn with seed {seed}')
  splits, more = splitting.hold_out(splits, config.validation, seed)
  sizes = text_files.sizes({split: each.arrays['label'] for split, each in splits.items()})
  notes = (*notes, *more, f'{name}: {sizes} texts of {len(classes)} classes')
  return Dataset(text.TextSpec(name, splits['train'].size, {}, {}, classes), splits, notes)


def load(config, *, tokeniser=None, length: int = 0, pretrained: Mapping[str, Any] | None = None) -> Dataset:
  """A data set of texts as tokens; its `raw` splits are those of `read`.

  Args:
    config: with the flags of text classification.
    tokeniser: a Tokeniser instead of a new one; its token 0 stands for padding.
    length: tokens kept of a text where the config has no `max_length`; 0: as many as the longest of train has.
    pretrained: the sizes of an encoder, before whose texts stands <s>.
  """
  texts, pretrained, notes = read(config), pretrained or {}, []
  if pretrained:
    notes.append('pretrained: the model is the encoder of init_from, with its tokens and its number of them')
  if not tokeniser:
    if config.tokeniser == 'bpe' and not config.vocabulary:
      config = dataclasses.replace(config, vocabulary=4000)
    specials = () if config.tokeniser == 'bytes' else tokenisers.SPECIALS
    words = texts.splits['train'].arrays['text']
    tokeniser = text.make_tokeniser(config, words, kinds=tokenisers.KINDS, specials=specials)
  rows = {split: _rows(each.arrays['text'], tokeniser, pretrained) for split, each in texts.splits.items()}
  longest = max(map(len, rows['train']))
  length = config.max_length or length or max(longest, 1)
  splits = {}
  for split, each in rows.items():
    sizes = np.array([*map(len, each)])
    arrays = {'tokens': bucketing.padded(each, length), 'label': texts.splits[split].arrays['label']}
    splits[split] = Split.lazy(len(each), arrays, dataset.rows, np.minimum(sizes, length))
    if beyond := (sizes > length).sum():
      reason = f'max_length={length}' if config.max_length else f'{length}, the longest of train,'
      notes.append(f'{beyond:,} of {len(each):,} {split} texts are cut to {reason} tokens')
  buckets = tuple(sorted({*bucketing.edges(splits['train'].lengths, config.buckets)[:-1], length}))
  made = {'tokenisers': {'text': tokeniser}, 'lengths': {'text': length}, 'pretrained': pretrained, 'buckets': buckets}
  kind = f'{tokeniser.size:,} different tokens, {tokeniser.kind}'
  notes.append(f'{kind}; examples of {length}, {longest} in the longest of train')
  return Dataset(dataclasses.replace(texts.spec, **made), splits, (*texts.notes, *notes), texts.splits)


def tokens(texts: Sequence[str], spec: text.TextSpec) -> np.ndarray:
  """Any texts as a model of this spec takes them: [n, length] int32, cut or padded.

  Raises:
    UsageError: for an empty one.
  """
  for number, words in enumerate(texts, 1):
    if not words.strip():
      raise UsageError(f'text {number} is empty')
  return bucketing.padded(_rows(texts, spec.tokenisers['text'], spec.pretrained), spec.lengths['text'])


def _rows(texts, tokeniser, pretrained) -> list[list[int]]:
  return [[*[tokenisers.BEGIN] * bool(pretrained), *tokeniser.encode(words)] for words in texts]


# ---- sources ----


def _read(config) -> tuple[dict[str, Pairs], list[str]]:
  """{split: pairs} of a source, and notes."""
  name, encoding = config.dataset, config.encoding
  if name == 'python_docs':
    about = f'the reference of Python {platform.python_version()}, of the standard library'
    return {'train': sentences()}, [f'{name}: {about}']
  if name == 'trec' and text_files.find('TREC.train.all', config.data_dir, needed=False):  # else TFDS may have it
    files = {split: text_files.find(f'TREC.{split}.all', config.data_dir) for split in ('train', 'test')}
    expected = f'a label and a question; labels are 0 to 5, or {", ".join(TREC)}'
    parts = {split: _labelled_lines(path, encoding, QUESTION, expected) for split, path in files.items()}
    named = dict(zip('012345', TREC))
    return {split: [(words, named.get(x, x)) for words, x in pairs] for split, pairs in parts.items()}, []
  if name == 'financial_phrasebank':
    path = text_files.find('financial_phrasebank.txt', config.data_dir)
    return {'train': _labelled_lines(path, encoding, PHRASE, 'sentence@label')}, []
  if name.startswith('table:'):
    files = text_files.split_files(name.removeprefix('table:'), tuple(text_files.DELIMITERS))
  elif Path(name).suffix.lower() in text_files.DELIMITERS:
    files = {'train': Path(name)}
  else:
    return _tfds(config)
  return {split: text_files.read_table(path, encoding, config.columns) for split, path in files.items()}, []


def sentences() -> Pairs:
  """Those of the Python reference's prose, with at least five words each, once;
  one that is in several chapters is in none.
  """
  from pydoc_data import topics

  found: dict[str, set[str]] = {}
  for chapter, pages in CHAPTERS.items():
    for paragraph in (part for page in pages.split() for part in re.split(r'\n\s*\n', topics.topics.get(page, ''))):
      words = ' '.join(line.strip() for line in paragraph.strip('\n').split('\n'))
      if any(mark in words for mark in ('::=', '>>>', '***', '===', '---', '+--', '| ')):
        continue  # programs, grammar, headings and tables
      for sentence in re.split(r'(?<=[.!?])\s+(?=[A-Z"*])', words):
        if len(re.findall(r'[A-Za-z]{2,}', sentence)) >= 5 and sentence[-1] in '.!?:':
          found.setdefault(sentence, set()).add(chapter)
  return [(sentence, chapters.pop()) for sentence, chapters in found.items() if len(chapters) == 1]


def _labelled_lines(path: Path, encoding: str, pattern: re.Pattern, expected: str) -> Pairs:
  """The pairs of a file's lines that are not empty, which \\n alone ends; the published files are latin-1."""
  pairs = []
  for number, line in enumerate(text_files.read_file(path, encoding, 'latin-1').split('\n'), 1):
    if line.strip():
      match = pattern.fullmatch(line.strip())
      if not match:
        raise UsageError(f'{path}, line {number}: {line[:59]!r} is not {expected}')
      pairs.append((match['text'], match['label']))
  return pairs


def _tfds(config) -> tuple[dict[str, Pairs], list[str]]:
  """Its text features, joined where there are several, and its first class label;
  hidden labels (−1) leave no example.
  """
  from tensorflow_datasets import features as kinds

  def reader(features):
    named = lambda kind: [name for name in sorted(features) if isinstance(features[name], kind)]
    texts, labels = named(kinds.Text), named(kinds.ClassLabel)
    if not texts or not labels:
      return None
    texts, label = ['text'] if 'text' in texts else texts, 'label' if 'label' in labels else labels[0]
    names = features[label].names or [*map(str, range(features[label].num_classes))]
    words = lambda record: ' '.join(record[key].decode() for key in texts)
    return lambda record: (words(record), names[record[label]]) if record[label] >= 0 else None

  parts = text_files.read_tfds(config, reader, sources=SOURCES, expected='texts and a class label', such='imdb_reviews')
  name, hidden = config.dataset, [split for split, pairs in parts.items() if not pairs]
  notes = [f'{name}: the labels of its {split} split are hidden, so it is left out' for split in hidden]
  parts = {split: pairs for split, pairs in parts.items() if pairs}
  if 'test' not in parts and 'validation' in parts:
    parts['test'] = parts.pop('validation')
    notes.append(f"{name}: has no test split, so the set's validation split is 'test'")
  return parts, notes


def _classes(name: str, parts: Mapping[str, Pairs]) -> tuple[str, ...]:
  """The labels of train, in order: as numbers where all are such; of equal ones, such as 1 and 01, as texts.

  Raises:
    UsageError: for what no training can use.
  """
  known = {label for _, label in parts['train']}
  for split, pairs in parts.items():
    if new := sorted({label for _, label in pairs} - known):
      raise UsageError(f'{name}: labels in {split} that are not in train: {", ".join(map(repr, new[:8]))}')
    if any(not words.strip() for words, _ in pairs):
      raise UsageError(f'{name}: a {split} text is empty')
  if len(known) < 2:
    raise UsageError(f'{name}: all texts have the label {known.pop()!r}; classification needs two or more')
  numbers = all(re.fullmatch(r'-?\d+', label) for label in known)
  return tuple(sorted(known, key=lambda label: (int(label) if numbers else 0, label)))
