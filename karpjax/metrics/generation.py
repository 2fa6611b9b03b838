"""How good and how various generated examples are, from features of real and of generated ones.

What is summed over batches is traced (`moments`, `rows`, `modes`); what the sums come to is computed once, of their precision:
`in_float64` gives these functions the one that they need. A distance is on the scale of its features: those of two classifiers,
or of Inception, cannot be compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from karpjax import errors

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


def square_root(matrix):
  """The symmetric positive semidefinite square root of such a matrix [d, d]; eigenvalues that rounding made negative are 0."""
  values, vectors = jnp.linalg.eigh(matrix)
  return (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T


def frechet_distance(real, fake):
  """FID (Heusel et al. 2017, eq. 6): ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½) of the Gaussians through features [n, d] and [m, d].

  (Σ Σ')^½ has the trace of (Σ^½ Σ' Σ^½)^½, which is symmetric.
  """
  (mean, cov), (other_mean, other_cov) = map(_gaussian, (real, fake))
  root = square_root(cov)
  values = jnp.linalg.eigvalsh(root @ other_cov @ root)
  traces = jnp.trace(cov) + jnp.trace(other_cov) - 2 * jnp.sqrt(jnp.maximum(values, 0)).sum()
  return jnp.square(mean - other_mean).sum() + traces


def _gaussian(features):
  mean = features.mean(0)
  return mean, (features - mean).T @ (features - mean) / (len(features) - 1)


def kernel_distance(real, fake, chunk: int = CHUNK):
  """KID (Bińkowski et al. 2018, section 4): the unbiased squared MMD under the kernel (xᵀy / d + 1)³, over all pairs.

  Args:
    real: [n, d].
    fake: [m, d].
    chunk: rows of the kernel's matrix that are held at once.
  """
  kernel = lambda products: (products / real.shape[1] + 1) ** 3
  total = lambda a, b: lax.map(lambda row: kernel(b @ row).sum(), a, batch_size=chunk).sum()
  within = lambda a: (total(a, a) - kernel(jnp.square(a).sum(1)).sum()) / (len(a) * (len(a) - 1))
  return within(real) + within(fake) - 2 * total(real, fake) / (len(real) * len(fake))


def precision_recall(real, fake, k: int = NEIGHBOURS, chunk: int = CHUNK):
  """Which share of fake examples lies among the real ones, and of real among fake (Kynkäänniemi et al. 2019, eq. 1 and 2).

  An example lies among others where it is no farther from one of them than that one's k-th nearest neighbour of its kind.

  Args:
    real: [n, d].
    fake: [m, d].
    k: neighbours; n and m must be larger.
    chunk: rows of the matrix of distances that are held at once.
  """

  def rowwise(f, points, others):
    """[len(points)]: f of each point's squared distances from the others."""
    squares = jnp.square(others).sum(1)
    distances = lambda point: jnp.maximum(jnp.square(point).sum() + squares - 2 * others @ point, 0)
    return lax.map(lambda point: f(distances(point)), points, batch_size=chunk)

  def share_among(points, others):
    radii = rowwise(lambda d: _smallest(d, k), others, others)  # the 0th is itself
    return rowwise(lambda d: (d <= radii).any(), points, others).mean(dtype=points.dtype)

  return share_among(fake, real), share_among(real, fake)


def _smallest(values, k: int):
  """The k-th smallest of [n], the smallest being the 0th: for a small k far faster than to sort them."""
  return lax.fori_loop(0, k, lambda _, left: left.at[left.argmin()].set(jnp.inf), values).min()


def scores(real, fake) -> dict[str, Any]:
  """{name: []} of features [n, d] and [m, d]."""
  precision, recall = precision_recall(real, fake)
  fid, kid = frechet_distance(real, fake), kernel_distance(real, fake)
  return {'fid': fid, 'kid': kid, 'precision': precision, 'recall': recall}


def in_float64(function: Callable, *arrays: np.ndarray):
  """What `function`, compiled, makes of arrays in float64: on the CPU, since not every accelerator knows it; as NumPy's.

  Raises:
    UsageError: where JAX was told to do without the CPU.
  """
  try:
    cpu = jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    raise errors.UsageError(
      f'distances of features are computed on the CPU, which JAX_PLATFORMS={jax.config.jax_platforms} leaves out; '
      f'type JAX_PLATFORMS={jax.config.jax_platforms},cpu'
    ) from None
  with jax.enable_x64(True):
    return jax.device_get(jax.jit(function)(*jax.device_put([np.asarray(x, np.float64) for x in arrays], cpu)))


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
    numbers |= {name: float(x) for name, x in in_float64(scores, real, fake).items()}
    if train is not None:
      numbers['fid_floor'] = float(in_float64(frechet_distance, real, train[:count]))
  return numbers
