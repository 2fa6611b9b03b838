"""The experiment as a user runs it: the game, the scores of its samples, what it leaves and can do."""

import json
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from experiments import gan as experiment
from karpjax import config, errors, features, verbs
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import splitting
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.metrics import distribution
from karpjax.models import inception
from karpjax.train import checkpoint, loop

QUICK = dict(
  model='mlp', widths=(16,), latent=8, batch_size=24, steps='6', steps_per_call='3', log_every='2', eval_every='0',
  checkpoint_every='0', report_every='0', tensorboard=False, plots=False, ema=0.9, subset='200/60:0',
)  # fmt: skip


def run(folder, say=lambda _: None, **changes):
  return loop.run(experiment, experiment.Config(**QUICK | changes, workdir=str(folder)), say=say)


def abstract(shape=(8, 8, 1), batch=24, **changes):
  """A program and a batch of noise."""
  settings = config.resolve(experiment.Config(**QUICK | {'batch_size': batch, **changes}), 100)
  spec = Spec('none', shape, tuple('0123456789'), 255.0, (0.5,), (0.5,), 100)
  draw = np.random.default_rng(0)
  example = {
    'image': jnp.asarray(draw.integers(0, 256, (batch, *shape)), jnp.uint8),
    'label': jnp.asarray(draw.integers(0, 10, batch), jnp.int32),
    'index': jnp.arange(batch, dtype=jnp.int32),
  }
  return experiment.program(settings, Dataset(spec, {})), example


@pytest.mark.slow
def test_the_checks_pass_or_do_not_apply():
  program, batch = abstract()
  passed = {check: passed for check, (passed, _) in recipe.check(program, batch).items()}
  assert False not in passed.values()
  assert passed['one batch can be overfitted'] is passed['real inputs beat zeroed ones'] is None
  assert passed['gradients reach every parameter'] and passed['one compilation only']


# ---- the game ----


def first_step(program, batch):
  """(state before, state after, metrics)."""

  @jax.jit
  def step(key):
    state = program.init(key)
    return state, *program.step(state, batch)

  return step(jax.random.key(0))


def step(program, batch):
  return first_step(program, batch)[1:]


@pytest.mark.slow
def test_the_generators_images_are_computed_once(monkeypatch):
  """Both players' turns see the same ones: with other latents in the generator's turn they cost another forward pass."""
  plain = experiment.alternating_step

  def apart(losses, *arguments, **options):
    maker = losses['generator']
    other = lambda params, collections, batch, key: maker(params, collections, batch, jax.random.fold_in(key, 99))
    return plain({**losses, 'generator': other}, *arguments, **options)

  def flops():
    program, batch = abstract((16, 16, 1), 64, widths=(64, 64), latent=100)
    state = jax.eval_shape(program.init, jax.random.key(0))
    return jax.jit(program.step).lower(state, batch).compile().cost_analysis()['flops']

  once = flops()
  monkeypatch.setattr(experiment, 'alternating_step', apart)
  forward = 2 * 64 * (100 * 64 + 64 * 64 + 64 * 256)  # matmuls of 64 latents
  assert forward < flops() - once < 1.2 * forward


@pytest.mark.parametrize(
  'objective',
  [
    pytest.param('minimax', marks=pytest.mark.slow),
    pytest.param('least_squares', marks=pytest.mark.slow),
    pytest.param('hinge', marks=pytest.mark.slow),
    pytest.param('wasserstein', marks=pytest.mark.slow),
    'wasserstein_gp',
  ],
)
def test_objectives_train_both_players(objective):
  program, batch = abstract(objective=objective, discriminator_steps=2, r1=0.5 if objective == 'minimax' else 0.0)
  before, after, metrics = first_step(program, batch)
  assert all(np.isfinite(total) for total, _ in metrics.values())
  names, pairs = checkpoint.names(before.params), zip(*map(jax.tree.leaves, (before.params, after.params)))
  still = {name for name, (a, b) in zip(names, pairs) if np.array_equal(a, b)}
  # what a critic adds to every score takes no part in their difference
  assert still == ({'discriminator/score/bias'} if objective.startswith('wasserstein') else set())
  assert 0 <= metrics['discriminator_accuracy_on_real'][0] <= metrics['discriminator_accuracy_on_real'][1] == 24
  assert metrics['generator_loss'][1] == 12
  largest = max(np.abs(x).max() for x in jax.tree.leaves(after.params['discriminator']))
  assert (largest <= 0.01 + 1e-7) == (objective == 'wasserstein')


