"""Super-resolution as a user runs it: gains over bicubic, two players, pictures of any size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import color, metrics

from experiments import image_classification
from experiments import super_resolution as experiment
from karpjax import config, verbs
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import batches, pictures, transformations
from karpjax.errors import UsageError
from karpjax.metrics import image_quality
from karpjax.metrics import super_resolution as measured
from karpjax.models import super_resolution as models
from karpjax.report import super_resolution as reports
from karpjax.train import checkpoint, loop

TINY = dict(
  factor=2, crop=8, widths=(4,), kernel_sizes=(3, 3), batch_size=8, steps='4', eval_every='2', checkpoint_every='2', checkpoint_seconds=0, log_every='1',
  learning_rate=3e-3, validation=1, steps_per_call='1', tensorboard=False, plots=False,
)  # fmt: skip
UNSEEN = dict(eval_splits=(), final_splits=())  # nothing is evaluated: less to compile
GAN = dict(
  adversarial=True, adversarial_weight=0.1, discriminator_widths=(4,), discriminator_hidden=4, ema=0.5, **UNSEEN
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Six pictures of coloured stripes, 40 × 37 pixels and 1 of 25 × 40; one is grey."""
  place = tmp_path_factory.mktemp('pictures')
  draw = np.random.default_rng(0)
  for i in range(6):
    height, width = (25, 40) if i == 3 else (40, 37)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(draw.uniform(0.2, 1.2) * x + draw.uniform(0.2, 1.2) * y + c) > 0 for c in range(3)]
    pixels = (60 + 140 * np.stack(waves, -1)).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if i == 5 else pixels).save(place / f'p{i}.png')
  return place


@pytest.fixture(scope='module')
def run(folder):
  def train(workdir, **changes):
    settings = experiment.Config(**{'dataset': f'folder:{folder}', **TINY, **changes}, workdir=str(workdir))
    return loop.run(experiment, settings, say=lambda _: None)

  return train


@pytest.fixture
def classifier(tmp_path):
  """The workdir of a classifier of images of 16 × 16 × 1."""
  quick = dict(steps='1', batch_size=8, tensorboard=False, plots=False, steps_per_call='1', **UNSEEN)
  options = dict(image_size=16, widths=(3, 5), hidden=(4,), workdir=str(tmp_path / 'scorer'))
  loop.run(image_classification, image_classification.Config(**quick, **options), say=lambda _: None)
  return str(tmp_path / 'scorer')


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


@pytest.mark.slow
def test_the_generator_minimises_the_error_and_a_share_of_what_the_discriminator_says(tmp_path, run):
  alone = arrays(run(tmp_path / 'alone', **GAN | dict(adversarial=False, adversarial_weight=1e-3)))
  names = [name for name in alone if name.startswith('params/')]
  for weight in (0.0, 0.1):
    with_it = run(tmp_path / str(weight), **GAN | dict(adversarial_weight=weight))
    row = json.loads((with_it.folder / 'metrics.jsonl').read_text().splitlines()[0])
    total = row['train/loss'] + weight * row['train/generator_adversarial']
    assert row['train/generator_loss'] == pytest.approx(total, rel=1e-5)
    assert 0 <= row['train/discriminator_real_accuracy'] <= 1 and row['train/discriminator_gradient_norm'] > 0
    free = arrays(with_it)
    assert any(name.startswith('params/discriminator') for name in free) and len(names) == 4
    # an adversary without weight changes nothing
    assert all(np.allclose(free[name], alone[name], atol=1e-6) for name in names) == (weight == 0)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, run):
  """A net that has learnt something."""
  options = dict(
    widths=(8,),
    steps='300',
    eval_every='0',
    batch_size=16,
    learning_rate=0.01,
    plots=True,
    eval_splits=(),
    log_every='0',
    steps_per_call='100',
    checkpoint_every='0',
  )
  return run(tmp_path_factory.mktemp('trained'), **options)


