"""Any cut of a batch into microbatches or replicas gives the gradients of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from karpjax import collectives
from karpjax.program import TrainState, example_keys, pair
from karpjax.train.step import compute_gradients, train_step

KEY = jax.random.key(0)


def loss(params, collections, batch, key):
  """Logistic regression on inputs with noise of each example's own; masked examples count nothing."""
  noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(example_keys(key, batch))
  logits = (batch['x'] + noise) @ params['w']
  losses = optax.sigmoid_binary_cross_entropy(logits, batch['y'])
  return {'loss': pair(losses, batch['mask']), 'positive': pair(logits > 0, batch['mask'])}, collections


def batch_of(size):
  generator = np.random.default_rng(1)
  mask = np.arange(size) % 5 != 0  # unequal counts in every cut
  mask[: size // 2] &= np.arange(size // 2) % 3 == 0
  return {
    'x': jnp.asarray(generator.normal(size=(size, 3)), jnp.float32),
    'y': jnp.asarray(generator.integers(0, 2, size), jnp.float32),
    'mask': jnp.asarray(mask),
    'index': jnp.arange(size) * 7,
  }


PARAMS = {'w': jnp.array([0.3, -0.2, 0.1])}


@jax.jit
def whole(batch):
  """The gradient of the mean over the examples that count, without any of the project's code."""

  def mean(params):
    (total, count), _ = loss(params, {}, batch, KEY)[0]['loss'], None
    return total / count

  return jax.grad(mean)(PARAMS)


@pytest.mark.parametrize('microbatches', [1, 2, 4, 8, 24])
def test_microbatches(microbatches):
  batch = batch_of(24)
  grads, metrics, *_ = jax.jit(compute_gradients(loss, microbatches=microbatches))(PARAMS, {}, batch, KEY)
  np.testing.assert_allclose(grads['w'], whole(batch)['w'], rtol=2e-5)
  assert float(metrics['loss'][1]) == int(batch['mask'].sum())


@pytest.mark.parametrize('devices, microbatches', [(2, 1), (4, 1), (8, 1), (4, 3), (2, 4)])
def test_replicas(devices, microbatches):
  batch = batch_of(24)
  cut = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
  compute = compute_gradients(loss, microbatches=microbatches)
  mapped = jax.pmap(lambda b: compute(PARAMS, {}, b, KEY)[:2], collectives.REPLICAS, devices=jax.devices()[:devices])
  grads, metrics = mapped(cut)
  np.testing.assert_allclose(grads['w'], np.tile(whole(batch)['w'], (devices, 1)), rtol=2e-5)
  assert float(metrics['loss'][1][0]) == int(batch['mask'].sum())
  positive = jax.jit(loss)(PARAMS, {}, batch, KEY)[0]['positive'][0]
  assert float(metrics['positive'][0][0]) == float(positive)


def test_a_batch_that_is_all_mask_has_no_gradient():
  batch = batch_of(8) | {'mask': jnp.zeros(8, bool)}
  grads, *_ = jax.jit(compute_gradients(loss))(PARAMS, {}, batch, KEY)
  assert not grads['w'].any()


def test_collections_pass_through_the_microbatches_in_order():
  def counting(params, collections, batch, key):
    seen = collections['seen'] * 10 + batch['index'][0]
    return loss(params, collections, batch, key)[0], {'seen': seen}

  batch = batch_of(6) | {'index': jnp.arange(6)}
  compute = compute_gradients(counting, microbatches=3)
  assert (
    int(compute(PARAMS, {'seen': jnp.zeros((), jnp.int32)}, batch, KEY)[2]['seen']) == 12
  )  # 0, 1, 2: every third row


def test_mean_total_and_gather_are_the_identity_on_one_device():
  x = jnp.arange(3.0)
  for function in (collectives.mean, collectives.total, collectives.gather):
    assert function(x) is x
  assert collectives.replicas() == 1


def test_gather_and_offset_over_replicas():
  x = jnp.arange(8.0).reshape(4, 2)
  gathered, mean, offset = jax.pmap(
    lambda x: (collectives.gather(x), collectives.mean(x), collectives.offset(2)),
    collectives.REPLICAS,
    devices=jax.devices()[:4],
  )(x)
  np.testing.assert_array_equal(gathered, np.tile(np.arange(8.0), (4, 1)))
  np.testing.assert_array_equal(mean[0], x.mean(0))
  np.testing.assert_array_equal(offset, [0, 2, 4, 6])


def test_the_running_average_follows_its_formula():
  optimiser = optax.sgd(0.1)
  state = TrainState.create(KEY, PARAMS, optimiser, ema=True)
  step = train_step(loss, optimiser, ema_decay=0.75)
  batch = batch_of(8)
  after, metrics = step(state, batch)
  expected = PARAMS['w'] - 0.1 * compute_gradients(loss)(PARAMS, {}, batch, jax.random.fold_in(KEY, 0))[0]['w']
  np.testing.assert_allclose(after.params['w'], expected, rtol=1e-6)
  np.testing.assert_allclose(after.ema['w'], 0.75 * PARAMS['w'] + 0.25 * expected, rtol=1e-6)
  assert after.eval_params is after.ema and int(after.step) == 1
  grads = compute_gradients(loss)(PARAMS, {}, batch, jax.random.fold_in(KEY, 0))[0]['w']
  np.testing.assert_allclose(metrics['gradient_norm'][0], np.linalg.norm(grads), rtol=1e-6)