@pytest.mark.slow
def test_the_penalty_and_rate_of_the_flags_are_those_of_the_step():
  """Linear discriminators: R1 adds γ/2 ‖w‖² to the loss, whatever the images."""
  losses, moved = {}, {}
  for name, changes in {'none': {}, 'r1': dict(r1=3.0), 'slow': dict(discriminator_learning_rate=1e-5)}.items():
    program, batch = abstract(widths=(), optimiser='sgd', beta1=None, beta2=None, learning_rate=0.1, **changes)
    before, after, metrics = first_step(program, batch)
    losses[name] = float(metrics['discriminator_loss'][0] / metrics['discriminator_loss'][1])
    w = before.params['discriminator']['score']['kernel']
    moved[name] = float(jnp.abs(after.params['discriminator']['score']['kernel'] - w).max())
  assert losses['r1'] - losses['none'] == pytest.approx(1.5 * float(jnp.square(w).sum()), rel=1e-4)
  assert moved['slow'] == pytest.approx(1e-4 * moved['none'], rel=1e-2)


@pytest.mark.parametrize(
  'conditional',
  [pytest.param('embedding', marks=pytest.mark.slow), 'projection', pytest.param('auxiliary', marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_labels_reach_the_loss_and_the_samples(conditional):
  program, batch = abstract(conditional=conditional)
  other = {**batch, 'label': (batch['label'] + 1) % 10}
  (state, one), (_, two) = step(program, batch), step(program, other)
  assert not np.allclose(one['discriminator_loss'][0], two['discriminator_loss'][0])
  samples = [program.predict(state, b, jax.random.key(0)) for b in (batch, other)]
  assert not np.allclose(*samples, atol=1e-3)
  if conditional == 'auxiliary':  # both cross-entropies of an uninformed guess come to the loss
    plain, _ = abstract(conditional='none')
    extra = one['discriminator_loss'][0] - step(plain, batch)[1]['discriminator_loss'][0]
    assert extra / 24 > np.log(10)


@pytest.mark.slow
def test_samples_are_the_averaged_generators_and_of_each_examples_own_number():
  program, batch = abstract(ema=0.5, learning_rate=0.1)
  state, _ = jax.jit(program.step)(step(program, batch)[0], batch)
  key = jax.random.key(7)
  few = {n: x[3:5] for n, x in batch.items()}
  samples = program.predict(state, batch, key)
  np.testing.assert_allclose(program.predict(state, few, key), samples[3:5], atol=1e-3)
  plain = program.predict(state.replace(ema=None), batch, key)
  both = {'params': {**state.params, **state.ema}, 'collections': {**state.collections, **state.ema_collections}}
  averages = state.replace(**both, ema=None)
  np.testing.assert_array_equal(program.predict(averages, batch, key), samples)
  assert not np.allclose(plain, samples, atol=1e-3) and samples.min() >= 0 and samples.max() <= 255


@pytest.mark.slow
def test_augmentation_is_differentiable_and_changes_what_both_players_see():
  plain, batch = abstract()
  augmented, _ = abstract(augment='shift:2,cutout:3,jitter:0.4,flip,rotate:20')
  a, b = step(plain, batch)[1], step(augmented, batch)[1]
  for name in ('discriminator_loss', 'generator_loss', 'generator_gradient_norm'):
    assert np.isfinite(b[name][0]) and b[name][0] != a[name][0]
  assert b['generator_gradient_norm'][0] > 0


@pytest.mark.parametrize(
  'player, other',
  [('discriminator', 'generator'), pytest.param('generator', 'discriminator', marks=pytest.mark.slow)],
)
def test_the_player_that_diverges_is_named(tmp_path, player, other):
  """With so large a rate its weights, and so its own next loss, overflow first; the other's stand still."""
  rates = {player: 1e30, other: 1e-30}
  flags = dict(learning_rate=rates['generator'], discriminator_learning_rate=rates['discriminator'])
  with pytest.raises(errors.Diverged) as stopped:
    run(tmp_path, optimiser='sgd', beta1=None, beta2=None, objective='least_squares', model='mlp', **flags)
  assert re.match(rf'NaN or infinity in {player}_\w+(, {player}_\w+)*: seed 0', str(stopped.value))


# ---- scores ----


@pytest.mark.slow
def test_scores_are_those_of_all_examples(tmp_path, classifier):
  said = []
  flags = dict(scorer=str(classifier), conditional='embedding', eval_batch_size=25, final_splits=('test',), subset='')
  numbers = run(tmp_path, said.append, **flags).numbers
  data = experiment.data(experiment.Config(**QUICK | flags))
  loaded = features.load(str(classifier), data.spec)
  real, train = (
    loaded.features(split, splitting.sample(split.size, 360)) for split in map(data.splits.get, ('test', 'train'))
  )
  floor = distribution.frechet_distance(real, train)
  assert numbers['test/fid_floor'] == pytest.approx(floor, rel=1e-4)
  assert any(line.startswith(f'data: scorer: {classifier}, step ') for line in said)
  assert numbers['test/fid'] > 5 * numbers['test/fid_floor'] and 0 <= numbers['test/recall'] <= 1
  assert {'test/kid', 'test/precision', 'test/label_accuracy', 'test/smallest_class_share'} <= set(numbers)
  # every example once: shares of 360
  assert abs(360 * numbers['test/label_accuracy'] - round(360 * numbers['test/label_accuracy'])) < 1e-4


def test_the_floor_is_that_of_drawn_examples_where_train_is_sorted_by_class(monkeypatch):
  """As a folder's is: its first examples are of one class, which no mixture of all is like."""
  draw = np.random.default_rng(0)
  labels = np.arange(4).repeat(100).astype(np.int32)
  points = (10 * labels[:, None] + draw.normal(size=(400, 3))).astype(np.float32)
  real = (10 * draw.integers(0, 4, 100)[:, None] + draw.normal(size=(100, 3))).astype(np.float32)
  pixels = features.Scorer('pixels', None, 0, 3, lambda x: (x, None), batch=64)
  monkeypatch.setattr(features, 'load', lambda *_: pixels)
  monkeypatch.setattr(features, 'lent', lambda *_: {})
  data = Dataset(Spec('made', (3,), tuple('abcd'), 1.0, examples=400), {'train': Split.of(image=points, label=labels)})
  settings = config.resolve(experiment.Config(**QUICK | {'scorer': 'pixels', 'validation': 0.0}), 400)
  moments = jax.device_get(distribution.moments(jnp.asarray(real), jnp.ones(100, bool)))
  sums = {'real': moments, 'fake': moments, 'real_rows': real, 'fake_rows': real}
  floor = experiment.program(settings, data).summarise(sums)['fid_floor']
  assert floor == pytest.approx(distribution.frechet_distance(real, points[splitting.sample(400, 100)]), rel=1e-4)
  assert floor < 10 < 200 < distribution.frechet_distance(real, points[:100])


def test_a_scorer_without_classes_gives_distances_alone():
  data = experiment.data(experiment.Config(validation=0.0))
  without = features.Scorer('inception', None, 0, 64, lambda x: (x.reshape(len(x), -1), None))
  batch = {'image': data.splits['test'].fetch(np.arange(30))['image'], 'label': jnp.zeros(30, jnp.int32)}
  batch |= {'mask': jnp.arange(30) < 25, 'index': jnp.arange(30)}
  sums = jax.device_get(
    distribution.sums(without, batch['image'][::-1] / 2, batch, maximum=16.0, examples=40, conditional=True)
  )
  numbers = distribution.summarise(sums)
  expected = {'diversity', 'real_diversity', 'fid', 'kid', 'precision', 'recall'}
  assert set(numbers) == expected and sums['fake_rows'].shape == (40, 64)
  assert numbers['diversity'] < numbers['real_diversity']


@pytest.mark.slow
def test_inceptions_distances(tmp_path):
  """With made weights, of a whole run: no class takes part in what it says and draws."""
  draw = np.random.default_rng(0)
  scale = lambda shape: np.sqrt(2 / math.prod(shape[1:])) if len(shape) == 4 else 0.1
  arrays = {n: scale(x) * draw.normal(size=x).astype(np.float32) for n, x in inception.published().items()}
  arrays |= {n: 1 + np.abs(x) for n, x in arrays.items() if n.endswith(('bn.weight', 'running_var'))}
  safetensors.numpy.save_file({n: x.astype(np.float32) for n, x in arrays.items()}, tmp_path / 'made.safetensors')
  said, source = [], f'inception:{tmp_path / "made.safetensors"}'
  flags = dict(scorer=source, subset='12/8:0', validation=4, batch_size=4, steps='2', model='mlp', plots=True)
  numbers = run(tmp_path / 'run', said.append, **flags).numbers
  assert any('made.safetensors, Inception, 2048 features' in line for line in said)
  assert {'test/fid', 'test/kid', 'test/precision', 'test/recall', 'test/fid_floor', 'test/diversity'} <= set(numbers)
  assert not {'test/label_accuracy', 'test/smallest_class_share'} & set(numbers)
  assert numbers['test/fid'] > numbers['test/fid_floor'] > 0
  report = json.loads((tmp_path / 'run' / 'report.json').read_text())
  assert report['scorer']['source'].endswith('made.safetensors') and report['scorer']['step'] is None
  plots = {p.stem for p in (tmp_path / 'run' / 'plots').glob('*.png')}
  assert 'nearest_training_examples' in plots and 'samples_by_class' not in plots


def test_without_a_scorer_it_says_which_two_commands_give_one():
  note = experiment.data(experiment.Config(**QUICK)).notes[-1]
  assert 'image_classification --dataset=digits' in note and '--scorer=' in note


def test_the_grid_of_gaussians_counts_its_modes(tmp_path):
  numbers = run(
    tmp_path, dataset='gaussians25', latent=2, subset='', validation=500, seeds=2, steps='3', final_splits=('test',)
  ).numbers
  assert 'test/fid' not in numbers  # there is no scorer
  assert 0 <= numbers['test/modes']['values'][1] <= 25 and 0 <= numbers['test/high_quality']['mean'] <= 1
  assert numbers['test/real_diversity']['mean'] == pytest.approx(np.sqrt(2 * (16 + 2 * 0.05**2)), rel=0.02)


def test_players_begin_apart_whatever_their_layers_are_called():
  program, _ = abstract((100,), latent=100)
  params = jax.jit(program.init)(jax.random.key(0)).params.values()
  kernels = [p['hidden1']['kernel'] for p in params]
  assert kernels[0].shape == kernels[1].shape and not np.allclose(*kernels)


# ---- what it leaves ----


@pytest.fixture(scope='module')
def trained(tmp_path_factory, classifier):
  folder = tmp_path_factory.mktemp('trained')
  run(folder, scorer=str(classifier), steps='6', plots=True, subset='', final_splits=('test',))
  return folder


def test_what_a_run_leaves(trained, classifier):
  assert [p.stem for p in sorted((trained / 'frames').iterdir())] == ['00000006']
  with Image.open(trained / 'plots' / 'samples_over_time.gif') as animation:
    assert animation.n_frames == 1
  plots = {p.stem for p in (trained / 'plots').glob('*.png')}
  assert plots >= {'samples', 'interpolation', 'nearest_training_examples', 'samples_by_class'}
  report = json.loads((trained / 'report.json').read_text())
  assert report['scorer']['source'] == str(classifier) and report['scorer']['step'] > 0
  assert sum(report['class_shares'].values()) == pytest.approx(1)
  assert (trained / 'texts' / 'collapse.txt').read_text().startswith('step 6')


def test_samples_of_a_trained_run_need_no_data_and_no_scorer(tmp_path, trained, monkeypatch, capsys):
  monkeypatch.setattr(features, 'load', None)
  path = tmp_path / 'out.png'
  assert use.main('sample', [str(trained), '--count=6', f'--output={path}']) == 0
  assert capsys.readouterr().out == f'{path}\n'
  opened = verbs.Run(trained)
  samples = opened.sample.function(opened.state, opened.sample.encode(count=6), count=6)
  assert samples.shape == (6, 8, 8, 1)
  with Image.open(path) as picture:
    pixels = np.asarray(picture)
  assert pixels.shape == (2 * 9 - 1, 3 * 9 - 1)
  np.testing.assert_allclose(pixels[:8, 9:17], np.asarray(samples)[1, ..., 0] * 255, atol=0.51)
  assert use.main('sample', [str(trained), '--label=3']) == 2
  assert '--label=3: the run is not conditional' in capsys.readouterr().err
  assert use.main('sample', [str(trained), f'--count={10**15}']) == 2
  error = capsys.readouterr().err
  assert error == 'sample: --count=1000000000000000: at most 2147483647 is needed\n'


def test_labels_of_samples_are_chosen_by_name():
  spec = Spec('made', (8, 8, 1), ('cat', 'dog'), 255.0)
  asked = types.SimpleNamespace(spec=spec, config=experiment.Config(conditional='embedding'))
  draw = lambda **chosen: experiment.draw(asked, (), experiment.Sampling(count=3, **chosen))['label'].tolist()
  assert draw() == [0, 1, 0] and draw(label='dog') == [1, 1, 1]
  with pytest.raises(errors.UsageError, match="unknown label 'dgo'. Did you mean dog"):
    draw(label='dgo')


# ---- bad input ----


@pytest.mark.parametrize(
  'flags, message',
  [
    (dict(discriminator_steps=5), '24 examples of a step on one device cannot be cut into 5 rounds'),
    (dict(objective='wasserstein_gp', norm='batch', widths=(8, 8)), r'norm=layer or none is needed, not batch'),
    (dict(augment='mixup:0.2'), r'augmentation mixup: here only flip'),
    (dict(batch_size=500), r'batch_size=500 is larger than the train split'),
    (dict(scorer='nowhere'), r'scorer=nowhere: .*no such folder'),
    (dict(scorer='inception:nowhere.safetensors'), r'scorer=inception:nowhere\.safetensors cannot be read'),
    (dict(objective='wasserstein', clip_weights=0.0), r'clip_weights=0.0: more than 0'),
    (dict(dataset='gaussians25', model='dcgan', subset=''), r'model=mlp is needed'),
    (dict(model='sngan', image_size=9), r'cannot be halved'),
  ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, flags, message):
  with pytest.raises(errors.UsageError, match=message) as refused:
    run(tmp_path / 'run', **flags)
  assert '\n' not in str(refused.value) and not (tmp_path / 'run').exists()


def test_a_folder_of_images_without_classes_serves(tmp_path):
  (tmp_path / 'images').mkdir()
  draw = np.random.default_rng(0)
  for i in range(40):
    Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / 'images' / f'{i}.png')
  name = f'folder:{tmp_path / "images"}'
  spec = experiment.data(experiment.Config(dataset=name)).spec
  assert spec.shape == (8, 8, 3) and spec.classes == ('all',)
  with pytest.raises(errors.UsageError, match='lies beside the class folders'):
    experiment.data(experiment.Config(dataset=name, conditional='embedding'))
