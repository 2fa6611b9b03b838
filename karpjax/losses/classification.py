"""Losses of classification and regression, one float32 value per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from karpjax import errors, hyperparameters


def cross_entropy(logits, labels, *, label_smoothing: float = 0.0):
  """-sum_c q_c log softmax(logits)_c, in nats.

  Args:
    logits: [batch, classes], any float dtype.
    labels: [batch] int class numbers, or [batch, classes] probabilities q (as mixup and CutMix make them).
    label_smoothing: s in [0, 1]: q becomes (1 - s) q + s / classes (Szegedy et al. 2016, section 7). May be traced.

  Returns:
    [batch] float32.

  Raises:
    UsageError: where the shapes do not fit.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  if labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
    losses = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
  elif labels.shape == logits.shape:
    losses = -(labels.astype(jnp.float32) * log_probs).sum(-1)
  else:
    raise errors.UsageError(
      f'cross_entropy of logits {logits.shape} and {labels.dtype} labels {labels.shape}: expected integers '
      f'{logits.shape[:-1]} or probabilities {logits.shape}'
    )
  if not hyperparameters.is_zero(label_smoothing):
    losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(-1)
  return losses


def squared_error_to_targets(outputs, labels, *, over_outputs: Callable = jnp.mean):
  """Squared distance to +1 at the labelled output and -1 at all others (LeCun et al. 1989).

  Args:
    outputs: [batch, classes].
    labels: [batch] int class numbers, or [batch, classes] probabilities, one-hot or mixed.
    over_outputs: how an example's squared errors become one number: jnp.mean, or jnp.sum, `classes` times as
      much.

  Returns:
    [batch] float32.
  """
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, outputs.shape[-1], dtype=jnp.float32)  # [batch, classes]
  targets = 2 * labels - 1
  return over_outputs(jnp.square(outputs.astype(jnp.float32) - targets), axis=-1)


def binary_cross_entropy(logits, labels):
  """-log of the probability that sigmoid(logit) gives to the label, in nats.

  Args:
    logits: [batch] or [batch, 1].
    labels: [batch], 0, 1 or a probability between.

  Returns:
    [batch] float32.

  Raises:
    UsageError: where the shapes do not fit.
  """
  logits, labels = _columns(logits, labels)
  return (jax.nn.softplus(logits) - labels * logits)[:, 0]


def squared_error(predictions, targets):
  """Mean over outputs of (prediction - target)^2.

  Args:
    predictions, targets: [batch] or [batch, outputs]; [batch, 1] stands for [batch].

  Returns:
    [batch] float32.

  Raises:
    UsageError: where the shapes do not fit.
  """
  predictions, targets = _columns(predictions, targets)
  return jnp.square(predictions - targets).mean(-1)


def _columns(a, b):
  """Both as [batch, outputs] float32; refuses shapes that would broadcast into [batch, batch]."""
  a, b = (x[:, None] if x.ndim == 1 else x for x in (a, b))  # [batch, outputs]
  if a.shape != b.shape or a.ndim != 2:
    raise errors.UsageError(f'predictions {a.shape} do not fit targets {b.shape}: expected the same [batch, outputs]')
  return a.astype(jnp.float32), b.astype(jnp.float32)
