"""Examples of a language model: of a running text windows of `context` tokens, of lines an example each.

An example is {'tokens', 'targets'}, each [context] int32: the targets are the tokens that follow; −1 is not scored.
Windows are gathered from the text inside the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from karpjax import config as configs
from karpjax.data import folders, text, text_files, tokenisers
from karpjax.data.bucketing import padded
from karpjax.data.dataset import Dataset, Split, take
from karpjax.errors import UsageError

SOURCES = ('python_docs', 'tiny_shakespeare', 'names', 'text:PATH', 'lines:PATH')


@dataclasses.dataclass(frozen=True)
class LanguageFlags(text.TokeniserFlags):
  """Those of language models."""

  dataset: str = configs.flag(
    'python_docs',
    'python_docs, names, text:PATH, lines:PATH (files, or folders of .txt), or a TFDS name of a set with texts, such as '
    'tiny_shakespeare.',
    path=True,
  )
  context: int = configs.flag(64, 'Tokens of an example; 0: as many as the longest line has.', low=0)
  distinct: bool = configs.data_flag(False, 'Leave lines that occur again out, so that no split holds one of another.')


def line_break(tokeniser: tokenisers.Tokeniser) -> int:
  """The token of a new line, or the first that stands for a text."""
  known = tokeniser.kind != 'words' and not tokeniser.unknown('\n')
  return int(tokeniser.encode('\n')[-1]) if known else tokeniser.specials


def prompt(spec: text.TextSpec, words: str) -> list[int]:
  """The tokens of a text's beginning, behind token 0 where texts are lines; a new line where there is none."""
  tokeniser = spec.tokenisers['text']
  return [0] * spec.lines + tokeniser.encode(words).tolist() or [line_break(tokeniser)]


def name(spec: text.TextSpec, token: int) -> str:
  """A token as it is shown; token 0 of lines, which begins and ends each, is a new line."""
  return '↵' if spec.lines and token == 0 else spec.tokenisers['text'].name(token)


# ---- reading ----


def read(config) -> tuple[dict[str, list[str]], bool, list[str]]:
  """{split: rows}, a data set's lines, or one row that is the whole running text; whether rows are lines; and notes."""
  name, (kind, _, path) = config.dataset, config.dataset.partition(':')
  if name == 'python_docs':
    from pydoc_data import topics

    texts = {'train': '\n'.join(topics.topics[topic] for topic in sorted(topics.topics))}
  elif name == 'names' or (path and kind in ('text', 'lines')):
    place = Path(path) if path else text_files.find('names.txt', config.data_dir)
    files = folders.files(place, ('.txt',)) if place.is_dir() else [place]
    if not files:
      raise UsageError(f'{place} holds no .txt file')
    named = folders.by_split(files) if {file.parent for file in files} == {place} else {}
    whole = 'train' in named and len(named) == len(files)
    parts = {split: [file] for split, file in named.items()} if whole else {'train': files}
    texts = {split: '\n'.join(text_files.read_file(f, config.encoding) for f in each) for split, each in parts.items()}
  else:
    reader = lambda features: (lambda record: record['text'].decode()) if 'text' in features else None
    texts = text_files.read_tfds(config, reader, sources=SOURCES, expected='one called text', such='tiny_shakespeare')
    texts = {split: '\n'.join(rows) for split, rows in texts.items()}
    if kind == 'tiny_shakespeare':  # its splits are the parts of one text, and a run may cut it elsewhere
      texts = {'train': ''.join(texts[split] for split in folders.SPLITS)}

  amounts = {'validation': config.validation, 'test': config.test}
  if name != 'names' and kind != 'lines':
    texts |= text.cut(texts['train'], {split: x for split, x in amounts.items() if split not in texts})
    sizes = text_files.sizes(texts)
    return {split: [text] for split, text in texts.items()}, False, [f'{name}: running text, {sizes} characters']
  rows = {split: [line.strip() for line in each.split('\n') if line.strip()] for split, each in texts.items()}
  if config.distinct:
    first = {line: split for split, each in reversed(rows.items()) for line in each}
    rows = {split: [line for line in dict.fromkeys(each) if first[line] == split] for split, each in rows.items()}
    rows = {split: each for split, each in rows.items() if each}
  if len(rows['train']) < 2:
    raise UsageError(f'{name} has {len(rows["train"])} line; at least two are needed')
  rows, notes = text.hold_out(rows, amounts, config.split_seed)
  seen, notes = set(rows['train']), [*notes, f'{name}: lines, {text_files.sizes(rows)}']
  for split in [split for split in rows if split != 'train']:
    if again := sum(line in seen for line in rows[split]):
      share = f'{again:,} of its {len(rows[split]):,} lines ({again / len(rows[split]):.1%})'
      notes.append(f'{split}: {share} are in train too; distinct leaves lines out that occur again')
  return rows, True, notes


# ---- examples ----


