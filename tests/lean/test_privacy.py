"""Private training: ε against published values, gradients against a loop over examples, and runs as all else has them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gan, language_model, text_classification
from experiments import image_classification as experiment
from karpjax import collectives, config, population
from karpjax.data import batches
from karpjax.data.dataset import Split
from karpjax.errors import UsageError
from karpjax.lean import privacy
from karpjax.program import example_keys, pair
from karpjax.report import writers
from karpjax.train import checkpoint, runner
from karpjax.train import private as private_steps
from karpjax.train.prepare import prepare
from karpjax.train.private import Private
from karpjax.train.step import compute_gradients
from tests import stopped

KEY = jax.random.key(0)
RATE = 256 / 60_000  # of TensorFlow Privacy's tutorial
SMALL = dict(model='mlp', widths=(8,), batch_size=16, dp_noise=1.0, dp_clip=0.5, order='poisson')
RUN = SMALL | dict(
  steps='20', log_every='5', eval_every='10', checkpoint_every='10', checkpoint_seconds=0, learning_rate=0.01,
  tensorboard=False, plots=False, steps_per_call='7', final_splits=('test',),
)  # fmt: skip


# ---- ε ----


@pytest.mark.parametrize(
  'noise, epochs, classical, tight', [(1.3, 15, 1.19, 0.95), (1.1, 60, 3.01, 2.60), (0.7, 45, 7.10, 6.32)]
)
def test_epsilon_is_that_of_tensorflow_privacys_table(noise, epochs, classical, tight):
  steps = math.ceil(epochs / RATE)
  assert round(privacy.epsilon(RATE, noise, steps, 1e-5, 'classical'), 2) == classical
  assert round(privacy.epsilon(RATE, noise, steps, 1e-5), 2) == tight
  assert privacy.epsilon(RATE, noise, 0, 1e-5) == 0


@pytest.mark.parametrize('rate, noise', [(RATE, 1.3), (0.3, 0.6), (1e-4, 20.0)])
def test_divergences_of_whole_orders_are_their_binomial_sums(rate, noise):
  found = dict(zip(privacy.ORDERS, privacy.divergences(rate, noise)))
  for order in (2, 5, 12):
    term = lambda k, n=order: math.comb(n, k) * (1 - rate) ** (n - k) * rate**k * math.exp((k * k - k) / (2 * noise**2))
    expected = math.log(math.fsum(map(term, range(order + 1)))) / (order - 1)
    near = min(found, key=lambda x, n=order: abs(x - n))
    np.testing.assert_allclose(found[near], expected, rtol=1e-6, atol=1e-13)
  np.testing.assert_allclose(privacy.divergences(1.0, noise), privacy.divergences(1 - 1e-9, noise), rtol=1e-5)


@pytest.mark.parametrize('rate, noise, steps', [(RATE, 1.3, 3516), (0.05, 0.5, 40), (1.0, 20.0, 100)])
def test_epsilon_is_that_of_dp_accounting(rate, noise, steps):
  pytest.importorskip('dp_accounting')
  theirs = privacy.by_dp_accounting(rate, noise, steps, 1e-5)
  np.testing.assert_allclose(privacy.epsilon(rate, noise, steps, 1e-5), theirs['RDP'], rtol=1e-6)
  assert theirs['PLD'] < theirs['RDP']


def test_the_noise_of_an_epsilon_is_the_least():
  noise = privacy.least_noise(3.0, 0.01, 1000, 1e-5)
  assert privacy.epsilon(0.01, noise, 1000, 1e-5) <= 3 < privacy.epsilon(0.01, noise - 1e-4, 1000, 1e-5)
  with pytest.raises(UsageError, match='^dp_epsilon=0.001: at dp_delta=1e-05 even noise of 1000 gives'):
    privacy.least_noise(0.001, 0.01, 1000, 1e-5)


# ---- gradients ----

SIZE, CLIP = 24, 0.7
PARAMS = {'w': jnp.array([0.3, -0.2, 0.1]), 'b': jnp.array(0.05)}


def loss(params, collections, batch, key):
  """Least squares on inputs with noise of each example's own; of replicas it would take the mean."""
  noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(example_keys(key, batch))
  errors = (collectives.mean(batch['x']) + noise) @ params['w'] + params['b'] - batch['y']
  return {'loss': pair(errors**2), 'large': pair(jnp.abs(errors) > 1)}, collections


