"""Pairs of texts, a source and its target: read from files, TFDS or made by rule, and made examples of translation.

An example is {'source' [S], 'target_in' [T], 'targets' [T], 'reference' []}, int32: the source ends with </s>, the target
begins with <s> in 'target_in' and ends with </s> in 'targets'. Padding is 0, and −1 in the targets, where nothing is
scored. 'reference' is the number of the target's text in the spec's `references`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from karpjax import errors
from karpjax.data import bucketing as buckets
from karpjax.data import generated, text, text_files, tfds, tokenisers
from karpjax.data.dataset import Dataset, Split, take

SOURCES = ('dates', 'addition', 'multi30k', 'files:SOURCE,TARGET')
MULTI30K = {'train': 'train', 'validation': 'val', 'test': 'test_2016_flickr'}  # our splits -> the names of its files
BUCKETS = 4  # static lengths, to the shortest of which a batch is cut

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Spec(text.TextSpec):
  """A TextSpec of 'source' and 'target', which for the data set's own run has the texts to compare with.

  Attributes:
    references: {split: its targets' texts}; not saved with the run.
    sources: {split: its sources' texts}; not saved with the run.
  """

  references: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  sources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """As TextSpec's, without the texts."""
    return {name: x for name, x in super().to_json().items() if name not in ('references', 'sources')}


# ---- reading ----


def read(
  name: str,
  data_dir: str | Path | None = None,
  *,
  languages: tuple[str, str] = ('', ''),
  examples: int = 0,
  seed: int = 0,
  encoding: str = 'utf-8',
) -> tuple[dict[str, Pairs], tuple[str, str]]:
  """{split: pairs of texts} and their two languages; a source that has no splits of its own gives 'train' alone.

  Args:
    name: one of SOURCES, or a translation set of TFDS, such as wmt16_translate/de-en.
    data_dir: where files and prepared TFDS sets are found.
    languages: source and target; '' is the set's own choice.
    examples: of generated sets: how many; 0: as many as is usual for the set.
    seed: of generated sets.
    encoding: of files.

  Raises:
    UsageError: in one line, for whatever is wrong with the name or the files.
  """
  if name in generated.GENERATORS:
    make, usual = generated.GENERATORS[name]
    return {'train': make(examples or usual, seed)}, ('text', 'result')
  if name == 'multi30k':
    return _multi30k(data_dir, languages)
  if name.startswith('files:'):
    paths = [Path(path).expanduser() for path in name.removeprefix('files:').split(',')]
    if len(paths) != 2:
      raise errors.UsageError(f'--dataset={name}: two files are needed, as files:SOURCE.txt,TARGET.txt')
    return {'train': _zipped(*paths, encoding)}, (languages[0] or paths[0].name, languages[1] or paths[1].name)
  return _tfds(name, data_dir, languages)


def _zipped(source: Path, target: Path, encoding: str = 'utf-8') -> Pairs:
  lines = [text_files.read_file(path, encoding).removesuffix('\n').split('\n') for path in (source, target)]
  if len(lines[0]) != len(lines[1]):
    raise errors.UsageError(
      f'{source} has {len(lines[0]):,} lines and {target} has {len(lines[1]):,}: line i of one must be the '
      'translation of line i of the other'
    )
  return [(a.strip(), b.strip()) for a, b in zip(*lines)]


def _multi30k(data_dir, languages):
  if not data_dir:
    raise errors.UsageError('multi30k is needed: name the folder that holds its files train.de, train.en, … (or .gz) '
                            'with --data_dir')  # fmt: skip
  source, target = languages[0] or 'de', languages[1] or 'en'
  root = Path(data_dir).expanduser()
  folders = [root, root / 'multi30k', root / 'files' / 'multi30k']
  suffixes = ('', '.gz')

  def find(split, language):
    names = [f'{MULTI30K[split]}.{language}{suffix}' for suffix in suffixes]
    for path in (folder / name for folder in folders for name in names):
      if path.is_file():
        return path
    raise errors.UsageError(f'{names[0]} (or .gz) is in none of {", ".join(map(str, folders))}')

  pairs = {split: _zipped(find(split, source), find(split, target)) for split in MULTI30K}
  return pairs, (source, target)


def _tfds(name, data_dir, languages):
  import tensorflow_datasets

  folder = tfds.find(name, Path(data_dir).expanduser() if data_dir else None)
  builder = tensorflow_datasets.builder_from_directory(folder)
  known = tuple(getattr(builder.info.features, 'languages', ()))
  if len(known) < 2:
    raise errors.UsageError(f'{name} has features {", ".join(builder.info.features)}; expected a set of translations')
  if builder.info.file_format.value != 'array_record':
    raise errors.UsageError(
      f'{folder} holds {builder.info.file_format.value} files; prepare it with: tfds build {name} '
      '--file_format=array_record'
    )
  source = languages[0] or next(each for each in known if each != languages[1])
  target = languages[1] or next(each for each in known if each != source)
  for flag, language in (('source_language', source), ('target_language', target)):
    if language not in known:
      raise errors.UsageError(f'--{flag}={language}: {name} has {", ".join(known)}')
  splits = [split for split in ('train', 'validation', 'test') if split in builder.info.splits]
  return {
    split: [(record[source].decode(), record[target].decode()) for record in builder.as_data_source(split=split)]
    for split in splits
  }, (source, target)


# ---- examples ----


def encode(texts: Sequence[str], tokeniser: tokenisers.Tokeniser, *, reverse: bool = False) -> list[np.ndarray]:
  """The tokens of each text, its </s> included: [n] int32 each; reversed, but for </s>, where asked."""
  turned = slice(None, None, -1 if reverse else 1)
  # of characters, not `encode`, which is made for long texts
  whole = tokeniser.encode if tokeniser.kind == 'bpe' else lambda each: tokeniser.numbers(tokeniser.split(each))
  return [np.array([*whole(each)[turned], tokenisers.END], np.int32) for each in texts]


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
  """[n, length] of rows, cut where they are longer, which then end with their last token (</s>) too."""
  array = np.zeros((len(rows), length), np.int32)
  for place, row in zip(array, rows):
    place[: len(row)] = row if len(row) <= length else np.append(row[: length - 1], row[-1])
  return array


def gather(arrays, numbers):
  """A Split's `gather`: arrays 'source' [n, S], 'target' [n, T + 1] with <s> and </s>, 'reference' [n]."""
  target = take(arrays['target'], numbers).astype(np.int32)
  before, after = target[:, :-1], target[:, 1:]
  return {
    'source': take(arrays['source'], numbers).astype(np.int32),
    'target_in': before * (before != tokenisers.END),
    'targets': after - (after == tokenisers.PAD),
    'reference': take(arrays['reference'], numbers).astype(np.int32),
  }


def load(
  name: str,
  *,
  data_dir: str | Path | None = None,
  languages: tuple[str, str] = ('', ''),
  tokeniser: str = 'words',
  vocabulary: int = 0,
  minimum_frequency: int = 1,
  lower: bool = True,
  max_length: int = 0,
  reverse: bool = False,
  validation: float = 0.05,
  test: float = 0.05,
  seed: int = 0,
  examples: int = 0,
  encoding: str = 'utf-8',
) -> Dataset:
  """A data set for translation.

  Args:
    name, data_dir, languages, examples, encoding: as `read`'s.
    tokeniser: characters, words or bpe, learnt from the train split, of each side alone.
    vocabulary, minimum_frequency, lower: as `tokenisers.make`'s.
    max_length: tokens of a side; pairs of train that are longer are left out, others cut. 0: the longest is held.
    reverse: whether sources are read from their end (Sutskever et al. 2014).
    validation, test: shares or numbers of the pairs, drawn by `seed`, where the set has no such split.
    seed: of the drawn splits and of generated sets.

  Raises:
    UsageError: in one line, for whatever is wrong.
  """
  if tokeniser not in ('characters', 'words', 'bpe'):
    raise errors.UsageError(f'--tokeniser={tokeniser}: translation takes characters, words or bpe, which have an end')
  if max_length < 0 or max_length == 1:
    raise errors.UsageError(f'--max_length={max_length}: at least 2 tokens are needed, or 0 for the longest')
  pairs, languages = read(name, data_dir, languages=languages, examples=examples, seed=seed, encoding=encoding)
  pairs, notes = _cleaned(pairs)
  shares = {'validation': validation, 'test': test}
  missing = [split for split in shares if split not in pairs]
  if missing:
    pairs = text.hold_out(pairs, shares, seed)
    notes.append(f'{" and ".join(missing)}: drawn from the train pairs with seed {seed}')
  if len(pairs['train']) < 2:
    raise errors.UsageError(f'{name} has {len(pairs["train"])} pair to train on; at least two are needed')

  options = {'minimum_frequency': minimum_frequency, 'vocabulary': vocabulary, 'lower': lower}
  sides = {side: [pair[i] for pair in pairs['train']] for i, side in enumerate(('source', 'target'))}
  made = {
    side: tokenisers.make(tokeniser, texts, specials=tokenisers.SPECIALS, **options) for side, texts in sides.items()
  }
  rows = {
    split: [encode([pair[i] for pair in each], made[side], reverse=reverse and side == 'source')
            for i, side in enumerate(made)]
    for split, each in pairs.items()
  }  # fmt: skip
  if max_length:
    notes += _shorten(pairs, rows, max_length)
  lengths = {
    side: min(max(len(row) for each in rows.values() for row in each[i]), max_length or 2**30)
    for i, side in enumerate(made)
  }
  splits, references, start = {}, {}, 0
  for split, (source, target) in rows.items():
    target = [np.append(tokenisers.BEGIN, row) for row in target]
    arrays = {
      'source': padded(source, lengths['source']),
      'target': padded(target, lengths['target'] + 1),
      'reference': np.arange(start, start + len(source), dtype=np.int32),
    }
    longest = np.array([max(len(a), len(b) - 1) for a, b in zip(source, target)])
    splits[split] = Split.made(len(source), arrays, gather, longest if longest.min() < longest.max() else None)
    references[split], start = tuple(pair[1] for pair in pairs[split]), start + len(source)
  notes += [
    f'{name}: {languages[0]} -> {languages[1]}, ' + ', '.join(f'{len(each):,} {split}' for split, each in pairs.items()),
    ', '.join(f'{each.size:,} {each.kind} of the {side}' for side, each in made.items())
    + f'; lengths up to {lengths["source"]} and {lengths["target"]}',
  ]  # fmt: skip
  held = splits['train'].lengths
  about = {'languages': list(languages), 'reverse': reverse, 'text': name not in generated.GENERATORS}
  about['buckets'] = list(buckets.edges(held, BUCKETS)) if held is not None else [max(lengths.values())]
  sources = {split: tuple(pair[0] for pair in each) for split, each in pairs.items()}
  spec = Spec(name, splits['train'].size, made, lengths, (), about, references=references, sources=sources)
  return Dataset(spec, splits, tuple(notes))


def _cleaned(pairs: Mapping[str, Pairs]) -> tuple[dict[str, Pairs], list[str]]:
  """Without pairs that have an empty side and, in train, those that occur again."""
  kept = {split: [pair for pair in each if all(pair)] for split, each in pairs.items()}
  empty = sum(map(len, pairs.values())) - sum(map(len, kept.values()))
  before = len(kept['train'])
  kept['train'] = list(dict.fromkeys(kept['train']))
  counts = {'with an empty side': empty, 'of train that occur again': before - len(kept['train'])}
  return kept, [f'{count:,} pairs {which} are left out' for which, count in counts.items() if count]


def _shorten(pairs, rows, max_length) -> list[str]:
  """Leaves pairs of train that are too long out, in place, and says what became of those of the other splits."""
  fits = [max(map(len, both)) <= max_length for both in zip(*rows['train'])]
  for each in (pairs['train'], *rows['train']):
    each[:] = [x for x, fit in zip(each, fits) if fit]
  if not pairs['train']:
    raise errors.UsageError(f'--max_length={max_length} leaves no pair to train on; choose a larger one')
  cut = sum(max(map(len, both)) > max_length for split, each in rows.items() if split != 'train' for both in zip(*each))
  counts = {'train pairs are left out': fits.count(False), 'pairs of other splits are cut': cut}
  return [f'{n:,} {which}: longer than --max_length={max_length} tokens' for which, n in counts.items() if n]


def longest(batch):
  """[] int32: how many tokens the longest source or target of a batch has."""
  source, target = (batch['source'] != 0).sum(1), (batch['targets'] >= 0).sum(1)
  return jnp.maximum(source, target).max()


def cut(batch, length: int):
  """The batch without what lies beyond `length` tokens."""
  return {name: x if x.ndim < 2 else x[:, :length] for name, x in batch.items()}
