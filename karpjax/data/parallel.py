"""Pairs of texts, a source and its target: read from files, TFDS or made by rule, and made examples of translation.

An example is {'source' [S], 'target_in' [T], 'targets' [T], 'reference' []}, int32: the source ends with </s>, the
target begins with <s> in 'target_in' and ends with </s> in 'targets'. Padding is 0, and −1 in the targets, where
nothing is scored. 'reference' is the number of the target's text, counted over all splits.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import bucketing, generated, text, text_files, tokenisers
from karpjax.data.dataset import Dataset, Split, take
from karpjax.errors import UsageError

SOURCES = ('dates', 'addition', 'multi30k', 'files:SOURCE,TARGET')
MULTI30K = {'train': 'train', 'validation': 'val', 'test': 'test_2016_flickr'}  # our splits -> the names of its files
SIDES = ('source', 'target')
BUCKETS = 4  # static lengths, to the shortest of which a batch is cut
CUT = 'loss and perplexity are of their beginnings, BLEU and the like of translations of these against whole references'

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Spec(text.TextSpec):
  """A TextSpec of 'source' and 'target'.

  Attributes:
    languages: of the two.
    reverse: whether sources are read from their end.
    by_rule: whether the pairs are made by rule, and not of a language.
  """

  languages: tuple[str, ...] = ()
  reverse: bool = False
  by_rule: bool = False


# ---- reading ----


def read(config) -> tuple[dict[str, Pairs], tuple[str, str]]:
  """{split: pairs of texts} and their two languages; a source that has no splits of its own gives 'train' alone."""
  name, source, target = config.dataset, config.source_language, config.target_language
  if name in generated.GENERATORS:
    make, usual = generated.GENERATORS[name]
    return {'train': make(config.examples or usual, config.split_seed)}, ('text', 'result')
  if name == 'multi30k':
    languages = source or 'de', target or 'en'
    find = lambda split, language: text_files.find(f'{MULTI30K[split]}.{language}', config.data_dir, name)
    files = {split: [find(split, language) for language in languages] for split in MULTI30K}
    return {split: _zipped(paths, config.encoding) for split, paths in files.items()}, languages
  if name.startswith('files:'):
    paths = [Path(path) for path in name.removeprefix('files:').split(',')]
    if len(paths) != 2:
      raise UsageError(f'dataset={name}: two files are needed, as files:SOURCE.txt,TARGET.txt')
    return {'train': _zipped(paths, config.encoding)}, (source or paths[0].name, target or paths[1].name)
  chosen = []

  def reader(features):
    known = tuple(getattr(features, 'languages', ()))
    if len(known) < 2:
      return None
    first = source or next(each for each in known if each != target)
    chosen[:] = first, target or next(each for each in known if each != first)
    for side, language in zip(SIDES, chosen):
      if language not in known:
        raise UsageError(f'{side}_language={language}: {name} has {", ".join(known)}')
    return lambda record: tuple(record[language].decode() for language in chosen)

  such = {'expected': 'translations', 'such': 'wmt16_translate/de-en'}
  return text_files.read_tfds(config, reader, sources=SOURCES, **such), tuple(chosen)


def _zipped(paths: Sequence[Path], encoding: str = '') -> Pairs:
  """The pairs of the lines of two files."""
  lines = [text_files.read_file(path, encoding).removesuffix('\n').split('\n') for path in paths]
  if len(lines[0]) != len(lines[1]):
    sizes = ' and '.join(f'{path} has {len(each):,}' for path, each in zip(paths, lines))
    raise UsageError(f'{sizes} lines: line i of one must be the translation of line i of the other')
  return [(a.strip(), b.strip()) for a, b in zip(*lines)]


# ---- examples ----


def encode(texts: Sequence[str], tokeniser: tokenisers.Tokeniser, *, reverse: bool = False) -> list[np.ndarray]:
  """The tokens of each text, its </s> included: [n] int32 each; reversed, but for </s>, where asked."""
  turned = slice(None, None, -1 if reverse else 1)
  return [np.array([*tokeniser.encode(each)[turned], tokenisers.END], np.int32) for each in texts]


def gather(arrays, numbers):
  """A Split's `gather`: arrays 'source' [n, S], 'target' [n, T + 1] with <s> and </s>, 'reference' [n]."""
  source, target, reference = (take(arrays[name], numbers) for name in (*SIDES, 'reference'))
  before, after = target[:, :-1], target[:, 1:]
  before, after = before * (before != tokenisers.END), after - (after == tokenisers.PAD)
  return {'source': source, 'target_in': before, 'targets': after, 'reference': reference}


