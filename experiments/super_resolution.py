"""Super-resolution: SRCNN, ESPCN, SRResNet, and SRGAN, against bicubic interpolation.

python launch.py super_resolution                                              # ESPCN, ×3, on bundled pictures
python launch.py super_resolution --dataset=folder:PATH --factor=2 --model=srcnn
python launch.py super_resolution --model=srresnet --colour=rgb --factor=4 --crop=24
python launch.py super_resolution --model=srresnet --colour=rgb --factor=4 --crop=24 --adversarial --init_from=WORKDIR   # SRGAN
python launch.py upscale WORKDIR small.png

Pictures are made small once, on the host, by Pillow's bicubic filter in 8 bits (`pictures.shrunk`). All that is measured is
measured on the luma of 8-bit pictures, without `factor` pixels at the edges, and beside it what bicubic interpolation reaches.
PSNR and SSIM are those of whole pictures, averaged over pictures; of train, where it is evaluated, of crops: `crop_psnr`.

https://arxiv.org/abs/1501.00092, https://arxiv.org/abs/1609.05158, https://arxiv.org/abs/1609.04802
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, errors, features, image_verbs, optim, options
from karpjax.data import dataset, image_files, pairs, transformations
from karpjax.losses import adversarial
from karpjax.metrics import image_quality
from karpjax.metrics import super_resolution as measured
from karpjax.models import super_resolution as models
from karpjax.program import AUGMENT, Input, Program, TrainState, apply, example_keys, first_key, pair
from karpjax.report import super_resolution as report
from karpjax.train.step import alternating_step

TILE = 96  # pixels of the small picture that a tile gives at most
Spec = pairs.Spec


@config.defaults(
  steps='1000', eval_every='250', checkpoint_every='250', eval_batch_size=4, select='-validation/psnr', batch_size=16,
  schedule='cosine', models={'srresnet': {'learning_rate': 1e-4, 'warmup': '5%'}},  # Ledig et al. 2017, section 3.2
)  # fmt: skip
class Config(config.Train, config.model_flags(models.DISCRIMINATORS), config.model_flags(models.MODELS)):
  dataset: str = config.flag('bundled', 'bundled, or folder:PATH of PNG and JPEG files.', path=True)
  channels: int = config.flag(0, '1: grey, 3: colour; 0: as stored.', choices=(0, 1, 3))
  factor: int = config.flag(3, 'The factor by which pictures are enlarged.', choices=(2, 3, 4))
  colour: str = config.flag('y', 'Enlarge the luma alone, chroma being bicubic, or all channels.', choices=('y', 'rgb'))
  crop: int = config.flag(32, 'Height and width of a training example, in pixels of the small picture.', low=1)
  stride: int = config.flag(0, 'Pixels from one crop to the next, in train; 0: half of a crop.', low=0)
  symmetries: bool = config.flag(True, 'Turn and mirror training crops.')
  model: str = config.flag('espcn', 'The net; its options are below.', choices=models.MODELS)
  adversarial: bool = config.flag(False, 'Train against a discriminator: SRGAN.')
  adversarial_weight: float = config.flag(1e-3, "The weight of the discriminator's part in the net's loss.", low=0)
  scorer: str = config.flag(
    '', 'Take the loss in the features of: WORKDIR of a run of image_classification with as many channels, or '
    "FILE.safetensors of torchvision's vgg19. Empty: in pixels.", path=True
  )  # fmt: skip
  scorer_weight: float = config.flag(1.0, "The weight of that loss; the paper's for VGG-19 is 0.006.", low=0)


def data(config: Config) -> dataset.Dataset:
  least = math.ceil(image_quality.WINDOW / config.factor) + 2  # and a border
  if config.crop < least:
    raise errors.UsageError(f'crop={config.crop}: at least {least} pixels are needed, for SSIM')
  return pairs.load_low_resolution(config, least=least, margin=margin(config, network(config, 1)), most=TILE)


def margin(config: Config, net: models.Net) -> int:
  """What a tile sees beyond its part, in pixels of the small picture: as far as the net looks, and SSIM's window."""
  return net.reach + math.ceil(image_quality.WINDOW // 2 / config.factor)


def network(config: Config, channels: int) -> models.Net:
  channels = 1 if config.colour == 'y' else channels
  decided = {'factor': config.factor, 'channels': channels, 'dtype': jnp.dtype(config.dtype)}
  return options.build(models.MODELS, config.model, config, np.zeros((1, 8, 8, channels), np.float32), **decided)


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: one player or two; config with durations in steps."""
  spec, net = data.spec, network(config, data.spec.input[-1])
  low, high = (np.zeros((1, *shape[:2], net.channels), np.float32) for shape in (spec.input, spec.target))
  decided = {'call': {'train': False}, 'dtype': jnp.dtype(config.dtype)}
  discriminator = options.build(models.DISCRIMINATORS, 'srgan', config, high, **decided)
  extract = features.perceptual(config.scorer, high.shape[1:]) if config.scorer and data.splits else None
  objective = adversarial.OBJECTIVES['non_saturating']

  def init(key):
    first = first_key(key)
    variables = {'generator': net.init(first, low)}
    if config.adversarial:
      variables['discriminator'] = discriminator.init(jax.random.fold_in(first, 1), high, train=False)
    return TrainState.create(key, variables, optimisers, ema=('generator',) if config.ema else ())

  def scaled(images):  # uint8 -> what the net sees
    images = images.astype(jnp.float32) / 255
    return image_quality.luma(images) if config.colour == 'y' else images

  def enlarge(params, collections, batch, key):
    """(ours, originals, the net's collections), alike in both players' turns."""
    low, high = scaled(batch['input']), scaled(batch['target'])
    if config.symmetries:
      keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
      low, high = (jax.vmap(transformations.symmetry)(keys, x) for x in (low, high))
    ours, own = apply(net, params['generator'], collections['generator'], low, train=True)
    return ours, high, own

  def content(ours, high):  # [batch]
    if extract is None:
      return jnp.square(ours - high).mean((1, 2, 3))
    return config.scorer_weight * jnp.square(extract(ours) - extract(high)).mean((1, 2, 3))

  def score(params, own, images):
    """(scores [batch], the discriminator's collections)."""
    return apply(discriminator, params['discriminator'], own, images, train=True)

  def discriminator_loss(params, collections, batch, key):
    ours, high, _ = enlarge(params, collections, batch, key)
    real, own = score(params, collections['discriminator'], high)
    fake, own = score(params, own, jax.lax.stop_gradient(ours))
    real_right, fake_right = map(pair, objective.right(real, fake))
    loss = pair(objective.discriminator(real, fake))
    return {'loss': loss, 'real_accuracy': real_right, 'fake_accuracy': fake_right}, own

  def generator_loss(params, collections, batch, key):
    ours, high, own = enlarge(params, collections, batch, key)
    error = content(ours, high)
    if not config.adversarial:
      return {'loss': pair(error)}, own
    against = objective.generator(score(params, collections['discriminator'], ours)[0])
    total = error + config.adversarial_weight * against
    return {'loss': pair(total), 'content': pair(error), 'adversarial': pair(against)}, own

  losses = ({'discriminator': discriminator_loss} if config.adversarial else {}) | {'generator': generator_loss}
  optimisers = {player: optim.configured(config) for player in losses}
  alternate = alternating_step(losses, optimisers, config)

  def step(state, batch):
    state, metrics = alternate(state, batch)
    if not config.adversarial:  # a single player needs no name
      return state, {name.removeprefix('generator_'): x for name, x in metrics.items()}
    return state, {'loss': metrics.pop('generator_content'), **metrics}

  def evaluated(state, batch):
    return net.apply(state.variables('generator'), scaled(batch['input']), present=measured.present(batch))

  def predict(state, batch, key):
    """batch['input'] uint8 -> pictures [batch, height · factor, width · factor, channels], black 0 and white 1, not clipped."""
    ours = evaluated(state, batch)
    if config.colour == 'rgb':
      return ours
    return measured.with_chroma(ours, batch['input'] / 255, config.factor, measured.present(batch))

  def enlarged(state, batch, key):
    return jnp.clip(predict(state, batch, key), 0, 1)

  def example_losses(state, batch, key):
    return content(evaluated(state, batch), scaled(batch['target']))

  def evaluate(state, batch, key):
    sums = measured.sums_by_picture(predict(state, batch, key), batch, config.factor, spec.pictures)
    if 'part' not in batch:  # crops, of train
      return {**sums, 'tiles': jnp.zeros(()), 'loss': pair(example_losses(state, batch, key), batch['mask'])}
    ours, high, border = evaluated(state, batch), scaled(batch['target']), margin(config, net) * config.factor
    return sums | measured.tile_sums(content, ours, high, batch, config.factor, spec.target[0], border)

  return Program(
    init, step, evaluate, measured.summarise, predict=predict, example_losses=example_losses,
    lent=features.lent(config.scorer) if extract else {},
    loss_floor=net.residual,  # a small net that begins at the bicubic picture cannot come to a tenth of its loss
    exports={'upscale': (enlarged, {'input': Input(('height', 'width', spec.input[-1]), 'uint8')})},
    report=functools.partial(report.write, config, data, enlarger(config, net, predict)),
  )  # fmt: skip


# ---- what a run can do ----


def enlarger(config: Config, net: models.Net, predict):
  """(state, picture [height, width, channels] uint8) -> [height · factor, width · factor, channels] in [0, 1], in tiles."""
  call = jax.jit(lambda state, low: jnp.clip(predict(state, {'input': low}, jax.random.key(0)), 0, 1))
  size = {'tile': TILE + 2 * net.reach, 'margin': net.reach, 'scale': config.factor}
  return lambda state, low: models.in_tiles(lambda x: call(state, x), low, **size)


def encode(run, paths, chosen) -> list[np.ndarray]:
  """Pictures [height, width, 1 or 3] uint8 with the channels that the net takes: for the luma alone those of the file."""
  known, luma = run.spec.input[-1], run.config.colour == 'y'
  there = [channels for _, channels in image_files.headers(paths).values()]
  for path, channels in zip(paths, there):
    if not luma and known < channels:
      raise errors.UsageError(
        f'{path} has colour, and the run saw grey pictures alone: convert it, or train with colour=y'
      )
  return [image_files.read(path, channels if luma else known) for path, channels in zip(paths, there)]


def function(run, chosen):
  enlarge = enlarger(run.config, network(run.config, run.spec.input[-1]), run.program.predict)
  return lambda state, pictures: (enlarge(state, low) for low in pictures)


about, ending = 'Enlarges pictures of any size; each becomes NAME_xFACTOR.png.', lambda run: f'_x{run.config.factor}'
verbs = {'upscale': image_verbs.of_each(about, encode, function, ending)}