def batch_of(kept):
  draw = np.random.default_rng(1)
  batch = {'x': draw.normal(size=(SIZE, 3)).astype('f4'), 'y': draw.normal(size=SIZE).astype('f4')}
  batch |= {'index': np.arange(SIZE, dtype=np.int32) * 7, 'mask': kept, 'left_out': np.zeros(SIZE, np.int32)}
  return jax.tree.map(jnp.asarray, batch)


KEPT = np.arange(SIZE) % 4 != 1


def by_hand(batch):
  """The sum of clipped gradients of 2 e (x, 1), and the number of those that were clipped."""
  noise = np.stack([jax.random.normal(jax.random.fold_in(KEY, i), (3,)) for i in np.asarray(batch['index'])])
  total, clipped = np.zeros(4), 0
  for x, y, kept in zip(np.asarray(batch['x']) + noise, np.asarray(batch['y']), KEPT):
    gradient = 2 * (x @ np.asarray(PARAMS['w']) + 0.05 - y) * np.append(x, 1)
    norm = np.linalg.norm(gradient)
    if kept:
      total, clipped = total + gradient * min(1, CLIP / norm), clipped + (norm > CLIP)
  return total, clipped


@pytest.mark.parametrize('devices, microbatches, cached', [(1, 1, 2**24), (1, 3, 4 * 16), (4, 2, 2**24)])
def test_gradients_are_those_of_a_loop_over_examples(devices, microbatches, cached, monkeypatch):
  monkeypatch.setattr(private_steps, 'CACHED', cached)  # of four examples
  batch, private = batch_of(KEPT), Private(noise=0.0, clip=CLIP, batch_size=10)
  compute = compute_gradients(loss, microbatches=microbatches, private=private)
  cut = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
  one = lambda b: compute(PARAMS, {}, b, KEY)[:2]
  grads, metrics = jax.pmap(one, collectives.REPLICAS, devices=jax.devices()[:devices])(cut)
  total, clipped = by_hand(batch)
  for each in np.concatenate([grads['w'], grads['b'][:, None]], 1):
    np.testing.assert_allclose(each, total / 10, rtol=1e-4)
  metrics = {name: (float(x[0][0]), float(x[1][0])) for name, x in metrics.items()}
  assert 0 < clipped < KEPT.sum() and metrics['clipped'] == (clipped, KEPT.sum())
  assert metrics['examples'] == (KEPT.sum(), 1) and metrics['left_out'] == (0, 1)
  assert metrics['loss'][1] == metrics['large'][1] == KEPT.sum()


def test_noise_is_added_once_and_is_of_the_clip_over_the_expected_batch():
  params = {'a': jnp.zeros((200, 100)), 'b': jnp.zeros(20_000)}
  nothing = lambda params, collections, batch, key: ({'loss': pair(batch['x'][:, 0])}, collections)
  private, batch = Private(noise=1.5, clip=4.0, batch_size=12), batch_of(KEPT)

  def noise(devices, key):
    compute = compute_gradients(nothing, private=private)
    cut = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    one = lambda b: compute(params, {}, b, key)[0]
    return jax.pmap(one, collectives.REPLICAS, devices=jax.devices()[:devices])(cut)

  alone, together, other = noise(1, KEY), noise(2, KEY), noise(1, jax.random.key(1))
  for name, x in alone.items():
    assert abs(float(x.std()) / (1.5 * 4 / 12) - 1) < 0.02
    np.testing.assert_array_equal(np.repeat(x, 2, 0), together[name])
    assert abs(np.corrcoef(x.ravel(), other[name].ravel())[0, 1]) < 0.05
  assert abs(np.corrcoef(alone['a'].ravel(), alone['b'].ravel())[0, 1]) < 0.05


def test_what_goes_on_from_batch_to_batch_is_refused():
  carrying = lambda params, collections, batch, key: (*loss(params, collections, batch, key), {'state': batch['x']})
  with pytest.raises(UsageError, match='^dp_noise: what goes on from batch to batch'):
    jax.eval_shape(compute_gradients(carrying, private=Private(1.0, 1.0, 10)), PARAMS, {}, batch_of(KEPT), KEY)


