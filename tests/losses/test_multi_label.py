import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import losses as optax_losses

from karpjax.losses import multi_label

LOGITS = np.random.default_rng(0).normal(size=(6, 5), scale=3).astype(np.float32)
LABELS = (np.random.default_rng(1).random((6, 5)) < 0.4).astype(np.float32)


def total(name, **options):
  return sum(multi_label.LOSSES[name](LOGITS, LABELS, **options))


def test_binary_and_focal_are_optax_s():
  np.testing.assert_allclose(total('binary'), optax_losses.sigmoid_binary_cross_entropy(LOGITS, LABELS), rtol=1e-5)
  theirs = optax_losses.sigmoid_focal_loss(LOGITS, LABELS, alpha=0.25, gamma=2.0)
  np.testing.assert_allclose(total('focal'), theirs, rtol=1e-4, atol=1e-7)


def test_asymmetric_by_hand_and_without_its_asymmetry():
  np.testing.assert_allclose(
    total('asymmetric', present_gamma=0, absent_gamma=0, margin=0), total('binary'), rtol=1e-4, atol=1e-6
  )
  p = 1 / (1 + np.exp(-LOGITS.astype(float)))
  shifted = np.maximum(p - 0.05, 0)
  by_hand = -LABELS * np.log(p) - (1 - LABELS) * shifted**4 * np.log(1 - shifted)
  np.testing.assert_allclose(total('asymmetric'), by_hand, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('name', multi_label.LOSSES)
def test_extreme_logits_have_finite_losses_and_gradients(name):
  loss = lambda x: multi_label.mean_over_known(multi_label.LOSSES[name], x, jnp.array([[1, 0, -1.0]])).sum()
  for size in (0.0, 30.0, 200.0):
    value, gradient = jax.value_and_grad(loss)(jnp.array([[-size, size, size]]))
    assert np.isfinite(value) and np.isfinite(gradient).all() and gradient[0, 2] == 0


def test_unknown_tags_count_nothing_and_weights_are_of_what_is_present():
  labels = np.where(np.arange(5) < 2, -1, LABELS)
  mean = lambda labels, weight=1.0: multi_label.mean_over_known(multi_label.binary, LOGITS, labels, weight)
  np.testing.assert_allclose(mean(labels), np.asarray(total('binary'))[:, 2:].mean(1), rtol=1e-5)
  assert not np.asarray(mean(np.full((6, 5), -1))).any()
  present, absent = multi_label.binary(LOGITS, LABELS)
  np.testing.assert_allclose(mean(LABELS, np.arange(5.0)), (np.arange(5) * present + absent).mean(1), rtol=1e-5)
