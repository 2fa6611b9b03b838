"""Quality and diversity of generated examples, from features of real and of generated ones: FID, KID, precision,
recall.

What is summed over batches is traced (`moments`, `covered_modes`, rows of features by `metrics.collect`); distances are
computed once, by NumPy in float64. They are on the scale of their features: those of two classifiers cannot be
compared.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from karpjax.metrics.collect import collect
from karpjax.program import pair

NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3
CHUNK = 1000  # rows of a matrix of distances that are held at once


# ---- sums ----


def moments(features, mask, about=0.0) -> dict[str, Any]:
  """{'count': [], 'sum': [d], 'squares': []} of features [batch, d] less `about`, the last being the sum of squared
  norms.

  About one of them, squares are not much larger than the variance, which would be lost otherwise where it is small.
  """
  weight = mask.astype(jnp.float32)
  features = jnp.where(mask[:, None], features.astype(jnp.float32) - about, 0)
  return {'count': weight.sum(), 'sum': features.sum(0), 'squares': jnp.square(features).sum()}


def covered_modes(points, means, std: float, mask):
  """[modes] counts of high-quality samples: within three standard deviations of the nearest mean.

  As Srivastava et al. 2017, section 4.1, of points [batch, 2] and means [modes, 2]; a mode is covered that is the
  nearest of at least one of them. Of the true distribution in two dimensions 98.9 % are of high quality.
  """
  distances = jnp.linalg.norm(points[:, None] - means, axis=-1)  # [batch, modes]
  good = (distances.min(1) <= 3 * std) & mask
  return jnp.zeros(len(means)).at[distances.argmin(1)].add(good)


def describe(scorer, examples):
  """Raw examples on the host, [n, …] -> [n, d]: the scorer's features, or the raw numbers themselves."""
  return scorer.describe(examples) if scorer else examples.reshape(len(examples), -1).astype(np.float32)


def sums(
  scorer, fake, batch, first=None, *, maximum: float, examples: int, conditional: bool, modes=None
) -> dict[str, Any]:
  """What `summarise` takes, of one batch; traced.

  Args:
    scorer: a `features.Scorer`; or None: then raw numbers, on the scale of [0, 1], are the features.
    fake: samples [batch, …] on the raw scale.
    batch: of real examples.
    first: (an example, a sample), raw, the same for all batches, about which sums are taken; without a scorer.
    maximum: the raw value that stands for 1.
    examples: size of the largest split.
    conditional: whether the samples are of the batch's labels.
    modes: (means, standard deviation) of the modes, where they are known.
  """
  mask = batch['mask']
  apply = scorer.apply if scorer else lambda x: (x.reshape(len(x), -1) / maximum, None)
  (real, _), (made, logits) = apply(batch['image']), apply(fake)
  about = [0.0, 0.0] if scorer or first is None else [jnp.ravel(x) / maximum for x in first]
  sums = {'real': moments(real, mask, about[0]), 'fake': moments(made, mask, about[1])}
  if modes:
    sums['modes'] = covered_modes(fake, *modes, mask)
  if scorer:
    rows = {'real_rows': real.astype(jnp.float32), 'fake_rows': made.astype(jnp.float32)}
    sums |= collect(rows, batch['index'], mask, examples)
  if logits is not None:
    classes = logits.argmax(-1)
    sums['class_counts'] = jnp.zeros(scorer.classes).at[classes].add(mask)
    if conditional:
      sums['hits'] = pair(classes == batch['label'], mask)[0]
  return sums


# ---- numbers ----


def diversity_of(rows: np.ndarray) -> float:
  """`diversity` of examples [n, d] themselves."""
  rows = np.asarray(rows, np.float64)
  return float(np.sqrt(2 * rows.var(0, ddof=min(len(rows) - 1, 1)).sum()))


