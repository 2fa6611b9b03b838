"""Texts: their flags, their spec, their tokenisers and their splits."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpjax import config as configs
from karpjax.data import splitting, tokenisers
from karpjax.errors import UsageError

# ---- flags ----


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of every experiment on texts."""

  encoding: str = configs.data_flag(
    '', 'The encoding of text files. Default: as a byte-order mark says, that of the published files, or utf-8.'
  )
  lower: bool = configs.data_flag(False, 'Lower-case the texts.')
  minimum_frequency: int = configs.data_flag(1, 'Words that are rarer in train become <unk>.', low=1)
  vocabulary: int = configs.data_flag(0, 'The largest number of tokens, of words and bpe; 0: all words.', low=0)
  test: float = configs.data_flag(0.05, 'Fraction (below 1) or number held out as test where the set has none.', low=0)


@dataclasses.dataclass(frozen=True)
class TokeniserFlags(Flags):
  """Those of experiments whose texts may be cut into tokens of any kind."""

  tokeniser: str = configs.data_flag(
    'characters', 'characters, bytes, words, bpe, or bpe:FILE (a tokenizer.json).', path=True
  )


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
    made = {name: each.to_json() for name, each in self.tokenisers.items()}
    return {**configs.to_json(dataclasses.replace(self, tokenisers={})), 'tokenisers': made}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'TextSpec':
    """The inverse of `to_json`."""
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    made = {name: tokenisers.from_json(each) for name, each in values['tokenisers'].items()}
    return cls(**{**values, 'tokenisers': made})


# ---- splits and tokens ----


def hold_out(
  rows: Mapping[str, Sequence], amounts: Mapping[str, float], seed: int, **how
) -> tuple[dict[str, list], list[str]]:
  """Rows of train drawn for other splits, all in their stored order; and notes.

  Args:
    rows: {split: rows of any kind}.
    amounts: {split: fraction below 1, or number}; those for splits that the rows have already take nothing.
    seed: of the draw.
    how: as for `splitting.counts`; by default fractions are rounded up.

  Raises:
    UsageError: as `splitting.counts`.
  """
  amounts, train = {split: x for split, x in amounts.items() if x and split not in rows}, rows['train']
  counts = splitting.counts(amounts, len(train), **({'rounding': _rounded_up} | how))
  *parts, rest = np.split(splitting.permutation(seed, 4, len(train)), np.cumsum(counts))
  drawn = {split: [train[i] for i in np.sort(part)] for split, part in zip(('train', *amounts), (rest, *parts))}
  about = f'of the {len(train):,} train examples, drawn with seed {seed}'
  notes = [f'{split}: {len(drawn[split]):,} {about}' for split in amounts]
  return {**rows, **drawn}, notes


def _rounded_up(number: float) -> int:
  return math.ceil(round(number, 6))


def make_tokeniser(config, texts: Sequence[str], *, kind: str = '', kinds: Sequence[str] = (), **options):
  """The tokeniser of an experiment's flags.

  Args:
    config: with `Flags`.
    texts: what it is learnt from.
    kind: of tokeniser; '': that of `TokeniserFlags`.
    kinds: those that will do; () is any.
    options: others of `tokenisers.make`.
  """
  kind = kind or config.tokeniser
  if kinds and kind not in kinds:
    raise UsageError(f'tokeniser={kind}: {", ".join(kinds)} will do here')
  options |= {name: getattr(config, name) for name in ('vocabulary', 'minimum_frequency', 'lower')}
  return tokenisers.make(kind, texts, **options)


def refuse_streams(config, what: str) -> None:
  """Raises UsageError where examples are to go on from one to the next, which `what` do not."""
  if config.order == 'streams':
    raise UsageError(f'order=streams is for running texts; {what} do not go on from one to the next')


def tokeniser_of_run(workdir: str) -> tokenisers.Tokeniser | None:
  """That of the run of texts in a workdir, whose weights mean its tokens; None of anything else."""
  spec = (configs.saved(workdir) or {}).get('spec', {}) if workdir and Path(workdir).is_dir() else {}
  return tokenisers.from_json(spec['tokenisers']['text']) if 'text' in spec.get('tokenisers', ()) else None


def cut(text: str, amounts: Mapping[str, float]) -> dict[str, str]:
  """A running text's parts: train, and at its end one for each of the amounts."""
  sizes = splitting.counts(amounts, len(text), 'characters', rounding=_rounded_up)
  ends = np.cumsum([len(text) - sum(sizes), *sizes])
  parts = zip(('train', *amounts), [0, *ends], ends)
  return {split: text[start:end] for split, start, end in parts if start < end}
