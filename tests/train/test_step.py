"""Any cut of a batch into microbatches or replicas gives the gradients of the whole batch; players are updated as by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from karpjax import collectives, errors
from karpjax import config as configs
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.program import Program, TrainState, example_keys, pair
from karpjax.train import loop, weights
from karpjax.train import transforms as transform
from karpjax.train.step import alternating_step, compute_gradients, train_step

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


@pytest.mark.parametrize('microbatches', [1, 4, 24])
def test_microbatches(microbatches):
  batch = batch_of(24)
  grads, metrics, *_ = jax.jit(compute_gradients(loss, microbatches=microbatches))(PARAMS, {}, batch, KEY)
  np.testing.assert_allclose(grads['w'], whole(batch)['w'], rtol=2e-5)
  assert float(metrics['loss'][1]) == int(batch['mask'].sum())


@pytest.mark.parametrize('devices, microbatches', [(8, 1), (4, 3)])
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
  compute = jax.jit(compute_gradients(counting, microbatches=3))
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
  state = TrainState.create(KEY, {'params': PARAMS}, optimiser, ema=True)
  step = train_step(loss, optimiser, configs.Train(ema=0.75))
  batch = batch_of(8)
  after, metrics = jax.jit(step)(state, batch)
  grads = jax.jit(compute_gradients(loss))(PARAMS, {}, batch, jax.random.fold_in(KEY, 0))[0]['w']
  expected = PARAMS['w'] - 0.1 * grads
  np.testing.assert_allclose(after.params['w'], expected, rtol=1e-6)
  np.testing.assert_array_equal(after.ema['w'], after.params['w'])
  assert after.eval_params is after.ema and int(after.step) == 1
  np.testing.assert_allclose(metrics['gradient_norm'][0], np.linalg.norm(grads), rtol=1e-6)


def counting(params, collections, batch, key):
  """A loss whose collections are statistics of the params, and a number of calls."""
  seen = {'now': {'square': jnp.square(params['w'])}, 'calls': {'made': collections['calls']['made'] + 1}}
  return loss(params, collections, batch, key)[0], seen


@pytest.mark.parametrize('decay', [0.75, 0.999, 0.99999])
def test_averages_are_free_of_the_start_and_go_with_their_statistics(decay):
  first = {'params': PARAMS, 'now': {'square': jnp.full_like(PARAMS['w'], 1e3)}, 'calls': {'made': jnp.zeros((), int)}}
  optimiser, theirs = optax.sgd(0.1), optax.ema(decay, debias=True)
  state = TrainState.create(KEY, first, optimiser, ema=True)
  step, average = jax.jit(train_step(counting, optimiser, configs.Train(ema=decay))), theirs.init(first)
  for _ in range(6):
    state, _ = step(state, batch_of(8))
    newest = {'params': state.params, **state.collections}
    expected, average = theirs.update(jax.tree.map(lambda x: x.astype(float), newest), average)
  averaged = state.variables()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3 * (decay > 0.9999) + 3e-5), *(
    {name: tree[name] for name in ('params', 'now')} for tree in (averaged, expected)
  ))  # fmt: skip
  assert int(averaged['calls']['made']) == 6  # no average of what is only counted
  assert state.replace(ema=None).variables() == newest
  lent, _ = weights.replace_weights(state, {'now/square': np.zeros_like(PARAMS['w'])})
  assert not lent.variables()['now']['square'].any()


# ---- two players ----

RATES = {'critic': 0.1, 'maker': 0.2}
SIZE = 48


def player_losses(broken=None):
  """The critic w scores x · w; the maker v makes v + x, and each pulls its way; the critic counts its turns."""

  def critic(params, collections, batch, key):
    made = params['maker']['v'] + batch['x']
    loss = made @ params['critic']['w'] - jnp.square(batch['x'] @ params['critic']['w'] - 1)
    if broken == 'critic':
      loss = loss * jnp.where(batch['index'] == 3, jnp.nan, 1)
    own = {'counts': {'turns': collections['critic']['counts']['turns'] + 1}}
    return {'loss': pair(loss)}, own

  def maker(params, collections, batch, key):
    loss = -jnp.tanh((params['maker']['v'] + batch['x']) @ params['critic']['w'])
    if broken == 'maker':
      loss = loss * jnp.inf
    return {'loss': pair(loss)}, collections['maker']

  return {'critic': critic, 'maker': maker}


def optimisers():
  return {name: optax.sgd(rate) for name, rate in RATES.items()}


def two_players(key, averaged=('maker',)):
  variables = {
    'critic': {'params': {'w': jnp.array([0.5, -1.0])}, 'counts': {'turns': jnp.zeros(())}},
    'maker': {'params': {'v': jnp.array([0.3, 0.2])}},
  }
  return TrainState.create(key, variables, optimisers(), ema=averaged)


def points(size=SIZE):
  x = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
  return {'x': jnp.asarray(x), 'index': jnp.arange(size)}


def by_hand(x, rounds):
  """The same by derivatives on paper: (w, v) after one step."""
  w, v = np.array([0.5, -1.0]), np.array([0.3, 0.2])
  parts = [x[i::rounds] for i in range(rounds)]
  for part in parts:
    residual = part @ w - 1
    w = w - RATES['critic'] * (v + part.mean(0) - 2 * (residual[:, None] * part).mean(0))
  slope = 1 - np.tanh((v + parts[-1]) @ w) ** 2
  v = v + RATES['maker'] * slope.mean() * w
  return w, v


@pytest.mark.parametrize('rounds, microbatches', [(1, 1), (3, 4)])
def test_a_step_is_the_update_by_hand(rounds, microbatches):
  step = alternating_step(
    player_losses(), optimisers(), configs.Train(microbatches=microbatches, ema=0.75), rounds=rounds
  )
  state, metrics = jax.jit(step)(two_players(KEY), points())
  w, v = by_hand(np.asarray(points()['x'], np.float64), rounds)
  np.testing.assert_allclose(state.params['critic']['w'], w, rtol=1e-5)
  np.testing.assert_allclose(state.params['maker']['v'], v, rtol=1e-5)
  np.testing.assert_array_equal(state.ema['maker']['v'], state.params['maker']['v'])  # of one value
  assert set(state.ema) == set(state.ema_collections) == {'maker'} and int(state.step) == 1
  assert state.variables('critic')['params'] is state.params['critic']
  assert int(state.collections['critic']['counts']['turns']) == rounds * microbatches
  # every example is counted once by the critic, those of the last round by the maker
  assert int(metrics['critic_loss'][1]) == SIZE and int(metrics['maker_loss'][1]) == SIZE // rounds
  assert set(metrics) == {f'{p}_{n}' for p in RATES for n in ('loss', 'gradient_norm')}
  assert int(metrics['critic_gradient_norm'][1]) == rounds
  np.testing.assert_allclose(metrics['maker_gradient_norm'][0], np.linalg.norm(v - [0.3, 0.2]) / 0.2, rtol=1e-4)


def test_the_last_player_has_the_key_of_the_last_round():
  def seen(name):
    def loss(params, collections, batch, key):
      draw = jax.random.uniform(key) * jnp.ones(len(batch['index']))
      return {'loss': pair(draw * params[name]['w' if name == 'critic' else 'v'].sum())}, collections[name]

    return loss

  for rounds in (1, 3):
    step = alternating_step({n: seen(n) for n in RATES}, optimisers(), configs.Train(), rounds=rounds)
    before = two_players(KEY)
    after, _ = jax.jit(step)(before, points())
    key = jax.random.fold_in(jax.random.key(0), 0)
    keys = [key] if rounds == 1 else [jax.random.fold_in(key, i) for i in range(rounds)]
    draws = [float(jax.random.uniform(k)) for k in keys]
    moved = {n: jax.tree.leaves(before.params[n])[0][0] - jax.tree.leaves(after.params[n])[0][0] for n in RATES}
    np.testing.assert_allclose(moved['critic'], 0.1 * sum(draws), rtol=1e-5)
    np.testing.assert_allclose(moved['maker'], 0.2 * draws[-1], rtol=1e-5)


@pytest.mark.parametrize('rounds', [1, 3])
def test_eight_devices_are_one(rounds):
  step = alternating_step(player_losses(), optimisers(), configs.Train(ema=0.5), rounds=rounds)
  state, whole = two_players(KEY), points()
  alone, numbers = jax.jit(step)(state, whole)
  cut = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), whole)
  together, all_numbers = jax.pmap(step, axis_name=collectives.REPLICAS, in_axes=(None, 0))(state, cut)
  if rounds == 1:  # else a round's examples are others
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(together.params)):
      np.testing.assert_allclose(b[0], a, rtol=1e-5)
  for x in jax.tree.leaves((together.params, together.ema)):
    assert all(np.array_equal(x[0], other) for other in x[1:])
  for name, (total, count) in numbers.items():
    assert int(all_numbers[name][1][0]) == int(count)
    if rounds == 1:
      np.testing.assert_allclose(all_numbers[name][0][0], total, rtol=1e-4)


@pytest.mark.parametrize('broken, rounds', [('critic', 3), ('maker', 1)])
def test_the_first_player_that_is_not_finite_is_the_one_that_is_named(broken, rounds):
  step = alternating_step(player_losses(broken), optimisers(), configs.Train(), rounds=rounds)
  _, metrics = jax.jit(step)(two_players(KEY), points())
  bad = {name for name, (total, _) in metrics.items() if not np.isfinite(total)}
  assert bad == {f'{broken}_loss', f'{broken}_gradient_norm'}
  if broken == 'critic':  # its successor's would be NaN too
    assert float(metrics['maker_loss'][0]) == 0


@pytest.mark.parametrize('player, other', [('critic', 'maker'), ('maker', 'critic')])
def test_a_player_whose_weights_overflow_is_blamed_before_its_successor(player, other):
  """Its loss and gradient were finite before the update; the maker's, behind the critic's update, are not."""
  chosen = {player: optax.sgd(1e30), other: optax.sgd(0.1)}
  _, metrics = jax.jit(alternating_step(player_losses(), chosen, configs.Train()))(two_players(KEY), points())
  assert {name for name, (total, _) in metrics.items() if not np.isfinite(total)} == {f'{player}_gradient_norm'}


@pytest.mark.parametrize('cut', [dict(rounds=5), dict(rounds=0), dict(rounds=3, microbatches=32)])
def test_rounds_and_microbatches_divide_the_batch(cut):
  config = configs.Train(microbatches=cut.get('microbatches', 1))
  step = alternating_step(player_losses(), optimisers(), config, rounds=cut['rounds'])
  with pytest.raises(
    errors.UsageError, match=f'{SIZE} examples of a step on one device cannot be cut into {cut["rounds"]} rounds'
  ):
    jax.eval_shape(step, two_players(KEY), points())


def test_a_state_starts_from_weights_by_their_players_names(tmp_path):
  file = tmp_path / 'w.safetensors'
  arrays = {'params.maker.v': np.array([7, 8], np.float32), 'params.critic.w': np.ones(3, np.float32)}
  safetensors.numpy.save_file(arrays, file)
  state, rows = weights.replace_weights(two_players(KEY), weights.read(str(file)))
  np.testing.assert_array_equal(state.params['maker']['v'], [7, 8])
  np.testing.assert_array_equal(state.ema['maker']['v'], [7, 8])
  np.testing.assert_array_equal(state.params['critic']['w'], [0.5, -1])
  assert set(state.ema) == {'maker'}
  told = {name: what for name, _, what in rows}
  assert told['params/maker/v'] == 'matched' and told['params/critic/w'].startswith('new (there [3])')


def trained(folder, **changes):
  settings = configs.Train(
    **{'steps': 4, 'batch_size': 24, 'plots': False, 'tensorboard': False, 'workdir': str(folder), **changes}
  )
  x = np.random.default_rng(0).normal(size=(SIZE, 2)).astype(np.float32)
  data = Dataset(Spec('none', (2,), (), 1.0, (), (), SIZE), {'train': Split.of(x=x)})
  step = alternating_step(player_losses(), optimisers(), configs.Train(ema=0.5))
  program = Program(two_players, step, lambda state, batch, key: {}, lambda sums: {})
  settings = dataclasses.replace(settings, eval_splits=(), final_splits=(), learning_rate=0.1)
  return loop.train(program, data, configs.resolve(settings, SIZE), experiment='none', say=lambda _: None)


def test_another_run_lends_its_weights_and_averages(tmp_path):
  """The averages, where the first run kept them, in the place of the params."""
  first = trained(tmp_path / 'first').state
  second = trained(tmp_path / 'second', steps=1, init_from=str(tmp_path / 'first'), log_every='1').state
  state = two_players(KEY)
  lent, _ = weights.replace_weights(state, weights.read(str(tmp_path / 'first')))
  np.testing.assert_array_equal(lent.params['maker']['v'], first.ema['maker']['v'])
  np.testing.assert_array_equal(lent.params['critic']['w'], first.params['critic']['w'])
  assert float(lent.collections['critic']['counts']['turns']) == 4
  assert float(second.collections['critic']['counts']['turns']) == 5


def test_one_of_several_seeds_is_that_seed_alone(tmp_path):
  several = trained(tmp_path / 'several', seeds=2, log_every='1').state
  alone = trained(tmp_path / 'alone', seed=1, log_every='1').state
  for a, b in zip(jax.tree.leaves((alone.params, alone.ema)), jax.tree.leaves((several.params, several.ema))):
    np.testing.assert_allclose(b[1], a, rtol=1e-5)
  assert transform.first_seed(several, 2).ema['maker']['v'].shape == (2,)