def test_gains_are_over_the_bicubic_picture_of_the_same_input(trained, folder):
  """The numbers beside are Pillow's and scikit-image's."""
  assert trained.numbers['test/psnr_gain'] > 0.5
  report = json.loads((trained.folder / 'report.json').read_text())
  for name, row in report['pictures'].items():
    low, high = pictures.shrunk(np.asarray(Image.open(folder / name).convert('RGB')), 2)
    bands = [Image.fromarray(low[..., c].astype(np.float32)) for c in range(3)]
    size = high.shape[1::-1]
    plain = np.stack([np.asarray(band.resize(size, Image.Resampling.BICUBIC)) for band in bands], -1)
    ours, theirs = (color.rgb2ycbcr(np.rint(np.clip(x, 0, 255)) / 255)[2:-2, 2:-2, 0] / 255 for x in (plain, high))
    assert row['bicubic_psnr'] == pytest.approx(metrics.peak_signal_noise_ratio(theirs, ours, data_range=1), abs=0.01)
    options = dict(gaussian_weights=True, use_sample_covariance=False, data_range=1)
    assert row['bicubic_ssim'] == pytest.approx(metrics.structural_similarity(theirs, ours, **options), abs=1e-3)
  assert report['mean']['psnr'] - report['mean']['bicubic_psnr'] > 0.3
  for name, value in report['mean'].items():
    assert trained.numbers[f'test/{name}'] == pytest.approx(value, abs=1e-4)
  left = {path.name for path in trained.folder.rglob('*')}
  assert left >= {'test_pictures.txt', *(f'before_and_after_{name[:-4]}.png' for name in report['pictures'])}


def test_means_of_psnr_leave_out_pictures_that_interpolation_gives_exactly():
  """Picture 0 is black: its PSNR is infinite whatever the others are."""
  draw = np.random.default_rng(0)
  high = draw.integers(0, 256, (3, 30, 30, 1), np.uint8)
  low = draw.integers(0, 256, (3, 15, 15, 1), np.uint8)
  high[0], low[0] = 0, 0
  batch = {'input': low, 'target': high, 'picture': np.arange(3), 'mask': np.ones(3, bool)}
  ours = np.clip(high / 255 + draw.normal(0, 0.1, high.shape), 0, 1).astype(np.float32)
  ours[0] = 0
  found = measured.summarise(jax.tree.map(np.asarray, measured.sums_by_picture(ours, batch, 2, 3)))
  inside = lambda x: np.rint(x[:, 2:-2, 2:-2, 0] * 255) / 255 * 219 / 255
  expected = [
    metrics.peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(*map(inside, (high[1:] / 255, ours[1:])))
  ]
  assert found['psnr'] == pytest.approx(np.mean(expected), abs=1e-3)
  assert np.isfinite(found['psnr_gain']) and found['ssim'] > 1 / 3
  alone = measured.summarise({n: np.asarray(x)[:1] for n, x in measured.sums_by_picture(ours, batch, 2, 3).items()})
  assert alone['psnr'] == alone['bicubic_psnr'] == np.inf


def test_black_pictures_are_said_at_the_start_and_in_the_report(tmp_path):
  draw, folder = np.random.default_rng(0), tmp_path / 'pictures'
  for split in ('train', 'test'):
    (folder / split).mkdir(parents=True)
    for i, name in enumerate('abc'):
      pixels = np.zeros((48, 48, 3), np.uint8) if i == 1 else draw.integers(0, 256, (48, 48, 3), np.uint8)
      Image.fromarray(pixels).save(folder / split / f'{name}.png')
  settings = experiment.Config(dataset=f'folder:{folder}', factor=2, crop=12, validation=0.0)
  data = experiment.data(settings)
  expected = 'test: 1 of 3 pictures are of one colour, whose PSNR is infinite; its means leave them out: b.png'
  assert expected in data.notes
  settings = config.resolve(settings, data.spec.examples)
  twice = lambda state, low: np.asarray(low.repeat(2, 0).repeat(2, 1) / 255, np.float32)
  reports.write(settings, data, twice, None, settings.steps, tmp_path)
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['infinite'] == ['b.png'] and report['pictures']['b.png']['psnr'] is None
  values = [report['pictures'][f'{name}.png']['psnr'] for name in 'ac']
  assert report['mean']['psnr'] == pytest.approx(np.mean(values))
  text = (tmp_path / 'texts' / 'test_pictures.txt').read_text()
  assert '1 of 3 that interpolation gives exactly, which the means of PSNR leave out: b.png' in text


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ('srcnn', 'srresnet')]