def diversity(sums: Mapping[str, Any]) -> float:
  """Root mean square distance of two different examples, over all pairs, from their `moments`."""
  n, total = float(sums['count']), np.asarray(sums['sum'], np.float64)
  spread = float(sums['squares']) / n - np.square(total / n).sum()
  return float(np.sqrt(max(2 * spread * n / max(n - 1, 1), 0)))


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
  """FID (Heusel et al. 2017, eq. 6): ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½) of the Gaussians through features [n, d] and
  [m, d].

  (Σ Σ')^½ has the trace of (Σ^½ Σ' Σ^½)^½, which is symmetric; eigenvalues that rounding made negative are 0. One
  example has no covariance: then NaN.
  """
  real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
  if min(len(real), len(fake)) < 2:
    return math.nan
  cov, other_cov = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, fake))
  values, vectors = np.linalg.eigh(cov)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  values = np.linalg.eigvalsh(root @ other_cov @ root)
  traces = np.trace(cov) + np.trace(other_cov) - 2 * np.sqrt(np.maximum(values, 0)).sum()
  return float(np.square(real.mean(0) - fake.mean(0)).sum() + traces)


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
  """KID (Bińkowski et al. 2018, section 4): the unbiased squared MMD under the kernel (xᵀy / d + 1)³,
  over all pairs.
  """
  real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
  if min(len(real), len(fake)) < 2:
    return math.nan
  kernel = lambda products: (x := products / real.shape[1] + 1) * x * x  # far faster than a power
  total = lambda a, b: sum(kernel(part @ b.T).sum() for part in _chunks(a))
  within = lambda a: (total(a, a) - kernel(np.square(a).sum(1)).sum()) / (len(a) * (len(a) - 1))
  return float(within(real) + within(fake) - 2 * total(real, fake) / (len(real) * len(fake)))


def precision_recall(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
  """The fractions of fake examples among the real ones, and of real among fake (Kynkäänniemi et al. 2019, eq. 1 and 2).

  An example lies among others where it is no farther from one of them than that one's third nearest neighbour of its
  kind. NaN where there are no four of a kind.
  """

  def distances(points, others):
    """Squared, [CHUNK, len(others)] at a time."""
    squares = np.square(others).sum(1)
    for part in _chunks(points):
      yield np.maximum(np.square(part).sum(1)[:, None] + squares - 2 * part @ others.T, 0)

  def fraction_among(points, others):
    k = NEIGHBOURS  # the 0th is itself
    radii = np.concatenate([np.partition(d, k, 1)[:, k] for d in distances(others, others)])
    return float(np.concatenate([(d <= radii).any(1) for d in distances(points, others)]).mean())

  real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
  if min(len(real), len(fake)) <= NEIGHBOURS:
    return math.nan, math.nan
  return fraction_among(fake, real), fraction_among(real, fake)


def _chunks(rows: np.ndarray):
  return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def summarise(sums: Mapping[str, Any], train: Callable[[int], np.ndarray] | None = None) -> dict[str, float]:
  """{name: number} from one split's sums, on the host.

  Args:
    sums: of 'real' and 'fake', each its `moments`; where they are known also 'real_rows' and 'fake_rows', features [n,
      d]; 'modes'; 'class_counts', counts of the classes that the scorer sees; 'hits', of the samples that it takes for
      their class.
    train: (n) -> the features [n, d] of drawn train examples, whose FID is the floor.
  """
  count = int(sums['real']['count'])
  numbers = {'diversity': diversity(sums['fake']), 'real_diversity': diversity(sums['real'])}
  if 'modes' in sums:
    numbers |= {'modes': int((sums['modes'] > 0).sum()), 'high_quality': float(sums['modes'].sum() / count)}
  if 'class_counts' in sums:
    shares = sums['class_counts'] / count
    numbers |= {'smallest_class_share': float(shares.min()), 'largest_class_share': float(shares.max())}
  if 'hits' in sums:
    numbers['label_accuracy'] = float(sums['hits'] / count)
  if 'real_rows' in sums:
    real, fake = (np.asarray(sums[name][:count]) for name in ('real_rows', 'fake_rows'))
    numbers |= {'diversity': diversity_of(fake), 'real_diversity': diversity_of(real)}
    numbers |= {'fid': frechet_distance(real, fake), 'kid': kernel_distance(real, fake)}
    numbers['precision'], numbers['recall'] = precision_recall(real, fake)
    if train is not None:
      numbers['fid_floor'] = frechet_distance(real, train(count))
  return numbers


# ---- what reports show ----
