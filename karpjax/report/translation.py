"""What a translation run leaves beside its curves: scores by beam, all translations, and where the decoder looked."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from karpjax.data import batches, tokenisers
from karpjax.data.dataset import Dataset
from karpjax.metrics import translation
from karpjax.report import plots, progress, writers

BEAMS = (1, 4, 5)
BATCH = 250  # sentences translated in one call
PICTURES = 4
LONGEST = 24  # tokens of a sentence that is drawn


def draw(translate: Callable, align: Callable, dataset: Dataset, state, t: int, folder: Path) -> None:
  """A Program's `report`: translates the test split (else validation, else train) with each of BEAMS.

  Leaves report.txt and report.json (the scores side by side), translations.txt (source, reference and ours, by the
  largest beam) and plots/alignments.png.

  Args:
    translate: (params, source [batch, places], beam) -> tokens [batch, time].
    align: (params, source, target_in) -> [batch, time, places], or None where the model does not attend.
    dataset: its spec holds the texts.
    state: of one seed.
    t: the step, for the heading.
    folder: the run's folder.
  """
  name = next(name for name in ('test', 'validation', 'train') if name in dataset.splits)
  split, spec, params = dataset.splits[name], dataset.spec, state.eval_params
  tokeniser, references = spec.tokenisers['target'], spec.references[name]
  rows, ours = {}, {}
  for beam in BEAMS:
    found = translated(lambda params, source: translate(params, source, beam), params, split)
    ours[beam] = [translation.text(tokens, tokeniser) for tokens in found]
    rows[beam] = {'accuracy': translation.exact_match(ours[beam], references, tokeniser)}
    if spec.about['text']:
      rows[beam] |= translation.scores(ours[beam], references)
  heading = f'{name} split, {split.size:,} texts, step {t}'
  signatures = translation.signatures() if spec.about['text'] else {}
  writers.write_json(
    Path(folder) / 'report.json',
    {'heading': heading, 'beams': {str(beam): row for beam, row in rows.items()}, 'signatures': signatures},
  )
  writers.write_bytes(Path(folder) / 'report.txt', table(rows, heading, signatures).encode())
  lines = zip(spec.sources[name], references, ours[BEAMS[-1]])
  content = '\n'.join(f'source     {a}\nreference  {b}\nours       {c}\n' for a, b, c in lines)
  writers.write_bytes(Path(folder) / 'translations.txt', content.encode())
  few = _short(split)
  alignments(align, params, {k: x[few] for k, x in split.fetch(np.arange(split.size)).items()}, spec, folder)


def translated(translate: Callable, params, split) -> np.ndarray:
  """The tokens of a split's translations, [size, time]; translate: (params, source) -> tokens."""
  compiled, found = jax.jit(translate), []
  for numbers, real in batches.exact(split.size, min(BATCH, split.size)):
    found.append(np.asarray(compiled(params, split.fetch(numbers)['source']))[real])
  return np.concatenate(found)


def table(rows: dict[int, dict[str, float]], heading: str, signatures: dict[str, str]) -> str:
  """The scores by beam, as aligned text, and how they were computed."""
  names = list(next(iter(rows.values())))
  shown = lambda name, x: f'{100 * x:.2f} %' if name == 'accuracy' else f'{x:.2f}'
  lines = [(f'beam {beam}', *(shown(name, row[name]) for name in names)) for beam, row in rows.items()]
  notes = [f'{name}: sacrebleu {signature}' for name, signature in signatures.items()]
  return '\n'.join([heading, '', *progress.table(lines, ('', *names)), '', *notes, ''])


def _short(split) -> np.ndarray:
  """The numbers of the first few examples that can be drawn."""
  rows = split.fetch(np.arange(split.size))
  short = np.flatnonzero(((rows['source'] != 0).sum(1) <= LONGEST) & ((rows['targets'] >= 0).sum(1) <= LONGEST))
  return short[:PICTURES]


def alignments(align: Callable, params, batch, spec, folder: Path) -> Path | None:
  """plots/alignments.png: for a few sentences and their references, which source token each target token looks at."""
  if not len(batch['source']):
    return None
  weights = jax.jit(align)(params, batch['source'], batch['target_in'])
  if weights is None:
    return None
  source, target = (spec.tokenisers[side] for side in ('source', 'target'))
  cells = []
  for tokens, targets, share in zip(batch['source'], batch['targets'], np.asarray(weights)):
    tokens, targets = tokens[tokens != 0], targets[targets >= 0]
    cells.append((_names(tokens, source), _names(targets, target), share[: len(targets), : len(tokens)]))
  return grid(cells, folder)


def _names(tokens, tokeniser: tokenisers.Tokeniser) -> list[str]:
  if tokeniser.kind == 'bpe':
    return [tokeniser.decode([token]) or tokeniser.symbols[token] for token in tokens]
  return [tokeniser.symbols[token].replace(' ', '␣') for token in tokens]


@plots.styled
def grid(cells: Sequence[tuple[Sequence[str], Sequence[str], np.ndarray]], folder: Path) -> Path:
  """plots/alignments.png of (names of the places, names of the times, weights [times, places]), side by side."""
  figure, axes = plots.new_figure(4.2 * min(2, len(cells)), 4.0 * -(-len(cells) // 2), -(-len(cells) // 2), **{
    'ncols': min(2, len(cells)), 'squeeze': False})  # fmt: skip
  for axis in axes.flat:
    axis.set_axis_off()
  for axis, (places, times, weights) in zip(axes.flat, cells):
    axis.set_axis_on()
    axis.imshow(weights, cmap='Blues', vmin=0, vmax=1, aspect='auto', interpolation='nearest')
    axis.set_xticks(range(len(places)), [plots.short(x, 14) for x in places], rotation=90, fontsize=7)
    axis.set_yticks(range(len(times)), [plots.short(x, 14) for x in times], fontsize=7)
    axis.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)
  return plots.save(figure, folder, 'alignments')
