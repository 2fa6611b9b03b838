"""A look inside language models: cells over text, gates, and attention maps."""

import functools
import html
from pathlib import Path

import jax
import numpy as np

from karpjax.report import plots

CELLS = 12
SATURATED = 0.1  # from 0 or from 1


@functools.lru_cache(maxsize=4)
def _looking(model):
  return jax.jit(lambda variables, tokens: model.apply(variables, tokens, mutable='intermediates')[1]['intermediates'])


def attention(model, variables, tokens: np.ndarray) -> np.ndarray:
  """tokens [1, time] -> [layers, heads, time, time] float32: how much each token looks at each one before it."""
  found = _looking(model)({'params': variables['params']}, tokens)
  return np.stack([found[f'blocks_{i}']['attention']['attention'][0][0] for i in range(model.layers)])


def activations(model, variables, tokens: np.ndarray) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]]]:
  """What recurrent layers do over a text [n].

  Returns:
    For each layer: tanh of its cells (of an LSTM), else its state, [n, units] in [-1, 1]; and its gates, {name: [n, units]}.
  """
  found, cells, gates = _looking(model)(variables, tokens[None])['stack'], [], []
  for i in range(1, len(model.units) + 1):
    inside = jax.tree.map(lambda x: np.asarray(x)[:, 0], found[f'layer{i}']['inside'][0])  # [n, …] each
    cells.append(np.tanh(inside['states'][-1]) if model.cell == 'lstm' else inside['states'][0])
    blocks = np.split(1 / (1 + np.exp(-inside['gates'])), max(1, inside['gates'].shape[-1] // model.units[i - 1]), -1)
    named = {'lstm': {'input': 0, 'forget': 1, 'output': 3}, 'gru': {'reset': 0, 'update': 1}, 'rnn': {}}[model.cell]
    gates.append({name: blocks[place] for name, place in named.items()})
  return cells, gates


def coloured(cells: list[np.ndarray], symbols: list[str], about: str) -> str:
  """A page: the text once for each of the cells that swing the most, its letters on blue (+1) and red (−1).

  After Karpathy, Johnson & Fei-Fei 2015, «Visualizing and Understanding Recurrent Networks», figure 2.
  """
  parts = []
  for layer, values in enumerate(cells, start=1):
    for unit in np.argsort(-values.std(0), kind='stable')[:CELLS]:
      letters = ''.join(
        f'<span style="background:{_colour(value)}">{html.escape(symbol)}</span>'
        for symbol, value in zip(symbols, values[:, unit])
      )
      parts.append(f'<h2>layer {layer}, cell {unit}</h2>\n<pre>{letters}</pre>')
  style = (
    'body{font:15px/1.5 system-ui,sans-serif;margin:24px auto;max-width:1000px;padding:0 20px;background:#fff;color:#1d2129}'
    'pre{white-space:pre-wrap;font:13px/1.6 ui-monospace,monospace}h2{font-size:15px;margin:24px 0 6px}'
  )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Cells over text</title>'
    f'<style>{style}</style></head>\n<body><h1>Cells over text</h1>\n<p>{html.escape(about)}: the {CELLS} cells of each '
    'layer whose values differ the most; blue is +1, orange is −1. The colour of a letter is that after reading it.</p>\n'
    + '\n'.join(parts)
    + '\n</body></html>\n'
  )


def _colour(value: float) -> str:
  strength = min(1.0, abs(float(value)))
  red, green, blue = (0, 98, 163) if value > 0 else (213, 94, 0)
  return f'rgba({red},{green},{blue},{0.75 * strength:.2f})'


@plots.styled
def draw_attention(maps: np.ndarray, symbols: list[str], folder: Path, about: str) -> Path:
  """plots/attention_maps.png: maps [layers, heads, time, time], rows the tokens that look; the first eight of each."""
  layers, heads = (min(n, 8) for n in maps.shape[:2])
  names = [symbol.replace('\n', '↵').replace(' ', '␣') or '·' for symbol in symbols]
  figure, axes = plots.new_figure(2.6 * heads + 0.6, 2.6 * layers + 0.6, layers, ncols=heads, squeeze=False)
  for i, row in enumerate(axes):
    for j, axis in enumerate(row):
      axis.imshow(maps[i, j], cmap='Blues', vmin=0, vmax=1)
      axis.grid(False)
      axis.set_title(f'layer {i + 1}, head {j + 1}', fontsize=8)
      places = range(len(names)) if len(names) <= 40 else []
      axis.set_xticks(places, names[: len(places)], fontsize=5)
      axis.set_yticks(places, names[: len(places)], fontsize=5)
  figure.suptitle(f'Attention maps · {about}', x=0.01, ha='left', fontweight='bold', fontsize=10.5)
  return plots.save(figure, folder, 'attention_maps')


@plots.styled
def draw_saturation(gates: list[dict[str, np.ndarray]], folder: Path, about: str) -> Path | None:
  """plots/gate_saturation.png: for each unit the share of times its gate is nearly closed, and nearly open.

  After Karpathy, Johnson & Fei-Fei 2015, figure 3.

  Args:
    gates: of each layer, {name: [n, units] in [0, 1]}; a plain RNN has none, and gets no plot.
    folder: the run's folder.
    about: what was read.
  """
  names = list(gates[0])
  if not names:
    return None
  figure, axes = plots.new_figure(3.2 * len(names) + 0.4, 3.6, 1, ncols=len(names), squeeze=False)
  for axis, name in zip(axes[0], names):
    for layer, (values, colour) in enumerate(
      zip(gates, (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)), start=1
    ):
      closed, opened = (values[name] < SATURATED).mean(0), (values[name] > 1 - SATURATED).mean(0)
      axis.scatter(opened, closed, s=9, color=colour, alpha=0.6, linewidths=0, label=f'layer {layer}')
    axis.plot([0, 1], [1, 0], color=plots.FAINT, linewidth=0.8)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel='share of times open (> 0.9)')
    axis.set_title(f'{name} gates', fontsize=9)
  axes[0][0].set_ylabel('share of times closed (< 0.1)')
  axes[0][-1].legend(loc='upper right')
  figure.suptitle(f'Gate saturation · {about}', x=0.01, ha='left', fontweight='bold', fontsize=10.5)
  return plots.save(figure, folder, 'gate_saturation')
