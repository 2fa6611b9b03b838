"""Texts: samples by step, text as it is typed, letters on colours, and gates over a text."""

import html
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.report import page, plots, writers


def prepend_step(path: Path, t: int, text: str) -> None:
  """Writes a step's text at the head of a file, in one piece, instead of what the file has of this step or later ones."""
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


def on_colours(title: str, about: str, symbols: Sequence[str], rows: Mapping[str, np.ndarray]) -> bytes:
  """A page: the text once for each row of values in [−1, 1], as the colours of its letters.

  After Karpathy, Johnson & Fei-Fei 2015, "Visualizing and Understanding Recurrent Networks", figure 2.

  Args:
    about: a sentence below it.
    symbols: the text's pieces.
    rows: {heading: [symbols]}.
  """

  def letter(symbol, value):
    colour = f'{"0,98,163" if value > 0 else "213,94,0"},{0.75 * min(1.0, abs(float(value))):.2f}'
    return f'<span style="background:rgba({colour})">{html.escape(symbol)}</span>'

  about += '. Blue is +1, orange is −1. The colour of a letter is that after reading it.'
  letters = {heading: ''.join(map(letter, symbols, values)) for heading, values in rows.items()}
  return page.render(title, about, {heading: f'<pre>{text}</pre>' for heading, text in letters.items()})


def saturation(gates: Sequence[Mapping[str, np.ndarray]], heading: str, folder: Path, *, margin: float = 0.1) -> None:
  """plots/gate_saturation.png: for each unit the share of times its gate is nearly closed, and nearly open.

  After Karpathy, Johnson & Fei-Fei 2015, figure 3.

  Args:
    gates: of each layer, {name: [time, units] in [0, 1]}, of one name at least.
    margin: how near 0 or 1 a gate is saturated.
  """
  names, colours = list(gates[0]), (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)
  size = 3.2 * len(names) + 0.4, 3.6
  with plots.drawing(folder, 'gate_saturation', *size, ncols=len(names), squeeze=False) as (figure, (axes,)):
    for axis, name in zip(axes, names):
      for layer, (values, colour) in enumerate(zip(gates, colours), start=1):
        closed, opened = (values[name] < margin).mean(0), (values[name] > 1 - margin).mean(0)
        axis.scatter(opened, closed, s=9, color=colour, alpha=0.6, linewidths=0, label=f'layer {layer}')
      axis.plot([0, 1], [1, 0], color=plots.FAINT, linewidth=0.8)
      axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=f'share of times open (> {1 - margin:.1f})')
      axis.set_title(f'{name} gates', fontsize=9)
    axes[0].set_ylabel(f'share of times closed (< {margin:.1f})')
    axes[-1].legend(loc='upper right')
    figure.suptitle(heading, **plots.SUPTITLE)
