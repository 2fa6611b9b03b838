"""How well pictures were enlarged, as the papers measure it: PSNR and SSIM of the luma, beside those of bicubic interpolation.

All of it is of 8-bit pictures, as they would be saved, and without a border as wide as the factor. PSNR is that of a whole picture,
averaged over pictures.
"""

import jax.numpy as jnp
import numpy as np

from karpjax.metrics import image_quality
from karpjax.models.super_resolution import bicubic


def with_chroma(y, low, factor: int):
  """A picture of an enlarged luma, its chroma being bicubic.

  Args:
    y: [batch, height · factor, width · factor, 1], on the scale of `image_quality.luma`.
    low: [batch, height, width, 1 or 3] in [0, 1].
    factor: a whole number.

  Returns:
    [batch, height · factor, width · factor, 1 or 3], not clipped.
  """
  if low.shape[-1] == 1:
    return (y - 16 / 255) * (255 / 219)
  chroma = bicubic(image_quality.rgb_to_ycbcr(low)[..., 1:], factor)
  return image_quality.ycbcr_to_rgb(jnp.concatenate([y, chroma], -1))


def eight_bits(pictures):
  """[…] in [0, 1] -> the nearest of the values that 8 bits have."""
  return jnp.round(jnp.clip(pictures, 0, 1) * 255) / 255


def measured(pictures, high, factor: int) -> dict:
  """{'squared_error': its mean, 'ssim': …}, each [batch], of pictures and originals in [0, 1]."""
  ours, theirs = (image_quality.without_border(image_quality.luma(eight_bits(x)), factor) for x in (pictures, high))
  return {'squared_error': jnp.square(ours - theirs).mean((1, 2, 3)), 'ssim': image_quality.ssim(ours, theirs)}


def both(pictures, low, high, factor: int) -> dict:
  """`measured` of pictures, and 'bicubic_…' of what bicubic interpolation makes of low; low and high are uint8."""
  high, plain = high / 255, bicubic(low.astype(jnp.float32) / 255, factor)
  reference = {f'bicubic_{name}': x for name, x in measured(plain, high, factor).items()}
  return {**measured(pictures, high, factor), **reference}


def sums(pictures, batch, factor: int, count: int) -> dict:
  """Of tiles, added up by the picture they are of.

  Args:
    pictures: [batch, …] in [0, 1], of batch['low'].
    batch: with 'high', 'picture' and 'mask'.
    factor: a whole number.
    count: n, of pictures.

  Returns:
    {name of `both`: [n], …, 'tiles': [n]} float32.
  """
  values = {**both(pictures, batch['low'], batch['high'], factor), 'tiles': jnp.ones(len(pictures))}
  place = lambda x: jnp.zeros(count).at[batch['picture']].add(jnp.where(batch['mask'], x, 0))
  return {name: place(x) for name, x in values.items()}


def summarise(sums: dict) -> dict[str, float]:
  """psnr and ssim, bicubic_psnr and bicubic_ssim, psnr_gain and ssim_gain: means over the pictures that have tiles; and the loss,
  where `sums` have one, (sum, count).
  """
  there = sums['tiles'] > 0
  found = {'loss': float(sums['loss'][0] / sums['loss'][1])} if 'loss' in sums else {}
  for prefix in ('', 'bicubic_'):
    error, ssim = (sums[prefix + name][there] / sums['tiles'][there] for name in ('squared_error', 'ssim'))
    with np.errstate(divide='ignore'):
      found[f'{prefix}psnr'] = float(np.mean(-10 * np.log10(error)))
    found[f'{prefix}ssim'] = float(np.mean(ssim))
  return {**found, **{f'{name}_gain': found[name] - found[f'bicubic_{name}'] for name in ('psnr', 'ssim')}}
