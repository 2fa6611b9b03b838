"""Texts: read from files, TFDS or the standard library, cut into splits, and made examples of a language model.

A running text gives windows of `length` tokens, gathered from the text inside the step; lines give an example each. An
example is {'tokens', 'targets'}, each [length] int32; a target of −1 is not scored.
"""

import dataclasses
import gzip
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax import errors
from karpjax.data import splitting, tfds, tokenisers, windows
from karpjax.data.dataset import Dataset, Split

SOURCES = ('python_docs', 'tiny_shakespeare', 'names')
LINES = ('names',)  # which of them are lines


@dataclasses.dataclass(frozen=True)
class TextSpec:
  """What a model, sampling and a prediction must know of a data set of texts; saved with a run.

  Attributes:
    name: as given to `load`.
    examples: size of the train split.
    tokenisers: by what they tokenise: 'text', or 'source' and 'target'.
    lengths: tokens of an example, by the same names.
    classes: names of the labels or tags, in their order; ().
    about: anything else that JSON takes.
  """

  name: str
  examples: int
  tokenisers: Mapping[str, tokenisers.Tokeniser]
  lengths: Mapping[str, int]
  classes: tuple[str, ...] = ()
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """A dict that json.dumps takes and `from_json` reads back."""
    return {
      **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
      'tokenisers': {name: each.to_json() for name, each in self.tokenisers.items()},
      'classes': list(self.classes),
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'TextSpec':
    """The inverse of `to_json`."""
    made = {name: tokenisers.from_json(each) for name, each in values['tokenisers'].items()}
    return cls(**{**values, 'tokenisers': made, 'classes': tuple(values['classes'])})


# ---- reading ----


def read_file(path: Path, encoding: str = 'utf-8') -> str:
  """A file's text, with \\n for the ends of lines; a .gz is unpacked.

  Raises:
    UsageError: where there is none, it is empty, or its bytes are not of that encoding.
  """
  try:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == '.gz' else data).decode(encoding)
  except UnicodeDecodeError as error:
    raise errors.UsageError(
      f'{path} is not {encoding}: byte {error.start:,} is 0x{error.object[error.start]:02x}; '
      'name its encoding, as --encoding=latin-1'
    ) from None
  except LookupError:
    raise errors.UsageError(
      f'--encoding={encoding}: there is no such encoding; utf-8, latin-1 and utf-16 are common'
    ) from None
  except (OSError, EOFError, zlib.error) as error:
    raise errors.UsageError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from None
  text = text.removeprefix('\ufeff').replace('\r\n', '\n')
  if not text.strip():
    raise errors.UsageError(f'{path} is empty')
  return text


def find(name: str, data_dir: str | Path | None) -> Path:
  """The file `name` in the folder of data, or in its subfolder files/.

  Raises:
    UsageError: where it is in neither.
  """
  if not data_dir:
    raise errors.UsageError(f'{name} is needed: name the folder that holds it with --data_dir')
  root = Path(data_dir).expanduser()
  for path in (root / name, root / 'files' / name):
    if path.exists():
      return path
  raise errors.UsageError(f'{name} is neither in {root} nor in {root / "files"}')


def read(name: str, data_dir: str | Path | None = None, encoding: str = 'utf-8') -> dict[str, str]:
  """{split: text} of a source; one that has no splits of its own gives 'train' alone.

  Args:
    name: python_docs, the documentation text inside the standard library; tiny_shakespeare and other sets of TFDS with
      a feature 'text'; names (names.txt, a line each); text:PATH and lines:PATH, a file, or a folder of .txt files.
    data_dir: where files and prepared TFDS sets are found.
    encoding: of files.

  Raises:
    UsageError: in one line, for whatever is wrong with the name or the files.
  """
  if name == 'python_docs':
    from pydoc_data import topics

    return {'train': '\n'.join(topics.topics[topic] for topic in sorted(topics.topics))}
  if name == 'names':
    return {'train': read_file(find('names.txt', data_dir), encoding)}
  kind, colon, path = name.partition(':')
  if colon and kind in ('text', 'lines'):
    place = Path(path).expanduser()
    if not place.is_dir():
      return {'train': read_file(place, encoding)}
    files = sorted(place.rglob('*.txt'))
    if not files:
      raise errors.UsageError(f'{place} holds no .txt file')
    return {'train': '\n'.join(read_file(file, encoding) for file in files)}
  return _read_tfds(name, data_dir)


def _read_tfds(name, data_dir):
  import tensorflow_datasets

  folder = tfds.find(name, Path(data_dir).expanduser() if data_dir else None)
  builder = tensorflow_datasets.builder_from_directory(folder)
  if 'text' not in builder.info.features:
    raise errors.UsageError(f'{name} has features {", ".join(builder.info.features)}; expected one called text')
  texts = {
    split: '\n'.join(record['text'].decode() for record in builder.as_data_source(split=split))
    for split in builder.info.splits
    if split in ('train', 'validation', 'test')
  }
  if (
    name.partition(':')[0] == 'tiny_shakespeare'
  ):  # its splits are the parts of one text, and a run may cut it elsewhere
    return {'train': ''.join(texts[split] for split in ('train', 'validation', 'test'))}
  return texts


# ---- splits ----


def cut(text: str, validation: float, test: float) -> dict[str, str]:
  """A running text's parts: the last share is test, the one before it validation."""
  sizes = [_count(share, len(text), name) for name, share in (('validation', validation), ('test', test))]
  ends = np.cumsum([len(text) - sum(sizes), *sizes])
  if ends[0] < 1:
    raise errors.UsageError(
      f'--validation={validation} and --test={test} leave nothing of {len(text):,} characters to train on'
    )
  parts = [text[start:end] for start, end in zip([0, *ends], ends)]
  return {name: part for name, part in zip(('train', 'validation', 'test'), parts) if part}


