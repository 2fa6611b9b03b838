"""Image to image as a user runs it: the losses of its objectives, and images translated."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import image_to_image as experiment
from karpjax import config, verbs
from karpjax.commands import use
from karpjax.data import pairs
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.models import image_to_image as models
from karpjax.train import loop

SMALL = dict(
  width=2, discriminator_width=2, layers=1, augment='', batch_size=8, validation=8, steps='12', log_every='3',
  eval_every='6', checkpoint_every='6', checkpoint_seconds=0, report_every='0', eval_batch_size=8, tensorboard=False, plots=False,
  steps_per_call='1',
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Grey squares, and the same squares in red on green: a mapping that can be learnt."""
  root, draw = tmp_path_factory.mktemp('pairs'), np.random.default_rng(0)
  for split, count in (('train', 32), ('test', 5)):
    for i in range(count):
      top, left = draw.integers(0, 8, 2)
      grey, colour = np.zeros((12, 12), np.uint8), np.zeros((12, 12, 3), np.uint8)
      grey[top : top + 5, left : left + 5] = 255
      colour[..., 0], colour[..., 1] = grey, 255 - grey
      for name, pixels in (('input', grey), ('target', colour)):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / split / name / f'{i}.png')
  return root


@pytest.fixture
def run(folder):
  def run(workdir, **changes):
    settings = dict(dataset=f'pairs:{folder}', **SMALL) | changes
    return loop.run(experiment, experiment.Config(**settings, workdir=str(workdir)), say=lambda _: None)

  return run


SPEC = pairs.Spec('none', (12, 12, 1), (12, 12, 3), 100)


def abstract_batch():
  batch = {n: jax.ShapeDtypeStruct((8, *s), jnp.uint8) for n, s in (('input', SPEC.input), ('target', SPEC.target))}
  return {**batch, 'index': jax.ShapeDtypeStruct((8,), jnp.int32)}


def first_step(**changes):
  """(the metrics of a step as means, the compiled step)."""
  settings = config.resolve(experiment.Config(**SMALL | changes), 100)
  program = experiment.program(settings, Dataset(SPEC, {}))
  draw = np.random.default_rng(0)
  batch = {
    n: draw.integers(0, 256, (8, *shape), np.uint8) for n, shape in (('input', SPEC.input), ('target', SPEC.target))
  }
  batch['index'] = np.arange(8, dtype=np.int32)
  state = jax.jit(program.init)(jax.random.key(0))
  compiled = jax.jit(program.step).lower(state, batch).compile()
  metrics = {n: float(s / c) for n, (s, c) in compiled(state, batch)[1].items()}
  return metrics, compiled


@pytest.mark.slow
def test_both_weighs_l1_by_100_and_both_players_see_the_same_images():
  metrics, compiled = first_step()
  assert metrics['generator_loss'] == pytest.approx(200 * metrics['generator_l1'] + metrics['generator_adversarial'])
  # at the first step scores are close to 0: each half of the discriminator's loss, itself halved, is log 2
  assert metrics['discriminator_loss'] == pytest.approx(np.log(2), abs=0.05)
  assert metrics['generator_adversarial'] == pytest.approx(np.log(2), abs=0.05)
  # the generator ran once: of what it made in either turn XLA has kept one
  assert compiled.as_text().count(' tanh(') == 1


def test_l1_alone_has_no_discriminator():
  program = experiment.program(
    config.resolve(experiment.Config(**SMALL | dict(objective='l1')), 100), Dataset(SPEC, {})
  )
  state = jax.eval_shape(program.init, jax.random.key(0))
  assert set(state.params) == set(state.opt_state) == set(state.collections) == {'generator'}
  metrics = jax.eval_shape(program.step, state, abstract_batch())[1]
  assert set(metrics) == {'generator_loss', 'generator_l1', 'generator_gradient_norm'}


@pytest.mark.slow
def test_l1_alone_and_cgan_alone_minimise_nothing_else():
  metrics = first_step(objective='l1')[0]
  assert metrics['generator_loss'] == pytest.approx(200 * metrics['generator_l1'])
  metrics = first_step(objective='cgan', discriminator='scalar', hidden=4)[0]
  assert metrics['generator_loss'] == pytest.approx(metrics['generator_adversarial'])


@pytest.mark.parametrize('norm, objective', zip(models.NORMS, ('non_saturating', 'wasserstein')))
def test_a_step_lowers_for_accelerators(norm, objective):
  settings = config.resolve(experiment.Config(**SMALL | dict(adversarial=objective, norm=norm, ema=0.9)), 100)
  program = experiment.program(settings, Dataset(SPEC, {}))
  state = jax.eval_shape(program.init, jax.random.key(0))
  assert set(state.ema) == {'generator'}
  text = jax.jit(program.step).trace(state, abstract_batch()).lower(lowering_platforms=('tpu',)).as_text()
  assert 'stablehlo.convolution' in text


