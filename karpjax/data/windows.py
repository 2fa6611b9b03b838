"""Examples of a language model: windows of a running text, or lines.

Each is {'tokens', 'targets'}, [length] int32: the targets are the tokens that follow; one of −1 is not scored.
"""

import functools
from collections.abc import Sequence

import numpy as np

from karpjax import errors
from karpjax.data.dataset import Split, take


def windows(arrays, numbers, *, length: int, stride: int):
  """Windows of a running text, as a Split's `gather`.

  Args:
    arrays: 'text' [n] of any integer dtype.
    numbers: [batch] int32; window i begins at token i · stride.
    length: tokens of a window.
    stride: where it is below the length, a window scores only the tokens that the one before it did not, if it is not
      the first; a stride of 1 scores all.

  Returns:
    'tokens' and 'targets', each [batch, length] int32: the targets are the tokens that follow; −1 is not scored.
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
    raise errors.UsageError(
      f'--context={length} is longer than the text of {len(tokens):,} tokens; choose a smaller one'
    )
  size = whole if stride == 1 else max(1, -(-(len(tokens) - 1 - (length - stride)) // stride))
  gather = functools.partial(windows, length=length, stride=stride)
  dtype = next(d for d in (np.uint8, np.uint16, np.int32) if tokens.max(initial=0) <= np.iinfo(d).max)
  return Split.made(size, {'text': tokens.astype(dtype)}, gather)


def lined(lines: Sequence[np.ndarray], length: int) -> Split:
  """A line an example: token 0, then its tokens, predict these and, at last, 0; what is behind that is not scored."""
  tokens = np.zeros((len(lines), length), np.int32)
  targets = np.full((len(lines), length), -1, np.int32)
  for row, line in enumerate(lines):
    line = line[: length - 1]
    tokens[row, 1 : len(line) + 1] = line
    targets[row, : len(line)] = line
    targets[row, len(line)] = 0
  return Split.of(tokens=tokens, targets=targets)
