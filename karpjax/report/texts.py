"""Texts: samples by step, text as it is typed, and what models of texts do inside."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import splitting
from karpjax.report import explanations, page, plots, writers

MAPPED, READ = 32, 600  # tokens of an attention map, and of the text that cells are coloured over
CELLS = 12  # of each layer
PICTURES, LONGEST = 4, 24  # sentences whose alignments are drawn, and their tokens at most
MARGIN = 0.1  # how near 0 or 1 a gate is saturated


def prepend_step(path: Path, t: int, text: str) -> None:
  """Writes a step's text at the head of a file, in one piece, instead of what the file has of this step or later
  ones.
  """
  text = re.sub(r'^(?=step [\d,]+$)', ' ', text, flags=re.M)  # no head of a block
  before = path.read_text(encoding='utf-8') if path.exists() else ''
  blocks = re.findall(r'^step ([\d,]+)\n(.*?)(?=^step [\d,]+\n|\Z)', before, flags=re.M | re.S)
  older = [f'step {step}\n{body}' for step, body in blocks if int(step.replace(',', '')) < t]
  writers.write_bytes(path, (f'step {t:,}\n\n{text}\n\n' + ''.join(older)).encode())


def typed(chunks: Iterable[np.ndarray], decode: Callable[[list[int]], str], steps: int) -> Iterator[str]:
  """A stream of one text's tokens as strings, whole characters at a time; the tokens per second go to standard error.

  Args:
    chunks: [1, n] int32 each.
    decode: tokens -> their text.
  """
  tokens, shown, begin, first = [], '', 0.0, 0
  for chunk in chunks:
    if not tokens:
      begin, first = time.perf_counter(), chunk.shape[1]  # what came before was compilation, and the prompt
    tokens = [*tokens, *chunk[0].tolist()][:steps]
    text = decode(tokens).removesuffix('\N{REPLACEMENT CHARACTER}')  # half a character waits for the other half
    yield text[len(shown) :]
    shown = text
    if len(tokens) >= steps:
      break
  seconds = time.perf_counter() - begin
  rate = f', {(len(tokens) - first) / seconds:,.0f} tokens/s' if len(tokens) > first else ''
  print(f'\n({len(tokens)} tokens{rate})', file=sys.stderr)


# ---- a look inside ----


def attention_maps(maps: np.ndarray, names: Sequence[str], about: str, folder: Path) -> None:
  """plots/attention_maps.png: of up to 8 layers and heads.

  Args:
    maps: [layers, heads, time, time], how much each token looks at each other.
    names: [time], the tokens.
    about: for the heading.
  """
  places = list(np.ndindex(*maps[:8, :8].shape[:2]))
  plots.heat_maps(
    [(maps[place], names, names) for place in places],
    folder,
    'attention_maps',
    columns=min(maps.shape[1], 8),
    width=2.6,
    titles=[f'layer {layer + 1}, head {head + 1}' for layer, head in places],
    heading=f'Attention maps · {about}',
  )


def alignments(align: Callable, batch: Mapping, tokenisers: Mapping, folder: Path) -> None:
  """plots/alignments.png: the source tokens that each target token of a few short sentences attends to.

  Args:
    align: a batch -> [batch, target time, source time]; or None, of a model that does not attend.
    batch: 'source', 0 behind its end, and 'targets', −1 there, [batch, time] each.
    tokenisers: of 'source' and 'target'.
  """
  sizes = np.maximum((batch['source'] != 0).sum(1), (batch['targets'] >= 0).sum(1))
  short = np.flatnonzero(sizes <= LONGEST)
  few = {name: rows[short[splitting.sample(len(short), PICTURES)]] for name, rows in batch.items()}
  weights = align(few) if len(short) else None
  if weights is None:
    return
  cells = []
  for source, target, each in zip(few['source'], few['targets'], np.asarray(weights)):
    across, down = source[source != 0], target[target >= 0]
    names = [*map(tokenisers['source'].name, across)], [*map(tokenisers['target'].name, down)]
    cells.append((each[: len(down), : len(across)], *names))
  plots.heat_maps(cells, folder, 'alignments')


def cells(symbols: Sequence[str], rows: Mapping[str, np.ndarray], gates, about: str, folder: Path) -> None:
  """cells.html, the text once for each cell, whose values are the colours of its letters, and
  plots/gate_saturation.png.

  After Karpathy, Johnson & Fei-Fei 2015, "Visualizing and Understanding Recurrent Networks", figures 2 and 3.

  Args:
    symbols: the text's pieces.
    rows: {heading: values [symbols] in [−1, 1]}.
    gates: of each layer, {name: [symbols, units] in [0, 1]}.
    about: a sentence.
  """

  what = f'{about}: the {CELLS} cells of each layer whose values differ the most. Blue is +1, orange is −1. '
  what += 'The colour of a letter is that after reading it.'
  letters = {
    heading: f'<pre>{"".join(map(explanations.letter, symbols, values))}</pre>' for heading, values in rows.items()
  }
  writers.write_bytes(folder / 'cells.html', page.render('Cells over text', what, letters))
  if gates[0]:
    _saturation(gates, f'Gate saturation · {about}', folder)


def _saturation(gates: Sequence[Mapping[str, np.ndarray]], heading: str, folder: Path) -> None:
  """For each unit the share of times its gate is nearly closed, and nearly open."""
  names, colours = list(gates[0]), (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)
  size = 3.2 * len(names) + 0.4, 3.6
  with plots.drawing(folder, 'gate_saturation', *size, ncols=len(names), squeeze=False) as (figure, (axes,)):
    for axis, name in zip(axes, names):
      for layer, (values, colour) in enumerate(zip(gates, colours), start=1):
        closed, opened = (values[name] < MARGIN).mean(0), (values[name] > 1 - MARGIN).mean(0)
        axis.scatter(opened, closed, s=9, color=colour, alpha=0.6, linewidths=0, label=f'layer {layer}')
      axis.plot([0, 1], [1, 0], color=plots.FAINT, linewidth=0.8)
      axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=f'share of times open (> {1 - MARGIN:.1f})')
      axis.set_title(f'{name} gates', fontsize=9)
    axes[0].set_ylabel(f'share of times closed (< {MARGIN:.1f})')
    axes[-1].legend(loc='upper right')
    figure.suptitle(heading, **plots.SUPTITLE)