def load(config) -> Dataset:
  """A data set for translation; its `raw` splits hold the texts, 'source' and 'target' [n].

  Tokens are learnt from the train split, of each side alone.
  """
  text.refuse_streams(config, 'pairs')
  name, made_by_rule = config.dataset, config.dataset in generated.GENERATORS
  kind = config.tokeniser or ('characters' if made_by_rule else 'words')
  if config.max_length == 1:
    raise UsageError('max_length=1: at least 2 tokens are needed, or 0 for the longest')
  pairs, languages = read(config)
  pairs, notes = _cleaned(pairs)
  amounts = {'validation': config.validation, 'test': config.test}
  pairs, drawn = text.hold_out(pairs, amounts, config.split_seed)
  if len(pairs['train']) < 2:
    raise UsageError(f'{name} has {len(pairs["train"])} pair to train on; at least two are needed')

  options = {'kind': kind, 'kinds': ('characters', 'words', 'bpe'), 'specials': tokenisers.SPECIALS}
  texts = {split: dict(zip(SIDES, zip(*each))) for split, each in pairs.items()}  # {split: {side: texts}}
  made = {side: text.make_tokeniser(config, texts['train'][side], **options) for side in SIDES}
  rows = {
    split: {side: encode(each[side], made[side], reverse=config.reverse and side == 'source') for side in SIDES}
    for split, each in texts.items()
  }
  sizes = {split: np.array([max(map(len, both)) for both in zip(*each.values())]) for split, each in rows.items()}
  longest = config.max_length or int(max(each.max() for each in sizes.values()))
  beyond = {split: each > longest for split, each in sizes.items()}  # of train they are left out
  fits = np.flatnonzero(~beyond.pop('train'))
  if not len(fits):
    raise UsageError(f'max_length={longest} leaves no pair to train on; choose a larger one')
  left, cut = len(sizes['train']) - len(fits), sum(each.sum() for each in beyond.values())
  counts = {'train pairs are left out': (left, ''), 'pairs of other splits are cut': (cut, f'; {CUT}')}
  why = f': longer than max_length={longest} tokens'
  notes += [f'{n:,} {which}{why}{more}' for which, (n, more) in counts.items() if n]
  for each in (texts, rows):
    each['train'] = {side: [x[i] for i in fits] for side, x in each['train'].items()}
  sizes['train'] = sizes['train'][fits]

  lengths = {side: min(longest, max(len(row) for each in rows.values() for row in each[side])) for side in SIDES}
  splits, raw, start = {}, {}, 0
  for split, each in rows.items():
    target = [[tokenisers.BEGIN, *row] for row in each['target']]
    arrays = {
      'source': bucketing.padded(each['source'], lengths['source'], keep_last=True),
      'target': bucketing.padded(target, lengths['target'] + 1),
      'reference': np.arange(start, start + len(target), dtype=np.int32),
    }
    alike = sizes[split].min() == sizes[split].max()
    splits[split] = Split.lazy(len(target), arrays, gather, None if alike else sizes[split])
    raw[split] = Split.of(**{side: np.array(x, object) for side, x in texts[split].items()})
    start += len(target)
  tokens = ', '.join(f'{each.size:,} {each.kind} of the {side}' for side, each in made.items())
  notes += [*drawn, f'{name}: {" -> ".join(languages)}, {text_files.sizes(sizes)}']
  notes.append(f'{tokens}; lengths up to {lengths["source"]} and {lengths["target"]}')
  held = splits['train'].lengths
  buckets = bucketing.edges(held, BUCKETS) if held is not None else (max(lengths.values()),)
  own = {'languages': languages, 'reverse': config.reverse, 'by_rule': made_by_rule}
  return Dataset(Spec(name, splits['train'].size, made, lengths, buckets=buckets, **own), splits, tuple(notes), raw)


def _cleaned(pairs: Mapping[str, Pairs]) -> tuple[dict[str, Pairs], list[str]]:
  """Without pairs that have an empty side and, in train, those that occur again."""
  kept = {split: [pair for pair in each if all(pair)] for split, each in pairs.items()}
  unique = list(dict.fromkeys(kept['train']))
  empty = sum(map(len, pairs.values())) - sum(map(len, kept.values()))
  counts = {'with an empty side': empty, 'of train that occur again': len(kept['train']) - len(unique)}
  notes = [f'{count:,} pairs {which} are left out' for which, count in counts.items() if count]
  return {**kept, 'train': unique}, notes
