"""What a tagger leaves: scores per type of entity, the confusion of tags, and sentences it got wrong."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from karpjax.data import tagged
from karpjax.metrics import classification
from karpjax.metrics import tagging as metrics
from karpjax.report import classification as tables
from karpjax.report import plots, writers

BATCH = 250  # sentences in one call of predict
MISTAKES = 30


def draw(program, dataset, state, t: int, folder: Path, *, seeds: int = 1) -> None:
  """A Program's `report`: report.txt, report.json and the confusion matrix of the test split (else validation, else train).

  Args:
    program: its `predict` gives tags [batch, time] int32.
    dataset: as `tagged.load` gives it.
    state: of one seed.
    t: the step, for the report's heading.
    folder: the run's folder.
    seeds: how many the run has; `state` is that of the first.
  """
  name = next(name for name in ('test', 'validation', 'train') if name in dataset.splits)
  split, spec = dataset.splits[name], dataset.spec
  predicted, targets = predict(program, state, split.arrays), split.arrays['targets']
  right, found = (metrics.named(tags, targets, spec.classes) for tags in (targets, predicted))
  numbers = {tag: i for i, tag in enumerate(spec.classes)}
  counts = np.zeros((len(numbers),) * 2, np.int64)
  for pair in zip(right, found):
    np.add.at(counts, tuple([numbers[tag] for tag in tags] for tags in pair), 1)
  chunks = tagged.marks_chunks(spec.classes)
  scores = metrics.entity_report(right, found) if chunks else classification.per_class_report(counts, spec.classes)
  shown = f'first of {seeds} seeds' if seeds > 1 else ''
  heading, note = f'{name} split, step {t}', f' · {shown}' if shown else ''
  writers.write_json(folder / 'report.json', {'heading': heading, 'shown': shown, **scores})
  wrong = []
  for characters, *tags in zip(split.arrays['characters'], right, found):
    words = spelt(spec, characters[: len(tags[0])])
    a, b = ((entities if chunks else list_tags)(words, each) for each in tags)
    if a != b:
      wrong.append((words, a, b))
  lines = [f'{len(wrong):,} of {len(right):,} sentences with a mistake' + (':' if wrong else ''), '']
  lines += [line for each in wrong[:MISTAKES] for line in mistake(*each)]
  text = '\n'.join([tables.table(scores, heading + note), *lines])
  writers.write_bytes(folder / 'report.txt', text.encode())
  plots.confusion(counts, spec.classes, folder, note)


def predict(program, state, arrays) -> np.ndarray:
  """The tags [n, time] int32 of all sentences in `arrays`, 'tokens' [n, time] and 'characters' [n, time, C]."""
  size = len(arrays['tokens'])
  batch = min(BATCH, size)
  call = jax.jit(lambda state, inputs: program.predict(state, inputs, jax.random.key(0)))
  parts = []
  for start in range(0, size, batch):
    rows = (start + np.arange(batch)) % size  # the last batch is filled up from the first
    inputs = {name: arrays[name][rows] for name in ('tokens', 'characters')} | {'index': rows.astype(np.int32)}
    parts.append(np.asarray(call(state, inputs)))
  return np.concatenate(parts)[:size]


Found = list[tuple[int, str, str]]  # the place of its first word, its words, its type


def mistake(words: Sequence[str], right: Found, found: Found) -> list[str]:
  """A sentence, and what was expected and predicted where the two differ."""
  listed = lambda ones, others: (
    ', '.join(f'{word} ({tag})' for i, word, tag in ones if (i, word, tag) not in others) or '–'
  )
  return [' '.join(words), f'  expected:  {listed(right, found)}', f'  predicted: {listed(found, right)}', '']


def spelt(spec, characters: np.ndarray) -> list[str]:
  """Words from their characters [words, C]; those that train has not are �."""
  symbols = ['', '\ufffd', *spec.tokenisers['characters'].symbols[2:]]
  return [''.join(symbols[c] for c in word) for word in characters]


def list_tags(words: Sequence[str], tags: Sequence[str]) -> Found:
  """Each word with its tag."""
  return list(zip(range(len(words)), words, tags))


def entities(words: Sequence[str], tags: Sequence[str]) -> Found:
  """The chunks that tags in BIO2 mark; as seqeval, an I- that goes on with nothing begins one."""
  found = []
  for i, (word, tag) in enumerate(zip(words, tagged.bio2(tags))):
    if tag.startswith('B-'):
      found.append((i, word, tag[2:]))
    elif tag.startswith('I-'):
      first, sofar, kind = found[-1]
      found[-1] = first, f'{sofar} {word}', kind
  return found


def columns(program, state, spec, texts: Sequence[str]) -> list[str]:
  """For `launch.py predict`: a line 'word tag' for each word of the texts, and an empty line behind each text."""
  sentences = [tagged.words_of(text) for text in texts]
  tags = predict(program, state, tagged.encode(spec, sentences))
  return [
    line
    for words, row in zip(sentences, tags)
    for line in (*(f'{word} {spec.classes[tag]}' for word, tag in zip(words, row)), '')
  ]
