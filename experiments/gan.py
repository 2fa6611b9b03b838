"""Generative adversarial networks: perceptrons, DCGAN and SNGAN, under six objectives, with classes or without.

python launch.py gan                                                        # scikit-learn's digits, bundled
python launch.py gan --flagfile=experiments/papers/gan_25gaussians.flags    # how many of 25 modes are found
python launch.py gan --dataset=mnist --scorer=WORKDIR                       # FID in the features of a run of image_classification
python launch.py gan --dataset=cifar10 --scorer=inception:FILE.safetensors   # the FID of papers, from the weights of pt_inception-2015-12-05
python launch.py gan --dataset=folder:PATH --image_size=64 --channels=3     # any folder of images
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from karpjax import config, errors, optim
from karpjax import scorer as scorers
from karpjax.data import augmentation, dataset, images
from karpjax.losses import adversarial
from karpjax.losses.classification import cross_entropy
from karpjax.metrics import generation
from karpjax.models import conditioning, gan
from karpjax.program import AUGMENT, LATENT, Program, TrainState, example_keys, pair
from karpjax.report import gan as report
from karpjax.train.step import alternating_step


@dataclasses.dataclass(frozen=True)
class Config(config.Train, images.Flags):
  objective: str = config.flag(
    'non_saturating',
    'What the players minimise; wasserstein clips weights, wasserstein_gp penalises gradients between real and fake.',
    choices=(*adversarial.OBJECTIVES, 'wasserstein_gp'),
  )
  discriminator_steps: int = config.flag(
    1,
    'Of the discriminator for one of the generator; --batch_size counts all of their images, so each has a part of it.',
  )
  discriminator_learning_rate: float = config.flag(0.0, "0: the generator's, --learning_rate.")
  gradient_penalty: float = config.flag(10.0, 'Weight of the penalty of wasserstein_gp.')
  clip_weights: float = config.flag(0.01, "Where wasserstein cuts the discriminator's weights.")
  r1: float = config.flag(0.0, 'Weight of the R1 penalty: of gradients at real examples, under any objective; 0: none.')
  conditional: str = config.flag('none', 'How the players are told of classes.', choices=conditioning.CONDITIONALS)
  augment: str = config.flag(
    '', 'Of real and generated images alike (DiffAugment): flip,shift:4,cutout:8,jitter:0.5,rotate:10.'
  )
  latent: int = config.flag(100, 'Numbers that a sample is made from, of a standard normal distribution.')
  scorer: str = config.flag(
    '',
    'FID and others by the features of: WORKDIR of a run of image_classification on the same data, or '
    'inception:FILE.safetensors with the weights that FID is defined by, pt_inception-2015-12-05-6726825d.',
  )
  model: str = config.flag('dcgan', 'Its options are below.', choices=gan.MODELS)
  steps: config.Duration = config.run_flag('60epochs', 'How long to train.')
  eval_every: config.Duration = config.run_flag('25epochs', 'Evaluate this often; 0: at the end only.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '25epochs', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  report_every: config.Duration = config.run_flag(
    '10epochs', 'Draw samples this often; 0: at the end only.', may_change=True
  )
  select: str = config.run_flag(
    'validation/fid', 'The metric whose smallest value marks the best checkpoint; -NAME: largest.'
  )
  batch_size: int = config.data_flag(
    64, "Real examples in one step, over all devices and all of the discriminator's turns."
  )
  learning_rate: float = config.optimiser_flag(2e-4, 'The peak of the schedule.')
  beta1: float | None = config.optimiser_flag(0.5, 'First-moment decay of adam, adamw, lion and muon.')
  beta2: float | None = config.optimiser_flag(
    0.999, 'Second-moment decay of adam, adamw, lion, muon, rmsprop and adadelta.'
  )
  ema: float = config.optimiser_flag(0.99, 'Decay of a running average of the generator, which samples; 0: none.')

  widths: tuple[int, ...] | None = config.flag(None, "Of the generator's layers.", group='Model')
  discriminator_widths: tuple[int, ...] | None = config.flag(None, "Else the generator's, turned round.", group='Model')
  generator_norm: str | None = config.flag(None, 'none or batch.', group='Model')
  norm: str | None = config.flag(None, "The discriminator's: none, batch or layer.", group='Model')
  spectral_norm: bool | None = config.flag(None, "Divides the discriminator's weights by their largest singular value.", group='Model')  # fmt: skip


def data(config: Config) -> dataset.Dataset:
  return images.load(config, unlabelled=config.conditional == 'none')


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: config with durations in steps."""
  spec = data.spec
  scored = scorers.scoring(config, data, print) if data.splits else {'scorer': None, 'train': None, 'largest': 0}
  image, penalised = len(spec.shape) == 3, config.objective == 'wasserstein_gp'
  generator, discriminator = gan.build(
    config.model,
    shape=spec.shape,
    classes=len(spec.classes),
    latent=config.latent,
    conditional=config.conditional,
    dtype=jnp.dtype(config.dtype),
    generator={'widths': config.widths, 'norm': config.generator_norm},
    discriminator={
      'widths': config.discriminator_widths,
      'norm': config.norm,
      'spectral_norm': config.spectral_norm,
    },
    penalised=penalised or config.r1 > 0,
  )
  discriminators, generators = adversarial.OBJECTIVES[config.objective.removesuffix('_gp')]
  prepare = functools.partial(spec.scale, how='symmetric' if image else 'unit')
  augment = functools.partial(augmentation.augment_symmetric, augmentation.parse(config.augment, augmentation.IMAGES))
  rate = config.discriminator_learning_rate
  own_rate = config if not rate else dataclasses.replace(config, learning_rate=rate)
  optimisers = {'discriminator': optim.configured(own_rate), 'generator': optim.configured(config)}
  if config.objective == 'wasserstein':
    optimisers['discriminator'] = optax.chain(optimisers['discriminator'], optim.limit_weights(config.clip_weights))

  def init(key):
    variables = gan.init(generator, discriminator, key, spec.shape, config.latent)
    averaged = ('generator',) if config.ema else ()
    return TrainState.create(key, variables, optimisers, ema=averaged)

  def latents(key, batch):
    return jax.vmap(lambda key: jax.random.normal(key, (config.latent,)))(example_keys(key, batch))

  def generate(params, collections, batch, key):
    """What the discriminator sees of the generator, alike in both players' turns; and the generator's collections."""
    variables = {'params': params['generator'], **collections['generator']}
    z = latents(jax.random.fold_in(key, LATENT), batch)
    x, own = generator.apply(variables, z, batch['label'], train=True, mutable=list(collections['generator']))
    return augment(example_keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), 1), batch), x), own

  def judge(params, own, x, labels):
    """(scores [batch], class logits [batch, classes] or None), and the discriminator's collections."""
    variables = {'params': params['discriminator'], **own}
    return discriminator.apply(variables, x, labels, train=True, mutable=list(own))

  def discriminators_loss(params, collections, batch, key):
    labels, own = batch['label'], collections['discriminator']
    gradients_at = functools.partial(adversarial.input_gradients, lambda x, labels: judge(params, own, x, labels)[0][0])
    keys = example_keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), 0), batch)
    real, (fake, _) = augment(keys, prepare(batch['image'])), generate(params, collections, batch, key)
    (on_real, real_classes), new = judge(params, own, real, labels)
    (on_fake, fake_classes), new = judge(params, new, fake, labels)
    losses = discriminators(on_real, on_fake)
    if config.conditional == 'auxiliary':
      losses += cross_entropy(real_classes, labels) + cross_entropy(fake_classes, labels)
    if penalised:
      keys = example_keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), 2), batch)
      between = adversarial.between(keys, real, fake)
      losses += config.gradient_penalty * adversarial.gradient_penalty(gradients_at(between, labels))
    if config.r1 > 0:
      losses += config.r1 * adversarial.r1_penalty(gradients_at(real, labels))
    middle = adversarial.middle(config.objective, on_real, on_fake)
    right = {'accuracy_on_real': pair(on_real > middle), 'accuracy_on_fake': pair(on_fake < middle)}
    return {'loss': pair(losses), **right}, new

  def generators_loss(params, collections, batch, key):
    fake, own = generate(params, collections, batch, key)
    (scores, logits), _ = judge(params, collections['discriminator'], fake, batch['label'])
    losses = generators(scores)
    if config.conditional == 'auxiliary':
      losses += cross_entropy(logits, batch['label'])
    return {'loss': pair(losses)}, own

  def predict(state, batch, key):
    """Samples of the batch's labels, and latents where it has them, the averaged generator's: [batch, *shape], raw scale."""
    params = {**state.params, **(state.ema or {})}['generator']
    variables = {'params': params, **state.collections['generator']}
    z = batch['latent'] if 'latent' in batch else latents(key, batch)
    x = generator.apply(variables, z, batch['label'], train=False)
    return spec.maximum * ((x + 1) / 2 if image else x)

  def evaluate(state, batch, key):
    return scorers.sums(
      scored['scorer'], spec, predict(state, batch, key), batch, scored['largest'], config.conditional != 'none'
    )

  losses = {'discriminator': discriminators_loss, 'generator': generators_loss}
  functions = Program(
    init=init,
    step=alternating_step(losses, optimisers, config, rounds=config.discriminator_steps),
    evaluate=evaluate,
    summarise=functools.partial(generation.summarise, train=scored['train']),
    predict=predict,
  )
  return dataclasses.replace(
    functions, report=functools.partial(report.draw, functions, data, config, scored['scorer'], say=print)
  )


def predictions(program, state, spec, files):
  raise errors.UsageError('a run of gan classifies nothing; its samples are in its folder, plots/samples.png')
