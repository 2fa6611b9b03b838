"""Texts: their flags, their spec and their splits; and the examples of a language model.

A running text gives windows of `context` tokens, gathered from the text inside the step; lines give an example each. An
example is {'tokens', 'targets'}, each [context] int32: the targets are the tokens that follow; −1 is not scored.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax import config as configs
from karpjax.data import splitting, text_files, tokenisers
from karpjax.data.bucketing import padded
from karpjax.data.dataset import Dataset, Split, take
from karpjax.errors import UsageError

# ---- flags ----


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of every experiment on texts."""

  encoding: str = configs.data_flag('', 'The encoding of text files. Default: that of the published files, or utf-8.')
  lower: bool = configs.data_flag(False, 'Lower-case the texts.')
  minimum_frequency: int = configs.data_flag(1, 'Words that are rarer in train become <unk>.', low=1)
  vocabulary: int = configs.data_flag(0, 'The largest number of tokens, of words and bpe; 0: all words.', low=0)
  test: float = configs.data_flag(
    0.05, 'Fraction (below 1) or number of examples held out as the test split where the set has none.', low=0
  )


@dataclasses.dataclass(frozen=True)
class TokeniserFlags(Flags):
  """Those of experiments whose texts may be cut into tokens of any kind."""

  tokeniser: str = configs.data_flag('characters', 'characters, bytes, words, bpe, or bpe:FILE (a tokenizer.json).')


@dataclasses.dataclass(frozen=True)
class LanguageFlags(TokeniserFlags):
  """Those of language models."""

  dataset: str = configs.flag(
    'python_docs',
    'python_docs, names, text:PATH, lines:PATH (files, or folders of .txt), or a TFDS name of a set with texts, such as '
    'tiny_shakespeare.',
  )
  context: int = configs.flag(64, 'Tokens of an example; 0: as many as the longest line has.', low=0)
  distinct: bool = configs.data_flag(False, 'Leave lines that occur again out, so that no split holds one of another.')


# ---- what a run remembers of its texts ----


@dataclasses.dataclass(frozen=True)
class TextSpec:
  """What a model, sampling and a prediction must know of a data set of texts; saved with a run.

  Attributes:
    name: of the data set.
    examples: size of the train split.
    tokenisers: by what they tokenise: 'text', or 'source' and 'target'.
    lengths: tokens of an example, by the same names.
    classes: names of the labels or tags, in their order; ().
    lines: whether an example is a line, not a window of a running text.
    buckets: rising lengths to which batches may be cut; ().
    pretrained: the sizes of a pretrained encoder, which has always seen <s> before a text; {}.
  """

  name: str
  examples: int
  tokenisers: Mapping[str, tokenisers.Tokeniser]
  lengths: Mapping[str, int]
  classes: tuple[str, ...] = ()
  lines: bool = False
  buckets: tuple[int, ...] = ()
  pretrained: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """A dict that json.dumps takes and `from_json` reads back."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    values = {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}
    return {**values, 'tokenisers': {name: each.to_json() for name, each in self.tokenisers.items()}}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'TextSpec':
    """The inverse of `to_json`."""
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    made = {name: tokenisers.from_json(each) for name, each in values['tokenisers'].items()}
    return cls(**{**values, 'tokenisers': made})


# ---- splits and tokens ----


def hold_out(rows: Mapping[str, Sequence], shares: Mapping[str, float], seed: int) -> dict[str, list]:
  """Rows of train drawn for other splits, all in their stored order.

  Args:
    rows: {split: rows of any kind}.
    shares: {split: fraction below 1, or number}; those of splits that the rows have already take nothing.
    seed: of the draw.

  Raises:
    UsageError: where a share makes no sense, or nothing is left to train on.
  """
  shares, train = {split: x for split, x in shares.items() if split not in rows}, rows['train']
  counts = _counts(shares, len(train), 'examples')
  *parts, rest = np.split(splitting.permutation(seed, 4, len(train)), np.cumsum(counts))
  drawn = {split: [train[i] for i in np.sort(part)] for split, part in zip(('train', *shares), (rest, *parts))}
  return {**rows, **{split: part for split, part in drawn.items() if part}}


def _counts(shares: Mapping[str, float], size: int, unit: str) -> list[int]:
  """How many of `size` each share stands for: a fraction below 1, or a number."""
  for split, share in shares.items():
    if not 0 <= share < math.inf or (share > 1 and share != int(share)):
      raise UsageError(f'{split}={share}: give a fraction below 1, or a number')
  counts = [math.ceil(round(share * size, 6)) if share < 1 else int(share) for share in shares.values()]
  if sum(counts) >= size:
    asked = ' and '.join(f'{split}={share}' for split, share in shares.items())
    raise UsageError(f'{asked} leave none of {size:,} {unit} to train on')
  return counts


def make_tokeniser(config, texts: Sequence[str], *, kinds: Sequence[str] = (), specials: Sequence[str] = ()):
  """The tokeniser of an experiment's flags.

  Args:
    config: with the flags of `TokeniserFlags`.
    texts: what it is learnt from.
    kinds: those that will do; () is any.
    specials: as `tokenisers.make`'s.
  """
  if kinds and config.tokeniser not in kinds:
    raise UsageError(f'tokeniser={config.tokeniser}: {", ".join(kinds)} will do here')
  options = {name: getattr(config, name) for name in ('vocabulary', 'minimum_frequency', 'lower')}
  return tokenisers.make(config.tokeniser, texts, specials=specials, **options)


def tokeniser_of_run(workdir: str) -> tokenisers.Tokeniser | None:
  """That of the run of texts in a workdir, whose weights mean its tokens; None of anything else."""
  spec = (configs.saved(workdir) or {}).get('spec') if workdir and Path(workdir).is_dir() else None
  return tokenisers.from_json(spec['tokenisers']['text']) if spec and 'text' in spec.get('tokenisers', ()) else None


def line_break(tokeniser: tokenisers.Tokeniser) -> int:
  """The token of a new line, or the first that stands for a text."""
  if tokeniser.kind == 'words' or (tokeniser.kind == 'characters' and '\n' not in tokeniser.symbols):
    return tokeniser.specials
  return int(tokeniser.encode('\n')[-1])


# ---- language models: reading ----


def is_lines(name: str) -> bool:
  """Whether a data set's examples are lines, not windows of a running text."""
  return name == 'names' or name.startswith('lines:')