def windows(arrays, numbers, *, length: int, stride: int, overlap: int = 0):
  """Windows of a running text, as a Split's `gather`.

  Args:
    arrays: 'text' [n] of any integer dtype.
    numbers: [batch] int32; window i begins at token i · stride.
    length: tokens of a window.
    stride: from one window to the next.
    overlap: how many of its targets, its first, a window does not score, if it is not the first one.

  Returns:
    'tokens' and 'targets', each [batch, length] int32.
  """
  text = arrays['text']
  at = numbers[:, None] * stride + np.arange(length + 1, dtype=np.int32)  # [batch, length + 1]
  inside = at < text.shape[0]
  values = take(text, at * inside).astype(np.int32)
  scored = inside[:, 1:]
  if overlap:
    scored = scored & ((np.arange(length) >= overlap) | (numbers[:, None] == 0))
  return {'tokens': values[:, :-1] * inside[:, :-1], 'targets': (values[:, 1:] + 1) * scored - 1}


def windowed(
  tokens: np.ndarray, length: int, *, overlap: int | None, gather: Callable = windows, begin: int = 0
) -> Split:
  """The windows of one text: as many as score each token but the first once; or, to train, all whole ones.

  Args:
    tokens: [n] int.
    length: tokens of a window.
    overlap: tokens that a window shares with the one before it, and does not score again; None: a window begins at
      every token, and scores all of its own.
    gather: as `windows`.
    begin: 1 where windows begin with <s>, which is not of the text, and score all of it.
  """
  scored, width = len(tokens) - 1 + begin, length - begin
  stride = 1 if overlap is None else length - overlap
  size = scored - width + 1 if overlap is None else max(1, -(-(scored - (width - stride)) // stride))
  if size < 1:
    raise UsageError(f'context={length} is longer than the text of {len(tokens):,} tokens; choose a smaller one')
  smallest = next(d for d in (np.uint8, np.uint16, np.int32) if tokens.max(initial=0) <= np.iinfo(d).max)
  gather = functools.partial(gather, length=length, stride=stride, overlap=overlap or 0)
  return Split.lazy(size, {'text': tokens.astype(smallest)}, gather)


def lined(lines: Sequence[np.ndarray], length: int, overlap: int = 0) -> Split:
  """A line an example: token 0, then its tokens, predict these and, at last, 0.

  A longer line is several, as a running text is: each shares `overlap` tokens with that before it, and does not score
  them.
  """
  tokens, targets = [], []
  for line in lines:
    for start in range(0, max(len(line) + 1 - overlap, 1), length - overlap):
      seen = overlap if start else 0
      tokens.append([0, *line][start : start + length])
      targets.append([-1] * seen + [*line, 0][start + seen : start + length])
  return Split.of(tokens=padded(tokens, length), targets=padded(targets, length, fill=-1))


def load(
  config, *, overlap: int = 0, streams: bool = False, tokeniser=None, windowed=windowed, lined=lined, **options
) -> Dataset:
  """A data set for language models.

  Args:
    config: with `LanguageFlags`.
    overlap: tokens of context before those that a window of validation or test scores; 0: none.
    streams: whether a window of train begins where the one before it ends, and not at every token.
    tokeniser: one to use instead of a new one.
    windowed, lined: what makes examples of a running text and of lines: all of them, in pieces of `context` tokens.
    options: of `text.make_tokeniser`; by default the specials that next tokens are predicted with.

  Raises:
    UsageError: in one line, for whatever is wrong.
  """
  name, context = config.dataset, config.context
  if not overlap < max(context, 1):
    raise UsageError(f'context={context}, overlap={overlap}: the overlap must be the smaller')
  rows, lines, notes = read(config)
  if not lines and not context:
    raise UsageError('context=0 is for lines; a running text needs a number of tokens, as context=64')
  if tokeniser is None:
    by_characters = config.tokeniser == 'characters'  # of which none may be unknown
    options = options or {'specials': (tokenisers.LINE_END,) if lines and by_characters else ()}
    learnt = [row for each in rows.values() for row in each] if by_characters else rows['train']
    tokeniser = text.make_tokeniser(config, learnt, **options)
  encoded = {split: [tokeniser.encode(row) for row in each] for split, each in rows.items()}
  if lines:
    lengths = [len(row) for each in encoded.values() for row in each]
    context = context or max(lengths) + 1
    splits = {split: lined(each, context, 0 if split == 'train' else overlap) for split, each in encoded.items()}
    if beyond := sum(length >= context for length in lengths):
      notes.append(f'{beyond:,} lines are read in pieces of context={context} tokens; the longest has {max(lengths)}')
  else:
    encoded = {split: whole for split, [whole] in encoded.items()}
    overlaps = {split: overlap for split in encoded} | {'train': 0 if streams else None}
    splits = {split: windowed(each, context, overlap=overlaps[split]) for split, each in encoded.items()}
    notes.append(f'{text_files.sizes(encoded)} tokens, {tokeniser.kind}')
  notes.append(f'{tokeniser.size:,} different tokens; examples of {context}')
  spec = text.TextSpec(name, splits['train'].size, {'text': tokeniser}, {'text': context}, lines=lines)
  return Dataset(spec, splits, tuple(notes))
