"""How near an image is to another, and how sharp it is: PSNR, SSIM, gradients; the luma of the super-resolution papers.

Images are [batch, height, width, channels] in [0, 1], float32.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.program import pair

# ITU-R BT.601 for 8 bits, on the scale of [0, 1]: RGB -> Y', Cb, Cr with footroom (16 … 235 of 255), as MATLAB's rgb2ycbcr.
_TO_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_OFFSET = np.array([16, 128, 128]) / 255
_TO_RGB = np.linalg.inv(_TO_YCBCR)

WINDOW, SIGMA = 11, 1.5  # of SSIM
FLAT = 1e-7  # a mean gradient that is none, to rounding


def rgb_to_ycbcr(images):
  """[…, 3] -> […, 3], BT.601 as MATLAB's rgb2ycbcr: Y in [16, 235] / 255, Cb and Cr in [16, 240] / 255."""
  return images @ jnp.asarray(_TO_YCBCR.T, jnp.float32) + jnp.asarray(_OFFSET, jnp.float32)


def ycbcr_to_rgb(images):
  """The inverse of `rgb_to_ycbcr`; nothing is clipped."""
  return (images - jnp.asarray(_OFFSET, jnp.float32)) @ jnp.asarray(_TO_RGB.T, jnp.float32)


def luma(images):
  """Y of `rgb_to_ycbcr`: […, 1 or 3] -> […, 1] in [16, 235] / 255; grey is RGB whose channels are equal."""
  return images * (219 / 255) + 16 / 255 if images.shape[-1] == 1 else rgb_to_ycbcr(images)[..., :1]


def psnr(images, targets):
  """Peak signal-to-noise ratio of each image in dB, [batch], for a peak of 1; infinite where they are equal."""
  return -10 * jnp.log10(jnp.square(images - targets).mean((1, 2, 3)))


def ssim(images, targets):
  """Structural similarity of each image, [batch], the mean over channels and over all places where the window fits.

  As `ssim_map`; the same number as scikit-image's with gaussian_weights=True, use_sample_covariance=False,
  data_range=1.
  """
  return ssim_map(images, targets).mean((1, 2, 3))


def ssim_map(images, targets):
  """Structural similarity at each place where the window fits: [batch, height - 10, width - 10, channels].

  Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", eq. 13: a Gaussian
  window of 11×11, σ 1.5, K 0.01 and 0.03, a dynamic range of 1.

  Raises:
    ValueError: for images smaller than the window.
  """
  if min(images.shape[1:3]) < WINDOW:
    raise ValueError(f'SSIM needs images of at least {WINDOW}×{WINDOW} pixels, not {images.shape[1]}×{images.shape[2]}')
  x, y = images.astype(jnp.float32), targets.astype(jnp.float32)
  mean_x, mean_y = _blurred(x), _blurred(y)
  variances = _blurred(x * x) + _blurred(y * y) - mean_x**2 - mean_y**2
  covariance = _blurred(x * y) - mean_x * mean_y
  c1, c2 = 0.01**2, 0.03**2
  upper, lower = (2 * mean_x * mean_y + c1) * (2 * covariance + c2), (mean_x**2 + mean_y**2 + c1) * (variances + c2)
  return upper / lower


def l1(images, targets):
  """Mean absolute difference of each image, [batch]."""
  return jnp.abs(images - targets).mean((1, 2, 3))


def gradient_magnitude(images):
  """Mean length of the gradient of each image, [batch], as a measure of sharpness: differences to the next pixel down
  and to the right, averaged over places and channels.
  """
  down = images[:, 1:, :-1] - images[:, :-1, :-1]
  right = images[:, :-1, 1:] - images[:, :-1, :-1]
  return jnp.sqrt(down**2 + right**2).mean((1, 2, 3))


def _blurred(x):
  """The Gaussian window's mean, where it fits: [batch, height, width, channels] -> 10 fewer each way."""
  weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
  # [size - 10, size]: row i weighs the places i … i + 10
  matrix = lambda n: sum(w * np.eye(n - WINDOW + 1, n, i) for i, w in enumerate(weights / weights.sum()))
  rows, columns = (jnp.asarray(matrix(n), jnp.float32) for n in x.shape[1:3])
  return jnp.einsum('ij,bjlc,kl->bikc', rows, x, columns, precision=jax.lax.Precision.HIGHEST)  # two matmuls


def sums(images, targets, mask) -> dict:
  """What `summarise` takes, {name: (sum, count)}; PSNR of those that are finite: infinite is that of what is exactly right,
  such as a black frame.
  """
  each = {'l1': l1(images, targets), 'psnr': psnr(images, targets), 'ssim': ssim(images, targets)}
  each |= {'gradient': gradient_magnitude(images), 'target_gradient': gradient_magnitude(targets)}
  return {name: pair(x, mask & ~jnp.isposinf(x)) for name, x in each.items()}


def summarise(sums: Mapping) -> dict[str, float]:
  """'l1', 'psnr' in dB, 'ssim'; 'sharpness': the mean gradient over that of the targets, so 1 is as sharp.

  Beside targets that are flat nothing is sharp: there it is NaN.
  """
  means = {name: float(s / c) if c else math.nan for name, (s, c) in sums.items()}
  ours, theirs = means.pop('gradient'), means.pop('target_gradient')
  return {**means, 'sharpness': ours / theirs if theirs > FLAT else math.nan}