@pytest.mark.parametrize('model', ['espcn', *SLOW])
def test_psnr_and_ssim_are_scikit_images_of_whole_pictures(tmp_path, model):
  """Of pictures that are no multiple of a tile, or smaller than what the net sees, and of nets that were never trained."""
  draw, folder = np.random.default_rng(1), tmp_path / 'pictures'
  for split, sizes in {'train': [(70, 70)], 'test': [(70, 101), (47, 38)]}.items():
    (folder / split).mkdir(parents=True)
    for i, size in enumerate(sizes):
      pixels = np.clip(draw.normal(128, 60, (*size, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).resize(size[::-1]).save(folder / split / f'{i}.png')
  options = dict(blocks=1, width=2) if model == 'srresnet' else dict(widths=(2,), kernel_sizes=(3, 3))
  settings = experiment.Config(
    dataset=f'folder:{folder}',
    factor=3,
    crop=8,
    model=model,
    residual=False,
    validation=0.0,
    eval_batch_size=3,
    batch_size=4,
    **options,
  )
  data = experiment.data(settings)
  program = experiment.program(config.resolve(settings, data.spec.examples), data)
  state = jax.jit(program.init)(jax.random.key(0))
  state = state.replace(params=jax.tree.map(lambda x: x + 0.05, state.params))
  evaluate, total = jax.jit(program.evaluate), None
  for numbers, mask in batches.exact(data.splits['test'].size, 3):
    sums = evaluate(state, {**batches.fetch(data.splits['test'], numbers), 'mask': mask}, jax.random.key(0))
    total = sums if total is None else jax.tree.map(jnp.add, total, sums)
  found, predict = program.summarise(jax.tree.map(np.asarray, total)), jax.jit(program.predict)
  luma = lambda x: color.rgb2ycbcr(np.rint(x * 255) / 255)[3:-3, 3:-3, 0] / 255
  expected, errors = [], []
  for layers in data.raw['test'].values():
    made = np.asarray(predict(state, {'input': layers['input'][None]}, None))[0].clip(0, 1)
    ours, theirs = luma(made), luma(layers['target'] / 255)
    same = dict(gaussian_weights=True, use_sample_covariance=False, data_range=1)
    expected.append(
      [metrics.peak_signal_noise_ratio(theirs, ours, data_range=1), metrics.structural_similarity(theirs, ours, **same)]
    )
    net = program.example_losses(state, {name: x[None] for name, x in layers.items()}, None)
    errors.append((float(net[0]), made[..., 0].size))
  assert [found['psnr'], found['ssim']] == pytest.approx(np.mean(expected, 0), abs=1e-4)
  values, sizes = zip(*errors)
  assert found['loss'] == pytest.approx(np.average(values, weights=sizes), rel=1e-5)
  assert found['psnr_gain'] == pytest.approx(found['psnr'] - found['bicubic_psnr'])


def test_sums_are_those_of_each_picture():
  draw = np.random.default_rng(0)
  high = draw.integers(0, 256, (5, 30, 30, 3), np.uint8)
  batch = {'input': draw.integers(0, 256, (5, 15, 15, 3), np.uint8), 'target': high}
  batch |= {'picture': np.array([0, 2, 2, 0, 1]), 'mask': np.array([True, True, True, True, False])}
  ours = np.clip(high / 255 + draw.normal(0, 0.1, high.shape), 0, 1).astype(np.float32)
  found = measured.summarise(jax.tree.map(np.asarray, measured.sums_by_picture(ours, batch, 2, 4)))
  luma = lambda x: color.rgb2ycbcr(np.rint(x * 255) / 255)[:, 2:-2, 2:-2, 0] / 255
  errors = np.square(luma(ours) - luma(high / 255)).mean((1, 2))
  expected = [-10 * np.log10(errors[rows].mean()) for rows in ([0, 3], [1, 2])]  # picture 1 is masked, 3 has none
  assert found['psnr'] == pytest.approx(np.mean(expected), abs=1e-4)
  plain = models.bicubic(batch['input'].astype(np.float32) / 255, 2)  # which gains nothing over itself
  sums = jax.tree.map(np.asarray, measured.sums_by_picture(plain, batch, 2, 4))
  found = measured.summarise(sums)
  assert found['psnr_gain'] == pytest.approx(0, abs=1e-5) and found['ssim_gain'] == pytest.approx(0, abs=1e-6)
  of_crops = measured.summarise({**sums, 'tiles': np.zeros(())})  # of train: their names say so
  assert of_crops == {f'crop_{name}': value for name, value in found.items()}


def test_the_luma_alone_is_enlarged_and_chroma_is_bicubic():
  low = np.random.default_rng(0).uniform(0.2, 0.8, (1, 6, 7, 3)).astype(np.float32)
  plain = models.bicubic(low, 3)
  again = measured.with_chroma(models.bicubic(image_quality.luma(low), 3), low, 3)
  np.testing.assert_allclose(again, plain, atol=2e-6)
  y = np.random.default_rng(1).uniform(0.3, 0.6, (1, 18, 21, 1)).astype(np.float32)
  made = image_quality.rgb_to_ycbcr(measured.with_chroma(y, low, 3))
  np.testing.assert_allclose(made[..., :1], y, atol=2e-6)
  np.testing.assert_allclose(made[..., 1:], image_quality.rgb_to_ycbcr(plain)[..., 1:], atol=2e-6)
  grey = measured.with_chroma(image_quality.luma(low[..., :1]), low[..., :1], 1)
  np.testing.assert_allclose(grey, low[..., :1], atol=1e-6)


def test_turned_and_mirrored_crops_stay_aligned(folder):
  """A net that doubles pixels is as wrong on crops as on turned crops, and turns move crops."""
  small = np.random.default_rng(0).normal(size=(64, 5, 5, 2)).astype(np.float32)
  large = np.repeat(np.repeat(small, 3, 1), 3, 2)
  keys = jax.random.split(jax.random.key(0), 64)
  moved, moved_large = (jax.vmap(transformations.symmetry)(keys, x) for x in (small, large))
  np.testing.assert_array_equal(np.repeat(np.repeat(moved, 3, 1), 3, 2), moved_large)
  turns = [np.rot90(small, k, (1, 2)) for k in range(4)]
  eight = np.stack([*turns, *(x[:, :, ::-1] for x in turns)])
  same = (eight == np.asarray(moved)).all((2, 3, 4))
  assert (same.sum(0) == 1).all() and same.any(1).all()  # each is one of the eight, and all eight come


def test_pictures_of_any_size_are_enlarged_beside_their_files(tmp_path, trained, capsys):
  workdir = str(trained.folder)
  draw = np.random.default_rng(0)
  colour, grey = draw.integers(0, 256, (23, 9, 3), np.uint8), draw.integers(0, 256, (7, 150), np.uint8)
  Image.fromarray(colour).save(tmp_path / 'a.png')
  Image.fromarray(grey).save(tmp_path / 'b.png')
  files = [str(tmp_path / 'a.png'), str(tmp_path / 'b.png')]
  assert use.main('upscale', [workdir, *files]) == 0
  assert f'{tmp_path / "a.png"} -> {tmp_path / "a_x2.png"}' in capsys.readouterr().out
  opened = verbs.Run(workdir)
  for name, pixels in (('a', colour), ('b', grey[..., None])):
    made = np.asarray(Image.open(tmp_path / f'{name}_x2.png')).astype(int)
    whole = np.asarray(opened.program.predict(opened.state, {'input': pixels[None]}, None))[0].clip(0, 1) * 255
    assert made.shape == whole.squeeze().shape == (2 * pixels.shape[0], 2 * pixels.shape[1], 3)[: made.ndim]
    assert np.abs(made - whole.squeeze()).max() <= 0.5 + 1e-3
  # nothing that is given is written over
  Image.fromarray(colour).save(tmp_path / 'a_x2.png')
  before = (tmp_path / 'a_x2.png').read_bytes()
  for arguments, message in {
    (*files, str(tmp_path / 'a_x2.png')): 'which is given as well',
    (str(tmp_path / 'none.png'),): 'no such file',
    (files[0], files[0]): 'would both become',
  }.items():
    assert use.main('upscale', [workdir, *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
  assert (tmp_path / 'a_x2.png').read_bytes() == before
  opened.upscale(files[0], output=str(tmp_path / 'out'))
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a_x2.png']


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(factor=5), 'factor=5: unknown. Known: 2, 3, 4'),
    (dict(crop=13), r'a crop of 13×13 pixels is larger than p3\.png, which has 12×20'),
    (dict(crop=7), 'crop=7: at least 8'),
    (dict(batch_size=500), r'batch_size=500 is larger than the train split'),
    (dict(blocks=2), 'espcn has no blocks=2'),
    (dict(scorer='nowhere'), 'scorer=nowhere: .*no such folder'),
    (dict(dataset='folder:nowhere'), 'nowhere is not a folder'),
  ],
)
def test_bad_input_gets_a_line(tmp_path, run, changes, message):
  with pytest.raises(UsageError, match=message) as error:
    run(tmp_path / 'run', **changes)
  assert '\n' not in str(error.value) and not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.slow
def test_what_the_recipe_says_of_a_small_net(folder, monkeypatch):
  """All but that it overfits, for which it has too few weights."""
  settings = experiment.Config(**TINY | {'dataset': f'folder:{folder}', 'batch_size': 16, 'learning_rate': 0.01})
  data = experiment.data(settings)
  assert any('1 of 6 images are grey: they become RGB' in note for note in data.notes)
  resolved = config.resolve(settings, data.spec.examples)
  numbers = batches.indices(0, 0, 1, batch_size=16, size=data.splits['train'].size)[0]
  batch = jax.tree.map(jnp.asarray, batches.fetch(data.splits['train'], numbers))
  monkeypatch.delitem(recipe.CHECKS, 'one batch can be overfitted')
  passed = [passed for passed, _ in recipe.check(experiment.program(resolved, data), batch).values()]
  assert False not in passed and passed.count(True) == 6


@pytest.mark.slow
def test_a_loss_in_the_features_of_a_classifier_of_ours(tmp_path, run, classifier):
  run(tmp_path / 'run', **UNSEEN, scorer=classifier, steps='2')
