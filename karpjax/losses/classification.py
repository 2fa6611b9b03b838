"""Losses of classification and regression, one float32 value per example."""

import jax
import jax.numpy as jnp

from karpjax.errors import UsageError


def cross_entropy(logits, labels, *, label_smoothing: float = 0.0):
  """-sum_c q_c log softmax(logits)_c, in nats.

  Args:
    logits: [batch, classes], any float dtype.
    labels: [batch] int class numbers, or [batch, classes] probabilities q (as mixup and CutMix make them).
    label_smoothing: s in [0, 1]: q becomes (1 - s) q + s / classes (Szegedy et al. 2016, section 7).

  Returns:
    [batch] float32.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  if labels.ndim == 1:
    losses = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
  elif labels.shape == logits.shape:
    losses = -(labels.astype(jnp.float32) * log_probs).sum(-1)
  else:
    raise UsageError(f'cross_entropy of logits {logits.shape} and probabilities {labels.shape}: they do not fit')
  if label_smoothing:
    losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(-1)
  return losses


def squared_error_to_targets(outputs, labels):
  """Mean squared distance to +1 at the labelled output and -1 at all others (LeCun et al. 1989).

  Args:
    outputs: [batch, classes].
    labels: [batch] int class numbers, or [batch, classes] probabilities, one-hot or mixed.

  Returns:
    [batch] float32.
  """
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, outputs.shape[-1], dtype=jnp.float32)  # [batch, classes]
  return squared_error(outputs, 2 * labels - 1)


def squared_error(predictions, targets):
  """Mean over outputs of (prediction - target)^2: [batch] float32.

  Args:
    predictions, targets: [batch] or [batch, outputs]; [batch, 1] stands for [batch].

  Raises:
    UsageError: where the shapes do not fit, and would broadcast into [batch, batch].
  """
  a, b = (x[:, None] if x.ndim == 1 else x for x in (predictions, targets))  # [batch, outputs]
  if a.shape != b.shape or a.ndim != 2:
    raise UsageError(f'predictions {a.shape} do not fit targets {b.shape}: expected the same [batch, outputs]')
  return jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean(-1)
