"""How good and how various generated examples are, from features of real and of generated ones.

What is summed over batches is traced (`moments`, `rows`, `modes`); what the sums come to is computed once, on the host, by NumPy
in float64. A distance is on the scale of its features: those of two classifiers, or of Inception, cannot be compared.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3
CHUNK = 1000  # rows of a matrix of distances that are held at once


# ---- sums ----


def moments(features, mask) -> dict[str, Any]:
  """{'count': [], 'sum': [d], 'squares': []} of features [batch, d], the last being the sum of squared norms."""
  weight = mask.astype(jnp.float32)
  features = jnp.where(mask[:, None], features.astype(jnp.float32), 0)
  return {'count': weight.sum(), 'sum': features.sum(0), 'squares': jnp.square(features).sum()}


def rows(features, index, mask, size: int):
  """Features [batch, d] as a sum: [size, d], each in the row of its example's number, masked ones nowhere."""
  features = jnp.where(mask[:, None], features.astype(jnp.float32), 0)
  return jnp.zeros((size, features.shape[-1])).at[index].add(features)


def modes(points, means, std: float, mask):
  """[modes] counts of high-quality samples: within three standard deviations of the nearest mean.

  As Srivastava et al. 2017, section 4.1; a mode is covered that is the nearest of at least one of them. Of the true
  distribution in two dimensions 98.9 % are of high quality.

  Args:
    points: [batch, 2].
    means: [modes, 2].
    std: of each mode.
    mask: [batch] bool.
  """
  distances = jnp.linalg.norm(points[:, None] - means, axis=-1)  # [batch, modes]
  good = (distances.min(1) <= 3 * std) & mask
  return jnp.zeros(len(means)).at[distances.argmin(1)].add(good)


def shares(predicted, classes: int, mask):
  """[classes] counts of predicted classes [batch]."""
  return jnp.zeros(classes).at[predicted].add(mask)


# ---- numbers ----


def diversity(sums: Mapping[str, Any]) -> float:
  """Root mean square distance of two different examples, over all pairs, from their `moments`."""
  n, total = float(sums['count']), np.asarray(sums['sum'], np.float64)
  spread = float(sums['squares']) / n - np.square(total / n).sum()
  return float(np.sqrt(max(2 * spread * n / max(n - 1, 1), 0)))


def square_root(matrix: np.ndarray) -> np.ndarray:
  """The symmetric positive semidefinite square root of such a matrix [d, d]; eigenvalues that rounding made negative are 0."""
  values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
  """FID (Heusel et al. 2017, eq. 6): ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½) of the Gaussians through features [n, d] and [m, d].

  (Σ Σ')^½ has the trace of (Σ^½ Σ' Σ^½)^½, which is symmetric.
  """
  (mean, cov), (other_mean, other_cov) = map(_gaussian, (real, fake))
  root = square_root(cov)
  values = np.linalg.eigvalsh(root @ other_cov @ root)
  return float(
    np.square(mean - other_mean).sum() + np.trace(cov) + np.trace(other_cov) - 2 * np.sqrt(np.maximum(values, 0)).sum()
  )


def _gaussian(features):
  features = np.asarray(features, np.float64)
  return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
  """KID (Bińkowski et al. 2018, section 4): the unbiased squared MMD under the kernel (xᵀy / d + 1)³, over all pairs.

  Args:
    real: [n, d].
    fake: [m, d].
  """

  def mean(a, b):
    same, total = a is b, 0.0
    for start in range(0, len(a), CHUNK):
      part = a[start : start + CHUNK]
      kernel = (part @ b.T / a.shape[1] + 1) ** 3
      total += kernel.sum() - (kernel[np.arange(len(part)), start + np.arange(len(part))].sum() if same else 0)
    return total / (len(a) * (len(b) - 1 if same else len(b)))

  real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
  return float(mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
  """Which share of fake examples lies among the real ones, and of real among fake (Kynkäänniemi et al. 2019, eq. 1 and 2).

  An example lies among others where it is no farther from one of them than that one's k-th nearest neighbour of its kind.

  Args:
    real: [n, d].
    fake: [m, d].
    k: neighbours; n and m must be larger.
  """
  return _share_among(fake, real, k), _share_among(real, fake, k)


def _share_among(points, others, k):
  radii = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(others, others)])  # the 0th is itself
  return float(np.concatenate([(d <= radii).any(1) for d in _distances(points, others)]).mean())


def _distances(a, b):
  """Squared distances of a's rows from b's, [CHUNK, len(b)] after another."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  squares = np.square(b).sum(1)
  for start in range(0, len(a), CHUNK):
    part = a[start : start + CHUNK]
    yield np.maximum(np.square(part).sum(1)[:, None] + squares - 2 * part @ b.T, 0)


def summarise(sums: Mapping[str, Any], train: np.ndarray | None = None) -> dict[str, float]:
  """{name: number} from one split's sums, on the host.

  Args:
    sums: of 'real' and 'fake', each its `moments`; where they are known also 'real_rows' and 'fake_rows', 'modes', 'shares',
      'hits' (conditional samples that the scorer takes for their class).
    train: [n, d] features of train examples, at least as many as the split has: their FID is the floor.
  """
  count = int(sums['real']['count'])
  numbers = {'diversity': diversity(sums['fake']), 'real_diversity': diversity(sums['real'])}
  if 'modes' in sums:
    numbers |= {'modes': int((sums['modes'] > 0).sum()), 'high_quality': float(sums['modes'].sum() / count)}
  if 'shares' in sums:
    share = sums['shares'] / count
    numbers |= {'smallest_class_share': float(share.min()), 'largest_class_share': float(share.max())}
  if 'hits' in sums:
    numbers['label_accuracy'] = float(sums['hits'] / count)
  if 'real_rows' in sums:
    real, fake = (np.asarray(sums[name][:count]) for name in ('real_rows', 'fake_rows'))
    precision, recall = precision_recall(real, fake)
    numbers |= {'fid': frechet_distance(real, fake), 'kid': kernel_distance(real, fake)}
    numbers |= {'precision': precision, 'recall': recall}
    if train is not None:
      numbers['fid_floor'] = frechet_distance(real, train[:count])
  return numbers
