"""Losses of embeddings of two views of each example, [batch, units] each; batches are whole, over all replicas."""

import jax
import jax.numpy as jnp

from karpjax import collectives


def normalised(x):
  """[..., units] of length 1."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))  # whose gradient at 0 is finite


def nt_xent(a, b, temperature: float, *, within: bool = True):
  """Cross-entropy of finding an example's other view among the batch's by cosine (Chen et al. 2020, eq. 1: SimCLR).

  Args:
    a, b: [batch, units], the two views.
    temperature: that similarities are divided by.
    within: whether those of the same view count among what a view is told from; else a finds its b among all b alone.

  Returns:
    [batch] float32, of both views the mean.
  """
  a, b = normalised(a), normalised(b)
  every_a, every_b = collectives.gather((a, b))
  own = collectives.offset(len(a)) + jnp.arange(len(a))

  def found(x, same, other):
    scores = x @ other.T / temperature  # [batch, whole batch]
    right = jnp.take_along_axis(scores, own[:, None], 1)[:, 0]
    if within:
      itself = jnp.arange(len(same)) == own[:, None]
      scores = jnp.concatenate([scores, jnp.where(itself, -jnp.inf, x @ same.T / temperature)], 1)
    return jax.nn.logsumexp(scores, 1) - right

  if not within:
    return found(a, every_a, every_b)
  return (found(a, every_a, every_b) + found(b, every_b, every_a)) / 2


def barlow(a, b, weight: float):
  """Of the correlations between the units of two views: how far they are from the identity (Zbontar et al. 2021, eq. 1).

  Args:
    a, b: [batch, units].
    weight: of those off the diagonal.

  Returns:
    [batch] float32: one number of the whole batch, for each example the same.
  """
  a, b = collectives.gather((a.astype(jnp.float32), b.astype(jnp.float32)))
  a, b = ((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) for x in (a, b))
  correlation = a.T @ b / len(a)
  off = jnp.square(correlation).sum() - jnp.square(jnp.diagonal(correlation)).sum()
  one = jnp.square(jnp.diagonal(correlation) - 1).sum() + weight * off
  return jnp.broadcast_to(one, len(a) // collectives.replicas())


def distance(prediction, target):
  """2 - 2 cosine, which is the squared distance of both at length 1 (Grill et al. 2020, eq. 2: BYOL): [batch] float32."""
  return 2 - 2 * (normalised(prediction) * normalised(target)).sum(-1)
