import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from karpjax import errors, program
from karpjax.losses import classification


def batch(seed=0, size=6, classes=4):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 3, (size, classes)).astype(np.float32), rng.integers(0, classes, size).astype(np.int32)


def slope_by_differences(loss, x, eps=1e-2):
  """Gradient of loss(x).sum() by central differences."""
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    high, low = x.copy(), x.copy()
    high[i] += eps
    low[i] -= eps
    gradient[i] = (np.asarray(loss(high), np.float64).sum() - np.asarray(loss(low), np.float64).sum()) / (2 * eps)
  return gradient


def test_cross_entropy_closed_forms():
  zeros = np.zeros((3, 10), np.float32)
  np.testing.assert_allclose(classification.cross_entropy(zeros, np.arange(3)), np.log(10), rtol=1e-6)
  logits, labels = np.array([[0, np.log(3.0)]], np.float32), np.array([1])
  np.testing.assert_allclose(classification.cross_entropy(logits, labels), [np.log(4 / 3)], rtol=1e-6)
  # half a target on each of two classes of probabilities 1/4 and 3/4
  soft = np.array([[0.5, 0.5]], np.float32)
  np.testing.assert_allclose(
    classification.cross_entropy(logits, soft), [-0.5 * np.log(1 / 4) - 0.5 * np.log(3 / 4)], rtol=1e-6
  )
  far = np.array([[1e4, -1e4]], np.float32)
  np.testing.assert_allclose(classification.cross_entropy(far, np.array([1])), [2e4], rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_equals_optax(smoothing):
  logits, labels = batch()
  soft = optax.smooth_labels(jax.nn.one_hot(labels, 4), smoothing)
  expected = optax.softmax_cross_entropy(logits, soft)
  np.testing.assert_allclose(
    classification.cross_entropy(logits, labels, label_smoothing=smoothing), expected, rtol=1e-5
  )
  # probabilities of labels give what the labels give
  np.testing.assert_allclose(
    classification.cross_entropy(logits, jax.nn.one_hot(labels, 4), label_smoothing=smoothing),
    expected,
    rtol=1e-5,
  )


def test_squared_error_to_targets_closed_form():
  outputs, labels = np.array([[1.0, -1, -1], [0, 0, 0], [-1, 1, 1]], np.float32), np.array([0, 1, 0])
  np.testing.assert_allclose(classification.squared_error_to_targets(outputs, labels), [0, 1, 4])


def test_squared_error_is_the_mean_over_outputs():
  predictions, targets = np.array([[1.0, 2], [3, 4]]), np.array([[0.0, 0], [3, 2]])
  np.testing.assert_allclose(classification.squared_error(predictions, targets), [2.5, 2])
  np.testing.assert_allclose(classification.squared_error(predictions[:, :1], np.array([0.0, 1])), [1, 4])


def test_gradients_equal_finite_differences_and_softmax_minus_target():
  logits, labels = batch(size=3)
  targets = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
  losses = (
    lambda x: classification.cross_entropy(x, labels),
    lambda x: classification.cross_entropy(x, jax.nn.softmax(targets), label_smoothing=0.2),
    lambda x: classification.squared_error_to_targets(x, labels),
    lambda x: classification.squared_error(x, targets),
  )
  for loss in losses:
    gradient = jax.grad(lambda x, loss=loss: loss(x).sum())(logits)
    np.testing.assert_allclose(gradient, slope_by_differences(jax.jit(loss), logits), atol=2e-3)
  gradient = jax.grad(lambda x: losses[0](x).sum())(logits)
  np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - jax.nn.one_hot(labels, 4), atol=1e-6)


def test_masked_examples_count_nothing():
  logits, labels = batch()
  mask = np.array([True, True, False, True, False, False])
  labels_of_padding = np.where(mask, labels, 0)
  mean = lambda logits, labels, mask: (lambda s: s[0] / s[1])(
    program.pair(classification.cross_entropy(logits, labels), mask)
  )
  np.testing.assert_allclose(mean(logits, labels_of_padding, mask), mean(logits[mask], labels[mask], None), rtol=1e-6)
  gradient = jax.grad(mean)(logits, labels_of_padding, mask)
  np.testing.assert_array_equal(gradient[~mask], 0)
  np.testing.assert_allclose(gradient[mask], jax.grad(mean)(logits[mask], labels[mask], None), atol=1e-7)


def test_losses_are_float32_for_bfloat16_outputs():
  logits, labels = batch()
  logits = jnp.asarray(logits, jnp.bfloat16)
  losses = (
    classification.cross_entropy(logits, labels),
    classification.squared_error_to_targets(logits, labels),
    classification.squared_error(logits, logits),
  )
  assert {(a.shape, a.dtype) for a in losses} == {((6,), jnp.dtype(jnp.float32))}


def test_shapes_that_would_broadcast_are_refused():
  logits, labels = batch()
  with pytest.raises(errors.UsageError, match='cross_entropy'):
    classification.cross_entropy(logits, labels[:, None])
  with pytest.raises(errors.UsageError, match='do not fit'):
    classification.squared_error(logits, labels)
