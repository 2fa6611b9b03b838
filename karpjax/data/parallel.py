"""Pairs of texts, a source and its target: read from files, TFDS or made by rule, and made examples of translation.

An example is {'source' [S], 'target_in' [T], 'targets' [T], 'reference' []}, int32: the source ends with </s>, the target
begins with <s> in 'target_in' and ends with </s> in 'targets'. Padding is 0, and −1 in the targets, where nothing is
scored. 'reference' is the number of the target's text, counted over all splits.
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
    return {split: _zipped(paths) for split, paths in files.items()}, languages
  if name.startswith('files:'):
    paths = [Path(path).expanduser() for path in name.removeprefix('files:').split(',')]
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
  name, made_by_rule = config.dataset, config.dataset in generated.GENERATORS
  kind = config.tokeniser or ('characters' if made_by_rule else 'words')
  if config.max_length == 1:
    raise UsageError('max_length=1: at least 2 tokens are needed, or 0 for the longest')
  pairs, languages = read(config)
  pairs, notes = _cleaned(pairs)
  shares = {'validation': config.validation, 'test': config.test}
  pairs, drawn = text.hold_out(pairs, shares, config.split_seed)
  if len(pairs['train']) < 2:
    raise UsageError(f'{name} has {len(pairs["train"])} pair to train on; at least two are needed')

  options = {'kind': kind, 'kinds': ('characters', 'words', 'bpe'), 'specials': tokenisers.SPECIALS}
  learnt = zip(SIDES, zip(*pairs['train']))
  made = {side: text.make_tokeniser(config, texts, **options) for side, texts in learnt}
  turned = {'source': config.reverse, 'target': False}
  rows = {  # of each split, [source, target] of each pair
    split: [encode(texts, made[side], reverse=turned[side]) for side, texts in zip(SIDES, zip(*each))]
    for split, each in pairs.items()
  }
  if config.max_length:
    notes += _shorten(pairs, rows, config.max_length)
  longest = [max(len(row) for each in rows.values() for row in each[i]) for i in range(2)]
  lengths = {side: min(length, config.max_length or length) for side, length in zip(SIDES, longest)}
  splits, raw, start = {}, {}, 0
  for split, (source, target) in rows.items():
    arrays = {
      'source': bucketing.padded(source, lengths['source'], keep_last=True),
      'target': bucketing.padded([[tokenisers.BEGIN, *row] for row in target], lengths['target'] + 1, keep_last=True),
      'reference': np.arange(start, start + len(source), dtype=np.int32),
    }
    sizes = np.array([max(len(a), len(b)) for a, b in zip(source, target)])
    splits[split] = Split.lazy(len(source), arrays, gather, sizes if sizes.min() < sizes.max() else None)
    raw[split] = Split.of(**{side: np.array(texts, object) for side, texts in zip(SIDES, zip(*pairs[split]))})
    start += len(source)
  tokens = ', '.join(f'{each.size:,} {each.kind} of the {side}' for side, each in made.items())
  notes += [*drawn, f'{name}: {" -> ".join(languages)}, {text_files.sizes(pairs)}']
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


def _shorten(pairs, rows, max_length: int) -> list[str]:
  """Leaves pairs of train that are too long out, in place, and says what became of those of the other splits."""
  fits = {split: [max(map(len, both)) <= max_length for both in zip(*each)] for split, each in rows.items()}
  for each in (pairs['train'], *rows['train']):
    each[:] = [x for x, fit in zip(each, fits['train']) if fit]
  if not pairs['train']:
    raise UsageError(f'max_length={max_length} leaves no pair to train on; choose a larger one')
  left, cut = fits.pop('train').count(False), sum(each.count(False) for each in fits.values())
  counts = {'train pairs are left out': left, 'pairs of other splits are cut': cut}
  return [f'{n:,} {which}: longer than max_length={max_length} tokens' for which, n in counts.items() if n]