@pytest.mark.slow
def test_a_mapping_is_learnt(tmp_path, run):
  numbers = run(
    tmp_path,
    steps='60',
    learning_rate=0.01,
    eval_every='30',
    checkpoint_every='20',
    checkpoint_seconds=0,
    log_every='15',
  ).numbers
  # black alone would have an L1 of a third, and a PSNR under 5 dB
  assert numbers['test/l1'] < 0.25 and numbers['test/psnr'] > 8
  assert set(numbers) >= {'test/ssim', 'test/sharpness', 'validation/psnr', 'train/discriminator_gradient_norm'}


@pytest.mark.slow
def test_noise_after_training_is_a_flag():
  for noise, differs in ((True, True), (False, False)):
    settings = config.resolve(experiment.Config(**SMALL | dict(noise=noise)), 100)
    program = experiment.program(settings, Dataset(SPEC, {}))
    state = jax.jit(program.init)(jax.random.key(0))
    batch = {'input': np.random.default_rng(0).integers(0, 256, (2, 12, 12, 1), np.uint8), 'index': np.arange(2)}
    made = jax.jit(program.predict)
    apart = np.abs(made(state, batch, jax.random.key(0)) - made(state, batch, jax.random.key(1))).max()
    assert (apart > 1e-6) == differs


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(batch_size=40), r'batch_size=40 is larger than the train split of 24'),
    (dict(image_size=30), r'30×30 pixels twice'),
    (dict(image_size=8), r'at least 11 pixels'),
    (dict(layers=3), r'layers=3: .*12×12 pixels can have 1 to 2'),
    (dict(augment='jitter:0.4'), r'augmentation jitter: here only'),
    (dict(dataset='edges:/nowhere'), r'is not a folder'),
    (dict(direction='back'), r'Did you mean backward'),
    (dict(hidden=4), r'patch has no hidden=4'),
  ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, run, changes, says):
  with pytest.raises(UsageError, match=says) as error:
    run(tmp_path / 'run', **changes)
  assert '\n' not in str(error.value) and not (tmp_path / 'run' / 'config.json').exists()


def test_the_scalar_discriminator_s_default_size_is_128_grey():
  data = experiment.data(experiment.Config(discriminator='scalar'))
  assert data.spec.input == data.spec.target == (128, 128, 1)
  generator, discriminator = experiment.networks(experiment.Config(discriminator='scalar'), data.spec)
  assert generator.width == discriminator.discriminator_width == 16 and discriminator.layers == 4


def test_images_are_translated_without_the_data(tmp_path, run, folder, capsys):
  run(tmp_path / 'run', objective='l1', plots=True, steps='2', report_every='1', eval_every='0', final_splits=('test',))
  assert (tmp_path / 'run' / 'plots' / 'translations.png').exists()
  with Image.open(tmp_path / 'run' / 'plots' / 'translations_over_time.gif') as animation:
    assert animation.n_frames == 2
  colour = np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)
  Image.fromarray(colour).save(tmp_path / 'a.png')
  (tmp_path / 'b.png').write_bytes((folder / 'test' / 'input' / '3.png').read_bytes())
  files = [str(tmp_path / 'a.png'), str(tmp_path / 'b.png')]
  assert use.main('translate_image', [str(tmp_path / 'run'), *files]) == 0
  assert f'{tmp_path / "b.png"} -> {tmp_path / "b_translated.png"}' in capsys.readouterr().out
  opened = verbs.Run(tmp_path / 'run')
  assert opened.spec.input == (12, 12, 1)
  pixels = np.asarray(Image.open(tmp_path / 'b.png'))[None, ..., None]
  wanted = jax.jit(opened.program.predict)(
    opened.state, {'input': pixels, 'index': np.ones(1, np.int32)}, jax.random.key(0)
  )[0]
  made = np.asarray(Image.open(tmp_path / 'b_translated.png'))
  assert np.abs(made - 255 * np.asarray(wanted)).max() <= 0.5 + 1e-3
  assert np.asarray(Image.open(tmp_path / 'a_translated.png')).shape == (12, 12, 3)
  # nothing that is given is written over
  (tmp_path / 'broken.png').write_text('none')
  for arguments, says in {
    (*files, str(tmp_path / 'a_translated.png')): 'which is given as well',
    (str(tmp_path / 'none.png'),): 'no such file',
    (str(tmp_path / 'broken.png'),): 'not a readable PNG or JPEG',
  }.items():
    assert use.main('translate_image', [str(tmp_path / 'run'), *arguments]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
  opened.translate_image(files[0], edges=True, output=str(tmp_path / 'out'))
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a_translated.png']


def test_players_begin_with_keys_of_their_own_that_no_step_draws_from(monkeypatch):
  seen, key = [], jax.random.key(0)
  player = types.SimpleNamespace(init=lambda key, *_, **__: seen.append(key) or {'params': {'w': jnp.zeros(2)}})
  monkeypatch.setattr(experiment, 'networks', lambda *_: (player, player))
  experiment.program(config.resolve(experiment.Config(**SMALL), 100), Dataset(SPEC, {})).init(key)
  steps = [jax.random.fold_in(key, t) for t in range(3)]
  assert len(seen) == 2 and len({jax.random.key_data(x).tobytes() for x in (key, *seen, *steps)}) == 6
