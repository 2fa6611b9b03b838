import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import collectives
from karpjax.layers import normalisation


def variables(channels=5, seed=0):
  scale, bias, mean, var = np.random.default_rng(seed).uniform(0.5, 1.5, (4, channels)).astype(np.float32)
  return {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}


def signal(shape, seed=1):
  return np.random.default_rng(seed).normal(0.7, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize('shape', [(6, 5), (6, 4, 3, 5)])
def test_training_and_evaluation_follow_the_paper_in_float64(shape):
  state, x = variables(), signal(shape)
  scale, bias = state['params']['scale'], state['params']['bias']
  axes = tuple(range(len(shape) - 1))
  exact = x.astype(np.float64)
  mean, var = exact.mean(axes), exact.var(axes)
  applied = jax.jit(
    lambda state, x: [
      normalisation.BatchNorm().apply(state, x, train=train, mutable=['batch_stats']) for train in (True, False)
    ]
  )
  (y, updated), (of_running, _) = applied(state, x)
  np.testing.assert_allclose(y, (exact - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=2e-6)
  for name, batch in (('mean', mean), ('var', var)):
    expected = 0.9 * state['batch_stats'][name] + 0.1 * batch
    np.testing.assert_allclose(updated['batch_stats'][name], expected, rtol=1e-6)
  stats = state['batch_stats']
  expected = (exact - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * scale + bias
  np.testing.assert_allclose(of_running, expected, atol=2e-6)


def test_value_and_gradients_equal_linens():
  state, x, weights = variables(), signal((8, 6, 5)), signal((8, 6, 5), seed=2)

  def value(module, options, params, x):
    y, updated = module.apply({**state, 'params': params}, x, mutable=['batch_stats'], **options)
    return (jnp.sin(y) * weights).sum(), updated['batch_stats']

  results = []
  for module, options in (
    (normalisation.BatchNorm(), {'train': True}),
    (nn.BatchNorm(use_running_average=False, momentum=0.9), {}),
  ):
    gradient = jax.grad(lambda *a, m=module, o=options: value(m, o, *a), (0, 1), has_aux=True)
    results.append(jax.jit(gradient)(state['params'], x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), *results)


def test_replicas_share_moments_and_gradients(replicas=4):
  """A batch cut over devices has the outputs, statistics and gradients of the whole batch."""
  state, x, weights = variables(), signal((16, 3, 5)), signal((16, 3, 5), seed=3)
  x += np.arange(16, dtype=np.float32)[:, None, None]  # each device's moments are far from the whole batch's

  def step(params, x, weights):
    def loss(params, x):
      y, updated = normalisation.BatchNorm().apply({**state, 'params': params}, x, train=True, mutable=['batch_stats'])
      return (jnp.sin(y) * weights).sum(), (y, updated)

    (grads, input_grads), aux = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return collectives.total(grads), input_grads, aux

  grads, input_grads, (y, updated) = jax.jit(step)(state['params'], x, weights)
  cut = lambda a: a.reshape(replicas, 16 // replicas, *a.shape[1:])
  mapped = jax.pmap(step, axis_name=collectives.REPLICAS, in_axes=(None, 0, 0))
  each_grads, each_input_grads, (each_y, each_updated) = mapped(state['params'], cut(x), cut(weights))
  np.testing.assert_allclose(each_y, cut(y), atol=1e-5)
  np.testing.assert_allclose(each_input_grads, cut(np.asarray(input_grads)), atol=1e-5)
  for replica in range(replicas):
    ours = jax.tree.map(lambda a, r=replica: a[r], (each_grads, each_updated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, (grads, updated))


def test_statistics_and_params_stay_float32_in_bfloat16():
  module = normalisation.BatchNorm(dtype=jnp.bfloat16)
  x = (signal((512, 5)) + 100).astype(jnp.bfloat16)
  state = module.init(jax.random.key(0), x, train=False)
  y, updated = module.apply(state, x, train=True, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves((state, updated))} == {jnp.dtype(jnp.float32)}
  exact = np.asarray(x, np.float64)
  np.testing.assert_allclose(updated['batch_stats']['mean'], 0.1 * exact.mean(0), rtol=1e-5)
  np.testing.assert_allclose(updated['batch_stats']['var'], 0.9 + 0.1 * exact.var(0), rtol=1e-3)


@pytest.mark.parametrize('ratio, tolerance', [(1, 2e-6), (10, 1e-4), (100, 1e-2)])
def test_variance_survives_a_distant_mean(ratio, tolerance):
  x = np.random.default_rng(0).normal(ratio, 1, (64, 16, 16, 4)).astype(np.float32)
  _, var = jax.jit(normalisation.moments)(x)
  np.testing.assert_allclose(var, x.astype(np.float64).var((0, 1, 2)), rtol=tolerance)


def test_rows_count_as_often_as_their_weights_say_on_all_replicas(replicas=4):
  weights = np.random.default_rng(0).integers(0, 3, (8, 6))
  weights[2:4] = 0  # all of a replica's
  x = signal((8, 6, 5)) + np.where(weights, np.arange(8)[:, None], 1000)[..., None].astype(np.float32)
  repeated = np.repeat(x.reshape(-1, 5), weights.ravel(), 0).astype(np.float64)
  cut = lambda a: a.reshape(replicas, -1, *a.shape[1:])
  for mean, var in (
    jax.jit(normalisation.moments)(x, weights),
    [each[1] for each in jax.pmap(normalisation.moments, collectives.REPLICAS)(cut(x), cut(weights))],
  ):
    np.testing.assert_allclose(mean, repeated.mean(0), rtol=1e-4)
    np.testing.assert_allclose(var, repeated.var(0), rtol=1e-4)


def test_a_constant_channel_gives_its_bias_and_finite_gradients():
  state, x = variables(), np.full((32, 7, 5), 0.3, np.float32)
  apply = lambda x: normalisation.BatchNorm().apply(state, x, train=True, mutable=['batch_stats'])[0]
  np.testing.assert_allclose(jax.jit(apply)(x), np.broadcast_to(state['params']['bias'], x.shape), atol=1e-3)
  assert np.isfinite(jax.jit(jax.grad(lambda x: jnp.square(apply(x)).sum()))(x)).all()


def test_vmapped_seeds_equal_each_alone():
  states = [variables(seed=s) for s in range(3)]
  stacked = jax.tree.map(lambda *a: np.stack(a), *states)
  x = signal((3, 8, 5))
  apply = lambda state, x: normalisation.BatchNorm().apply(state, x, train=True, mutable=['batch_stats'])
  mapped = jax.jit(jax.vmap(apply))(stacked, x)
  for s in range(3):
    alone = jax.jit(apply)(states[s], x[s])
    one = jax.tree.map(lambda a, s=s: a[s], mapped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, alone)


def test_initial_state_is_left_alone_by_init_in_training_mode():
  module = normalisation.BatchNorm(scale_init=nn.initializers.zeros_init())
  state = module.init(jax.random.key(0), signal((4, 5)), train=True)
  np.testing.assert_array_equal(state['batch_stats']['mean'], np.zeros(5))
  np.testing.assert_array_equal(state['batch_stats']['var'], np.ones(5))
  np.testing.assert_array_equal(state['params']['scale'], np.zeros(5))


def test_instance_norm_is_linens_and_knows_no_other_image():
  params, x = {'params': variables()['params']}, signal((6, 4, 3, 5))
  theirs = jax.jit(nn.InstanceNorm(epsilon=1e-5).apply)(params, x)
  apply = jax.jit(lambda x: [normalisation.InstanceNorm().apply(params, x, train=train) for train in (True, False)])
  for y, one in zip(apply(x), apply(x[2:3])):
    np.testing.assert_allclose(y, theirs, atol=1e-5)
    np.testing.assert_allclose(y[2:3], one, atol=1e-6)


def test_classes_have_each_a_gain_and_a_bias_and_share_the_moments():
  """As rows normalised without either, times the gain and plus the bias of each row's class."""
  draw = np.random.default_rng(0)
  x, labels = draw.normal(2, 3, size=(6, 2, 3, 4)).astype(np.float32), np.array([2, 0, 1, 1, 2, 2])
  module, plain = normalisation.BatchNorm(classes=3), normalisation.BatchNorm()
  variables = jax.eval_shape(lambda key: module.init(key, x, labels=labels, train=False), jax.random.key(0))
  assert {n: v.shape for n, v in variables['params'].items()} == {'scale': (3, 4), 'bias': (3, 4)}
  tables = {n: draw.normal(size=(3, 4)).astype(np.float32) for n in ('scale', 'bias')}
  stats = {'mean': draw.normal(size=4).astype(np.float32), 'var': draw.uniform(1, 2, 4).astype(np.float32)}
  unit = {'scale': np.ones(4, np.float32), 'bias': np.zeros(4, np.float32)}
  scale, bias = (tables[n][labels][:, None, None] for n in ('scale', 'bias'))
  for train in (True, False):
    options = dict(train=train, mutable=['batch_stats'])
    found, one = jax.jit(lambda x: module.apply({'params': tables, 'batch_stats': stats}, x, labels=labels, **options))(
      x
    )
    normal, two = jax.jit(lambda x: plain.apply({'params': unit, 'batch_stats': stats}, x, **options))(x)
    np.testing.assert_allclose(found, np.asarray(normal) * scale + bias, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_what_is_nan_at_padding_is_in_no_moment():
  x, weights = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32), np.ones((3, 4), np.float32)
  x[1, 2:], weights[1, 2:] = np.nan, 0
  mean, variance = normalisation.moments(x, weights)
  real = x[weights > 0].astype(float)
  np.testing.assert_allclose(mean, real.mean(0), rtol=1e-5)
  np.testing.assert_allclose(variance, real.var(0), rtol=1e-5)