def test_what_all_examples_have_is_given_to_each(monkeypatch):
  monkeypatch.setattr(private_steps, 'CACHED', 4 * 16)
  scaled = lambda params, collections, batch, key: loss(
    params, collections, batch | {'x': batch['x'] * batch['frozen']['s']}, key
  )
  batch, private = batch_of(KEPT), Private(noise=0.0, clip=CLIP, batch_size=10)
  grads, *_ = jax.jit(compute_gradients(scaled, private=private))(
    PARAMS, {}, batch | {'frozen': {'s': jnp.ones(3)}}, KEY
  )
  np.testing.assert_allclose(jnp.append(grads['w'], grads['b']), by_hand(batch)[0] / 10, rtol=1e-4)


@pytest.mark.parametrize('rows, microbatches, parts', [(24, 1, 6), (24, 4, 8), (23, 1, 23), (3, 1, 1)])
def test_a_cpu_holds_few_gradients_at_once(rows, microbatches, parts, monkeypatch):
  monkeypatch.setattr(private_steps, 'CACHED', 4 * 16)
  assert Private(1.0, 1.0, 10).parts(PARAMS, rows, microbatches) == parts


# ---- batches by chance ----


def test_examples_join_batches_by_chance():
  drawn = batches.indices(3, 0, 2000, batch_size=20, size=100, order='poisson')
  assert drawn.shape == (2000, batches.most_drawn(20, 100)) == (2000, 48) and drawn.min() == -1
  member = np.stack([np.isin(np.arange(100), row) for row in drawn])
  assert (member.sum(1) == (drawn >= 0).sum(1)).all()  # none twice
  assert abs(member.mean() - 0.2) < 0.005 and abs(member.sum(1).var() - 16) < 2
  assert abs(member.mean(0) - 0.2).max() < 0.05
  assert np.abs(np.corrcoef(member[1:].ravel(), member[:-1].ravel())[0, 1]) < 0.02
  np.testing.assert_array_equal(drawn[7:9], batches.indices(3, 7, 2, batch_size=20, size=100, order='poisson'))
  assert not np.array_equal(drawn[:5], batches.indices(4, 0, 5, batch_size=20, size=100, order='poisson'))
  whole = batches.poisson(0, 0, 8, 8)
  np.testing.assert_array_equal(np.sort(whole), np.arange(8))


def test_examples_that_have_no_room_are_left_out_and_counted(monkeypatch):
  plain = batches.poisson(0, 0, 20, 100)
  count = int((plain >= 0).sum())
  monkeypatch.setattr(batches, 'most_drawn', lambda batch_size, size: 10)
  short = batches.poisson(0, 0, 20, 100)
  batch = batches.fetch(batches.padded(Split.of(x=np.arange(100) * 10)), short)
  assert batch['mask'].tolist() == [True] * 9 + [False] and batch['left_out'].sum() == count - 9
  np.testing.assert_array_equal(batch['x'][:9], short[:9] * 10)
  assert batch['index'][9] == 0


# ---- runs ----


