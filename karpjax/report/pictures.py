"""Images and signals of a run, as grids and animations in its folder `plots`.

An image is [height, width, channels] in [0, 1]: one channel is grey, three are colours, else the mean.
A signal is [length, channels], drawn as lines.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from karpjax.data import image_files
from karpjax.report import plots, rendering, writers
from karpjax.report.plots import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, short

FRAME = 400  # milliseconds of a picture of a run's course
GREYS = 64  # colours of it


def mistakes(images, true: Sequence[str], predicted: Sequence[str], probability, folder: Path, note: str = '') -> None:
  """plots/worst_mistakes.png: images [n, ...], true and predicted names, probability of the latter [n]."""
  captions = [
    [(f'true {short(t)}', INK), (f'predicted {short(p)}, {100 * q:.0f} %', VERMILION)]
    for t, p, q in zip(true, predicted, probability)
  ]
  grid(images, 4, 'Worst mistakes' + note, folder, 'worst_mistakes', captions=captions, width=1.35)


def class_grid(images, labels: np.ndarray, classes: Sequence[str], folder: Path, name: str = 'examples') -> None:
  """plots/NAME.png: a row per class (the first twenty) with up to eight of the images [n, ...]."""
  rows = [np.flatnonzero(np.asarray(labels) == label)[:8] for label in range(min(len(classes), 20))]
  columns = max(map(len, rows))
  cells = [images[row[i]] if i < len(row) else None for row in rows for i in range(columns)]
  more = f' · the first 20 of {len(classes)} classes' if len(classes) > 20 else ''
  grid(cells, columns, plots.title(name) + more, folder, name, row_names=classes[:20])


def write_grid(images: np.ndarray, columns: int, path: str | Path) -> Path:
  """A PNG of images [n, height, width, 1 or 3] in [0, 1], `columns` in a row, pixel by pixel,
  with a pixel between them.
  """
  images = np.pad(images, ((0, -len(images) % columns), (0, 1), (0, 1), (0, 0)), constant_values=1)
  sheet = np.concatenate([np.concatenate(row, 1) for row in images.reshape(-1, columns, *images.shape[1:])])
  return write_image(sheet[:-1, :-1], path)


def write_image(image: np.ndarray, path: str | Path) -> Path:
  """A PNG of an image [height, width, 1 or 3] in [0, 1], written in one piece."""
  pixels, content = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), io.BytesIO()
  image_files.as_pillow(pixels).save(content, format='PNG')
  writers.write_bytes(Path(path), content.getvalue())
  return Path(path)


def write_animation(images: Sequence[Image.Image], duration: int | Sequence[int], path: Path) -> None:
  """A GIF of Pillow's images that repeats, written in one piece; `duration` in milliseconds, of each or of all."""
  content = io.BytesIO()
  images[0].save(content, 'GIF', save_all=True, append_images=images[1:], duration=duration, loop=0)
  writers.write_bytes(path, content.getvalue())


def over_time(folder: Path, name: str, t: int) -> None:
  """plots/NAME_over_time.gif of plots/NAME.png at all steps so far; frames/ keeps them for a run that goes on."""
  plot, frames = folder / 'plots' / f'{name}.png', folder / 'frames'
  for path in frames.glob('*.png'):
    if int(path.stem) > t:  # of a run that went back to an earlier checkpoint
      path.unlink()
  rendering.wait()
  writers.write_bytes(frames / f'{t:08d}.png', plot.read_bytes())
  images = [Image.open(path).convert('RGB').quantize(GREYS) for path in sorted(frames.glob('*.png'))]
  durations = [*[FRAME] * (len(images) - 1), 4 * FRAME]
  write_animation(images, durations, plot.with_name(f'{name}_over_time.gif'))


def beside(columns: Mapping[str, np.ndarray], folder: Path, name: str, note: str = '', *, examples: int = 2) -> None:
  """plots/NAME.png: what belongs together side by side, such as input, output and target.

  Args:
    columns: {what: [n, height, width, channels] in [0, 1]}.
    note: ends the title, which names the columns.
    examples: in a row.
  """
  cells = [image for row in zip(*columns.values()) for image in row]
  grid(cells, examples * len(columns), ' | '.join(columns) + note, folder, name, width=1.35)


def filters(kernel: np.ndarray, folder: Path, note: str = '') -> None:
  """plots/first_layer_filters.png: the first 64 of a kernel [height, width, in, out] or [width, in, out]."""
  kernel = np.asarray(kernel, np.float32)
  cells = np.moveaxis(kernel, -1, 0)[:64]  # [..., in, out] -> [out, ..., in]
  cells = cells / max(float(np.abs(cells).max()), 1e-12)  # one scale for all: weak filters look weak
  if kernel.ndim == 4:
    # in the image's own colours, zero is grey; else red above zero, blue below
    cells = (cells + 1) / 2 if kernel.shape[2] == 3 else _coloured((cells.mean(-1) + 1) / 2, 'RdBu_r')
  heading = f'First-layer filters · {f"64 of {kernel.shape[-1]}" if kernel.shape[-1] > 64 else len(cells)}{note}'
  grid(cells, 8, heading, folder, 'first_layer_filters', width=0.75, limits=(-1, 1))


