"""Image to image: a conditional GAN with a U-Net (pix2pix, Isola et al. 2017).

python launch.py image_to_image                                                 # edges to photo, bundled pictures in crops
python launch.py image_to_image --dataset=pairs:PATH --image_size=256 --width=64
python launch.py image_to_image --dataset=side_by_side:PATH --direction=backward   # as the authors' own sets are
python launch.py reproduce pix2pix_edges                                        # L1, cGAN and both, at equal settings
python launch.py translate_image WORKDIR drawing.png

https://arxiv.org/abs/1611.07004
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from karpjax import config, errors, optim
from karpjax.data import dataset, paired
from karpjax.losses import adversarial
from karpjax.metrics import image_to_image as metrics
from karpjax.metrics.image_quality import WINDOW
from karpjax.models import image_to_image as models
from karpjax.program import AUGMENT, Program, TrainState, dropout_key, example_keys, pair, step_key
from karpjax.report import image_to_image as report
from karpjax.train.step import alternating_step

Spec = paired.Spec


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  dataset: str = config.flag(
    'edges', 'edges (of the bundled pictures, or edges:PATH of those in a folder), pairs:PATH or side_by_side:PATH.'
  )
  direction: str = config.flag('forward', 'backward makes inputs of targets.', choices=paired.DIRECTIONS)
  image_size: int = config.flag(
    0, 'Height and width. 0: as stored, edges in crops of 64; 128 for --discriminator=scalar.'
  )
  channels: int = config.flag(0, '1: grey, 3: colour. 0: as stored, edges from grey; 1 for --discriminator=scalar.')
  even_light: float = config.flag(
    16.0, 'Of edges: pictures less their mean within about so many pixels, which edges do not tell; 0: as they are.'
  )
  augment: str = config.flag('flip,enlarge:8', f'Of both images of a pair alike: {", ".join(paired.MOVES)}.')
  objective: str = config.flag('both', 'L1 alone, the conditional GAN alone, or both.', choices=('both', 'l1', 'cgan'))
  l1_weight: float = config.flag(100.0, 'λ, of the L1 distance of images in [-1, 1].')
  adversarial: str = config.flag('non_saturating', 'What the two players minimise.', choices=adversarial.OBJECTIVES)
  discriminator: str = config.flag(
    'patch', 'It looks at patches, or gives one scalar for an image.', choices=models.DISCRIMINATORS
  )
  noise: bool = config.flag(False, 'Keep dropout on when images are made after training, as the paper does.')
  width: int = config.flag(16, "Channels of the generator's first block; the paper's are 64.", group='Model')
  dropout: float = config.flag(0.5, "Rate in the decoder's first three blocks: the noise.", group='Model')
  discriminator_width: int = config.flag(16, 'Channels of its first convolution; the paper has 64.', group='Model')
  layers: int = config.flag(
    0,
    'Of stride 2 in the discriminator; of patch 1, 2, 3, 4 see 16, 34, 70, 142 pixels. 0: 2 for patch, 4 for scalar.',
    group='Model',
  )
  hidden: int = config.flag(512, "Units of scalar's first fully connected layer.", group='Model')
  norm: str = config.flag(
    'instance', 'batch norm takes running averages when images are made.', choices=models.NORMS, group='Model'
  )
  steps: config.Duration = config.run_flag('500', 'How long to train.')
  eval_every: config.Duration = config.run_flag('250', 'Evaluate this often; 0: at the end only.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '250', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  report_every: config.Duration = config.run_flag(
    '100', 'Draw held-out images this often; 0: at the end only.', may_change=True
  )
  eval_batch_size: int = config.run_flag(64, 'Examples in one call of the evaluation.', may_change=True)
  select: str = config.run_flag(
    '', 'The metric whose smallest value marks the best checkpoint; empty: the last is used.'
  )
  batch_size: int = config.data_flag(4, "Examples in one step, over all devices; the paper's are 1 to 10.")
  learning_rate: float = config.optimiser_flag(2e-4, 'The peak of the schedule, of both players.')
  beta1: float | None = config.optimiser_flag(0.5, 'First-moment decay of adam, adamw, lion and muon.')


def data(config: Config) -> dataset.Dataset:
  scalar = config.discriminator == 'scalar'
  return paired.load(
    config.dataset,
    image_size=config.image_size or (128 if scalar else 0),
    channels=config.channels or (1 if scalar else 0),
    direction=config.direction,
    even_light=config.even_light,
    validation=config.validation,
    seed=config.split_seed,
    resident_bytes=config.resident_mb * 2**20,
  )


def networks(config: Config, spec: paired.Spec):
  """(generator, discriminator) for pairs of these shapes."""
  options = dict(norm=config.norm, dtype=jnp.dtype(config.dtype))
  widths = models.widths(config.width, models.halvings(spec.input[:2]))
  generator = models.UNet(widths, spec.target[-1], config.dropout, **options)
  if config.discriminator == 'patch':
    return generator, models.Patches(config.discriminator_width, config.layers or 2, **options)
  return generator, models.Scalar(config.discriminator_width, config.layers or 4, config.hidden, **options)


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: two players, or without a GAN the generator alone; config with durations in steps."""
  spec = data.spec
  moves = paired.moves(config.augment)
  if min(spec.input[:2]) < WINDOW:
    raise errors.UsageError(f'--image_size={min(spec.input[:2])}: SSIM needs images of at least {WINDOW} pixels')
  generator, discriminator = networks(config, spec)
  discriminator_loss, generator_loss = adversarial.OBJECTIVES[config.adversarial]
  names = ('generator',) if config.objective == 'l1' else ('discriminator', 'generator')
  optimisers = {name: optim.configured(config) for name in names}

  def init(key):
    image, target = jnp.zeros((1, *spec.input)), jnp.zeros((1, *spec.target))
    variables = {'generator': generator.init(jax.random.fold_in(key, 0), image, train=True, noise=False)}
    if 'discriminator' in names:
      both = jnp.concatenate([image, target], -1)
      variables['discriminator'] = discriminator.init(jax.random.fold_in(key, 1), both)
    averaged = ('generator',) if config.ema else ()
    return TrainState.create(key, variables, optimisers, ema=averaged)

  def translate(params, collections, batch, key, *, train, noise):
    rngs = {'dropout': dropout_key(key, batch)}
    variables = {'params': params, **collections}
    inputs = paired.symmetric(batch['input'])
    return generator.apply(variables, inputs, train=train, noise=noise, rngs=rngs, mutable=list(collections))

  def judge(params, collections, inputs, outputs):
    """Each example's scores, [batch, patches], and the discriminator's collections."""
    variables, both = {'params': params, **collections}, jnp.concatenate([inputs, outputs], -1)
    scores, collections = discriminator.apply(variables, both, mutable=list(collections))
    return scores.reshape(len(scores), -1), collections

  def discriminator_turn(params, collections, batch, key):
    inputs, targets = paired.symmetric(batch['input']), paired.symmetric(batch['target'])
    fakes, _ = translate(params['generator'], collections['generator'], batch, key, train=True, noise=True)
    own = params['discriminator']
    real, after = judge(own, collections['discriminator'], inputs, targets)
    fake, after = judge(own, after, inputs, fakes)
    loss = discriminator_loss(real, fake).mean(-1) / 2  # section 3.3
    middle = adversarial.middle(config.adversarial, real, fake)
    right = {'accuracy_on_real': (real > middle).mean(-1), 'accuracy_on_fake': (fake < middle).mean(-1)}
    return {'loss': pair(loss), **{name: pair(x) for name, x in right.items()}}, after

  def generator_turn(params, collections, batch, key):
    inputs, targets = paired.symmetric(batch['input']), paired.symmetric(batch['target'])
    outputs, after = translate(params['generator'], collections['generator'], batch, key, train=True, noise=True)
    l1 = metrics.l1(outputs, targets)
    loss = 0 if config.objective == 'cgan' else config.l1_weight * l1
    terms = {'l1': pair(l1 / 2)}  # of images in [0, 1]
    if 'discriminator' in names:
      fake, _ = judge(params['discriminator'], collections['discriminator'], inputs, outputs)
      fooled = generator_loss(fake).mean(-1)
      loss, terms['adversarial'] = loss + fooled, pair(fooled)
    return {'loss': pair(loss), **terms}, after

  turns = {'discriminator': discriminator_turn, 'generator': generator_turn}

  def predict(state, batch, key):
    """[batch, height, width, channels] float32 in [0, 1]."""
    params, collections = state.eval_params['generator'], state.collections['generator']
    outputs, _ = translate(params, collections, batch, key, train=False, noise=config.noise)
    return (outputs + 1) / 2

  def example_losses(state, batch, key):
    return metrics.l1(predict(state, batch, key), batch['target'] / 255)

  def evaluate(state, batch, key):
    return metrics.sums(predict(state, batch, key), batch['target'] / 255, batch['mask'])

  play = alternating_step({name: turns[name] for name in names}, optimisers, config)

  def step(state, batch):  # augmented once for both players, whose images are then the same computation
    return play(state, paired.augment(moves, example_keys(step_key(state, AUGMENT), batch), batch))

  functions = Program(
    init=init,
    step=step,
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    example_losses=example_losses,
  )
  return dataclasses.replace(functions, report=functools.partial(report.draw, functions, data, seeds=config.seeds))
