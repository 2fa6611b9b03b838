"""PSNR and SSIM are scikit-image's numbers; the luma is that of MATLAB's formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import color, data, metrics

from karpjax.metrics import image_quality


@pytest.fixture
def pair():
  """Two pictures and noisy ones of them, [2, 60, 71, 3] in [0, 1]."""
  pictures = np.stack([data.astronaut()[100:160, 200:271], data.coffee()[100:160, 200:271]]) / 255
  noisy = np.clip(pictures + np.random.default_rng(0).normal(0, [[[[0.05]]], [[[0.01]]]], pictures.shape), 0, 1)
  return pictures.astype(np.float32), noisy.astype(np.float32)


def test_psnr_and_ssim_are_those_of_scikit_image(pair):
  psnr, ssim = jax.jit(image_quality.psnr)(*pair), jax.jit(image_quality.ssim)(*pair)
  settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
  for i, (image, noisy) in enumerate(zip(*pair)):
    assert psnr[i] == pytest.approx(metrics.peak_signal_noise_ratio(image, noisy, data_range=1), abs=1e-4)
    expected = metrics.structural_similarity(image.astype(np.float64), noisy, channel_axis=-1, **settings)
    assert ssim[i] == pytest.approx(expected, abs=2e-6)
  grey = [x[..., :1] for x in pair]
  expected = metrics.structural_similarity(grey[0][0, ..., 0], grey[1][0, ..., 0], **settings)
  assert image_quality.ssim(*grey)[0] == pytest.approx(expected, abs=2e-6)


def test_closed_forms():
  zeros = jnp.zeros((1, 12, 11, 1))
  assert image_quality.psnr(zeros, zeros + 0.1)[0] == pytest.approx(20, abs=1e-5)
  assert np.isposinf(image_quality.psnr(zeros, zeros)[0])
  assert image_quality.ssim(zeros + 0.3, zeros + 0.3)[0] == pytest.approx(1)
  c1 = 0.01**2  # of constant images SSIM is its first factor alone
  assert image_quality.ssim(zeros + 0.2, zeros + 0.8)[0] == pytest.approx(
    (2 * 0.16 + c1) / (0.04 + 0.64 + c1), abs=1e-5
  )
  slope = 0.03 * np.arange(12)[:, None] + 0.04 * np.arange(11)
  assert image_quality.gradient_magnitude(jnp.array(slope[None, ..., None], jnp.float32))[0] == pytest.approx(0.05)
  with pytest.raises(ValueError, match='11×11'):
    image_quality.ssim(zeros[:, :, :10], zeros[:, :, :10])


def test_the_luma_is_on_the_papers_scale(pair):
  ycbcr = image_quality.rgb_to_ycbcr(pair[0])
  np.testing.assert_allclose(ycbcr * 255, color.rgb2ycbcr(pair[0]), atol=1e-4)
  np.testing.assert_allclose(image_quality.ycbcr_to_rgb(ycbcr), pair[0], atol=2e-6)
  ends = image_quality.luma(jnp.array([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]]))[:, 0] * 255
  np.testing.assert_allclose(ends, [16, 235, 81.481], atol=1e-4)  # MATLAB: rgb2ycbcr([1 0 0]) = 0.3195…
  grey = pair[0][..., :1]
  np.testing.assert_allclose(image_quality.luma(grey), image_quality.luma(np.repeat(grey, 3, -1)), atol=1e-6)


def test_beside_flat_targets_nothing_is_sharp():
  means = {'l1': 0.25, 'psnr': 12.0, 'ssim': 0.5, 'gradient': 0.1}
  sums = {name: (3 * x, 3) for name, x in means.items()}
  flat = image_quality.summarise({**sums, 'target_gradient': (4e-8, 3)})  # what rounding leaves of 0
  assert math.isnan(flat.pop('sharpness')) and flat == pytest.approx({n: means[n] for n in ('l1', 'psnr', 'ssim')})
  assert image_quality.summarise({**sums, 'target_gradient': (0.6, 3)})['sharpness'] == pytest.approx(0.5)


def test_the_mean_of_psnr_is_of_what_is_finite():
  """A black frame that is exactly right has none; a batch of such has no mean, and no traceback."""
  sums = {'psnr': (0.0, 0.0), 'gradient': (0.1, 1), 'target_gradient': (0.1, 1)}
  assert math.isnan(image_quality.summarise(sums)['psnr'])