def draw(lines: Sequence[str], validation: float, test: float, seed: int) -> dict[str, list[str]]:
  """Lines drawn for each split, in their stored order."""
  counts = [_count(share, len(lines), name) for name, share in (('validation', validation), ('test', test))]
  order = splitting.permutation(seed, 4, len(lines))
  if len(lines) - sum(counts) < 1:
    raise errors.UsageError(
      f'--validation={validation} and --test={test} leave none of {len(lines):,} lines to train on'
    )
  parts = np.split(order, np.cumsum(counts))
  named = {'train': parts[2], 'validation': parts[0], 'test': parts[1]}
  return {name: [lines[i] for i in np.sort(part)] for name, part in named.items() if len(part)}


def _count(share, size, name):
  if not 0 <= share < np.inf or (share > 1 and share != int(share)):
    raise errors.UsageError(f'--{name}={share}: give a share below 1, or a count')
  return math.ceil(round(share * size, 6)) if share < 1 else int(share)


def line_break(tokeniser: tokenisers.Tokeniser) -> int:
  """The token of a new line, or the first that stands for a text."""
  if tokeniser.kind == 'words' or (tokeniser.kind == 'characters' and '\n' not in tokeniser.symbols):
    return tokeniser.specials
  return int(tokeniser.encode('\n')[-1])


def load(
  name: str,
  *,
  context: int,
  tokeniser: str = 'characters',
  vocabulary: int = 0,
  minimum_frequency: int = 1,
  lower: bool = False,
  data_dir: str | Path | None = None,
  encoding: str = 'utf-8',
  validation: float = 0.05,
  test: float = 0.05,
  seed: int = 0,
  distinct: bool = False,
  overlap: int = 0,
  train_stride: int = 1,
  made: tokenisers.Tokeniser | None = None,
  specials: Sequence[str] = (),
  windowed: Callable[..., Split] = windows.windowed,
  lined: Callable[..., Split] = windows.lined,
) -> Dataset:
  """A data set for language models.

  Args:
    name, data_dir, encoding: as `read`'s; names and lines:PATH give lines, all others a running text.
    context: tokens of an example; of lines 0 is the longest line's.
    tokeniser, vocabulary, minimum_frequency, lower: as `tokenisers.make`'s.
    validation, test: shares of the text's end, or of the lines, drawn by `seed`, where the set has no such split.
    seed: of that draw.
    distinct: whether lines that occur again are left out, so that no split holds another's.
    overlap: tokens of context before those that a window of validation or test scores; 0: none.
    train_stride: from one window of train to the next; 1: a window begins at every token.
    made: a tokeniser to use instead of a new one.
    specials: as `tokenisers.make`'s; () are those that next tokens are predicted with.
    windowed, lined: what makes examples of a running text and of lines.

  Raises:
    UsageError: in one line, for whatever is wrong.
  """
  if context < 0 or not 0 <= overlap < max(context, 1):
    raise errors.UsageError(
      f'--context={context}, --overlap={overlap}: neither is negative, and the overlap is the smaller'
    )
  lines = name in LINES or name.startswith('lines:')
  texts, notes = read(name, data_dir, encoding), []
  if lines:
    rows = {split: [line.strip() for line in text.split('\n') if line.strip()] for split, text in texts.items()}
    if len(rows['train']) < 2:
      raise errors.UsageError(f'{name} has {len(rows["train"])} line; at least two are needed')
    if distinct:
      rows = {split: list(dict.fromkeys(each)) for split, each in rows.items()}
    parts = rows if len(rows) > 1 else draw(rows['train'], validation, test, seed)
    notes.append(f'{name}: lines, ' + ', '.join(f'{len(part):,} {split}' for split, part in parts.items()))
  else:
    parts = texts if len(texts) > 1 else cut(texts['train'], validation, test)
    notes.append(
      f'{name}: running text, ' + ', '.join(f'{len(part):,} {s}' for s, part in parts.items()) + ' characters'
    )
  everything = [line for part in parts.values() for line in part] if lines else list(parts.values())
  learnt = everything if tokeniser == 'characters' else (parts['train'] if lines else [parts['train']])
  if made is None:
    specials = specials or ((tokenisers.LINE_END,) if lines and tokeniser == 'characters' else ())
    made = tokenisers.make(
      tokeniser, learnt, specials=specials, vocabulary=vocabulary, minimum_frequency=minimum_frequency, lower=lower
    )
  if lines:
    encoded = {split: [made.encode(line) for line in part] for split, part in parts.items()}
    longest = max(len(line) for part in encoded.values() for line in part) + 1
    context = context or longest
    splits = {split: lined(part, context) for split, part in encoded.items()}
    cutoff = sum(len(line) >= context for part in encoded.values() for line in part)
    notes += (
      [f'{cutoff:,} lines are cut to --context={context} tokens; the longest has {longest - 1}'] if cutoff else []
    )
  else:
    if not context:
      raise errors.UsageError('--context=0 is for lines; a running text needs a number of tokens, as --context=64')
    encoded = {split: made.encode(part) for split, part in parts.items()}
    splits = {
      split: windowed(tokens, context, stride=train_stride if split == 'train' else context - overlap)
      for split, tokens in encoded.items()
    }
    notes.append(', '.join(f'{len(tokens):,} {split}' for split, tokens in encoded.items()) + f' tokens, {made.kind}')
  notes.append(f'{made.size:,} different tokens; examples of {context}')
  about = {'lines': lines}
  return Dataset(
    TextSpec(name, splits['train'].size, {'text': made}, {'text': context}, (), about), splits, tuple(notes)
  )
