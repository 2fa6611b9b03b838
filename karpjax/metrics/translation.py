"""How good translations are: sums over examples on the device; BLEU, chrF and exact matches of their texts on the
host.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karpjax import program
from karpjax.data import tokenisers
from karpjax.metrics.collect import collect

WORDS = tokenisers.Tokeniser('words', lower=True)


def sums(losses, targets, tokens, batch: Mapping[str, Any], examples: int) -> dict[str, Any]:
  """The sums of an evaluation; masked examples add nothing.

  Args:
    losses: [batch, time] float32, of each target token.
    targets: [batch, time] int32; −1 is not scored.
    tokens: [batch, time] int32, what was decoded, 0 after the end.
    batch: has 'index', 'mask' and 'reference', each [batch].
    examples: of the largest split.

  Returns:
    'loss': (sum over tokens, their number), float32 scalars.
    'tokens': [examples, time] int32, by the examples' index.
    'reference': [examples] int32, 1 + the number of its reference; 0 where the split has no such example.
  """
  mask = batch['mask']
  rows = collect({'tokens': tokens, 'reference': batch['reference'] + 1}, batch['index'], mask, examples)
  return {'loss': program.pair(losses, (targets >= 0) & mask[:, None]), **rows}


def summarise(sums: Mapping[str, Any], spec, references: Sequence[str]) -> dict[str, float]:
  """The final numbers of `sums`, on the host, of one seed: 'loss' and 'perplexity' per target token, and those of
  `compare`.

  Args:
    sums: as from `sums`.
    spec: of the data.
    references: the texts, by their numbers.
  """
  loss = float(sums['loss'][0]) / float(sums['loss'][1])
  rows = np.flatnonzero(sums['reference'])
  ours = [text(tokens, spec.tokenisers['target']) for tokens in np.asarray(sums['tokens'])[rows]]
  theirs = [references[number - 1] for number in np.asarray(sums['reference'])[rows]]
  return {'loss': loss, 'perplexity': float(np.exp(loss)), **compare(ours, theirs, spec)}


def compare(ours: Sequence[str], theirs: Sequence[str], spec) -> dict[str, float]:
  """'accuracy', the fraction of texts that are exactly right; of a natural language also `scores`."""
  accuracy = exact_match(ours, theirs, spec.tokenisers['target'])
  return {'accuracy': accuracy, **(scores(ours, theirs) if not spec.by_rule else {})}


def text(tokens, tokeniser: tokenisers.Tokeniser) -> str:
  """The text of tokens [time] up to the end; <unk> is ⁇, as SentencePiece writes it, one word to every way of cutting."""
  said, parts = itertools.takewhile(lambda token: token != tokenisers.END, tokens), []
  for run in [[*run] for _, run in itertools.groupby(said, lambda token: token == tokenisers.UNKNOWN)]:
    parts += ['⁇'] * len(run) if run[0] == tokenisers.UNKNOWN else [tokeniser.decode(run)]
  return (' ' if tokeniser.kind == 'words' else '').join(parts)


def separated(sentence: str) -> str:
  """A text's words and marks, lower-cased, set apart by spaces."""
  return ' '.join(WORDS.split(sentence))


def exact_match(ours: Sequence[str], theirs: Sequence[str], tokeniser: tokenisers.Tokeniser) -> float:
  """The fraction of texts that are the same, words by words, or character by character; as the tokeniser,
  of any case.
  """
  normal = separated if tokeniser.kind == 'words' else str.lower if tokeniser.lower else str
  return float(np.mean([normal(a) == normal(b) for a, b in zip(ours, theirs)]))


def _metrics():
  """{name: (sacrebleu's metric, what is done to the texts before)}"""
  from sacrebleu.metrics import BLEU, CHRF

  return {
    'bleu': (BLEU(lowercase=True, tokenize='none', force=True), separated),
    'bleu_13a': (BLEU(lowercase=True, tokenize='13a'), str),
    'chrf': (CHRF(lowercase=True), str),
  }


def scores(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, float]:
  """Of the whole corpus, by sacrebleu (Post 2018), in [0, 100].

  Returns:
    'bleu': of lower-cased words, as `separated` cuts them, which sacrebleu is told to leave as they are.
    'bleu_13a': of lower-cased texts, cut by sacrebleu's own rules: comparable with figures of others.
    'chrf': F2 of character n-grams up to 6 (Popović 2015), lower-cased.
  """
  return {
    name: float(metric.corpus_score([*map(before, ours)], [[*map(before, theirs)]]).score)
    for name, (metric, before) in _metrics().items()
  }


def signatures() -> list[dict[str, str]]:
  """How sacrebleu says that each of `scores` was computed: rows of 'metric' and 'signature'."""
  metrics = _metrics()
  for metric, _ in metrics.values():
    metric.corpus_score(['a'], [['a']])
  return [{'metric': name, 'signature': str(metric.get_signature())} for name, (metric, _) in metrics.items()]
