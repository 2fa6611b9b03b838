"""What super-resolution leaves: the measures of whole pictures beside those of bicubic interpolation, and a few pictures."""

import math
from pathlib import Path

import numpy as np

from karpjax.data import dataset, splitting
from karpjax.metrics import super_resolution as measured
from karpjax.models.super_resolution import bicubic
from karpjax.report import pictures, plots, tables, writers

DRAWN = 4  # pictures
DETAIL = 8  # a detail's height is such a part of the picture's
MEASURES = 'psnr', 'bicubic_psnr', 'ssim', 'bicubic_ssim'


def write(config, data: dataset.Dataset, enlarge, state, t: int, folder: Path) -> None:
  """texts/SPLIT_pictures.txt and report.json, of whole pictures, and plots of a few."""
  split, _ = data.reported(t == config.steps)
  for path in (folder / 'plots').glob('before_and_after_*.png'):  # of another split
    path.unlink()
  rows, note = {}, f', step {t}{tables.first_of(config.seeds)}'
  drawn = {list(data.raw[split])[i] for i in splitting.sample(len(data.raw[split]), DRAWN)}
  for name, (low, high) in ((name, layers.values()) for name, layers in data.raw[split].items()):
    ours = enlarge(state, low)
    each = measured.measures(ours[None], {'input': low[None], 'target': high[None]}, config.factor)
    numbers = measured.summarise({name: np.asarray(x) for name, x in each.items()})
    rows[name] = {measure: numbers[measure] for measure in MEASURES}
    if name in drawn:
      before_and_after(low, ours, high, rows[name], Path(name).stem, folder, note)
  exact = [name for name, row in rows.items() if math.isinf(row['bicubic_psnr'])]
  counted = {n: [row for name, row in rows.items() if 'ssim' in n or name not in exact] for n in MEASURES}
  mean = {n: float(np.mean([row[n] for row in some or rows.values()])) for n, some in counted.items()}
  heading = f'{split} pictures whole, ×{config.factor}{note}'
  writers.write_json(folder / 'report.json', {'heading': heading, 'pictures': rows, 'mean': mean, 'infinite': exact})
  shown = lambda row: [round(row[measure], 4 if 'ssim' in measure else 2) for measure in MEASURES]
  lines = [(n, *shown(row), round(row['psnr'] - row['bicubic_psnr'], 2)) for n, row in {**rows, 'mean': mean}.items()]
  why = 'interpolation gives exactly, which the means of PSNR leave out'
  left_out = ['', f'{len(exact)} of {len(rows)} that {why}: {dataset.listed(exact)}'] if exact else []
  text = tables.table(lines, ('', 'PSNR', 'bicubic', 'SSIM', 'bicubic', 'PSNR gain'))
  writers.write_bytes(
    folder / 'texts' / f'{split}_pictures.txt', '\n'.join([heading, '', *text, *left_out, '']).encode()
  )


def before_and_after(low, ours, high, numbers, name: str, folder: Path, note: str) -> None:
  """plots/before_and_after_NAME.png: the picture, and below it the detail with the strongest edges."""
  factor = len(high) // len(low)
  plain = np.clip(np.asarray(bicubic(low[None] / np.float32(255), factor))[0], 0, 1)
  whole = low.repeat(factor, 0).repeat(factor, 1) / 255, plain, ours, high / 255
  gains = f'bicubic, {numbers["bicubic_psnr"]:.2f} dB', f'ours, {numbers["psnr"]:.2f} dB'
  captions = f'{low.shape[0]}×{low.shape[1]}', *gains, 'original'
  height, width = (n // DETAIL for n in high.shape[:2])
  edges = np.hypot(*np.gradient(high.mean(-1)))[: height * DETAIL, : width * DETAIL]
  strength = edges.reshape(DETAIL, height, DETAIL, width).mean((1, 3))[1:-1, 1:-1]
  row, column = np.unravel_index(strength.argmax(), strength.shape)
  detail = [x[(row + 1) * height :][:height, (column + 1) * width :][:, :width] for x in whole]
  heading = f'{name} ×{factor}{note}'
  lines = [[(caption, plots.INK)] for caption in [*captions, *captions]]
  pictures.grid([*whole, *detail], 4, heading, folder, f'before_and_after_{name}', captions=lines, width=2.4)
