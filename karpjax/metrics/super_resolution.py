"""What super-resolution is measured by, on the luma of 8-bit pictures, beside bicubic interpolation of the same input."""

import jax.numpy as jnp
import numpy as np

from karpjax.metrics import collect, image_quality
from karpjax.models.super_resolution import bicubic


def with_chroma(y, low, factor: int):
  """Pictures of an enlarged luma, not clipped, their chroma being bicubic.

  Args:
    y: [batch, height · factor, width · factor, 1], on the scale of `image_quality.luma`.
    low: [batch, height, width, 1 or 3] in [0, 1].
  """
  if low.shape[-1] == 1:
    return (y - 16 / 255) * (255 / 219)
  chroma = bicubic(image_quality.rgb_to_ycbcr(low)[..., 1:], factor)
  return image_quality.ycbcr_to_rgb(jnp.concatenate([y, chroma], -1))


def measures(pictures, low, high, factor: int) -> dict:
  """Squared error and SSIM, each [batch], of pictures in [0, 1], and 'bicubic_…' of what interpolation makes of low (uint8)."""
  measured = {}
  for prefix, made in (('', pictures), ('bicubic_', bicubic(low.astype(jnp.float32) / 255, factor))):
    each = image_quality.luma_measures(made, high / 255, factor)
    measured |= {prefix + name: x for name, x in each.items()}
  return measured


def sums_by_picture(pictures, batch, factor: int, count: int) -> dict:
  """{measure: [count], …, 'tiles': [count]} float32: those of crops, added up by the picture they are of."""
  values = {**measures(pictures, batch['input'], batch['target'], factor), 'tiles': jnp.ones(len(pictures))}
  return collect.collect(values, batch['picture'], batch['mask'], count)


def summarise(sums: dict) -> dict[str, float]:
  """PSNR and SSIM, ours and bicubic interpolation's, and the gains, means over pictures; and the loss, where `sums` have it.

  The means of PSNR leave out pictures that interpolation gives exactly, as those of one colour: theirs is infinite.
  """
  numbers, there = {'loss': float(np.divide(*sums['loss']))} if 'loss' in sums else {}, sums['tiles'] > 0
  uneven = sums['bicubic_squared_error'][there] > 0
  for prefix in ('', 'bicubic_'):
    error, ssim = (sums[prefix + name][there] / sums['tiles'][there] for name in ('squared_error', 'ssim'))
    with np.errstate(divide='ignore'):
      numbers[f'{prefix}psnr'] = float(np.mean(-10 * np.log10(error[uneven] if uneven.any() else error)))
    numbers[f'{prefix}ssim'] = float(np.mean(ssim))
  with np.errstate(invalid='ignore'):
    return numbers | {f'{name}_gain': numbers[name] - numbers[f'bicubic_{name}'] for name in ('psnr', 'ssim')}