def saliency(images, maps, true: Sequence[str], predicted: Sequence[str], folder: Path, note: str = '') -> None:
  """plots/saliency.png: each image [n, ...] beside how strongly each place moves the prediction.

  Args:
    images: [n, height, width, channels] or [n, length, channels].
    maps: [n, height, width] or [n, length], not negative; each is drawn on its own scale.
    true, predicted: names, [n].
  """
  cells, captions = [], []
  for image, values, t, p in zip(images, maps, true, predicted):
    values = np.asarray(values) / max(float(np.max(values)), 1e-12)
    cells += [image, _coloured(values, 'magma') if values.ndim == 2 else values]
    captions += [[(f'true {short(t)}', INK), (f'predicted {short(p)}', INK if t == p else VERMILION)]]
    captions += [[('its saliency', FAINT)]]
  grid(cells, 4, 'Saliency: what moves the prediction' + note, folder, 'saliency', captions=captions, width=1.35)


def _coloured(values: np.ndarray, colours: str) -> np.ndarray:
  """[...] in [0, 1] -> [..., 3], by one of matplotlib's colour maps."""
  import matplotlib

  return matplotlib.colormaps[colours](values)[..., :3]


def grid(
  cells, columns: int, heading: str, folder: Path, name: str, *, captions=None, width=0.7, limits=None, row_names=()
) -> None:
  """plots/NAME.png: images or signals, `columns` in a row, `width` inches each; None leaves a gap.

  Args:
    cells: [height, width, channels] in [0, 1], or a signal [length, channels] or [length].
    captions: for each cell its lines of (text, colour), written below it.
    width: of a cell, in inches.
    limits: (lowest, highest) value of the signals; None: each fills its cell.
    row_names: what to write to the left of each row.
  """
  row_names = [short(name) for name in row_names]
  captions = captions or [[]] * len(cells)
  columns = max(1, min(columns, len(cells)))
  shape = next(np.shape(cell) for cell in cells if cell is not None)
  tall = min(max(shape[0] / shape[1], 0.4), 2.5) if len(shape) == 3 else 0.7  # of a cell one wide
  gap, text = 0.08, 0.14 / width  # between cells; a line of text
  pitch = tall + max(len(caption) for caption in captions) * text + 1.5 * gap
  margin = 0.085 * max(map(len, row_names), default=0) / width  # what the longest name needs
  rows, across = math.ceil(len(cells) / columns), columns * (1 + gap) - gap + margin
  size = max(across * width, 3.6) + 0.2, rows * pitch * width + 0.42
  with plots.drawing(folder, name, *size, margins=(0.1, 0.1, 0.04, 0.38)) as (_, axis):
    for row, words in enumerate(row_names):
      axis.text(-gap, row * pitch + tall / 2, words, fontsize=8, ha='right', va='center')
    for i, cell in enumerate(cells):
      left, top = (i % columns) * (1 + gap), (i // columns) * pitch
      if cell is not None:
        _draw(axis, np.asarray(cell, np.float32), left, top, tall, limits)
      for line, (words, colour) in enumerate(captions[i]):
        axis.text(left, top + tall + line * text + 0.03, words, fontsize=7, color=colour, va='top', clip_on=False)
    axis.set(xlim=(-margin, max(across, 3.6 / width) - margin), ylim=(rows * pitch, -0.02), aspect='equal', anchor='NW')
    axis.set_axis_off()
    axis.set_title(heading)


def _draw(axis, cell: np.ndarray, left: float, top: float, tall: float, limits) -> None:
  """One image or signal in the box 1 wide and `tall` high whose upper left corner is (left, top)."""
  if cell.ndim == 3:
    image = cell if cell.shape[-1] == 3 else np.repeat(cell.mean(-1, keepdims=True), 3, -1)  # [h, w, c] -> [h, w, 3]
    axis.imshow(np.clip(image, 0, 1), extent=(left, left + 1, top + tall, top), interpolation='nearest')
    return
  signal = cell.reshape(len(cell), -1)  # [length] -> [length, 1]
  low, high = limits or (float(signal.min()), float(signal.max()))
  height = (signal - low) / max(high - low, 1e-12)
  axis.bar(left, tall, 1, top, align='edge', facecolor='#f5f6f8', edgecolor='#d9dce1', linewidth=0.6)
  across = left + np.linspace(0.04, 0.96, len(signal))
  for channel, colour in zip(height.T, (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)):
    axis.plot(across, top + tall * (0.94 - 0.88 * channel), color=colour, linewidth=1)
