"""Attributions as people look at them: overlays of images, coloured words, bars. Blue speaks for, orange against."""

import html
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from karpjax.report import page, plots, writers
from karpjax.report.plots import BLUE, FAINT, GREEN, VERMILION

BARS = 10  # of a row in a terminal: the largest
ROWS = 4  # of a table in a picture
RGB = {True: (0, 98, 163), False: (213, 94, 0)}  # of what is above 0, and below
Curves = np.ndarray  # [2, 2, points]: of deletion and insertion, by the attributions and by random orders


# ---- a terminal ----


def bars(values: Mapping[str, float], most: int = BARS) -> list[str]:
  """Lines of a name, a number and a bar each: the largest magnitudes first."""
  ordered = sorted(values.items(), key=lambda item: -abs(item[1]))[:most]
  scale = max((abs(x) for _, x in ordered), default=0) or 1
  width = max((len(plots.short(name, 24)) for name, _ in ordered), default=0)
  bar = lambda x: ('█' if x > 0 else '░') * round(24 * abs(x) / scale)
  lines = [f'  {plots.short(name, 24):{width}}  {x:+10.4g}  {bar(x)}'.rstrip() for name, x in ordered]
  more = len(values) - len(ordered)
  return [*lines, f'  and {more:,} more'] if more else lines


def words(pieces: Sequence[str], values: Sequence[float], gap: str = ' ') -> list[str]:
  """A text's pieces in a line, with a gap between them, coloured where a terminal shows it; elsewhere bars."""
  if not sys.stdout.isatty() or os.environ.get('NO_COLOR'):
    names = (f'{i}. {piece}' for i, piece in enumerate(pieces, 1))  # a word may come twice
    return bars(dict(zip(names, values)))
  scale = max(map(abs, values), default=0) or 1

  def coloured(piece, value):
    strength = 0.75 * abs(value) / scale
    colour = ';'.join(str(round(255 + (c - 255) * strength)) for c in RGB[value > 0])
    return f'\x1b[48;2;{colour};38;2;0;0;0m{piece}\x1b[0m'

  return [gap.join(map(coloured, pieces, values))]


# ---- pictures and a page ----


def image(
  picture: np.ndarray, values: np.ndarray, curves: Curves | None, heading: str, colours: str, folder: Path, name: str
) -> None:
  """plots/NAME.png: an image, its attributions over it, and their curves.

  Args:
    picture: [height, width, 1 or 3] in [0, 1].
    values: [height, width].
    curves: or None.
    colours: what they say.
  """
  grey = np.repeat(picture.mean(-1, keepdims=True), 3, -1)  # [height, width, 3]
  strength = np.abs(values)[..., None] / (np.abs(values).max() or 1)
  painted = np.where((values > 0)[..., None], *(np.array(RGB[sign]) / 255 for sign in (True, False)))
  over = (1 - strength) * (0.75 + 0.25 * grey) + strength * painted
  columns, tall = (2 if curves is None else 3), 2.7 * picture.shape[0] / picture.shape[1] + 0.6
  with plots.drawing(folder, name, 2.9 * columns, min(max(tall, 2.6), 6), ncols=columns) as (figure, axes):
    for axis, pixels, text in zip(axes, (np.broadcast_to(picture, grey.shape), over), ('what is seen', colours)):
      axis.imshow(np.clip(pixels, 0, 1), interpolation='nearest')
      axis.set_axis_off()
      axis.set_title(text, fontsize=9)
    if curves is not None:
      draw_curves(axes[-1], curves)
    figure.suptitle(heading, **plots.SUPTITLE)


def draw_curves(axis, curves: Curves) -> None:
  """Deletion and insertion over the part of the input that is changed; dashed: of random orders."""
  part = np.linspace(0, 1, curves.shape[-1])
  for (own, by_chance), name, colour in zip(curves, ('deletion', 'insertion'), (VERMILION, GREEN)):
    axis.plot(part, own, color=colour, linewidth=1.2, label=name)
    axis.plot(part, by_chance, '--', color=colour, linewidth=1)
  axis.set(xlim=(0, 1))
  axis.set_xlabel('part of the places; dashed: in random order', fontsize=7)
  axis.set_title('the prediction', fontsize=9)
  axis.legend(fontsize=7)


def table(
  rows: Mapping[str, Mapping[str, float]], curves: Curves | None, heading: str, folder: Path, name: str
) -> None:
  """plots/NAME.png: bars of the first ROWS rows, the mean magnitude over all where there are several, and mean curves.

  Args:
    rows: {name: {column: attribution}}.
    curves: the mean over rows; or None.
  """
  values = np.array([[*row.values()] for row in rows.values()])  # [rows, columns]
  columns, shown = [*next(iter(rows.values()))], dict(zip([*rows][:ROWS], values))
  if len(rows) > 1:
    shown = {f'mean magnitude, {len(rows):,} rows': np.abs(values).mean(0), **shown}
  order = np.argsort(np.abs(values).mean(0))[-20:]  # the largest at the top
  panels = len(shown) + (curves is not None)
  across, height = min(panels, 3), 0.9 + 0.2 * len(order)
  down = -(-panels // across)
  size = 3.4 * across, max(height, 2.4) * down + 0.3
  with plots.drawing(folder, name, *size, down, ncols=across, squeeze=False) as (figure, axes):
    for axis in axes.flat[panels:]:
      axis.set_axis_off()
    for axis, (row, x) in zip(axes.flat, shown.items()):
      axis.barh(range(len(order)), x[order], color=[BLUE if v > 0 else VERMILION for v in x[order]])
      names = [plots.short(columns[i], 20) for i in order]
      axis.set_yticks(range(len(order)), names, fontsize=7, parse_math=False)
      axis.axvline(0, color=FAINT, linewidth=0.8)
      axis.set_title(row, fontsize=9, parse_math=False)
    if curves is not None:
      draw_curves(axes.flat[panels - 1], curves)
    figure.suptitle(heading, **plots.SUPTITLE)


def texts(
  sections: Mapping[str, tuple], curves: Curves | None, about: str, folder: Path, name: str, gap: str = ' '
) -> None:
  """NAME.html: texts whose words are coloured by their attributions; and plots/NAME.png, their mean curves.

  Args:
    sections: {heading: (pieces, values, lines about it)}.
    curves: the mean over texts; or None.
    gap: what stands between pieces.
  """
  shown = {}
  for heading, (pieces, values, lines) in sections.items():
    scale = max(map(abs, values), default=0) or 1
    spans = gap.join(letter(piece, value / scale, f'{value:+.4g}') for piece, value in zip(pieces, values))
    below = ''.join(f'<p class="quiet">{html.escape(line)}</p>' for line in lines)
    shown[heading] = f'<pre dir="auto">{spans}</pre>{below}'
  if curves is not None:
    with plots.drawing(folder, name, 4.2, 3.0) as (_, axis):
      draw_curves(axis, curves)
    figure = f'<figure><img src="plots/{name}.png" alt="deletion and insertion" style="max-width:600px"></figure>'
    shown['Deletion and insertion'] = figure
  about = f'{about}, each text on its own scale; point at a word.'
  writers.write_bytes(folder / f'{name}.html', page.render('Explanation', about, shown))


def letter(piece: str, value: float, title: str = '') -> str:
  """A piece of a text as HTML, coloured by a value in [−1, 1]."""
  colour = f'{",".join(map(str, RGB[value > 0]))},{0.75 * min(1.0, abs(float(value))):.2f}'
  hint = f' title="{title}"' if title else ''
  return f'<span{hint} style="background:rgba({colour})">{html.escape(piece)}</span>'
