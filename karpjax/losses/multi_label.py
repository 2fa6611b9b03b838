"""Losses of tags, of which an example may have any number; one float32 value per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def binary(logits, labels):
  """-y log p - (1 - y) log (1 - p), p = sigmoid(logit), in nats: as (of y, of 1 - y), each like `logits`, float32."""
  return -labels * jax.nn.log_sigmoid(logits), -(1 - labels) * jax.nn.log_sigmoid(-logits)


def focal(logits, labels, *, gamma: float = 2.0, alpha: float = 0.25):
  """The same with p's distance from y to the power of gamma, and alpha of y, 1 - alpha of the rest (Lin et al. 2017, eq. 5)."""
  present, absent = binary(logits, labels)
  p = jax.nn.sigmoid(logits)
  return alpha * (1 - p) ** gamma * present, (1 - alpha) * p**gamma * absent


def asymmetric(logits, labels, *, present_gamma: float = 0.0, absent_gamma: float = 4.0, margin: float = 0.05):
  """The same with two gammas, and no loss where an absent tag has at most `margin` (Ridnik et al. 2021: ASL)."""
  present, _ = binary(logits, labels)
  p = jax.nn.sigmoid(logits)
  shifted = jnp.maximum(p - margin, 0)
  absent = -(1 - labels) * jnp.log1p(-shifted)
  power = lambda x, gamma: x**gamma if gamma else 1.0  # whose gradient at 0 is NaN
  return power(1 - p, present_gamma) * present, power(shifted, absent_gamma) * absent


LOSSES = {'binary': binary, 'focal': focal, 'asymmetric': asymmetric}


def mean_over_known(loss: Callable, logits, labels, weight=1.0):
  """The mean over the tags that are known of an example.

  Args:
    loss: one of LOSSES.
    logits: [batch, tags], any float dtype.
    labels: [batch, tags] in [0, 1], below 0 where a tag is not known.
    weight: of what is present, [tags] or one for all.

  Returns:
    [batch] float32; 0 where no tag is known.
  """
  known, labels = labels >= 0, labels.astype(jnp.float32)
  present, absent = loss(logits.astype(jnp.float32), jnp.maximum(labels, 0))
  return jnp.where(known, weight * present + absent, 0).sum(-1) / jnp.maximum(known.sum(-1), 1)
