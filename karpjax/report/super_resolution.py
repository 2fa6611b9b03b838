"""What a run of super-resolution leaves: held-out pictures, whole, before and after, and a table of them."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import tiles
from karpjax.metrics import super_resolution as metrics
from karpjax.models.super_resolution import bicubic
from karpjax.report import pictures, progress, writers

TILE = 96  # pixels of the small picture that a tile gives at most
DRAWN = 4
DETAIL = 8  # of a picture's height, which part a detail has
NAMES = 'psnr', 'bicubic_psnr', 'ssim', 'bicubic_ssim'


def enlarger(program, state, factor: int, margin: int) -> Callable:
  """A function of pictures [height, width, channels] uint8, whole: [height · factor, width · factor, channels] in [0, 1].

  It is compiled once for each size of a tile.
  """
  predict = jax.jit(lambda low: jnp.clip(program.predict(state, {'low': low}, jax.random.key(0)), 0, 1))
  return lambda low: tiles.apply(predict, low, tile=TILE + 2 * margin, margin=margin, scale=factor)


def draw(program, spec, factor: int, margin: int, state, t: int, folder: Path, *, seeds: int = 1) -> None:
  """A Program's `report`: texts/SPLIT_pictures.txt, report.json, and plots/NAME.png of the first few.

  Args:
    program: its `predict` enlarges batch['low'].
    spec: with whole pictures; shown are those of its test split (else validation, else train).
    factor, margin: of the net; see `tiles`.
    state: of one seed.
    t: the step.
    folder: the run's folder.
    seeds: how many the run has; `state` is that of the first.
  """
  split = next(name for name in ('test', 'validation', 'train') if name in spec.layers)
  low, high = spec.layers[split]['low'], spec.layers[split]['high']
  enlarge, rows = enlarger(program, state, factor, margin), {}
  note = f' · first of {seeds} seeds' if seeds > 1 else ''
  for name, original in high.items():
    ours = enlarge(low[name])
    rows[name] = _numbers(ours, low[name], original, factor)
    if len(rows) <= DRAWN:
      _before_and_after(low[name], ours, original, factor, rows[name], name, Path(folder), f', step {t}{note}')
  mean = {metric: float(np.mean([row[metric] for row in rows.values()])) for metric in NAMES}
  heading = f'{split} pictures whole, ×{factor}, step {t}{note}'
  writers.write_json(Path(folder) / 'report.json', {'heading': heading, 'pictures': rows, 'mean': mean})
  lines = [
    (
      name,
      *(round(row[metric], 4 if 'ssim' in metric else 2) for metric in NAMES),
      round(row['psnr'] - row['bicubic_psnr'], 2),
    )
    for name, row in {**rows, 'mean': mean}.items()
  ]
  text = progress.table(lines, ('', 'PSNR', 'bicubic', 'SSIM', 'bicubic', 'PSNR gain'))
  (Path(folder) / 'texts').mkdir(exist_ok=True)
  writers.write_bytes(Path(folder) / 'texts' / f'{split}_pictures.txt', '\n'.join([heading, '', *text, '']).encode())


def _numbers(ours, low, high, factor: int) -> dict[str, float]:
  """NAMES of one whole picture."""
  values = metrics.both(ours[None], low[None], high[None], factor)
  return {name: x for name, x in metrics.summarise({**values, 'tiles': np.ones(1)}).items() if name in NAMES}


def _before_and_after(low, ours, high, factor: int, numbers, name: str, folder: Path, note: str) -> None:
  """plots/before_and_after_NAME.png: the picture, and below it the detail with the strongest edges."""
  nearest = np.repeat(np.repeat(low, factor, 0), factor, 1) / 255
  plain = np.clip(np.asarray(bicubic(low[None] / np.float32(255), factor))[0], 0, 1)
  whole = nearest, plain, ours, high / 255
  captions = (
    f'{low.shape[0]}×{low.shape[1]}',
    f'bicubic, {numbers["bicubic_psnr"]:.2f} dB',
    f'ours, {numbers["psnr"]:.2f} dB',
    'original',
  )
  height, width = (n // DETAIL for n in high.shape[:2])
  grey = high.mean(-1)
  edges = np.hypot(*np.gradient(grey))[: height * DETAIL, : width * DETAIL]
  strength = edges.reshape(DETAIL, height, DETAIL, width).mean((1, 3))
  row, column = np.unravel_index(strength[1:-1, 1:-1].argmax(), (DETAIL - 2,) * 2) + np.ones(2, int)
  detail = [x[row * height : (row + 1) * height, column * width : (column + 1) * width] for x in whole]
  stem = Path(name).stem
  pictures.captioned(
    [*whole, *detail], [*captions, *captions], 4, f'{stem} ×{factor}{note}', folder, f'before_and_after_{stem}'
  )