def read(config) -> dict[str, list[str]]:
  """{split: rows}: a data set's lines, or one row that is the whole running text."""
  texts = text_files.read_texts(config.dataset, config.data_dir, config.encoding or 'utf-8')
  shares = {'validation': config.validation, 'test': config.test}
  if not is_lines(config.dataset):
    texts = texts if len(texts) > 1 else cut(texts['train'], shares)
    return {split: [text] for split, text in texts.items()}
  rows = {split: [line.strip() for line in text.split('\n') if line.strip()] for split, text in texts.items()}
  if len(rows['train']) < 2:
    raise UsageError(f'{config.dataset} has {len(rows["train"])} line; at least two are needed')
  if config.distinct:
    rows = {split: list(dict.fromkeys(each)) for split, each in rows.items()}
  return rows if len(rows) > 1 else hold_out(rows, shares, config.split_seed)


def cut(text: str, shares: Mapping[str, float]) -> dict[str, str]:
  """A running text's parts: train, and at its end one for each of the shares."""
  sizes = _counts(shares, len(text), 'characters')
  ends = np.cumsum([len(text) - sum(sizes), *sizes])
  parts = [text[start:end] for start, end in zip([0, *ends], ends)]
  return {split: part for split, part in zip(('train', *shares), parts) if part}


# ---- language models: examples ----


def windows(arrays, numbers, *, length: int, stride: int):
  """Windows of a running text, as a Split's `gather`.

  Args:
    arrays: 'text' [n] of any integer dtype.
    numbers: [batch] int32; window i begins at token i · stride.
    length: tokens of a window.
    stride: below the length, but for 1, a window scores only the tokens that the one before it did not, if it is not the first.

  Returns:
    'tokens' and 'targets', each [batch, length] int32.
  """
  text = arrays['text']
  at = numbers[:, None] * stride + np.arange(length + 1, dtype=np.int32)  # [batch, length + 1]
  inside = at < text.shape[0]
  values = take(text, at * inside).astype(np.int32)
  scored = inside[:, 1:]
  if 1 < stride < length:
    scored = scored & ((np.arange(length) >= length - stride) | (numbers[:, None] == 0))
  return {'tokens': values[:, :-1] * inside[:, :-1], 'targets': (values[:, 1:] + 1) * scored - 1}


