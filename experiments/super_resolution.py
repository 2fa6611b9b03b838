"""Super-resolution: SRCNN, ESPCN, SRResNet, and SRGAN, against bicubic interpolation.

python launch.py super_resolution                                              # ESPCN, ×3, on bundled pictures
python launch.py super_resolution --dataset=folder:PATH --factor=2 --model=srcnn
python launch.py super_resolution --model=srresnet --colour=rgb --factor=4 --crop=24
python launch.py super_resolution --model=srresnet --colour=rgb --factor=4 --crop=24 --adversarial --init_from=WORKDIR   # SRGAN
python launch.py upscale WORKDIR small.png

Pictures are made small once, on the host, by Pillow's bicubic filter in 8 bits (`low_resolution.shrunk`). All that is measured is
measured on the luma of 8-bit pictures, without `factor` pixels at the edges, and beside it what bicubic interpolation reaches.

`launch.py check` passes with --noresidual: a small net that begins at the bicubic picture cannot overfit it to a tenth of its loss.

https://arxiv.org/abs/1501.00092, https://arxiv.org/abs/1609.05158, https://arxiv.org/abs/1609.04802
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from karpjax import config, errors, optim, perceptual
from karpjax.data import augmentation, dataset, low_resolution
from karpjax.losses import adversarial
from karpjax.metrics import image_quality
from karpjax.metrics import super_resolution as metrics
from karpjax.models import super_resolution as models
from karpjax.program import AUGMENT, INITIALISE, Program, TrainState, example_keys, pair
from karpjax.report import super_resolution as report
from karpjax.train.step import alternating_step

Spec = low_resolution.Spec


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  dataset: str = config.flag('bundled', 'bundled, or folder:PATH of PNG and JPEG files.')
  channels: int = config.flag(0, '1: grey, 3: colour; 0: as stored.')
  factor: int = config.flag(3, 'By how much pictures are enlarged: 2, 3 or 4.')
  colour: str = config.flag(
    'y', 'What the net enlarges: the luma alone, chroma being bicubic, or all channels.', choices=('y', 'rgb')
  )
  crop: int = config.flag(32, 'Height and width of an example, in pixels of the small picture, in all splits.')
  stride: int = config.flag(0, 'From one crop to the next, in train; 0: half of a crop.')
  symmetries: bool = config.flag(True, 'Turn and mirror training crops.')
  model: str = config.flag('espcn', 'Its options are below.', choices=models.MODELS)
  adversarial: bool = config.flag(False, 'Against a discriminator: SRGAN.')
  adversarial_weight: float = config.flag(1e-3, "Of the discriminator's part in the net's loss.")
  scorer: str = config.flag(
    '',
    'Take the loss in the features of: WORKDIR of a run of image_classification with as many channels, or '
    "FILE.safetensors of torchvision's vgg19. Empty: in pixels.",
  )
  scorer_weight: float = config.flag(1.0, "Of that loss; the paper's for VGG-19 is 0.006.")

  residual: bool | None = config.flag(
    True, "Add what the net's layers make to the bicubic picture; the papers' nets do not.", group='Model'
  )
  widths: tuple[int, ...] | None = config.flag(None, 'Of all layers but the last (srcnn, espcn).', group='Model')
  kernel_sizes: tuple[int, ...] | None = config.flag(None, 'Of all layers (srcnn, espcn).', group='Model')
  blocks: int | None = config.flag(None, 'Residual ones (srresnet).', group='Model')
  width: int | None = config.flag(None, 'Channels inside (srresnet).', group='Model')
  discriminator_widths: tuple[int, ...] = config.flag((64, 128, 256, 512), 'Of its pairs of convolutions.')
  discriminator_hidden: int = config.flag(1024, 'Units of its first dense layer.')

  steps: config.Duration = config.run_flag('1000', 'How long to train.')
  eval_every: config.Duration = config.run_flag('250', 'Evaluate this often; 0: at the end only.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '250', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  eval_batch_size: int = config.run_flag(32, 'Examples in one call of the evaluation.', may_change=True)
  select: str = config.run_flag(
    '-validation/psnr', 'The metric whose smallest value marks the best checkpoint; -NAME for the largest.'
  )
  batch_size: int = config.data_flag(16, 'Examples in one step, over all devices; 0: the whole train split.')
  schedule: str = config.optimiser_flag('cosine', 'How the learning rate changes.', choices=optim.SCHEDULES)


def data(config: Config) -> dataset.Dataset:
  least = -(-image_quality.WINDOW // config.factor) + 2 * low_resolution.BORDER if config.factor > 0 else 0
  if config.crop < least:
    raise errors.UsageError(f'--crop={config.crop}: at least {least} pixels are needed, for SSIM')
  return low_resolution.load(
    config.dataset,
    config.factor,
    config.crop,
    stride=config.stride,
    channels=config.channels,
    validation=config.validation,
    seed=config.split_seed,
    resident_bytes=config.resident_mb * 2**20,
  )


def build(config: Config, spec: low_resolution.Spec):
  """The net of a run."""
  channels = 1 if config.colour == 'y' else spec.channels
  fixed = dict(factor=config.factor, channels=channels, dtype=jnp.dtype(config.dtype))
  return models.build(config.model, options=config.model_options(), **fixed)


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: one player or two; config with durations in steps."""
  spec = data.spec
  net, luma = build(config, spec), config.colour == 'y'
  judge = models.Discriminator(config.discriminator_widths, config.discriminator_hidden, jnp.dtype(config.dtype))
  names = ('discriminator', 'generator') if config.adversarial else ('generator',)
  optimisers = {name: optim.configured(config) for name in names}
  low = jnp.zeros((1, config.crop, config.crop, net.channels))
  high = jnp.zeros((1, config.crop * config.factor, config.crop * config.factor, net.channels))
  features = perceptual.load(config.scorer, high.shape[1:]) if config.scorer else None

  def init(key):
    first = jax.random.fold_in(jax.random.fold_in(key, 0), INITIALISE)
    variables = {'generator': net.init(first, low)}
    if config.adversarial:
      variables['discriminator'] = judge.init(jax.random.fold_in(first, 1), high, train=False)
    averaged = ('generator',) if config.ema else ()
    return TrainState.create(key, variables, optimisers, ema=averaged)

  def scaled(images):  # uint8 -> what the net sees
    images = images.astype(jnp.float32) / 255
    return image_quality.luma(images) if luma else images

  def made(params, collections, batch, key):
    """(ours, originals, the net's collections), alike in both players' turns."""
    low, high = scaled(batch['low']), scaled(batch['high'])
    if config.symmetries:
      keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
      low, high = (jax.vmap(augmentation.symmetry)(keys, x) for x in (low, high))
    variables = {'params': params['generator'], **collections['generator']}
    ours, own = net.apply(variables, low, train=True, mutable=list(collections['generator']))
    return ours, high, own

  def content(ours, high):  # [batch]
    if features is None:
      return jnp.square(ours - high).mean((1, 2, 3))
    return config.scorer_weight * jnp.square(features(ours) - features(high)).mean((1, 2, 3))

  def score(params, own, images):
    """(scores [batch], the discriminator's collections)."""
    return judge.apply({'params': params['discriminator'], **own}, images, train=True, mutable=list(own))

  def discriminator_loss(params, collections, batch, key):
    ours, high, _ = made(params, collections, batch, key)
    real, own = score(params, collections['discriminator'], high)
    fake, own = score(params, own, jax.lax.stop_gradient(ours))
    loss = adversarial.minimax_discriminator(real, fake)
    return {'loss': pair(loss), 'real_accuracy': pair(real > 0), 'fake_accuracy': pair(fake < 0)}, own

  def generator_loss(params, collections, batch, key):
    ours, high, own = made(params, collections, batch, key)
    error = content(ours, high)
    if not config.adversarial:
      return {'loss': pair(error)}, own
    against = adversarial.non_saturating_generator(score(params, collections['discriminator'], ours)[0])
    total = error + config.adversarial_weight * against
    return {'loss': pair(total), 'content': pair(error), 'adversarial': pair(against)}, own

  losses = {'discriminator': discriminator_loss, 'generator': generator_loss}
  step = alternating_step({name: losses[name] for name in names}, optimisers, config)

  def play(state, batch):
    state, found = step(state, batch)
    if not config.adversarial:  # a single player needs no name
      return state, {name.removeprefix('generator_'): x for name, x in found.items()}
    return state, {'loss': found.pop('generator_content'), **found}

  def enlarged(state, images):
    return net.apply(state.variables('generator'), scaled(images))

  def predict(state, batch, key):
    """batch['low'] uint8 -> pictures [batch, height · factor, width · factor, channels], black 0 and white 1, not clipped."""
    ours = enlarged(state, batch['low'])
    return metrics.with_chroma(ours, batch['low'] / 255, config.factor) if luma else ours

  def example_losses(state, batch, key):
    return content(enlarged(state, batch['low']), scaled(batch['high']))

  def evaluate(state, batch, key):
    sums = metrics.sums(predict(state, batch, key), batch, config.factor, spec.pictures)
    return {**sums, 'loss': pair(example_losses(state, batch, key), batch['mask'])}

  functions = Program(
    init=init, step=play, evaluate=evaluate, summarise=metrics.summarise, predict=predict, example_losses=example_losses
  )
  return dataclasses.replace(
    functions,
    report=functools.partial(
      report.draw, functions, spec, config.factor, build(config, spec).reach, seeds=config.seeds
    ),
  )
