"""What super-resolution is measured by, on the luma of 8-bit pictures, beside bicubic interpolation of the same input.

All is of whole pictures, but for a border of `factor` pixels, as the papers leave it out. A batch holds whole pictures,
or tiles of them, as `data.pictures.tiles` cuts them: 'whole' and 'part', [batch, 2, 2] int32, are then between which
rows and which columns of 'input' the picture lies, and between which those that a tile stands for.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from karpjax.metrics import collect, image_quality
from karpjax.models.super_resolution import bicubic
from karpjax.program import pair


def present(batch):
  """Where the pictures of tiles lie, [batch, height, width, 1] float32, as the nets take it; None of whole pictures."""
  if 'whole' not in batch:
    return None
  return between(batch['whole'], *batch['input'].shape[1:3])[..., None].astype(jnp.float32)


def between(edges, height: int, width: int):
  """Edges [batch, 2, 2], (first, end) of rows and of columns -> what lies between them, [batch, height, width] bool."""
  inside = lambda n, edges: (np.arange(n) >= edges[:, :1]) & (np.arange(n) < edges[:, 1:])
  rows, columns = inside(height, edges[:, 0]), inside(width, edges[:, 1])
  return rows[:, :, None] & columns[:, None]


def with_chroma(y, low, factor: int, present=None):
  """Pictures of an enlarged luma, not clipped, their chroma being bicubic.

  Args:
    y: [batch, height · factor, width · factor, 1], on the scale of `image_quality.luma`.
    low: [batch, height, width, 1 or 3] in [0, 1].
    present: as `present` gives it.
  """
  if low.shape[-1] == 1:
    return (y - 16 / 255) * (255 / 219)
  chroma = bicubic(image_quality.rgb_to_ycbcr(low)[..., 1:], factor, present)
  return image_quality.ycbcr_to_rgb(jnp.concatenate([y, chroma], -1))


def measures(pictures, batch, factor: int) -> dict:
  """Sums over the places of each picture or tile, each [batch] float32.

  Args:
    pictures: [batch, height · factor, width · factor, channels] in [0, 1].
    batch: 'input' and 'target' uint8; of tiles also 'whole' and 'part'.

  Returns:
    'squared_error' and 'ssim', 'bicubic_…' of what interpolation makes of the input; 'pixels' and 'windows', how many.
  """
  height, width = batch['target'].shape[1:3]
  all_of_it = np.array([[[0, n // factor] for n in (height, width)]])
  whole, part = (jnp.asarray(batch.get(name, all_of_it)) * factor for name in ('whole', 'part'))
  counted, half = between(part, height, width), image_quality.WINDOW // 2
  inside = lambda less: counted & between(whole + less * np.array([1, -1]), height, width)
  pixels, windows = inside(factor), inside(factor + half)[:, half : height - half, half : width - half]
  eight_bits = lambda images: image_quality.luma(jnp.round(jnp.clip(images, 0, 1) * 255) / 255)
  total = lambda values, where: jnp.where(where, values[..., 0], 0).sum((1, 2))
  low, high, ones = batch['input'] / np.float32(255), eight_bits(batch['target'] / 255), np.ones((1,) * 4, np.float32)
  sums = {'pixels': total(ones, pixels), 'windows': total(ones, windows)}
  for prefix, made in (('', pictures), ('bicubic_', bicubic(low, factor, present(batch)))):
    ours = eight_bits(made)
    sums[f'{prefix}squared_error'] = total(jnp.square(ours - high), pixels)
    sums[f'{prefix}ssim'] = total(image_quality.ssim_map(ours, high), windows)
  return sums


def sums_by_picture(pictures, batch, factor: int, count: int) -> dict:
  """{name: [count]} float32: those of `measures`, added up by the picture, batch['picture'], that tiles are of."""
  return collect.collect(measures(pictures, batch, factor), batch['picture'], batch['mask'], count)


def tile_sums(loss: Callable, ours, high, batch, factor: int, side: int, margin: int) -> dict:
  """{'loss': its (sum, count) over the pixels of the pictures that tiles are of, 'tiles': how many}.

  Args:
    loss: images of the size of a crop [n, side, side, channels], and originals -> their means [n], for which features are.
    ours, high: [batch, size, size, channels], enlarged tiles and their originals.
    batch: of tiles.
    side, margin: of an enlarged crop, a few of which are a tile's part; and of what lies around it.
  """
  counted = between(batch['part'] * factor, *batch['target'].shape[1:3])[..., None]

  def pieces(x):
    x = x[:, margin : x.shape[1] - margin, margin : x.shape[2] - margin]
    across = x.shape[1] // side
    return x.reshape(-1, across, side, across, side, x.shape[-1]).swapaxes(2, 3).reshape(-1, side, side, x.shape[-1])

  each = loss(*(pieces(x * counted) for x in (ours, high))).reshape(len(counted), -1).sum(1) * side**2
  total, pixels = (pair(x, batch['mask'])[0] for x in (each, counted.sum((1, 2, 3))))
  return {'loss': (total, pixels), 'tiles': batch['mask'].sum().astype(jnp.float32)}


def summarise(sums: dict) -> dict[str, float]:
  """PSNR and SSIM, ours and bicubic interpolation's, and the gains, means over pictures; and the loss, where `sums`
  have it.

  Where `sums` have 'tiles', and there are none, they are of crops, and called 'crop_psnr' and so on.
  The means of PSNR leave out pictures that interpolation gives exactly, as those of one colour: theirs is infinite.
  """
  numbers, there = {'loss': float(np.divide(*sums['loss']))} if 'loss' in sums else {}, sums['pixels'] > 0
  uneven = sums['bicubic_squared_error'][there] > 0
  for prefix in ('', 'bicubic_'):
    places = (('squared_error', 'pixels'), ('ssim', 'windows'))
    error, ssim = (sums[prefix + name][there] / sums[of][there] for name, of in places)
    with np.errstate(divide='ignore'):
      numbers[f'{prefix}psnr'] = float(np.mean(-10 * np.log10(error[uneven] if uneven.any() else error)))
    numbers[f'{prefix}ssim'] = float(np.mean(ssim))
  with np.errstate(invalid='ignore'):
    numbers |= {f'{name}_gain': numbers[name] - numbers[f'bicubic_{name}'] for name in ('psnr', 'ssim')}
  return {n if n == 'loss' or sums.get('tiles', 1) else f'crop_{n}': x for n, x in numbers.items()}