run = functools.partial(stopped.run, experiment, RUN)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(the arrays of a private run of two seeds, its folder)."""
  folder = tmp_path_factory.mktemp('whole')
  return checkpoint.to_arrays(run(folder, seeds=2).state), folder


def test_seeds_go_on_to_the_same_bits(whole, tmp_path):
  with pytest.raises(SystemExit):
    run(tmp_path, stop_at=10, seeds=2)
  again = checkpoint.to_arrays(run(tmp_path, seeds=2).state)
  assert all(again[name].tobytes() == x.tobytes() for name, x in whole[0].items())
  kernels = [x for name, x in again.items() if name.startswith('params/') and name.endswith('/kernel')]
  assert kernels and not any(np.allclose(kernel[0], kernel[1]) for kernel in kernels)


@pytest.mark.parametrize(
  'changes',
  [dict(parallel='pmap', microbatches=2), dict(mesh='data:2,fsdp:4', resident_mb=0)],
  ids=lambda changes: ' '.join(changes),
)
def test_every_layout_trains_alike(whole, tmp_path, changes):
  state = run(tmp_path, seeds=2, **changes).state
  for name, x in checkpoint.to_arrays(state).items():
    if name.startswith('params/'):
      np.testing.assert_allclose(x, whole[0][name], atol=2e-4)


def test_rows_and_the_end_say_epsilon(whole, tmp_path):
  rows = writers.read_rows(whole[1])
  examples = round(rows[-1]['step'] * 16 / rows[-1]['epoch'])
  for row in rows:
    assert row['train/epsilon'] == pytest.approx(privacy.epsilon(16 / examples, 1.0, row['step'], 1e-5))
    assert all(4 < x < 40 for x in row['train/examples']) and row['train/left_out'] == [0, 0]
  numbers = writers.read_json(whole[1] / 'summary.json')
  assert numbers['train/epsilon_classical'] > numbers['train/epsilon'] == rows[-1]['train/epsilon']
  lines = []
  run(
    tmp_path, say=lines.append, steps='5', plots=True, seeds=2, order='reshuffle', dp_accept_shuffle=True, dp_delta=0.01
  )
  text = (tmp_path / 'texts' / 'privacy.txt').read_text()
  assert text.startswith('nominal ε at δ = 0.01 after 5 steps: ') and text in '\n'.join(lines)
  for about in ('ε is nominal', 'is not below 1 /', 'of all 2', 'who knows the seed'):
    assert about in text
  first = next(i for i, line in enumerate(lines) if line.startswith('private: noise 1 × clip 0.5'))
  assert first < next(i for i, line in enumerate(lines) if line.startswith('step 5/'))
  assert 'train/nominal_epsilon' in writers.read_json(tmp_path / 'summary.json')


def test_the_noise_of_an_epsilon_is_kept_with_the_run():
  program, data, made = prepare(experiment, experiment.Config(**SMALL | {'dp_noise': 0.0}, dp_epsilon=2.0, steps='30'))
  assert privacy.epsilon(16 / data.spec.examples, made.dp_noise, 30, 1e-5) <= 2
  again = config.from_json(experiment.Config, config.to_json(made))
  assert prepare(experiment, again)[2] == made and program.of_step(30)['epsilon'] <= 2
  with pytest.raises(UsageError, match=r'^dp_epsilon=2 over 31 steps is dp_noise='):
    prepare(experiment, config.from_json(experiment.Config, config.to_json(made) | {'steps': 31}))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(order='reshuffle'), '^order=reshuffle: ε supposes'),
    (dict(order='stored', dp_accept_shuffle=True), '^order=stored: ε supposes'),
    (dict(dp_noise=0.0), '^order=poisson is for private training'),
    (dict(dp_noise=0.05), '^dp_noise=0.05: so little'),
    (dict(model='vgg'), '^dp_noise: batch_stats is of the whole batch'),
    (dict(model='cnn', augment='flip,mixup:0.2'), '^augmentation mixup: each example is alone'),
    (dict(dp_noise=0.0, order='reshuffle', dp_clip=2.0), '^dp_clip=2.0: the program makes no use'),
  ],
)
def test_what_would_not_be_private_is_refused(changes, message):
  with pytest.raises(UsageError, match=message):
    runner.Runner(*prepare(experiment, experiment.Config(**SMALL | changes)))


def test_other_experiments_are_private_or_refused():
  runner.Runner(
    *prepare(text_classification, text_classification.Config(order='poisson', dp_noise=1.0, baseline=False))
  )
  for module, flags in ((gan, {}), (language_model, dict(model='counts'))):
    with pytest.raises(UsageError, match='^dp_noise=1.0: the program makes no use of it'):
      runner.Runner(*prepare(module, module.Config(**flags, dp_noise=1.0)))


def test_what_is_learnt_of_all_examples_beforehand_is_told():
  for changes, told in (
    (dict(class_weights='balanced'), 'scale=standard, class_weights=balanced'),
    (dict(scale='unit'), ''),
  ):
    notes = prepare(experiment, experiment.Config(**SMALL, **changes))[0].notes()
    assert [line for line in notes if 'has learnt' in line] == (
      [f'not accounted: what {told} has learnt from the same examples'] if told else []
    )


def test_of_settings_that_share_a_seed_no_epsilon_of_all_together_is_told():
  notes = {}
  for seeds in ([0, 0], [0, 1]):
    swept = population.varied(experiment, {'learning_rate': [0.01, 0.02]}, seeds)
    program, *_ = prepare(swept, experiment.Config(**SMALL, steps='5', seeds=2))
    notes[seeds[1]] = '\n'.join(program.notes())
  assert 'of all 2' in notes[1] and 'of all' not in notes[0] and 'runs of one seed share it' in notes[0]
