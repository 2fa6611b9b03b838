"""The loss of predicting tokens."""

import jax
import jax.numpy as jnp


def cross_entropy(logits, targets, *, label_smoothing: float = 0.0):
  """−log softmax(logits) of each target, in nats; 0 where the target is negative, and so not scored.

  Args:
    logits: [..., vocabulary], any float dtype.
    targets: [...] int32.
    label_smoothing: share of the target that is spread over all tokens (Szegedy et al. 2016, section 7).

  Returns:
    [...] float32.
  """
  logits = logits.astype(jnp.float32)
  total = jax.nn.logsumexp(logits, -1)
  chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
  losses = total - chosen
  if label_smoothing:
    losses = (1 - label_smoothing) * losses + label_smoothing * (total - logits.mean(-1))
  return jnp.where(targets >= 0, losses, 0)
