"""How well words are tagged: per word by sums, per entity by seqeval from the collected tags themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from karpjax.data import tagged
from karpjax.metrics.collect import collect


def sums(predicted, targets, losses, begins, index, mask, *, examples: int) -> dict[str, Any]:
  """The sums of an evaluation; masked examples add nothing.

  Args:
    predicted: [batch, time] int32 in [0, tags); any number where the target is −1.
    targets: [batch, time] int32; −1 is not scored.
    losses: [batch] float32: an example's sum over its words.
    begins: [batch] bool, False where an example goes on with the sentence of the one before.
    index: [batch] int32 in [0, examples), an example's number.
    mask: [batch] bool, True where the example is real.
    examples: of the largest split.

  Returns:
    'loss': (sum, number of words); 'predicted', 'targets': [examples, time] int32: a tag's number + 1, or 0; 'begins':
    [examples] int32.
  """
  scored = targets >= 0  # [batch, time]
  rows = {name: jnp.where(scored, x + 1, 0) for name, x in (('predicted', predicted), ('targets', targets))}
  rows['begins'] = begins.astype(jnp.int32)
  words = (scored & mask[:, None]).sum().astype(jnp.float32)
  return {'loss': (jnp.where(mask, losses, 0).sum(), words), **collect(rows, index, mask, examples)}


def summarise(sums: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
  """The numbers of `sums` (on the host, one seed).

  Args:
    sums: as `sums` gives them.
    classes: names of the tags.

  Returns:
    'loss' per word, 'accuracy' and 'error' of words; where tags mark chunks, 'precision', 'recall' and 'f1' of
    entities, which are right if both their ends and their type are.
  """
  loss, words = map(float, sums['loss'])
  predicted, targets = np.asarray(sums['predicted']), np.asarray(sums['targets'])
  accuracy = ((predicted == targets) & (targets > 0)).sum() / words
  numbers = {'loss': loss / words, 'accuracy': accuracy, 'error': 1 - accuracy}
  if tagged.marks_chunks(classes):
    from seqeval.metrics import sequence_labeling

    both = (named(tags - 1, targets - 1, sums['begins'], classes) for tags in (targets, predicted))
    scores = sequence_labeling.precision_recall_fscore_support(*both, average='micro', zero_division=0)
    numbers |= dict(zip(('precision', 'recall', 'f1'), scores))
  return {name: float(value) for name, value in numbers.items()}


def named(tags: np.ndarray, targets: np.ndarray, begins: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
  """Names of `tags` [n, time] wherever `targets` [n, time] are not −1: a list for each sentence, all its rows in one.

  `begins` [n] says which rows begin a sentence: an entity may begin in one row and end in the next.
  """
  names, sentences = np.asarray(classes, object), []
  for row, real, first in zip(tags, targets >= 0, begins):
    if first or not sentences:
      sentences.append([])
    sentences[-1] += names[row[real]].tolist()
  return sentences


def entity_report(targets: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
  """seqeval's report in the form of `classification.per_class_report`: a row for each type of entity, and averages.

  Args:
    targets, predicted: names of tags, a list for each sentence.
  """
  from seqeval.metrics import classification_report

  rows = classification_report(targets, predicted, output_dict=True, zero_division=0)
  for scores in rows.values():
    scores |= {'f1': scores.pop('f1-score'), 'support': int(scores.pop('support'))}
  averages = {name: rows.pop(f'{name} avg') for name in ('micro', 'macro', 'weighted')}
  return {'classes': [{'class': name, **scores} for name, scores in rows.items()], **averages}