def windowed(tokens: np.ndarray, length: int, *, stride: int) -> Split:
  """The windows of one text: with a stride of 1 all whole ones, else as many as score each token but the first once."""
  whole = len(tokens) - length  # each predicts `length` tokens
  if whole < 1 and stride == 1:
    raise UsageError(f'context={length} is longer than the text of {len(tokens):,} tokens; choose a smaller one')
  size = whole if stride == 1 else max(1, -(-(len(tokens) - 1 - (length - stride)) // stride))
  return Split.lazy(size, {'text': compact(tokens)}, functools.partial(windows, length=length, stride=stride))


def compact(tokens: np.ndarray) -> np.ndarray:
  """Tokens in the smallest dtype that holds them."""
  return tokens.astype(next(d for d in (np.uint8, np.uint16, np.int32) if tokens.max(initial=0) <= np.iinfo(d).max))


def lined(lines: Sequence[np.ndarray], length: int) -> Split:
  """A line an example: token 0, then its tokens, predict these and, at last, 0."""
  tokens = padded([[0, *line] for line in lines], length)
  targets = padded([[*line, 0] for line in lines], length, fill=-1, keep_last=True)
  return Split.of(tokens=tokens, targets=targets)


def load(
  config,
  *,
  overlap: int = 0,
  train_stride: int = 1,
  tokeniser: tokenisers.Tokeniser | None = None,
  kinds: Sequence[str] = (),
  specials: Sequence[str] = (),
  windowed: Callable[..., Split] = windowed,
  lined: Callable[..., Split] = lined,
) -> Dataset:
  """A data set for language models.

  Args:
    config: with `LanguageFlags`.
    overlap: tokens of context before those that a window of validation or test scores; 0: none.
    train_stride: from one window of train to the next; 1: a window begins at every token.
    tokeniser: one to use instead of a new one.
    kinds, specials: as `make_tokeniser`'s; () are the specials that next tokens are predicted with.
    windowed, lined: what makes examples of a running text and of lines.

  Raises:
    UsageError: in one line, for whatever is wrong.
  """
  name, context, lines = config.dataset, config.context, is_lines(config.dataset)
  if not overlap < max(context, 1):
    raise UsageError(f'context={context}, overlap={overlap}: the overlap must be the smaller')
  if not lines and not context:
    raise UsageError('context=0 is for lines; a running text needs a number of tokens, as context=64')
  rows = read(config)
  kind, unit = ('lines', '') if lines else ('running text', ' characters')
  sizes = {split: len(each) if lines else len(each[0]) for split, each in rows.items()}
  notes = [f'{name}: {kind}, ' + ', '.join(f'{size:,} {split}' for split, size in sizes.items()) + unit]

  if tokeniser is None:
    specials = specials or ((tokenisers.LINE_END,) if lines and config.tokeniser == 'characters' else ())
    everything = [row for each in rows.values() for row in each]  # of characters none may be unknown
    learnt = everything if config.tokeniser == 'characters' else rows['train']
    tokeniser = make_tokeniser(config, learnt, kinds=kinds, specials=specials)
  encoded = {split: [tokeniser.encode(row) for row in each] for split, each in rows.items()}
  if lines:
    lengths = [len(row) for each in encoded.values() for row in each]
    context = context or max(lengths) + 1
    splits = {split: lined(each, context) for split, each in encoded.items()}
    beyond = sum(length >= context for length in lengths)
    if beyond:
      notes.append(f'{beyond:,} lines are cut to context={context} tokens; the longest has {max(lengths)}')
  else:
    strides = {split: train_stride if split == 'train' else context - overlap for split in encoded}
    splits = {split: windowed(each[0], context, stride=strides[split]) for split, each in encoded.items()}
    sizes = ', '.join(f'{len(each[0]):,} {split}' for split, each in encoded.items())
    notes.append(f'{sizes} tokens, {tokeniser.kind}')
  notes.append(f'{tokeniser.size:,} different tokens; examples of {context}')
  spec = TextSpec(name, splits['train'].size, {'text': tokeniser}, {'text': context}, lines=lines)
  return Dataset(spec, splits, tuple(notes))
