"""What images made of images are measured by: nearness to the targets, and sharpness."""

import jax.numpy as jnp

from karpjax.metrics import image_quality
from karpjax.program import pair


def l1(images, targets):
  """Mean absolute difference of each image, [batch]."""
  return jnp.abs(images - targets).mean((1, 2, 3))


def sums(outputs, targets, mask):
  """For `summarise`.

  Args:
    outputs, targets: [batch, height, width, channels] in [0, 1].
    mask: [batch] bool.

  Returns:
    {name: (sum, count)}.
  """
  each = {
    'l1': l1(outputs, targets),
    'psnr': image_quality.psnr(outputs, targets),
    'ssim': image_quality.ssim(outputs, targets),
    'gradient': image_quality.gradient_magnitude(outputs),
    'target_gradient': image_quality.gradient_magnitude(targets),
  }
  return {name: pair(values, mask) for name, values in each.items()}


def summarise(sums) -> dict[str, float]:
  """L1 in [0, 1], PSNR in dB, SSIM; sharpness: the mean gradient of the outputs over that of the targets, so 1 is as sharp."""
  means = {name: float(s / c) for name, (s, c) in sums.items()}
  gradient, of_targets = means.pop('gradient'), means.pop('target_gradient')
  return {**means, 'sharpness': gradient / of_targets}
