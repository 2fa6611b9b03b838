"""Generative adversarial networks: perceptrons, DCGAN and SNGAN, under six objectives, with classes or without.

python launch.py gan                                                        # scikit-learn's digits, bundled
python launch.py gan --flagfile=experiments/papers/gan_25gaussians.flags    # coverage of 25 modes
python launch.py gan --dataset=mnist --scorer=WORKDIR                       # FID in the features of a run of image_classification
python launch.py gan --dataset=cifar10 --scorer=inception:FILE.safetensors   # the FID of papers, from the weights of pt_inception-2015-12-05
python launch.py gan --dataset=folder:PATH --image_size=64 --channels=3     # any folder of images
python launch.py sample WORKDIR --count=64 --output=samples.png             # new images by a trained generator
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from karpjax import config, errors, features, image_verbs, model_defaults, optim, options
from karpjax.data import augmentation, bundled, images, splitting
from karpjax.data.dataset import Dataset, Spec
from karpjax.durations import Pace
from karpjax.losses import adversarial
from karpjax.losses.classification import cross_entropy
from karpjax.metrics import collect, distribution
from karpjax.models import gan
from karpjax.program import AUGMENT, LATENT, Input, Program, TrainState, apply, example_keys, first_key, pair
from karpjax.report import samples
from karpjax.train.step import alternating_step

OBJECTIVES = {**adversarial.OBJECTIVES, 'wasserstein_gp': adversarial.WASSERSTEIN}


@config.defaults(
  steps='60epochs', eval_every='25epochs', checkpoint_every='25epochs', report_every='10epochs',
  select='validation/fid', batch_size=64, learning_rate=2e-4, beta1=0.5, beta2=0.999, ema=0.99,
)  # fmt: skip
class Config(config.Train, images.Flags, config.model_flags(gan.DISCRIMINATORS), config.model_flags(gan.GENERATORS)):
  model: str = config.flag('dcgan', 'The networks; their options are below.', choices=gan.GENERATORS)
  latent: int = config.flag(
    100, 'Numbers of a latent, which are drawn from a standard normal distribution.', low=1, high=2**20
  )
  conditional: str = config.flag('none', 'How the players see classes.', choices=gan.CONDITIONALS)
  objective: str = config.flag(
    'non_saturating', 'What the players minimise; wasserstein clips weights, wasserstein_gp penalises gradients between '
    'real and fake.', choices=OBJECTIVES,
  )  # fmt: skip
  discriminator_steps: int = config.flag(1, 'Discriminator steps to one of the generator, on parts of a batch.', low=1)
  discriminator_learning_rate: float = config.flag(0.0, "The discriminator's; 0: the generator's.", low=0)
  gradient_penalty: float = config.flag(10.0, 'The weight of the penalty of wasserstein_gp.', low=0)
  clip_weights: float = config.flag(0.01, 'The largest weight of the discriminator under wasserstein.', above=0)
  r1: float = config.flag(0.0, 'The weight of a penalty on gradients at real examples (R1); 0: none.', low=0)
  augment: str = config.flag('', 'DiffAugment, of real and fake alike: flip,shift:4,cutout:8,jitter:0.5,rotate:10.')
  scorer: str = config.flag(
    '', 'The features for FID and others: WORKDIR of a run of image_classification on the same data, or '
    'inception:FILE.safetensors with the weights that FID is defined by, pt_inception-2015-12-05-6726825d.', path=True
  )  # fmt: skip


def data(config: Config) -> Dataset:
  loaded = images.load(config, unlabelled=config.conditional == 'none')
  if config.scorer:
    note = f'scorer: {features.load(config.scorer, loaded.spec)}; distances are on its own scale'
  else:
    note = (
      'FID, KID, precision and recall need a classifier of the same data: python launch.py image_classification '
      f'--dataset={config.dataset} --workdir=runs/scorer, then this command with --scorer=runs/scorer'
    )
  notes = (note,) if config.scorer or len(loaded.spec.shape) == 3 else ()
  return dataclasses.replace(loaded, notes=(*loaded.notes, *notes))


def players(config: Config, spec: Spec):
  """(generator, discriminator) for examples of these shapes; under a penalty of single gradients without batch norm."""
  name, shape = config.model, spec.shape
  penalised = config.objective == 'wasserstein_gp' or config.r1 > 0
  if name != 'mlp' and len(shape) != 3:
    raise errors.UsageError(f'model={name} makes images, not rows of {shape[0]} numbers: model=mlp is needed')
  if name != 'mlp' and () in (config.widths, config.discriminator_widths):
    raise errors.UsageError(f'widths= leaves model {name} no layer: give at least one')
  if penalised and config.norm == 'batch':
    raise errors.UsageError('a gradient penalty is of each example alone: norm=layer or none is needed, not batch')
  widths = errors.choose('model', name, gan.WIDTHS)(shape) if config.widths is None else config.widths
  defaults = {'widths': widths, 'discriminator_widths': (*reversed(widths), *widths[: name == 'sngan'])}
  if penalised and name == 'dcgan':
    defaults['norm'] = 'layer'  # Gulrajani et al. 2017, section 4
  config = model_defaults.with_own_values(config, defaults)
  decided = dict(shape=shape, classes=len(spec.classes), conditional=config.conditional, dtype=jnp.dtype(config.dtype))
  z, x, label = first_inputs(config, spec)
  generator = options.build(gan.GENERATORS, name, config, z, label, call={'train': False}, **decided)
  return generator, options.build(gan.DISCRIMINATORS, name, config, x, label, call={'train': False}, **decided)


def first_inputs(config: Config, spec: Spec):
  """A latent, an example and a label, of zeros."""
  return np.zeros((1, config.latent), np.float32), np.zeros((1, *spec.shape), np.float32), np.zeros(1, np.int32)


def latents(config: Config, key, batch):
  """[batch, latent], an example's own."""
  return jax.vmap(lambda key: jax.random.normal(key, (config.latent,)))(example_keys(key, batch))


def game(config: Config, spec: Spec, generator, discriminator):
  """{player: loss} of both; images lie in [-1, 1], as tanh does."""
  objective = OBJECTIVES[config.objective]
  scale = functools.partial(spec.scale, how='symmetric' if len(spec.shape) == 3 else 'unit')
  augment = functools.partial(augmentation.augment_symmetric, augmentation.parse(config.augment, augmentation.IMAGES))

  def keys(key, batch, number):  # of real examples 0, of fake ones 1, of points between them 2
    return example_keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), number), batch)

  def generate(params, collections, batch, key):
    """What the discriminator sees of the generator, alike in both players' turns; and the generator's collections."""
    z = latents(config, jax.random.fold_in(key, LATENT), batch)
    x, own = apply(generator, params['generator'], collections['generator'], z, batch['label'], train=True)
    return augment(keys(key, batch, 1), x), own

  def discriminate(params, own, x, labels):
    """(scores [batch], class logits [batch, classes] or None), and the discriminator's collections."""
    return apply(discriminator, params['discriminator'], own, x, labels, train=True)

  def discriminators_loss(params, collections, batch, key):
    labels, own = batch['label'], collections['discriminator']
    gradients = lambda x: adversarial.input_gradients(lambda x: discriminate(params, own, x, labels)[0][0], x)
    real, (fake, _) = augment(keys(key, batch, 0), scale(batch['image'])), generate(params, collections, batch, key)
    (on_real, real_classes), new = discriminate(params, own, real, labels)
    (on_fake, fake_classes), new = discriminate(params, new, fake, labels)
    losses = objective.discriminator(on_real, on_fake)
    if config.conditional == 'auxiliary':
      losses += cross_entropy(real_classes, labels) + cross_entropy(fake_classes, labels)
    if config.objective == 'wasserstein_gp':
      between = adversarial.between(keys(key, batch, 2), real, fake)
      losses += config.gradient_penalty * adversarial.gradient_penalty(gradients(between))
    if config.r1 > 0:
      losses += config.r1 * adversarial.r1_penalty(gradients(real))
    real_right, fake_right = map(pair, objective.right(on_real, on_fake))
    return {'loss': pair(losses), 'accuracy_on_real': real_right, 'accuracy_on_fake': fake_right}, new

  def generators_loss(params, collections, batch, key):
    fake, own = generate(params, collections, batch, key)
    (scores, logits), _ = discriminate(params, collections['discriminator'], fake, batch['label'])
    losses = objective.generator(scores)
    if config.conditional == 'auxiliary':
      losses += cross_entropy(logits, batch['label'])
    return {'loss': pair(losses)}, own

  return {'discriminator': discriminators_loss, 'generator': generators_loss}


def program(config: Config, data: Dataset) -> Program:
  """The method: config with durations in steps."""
  spec, (generator, discriminator) = data.spec, players(config, data.spec)
  scorer = features.load(config.scorer, spec) if config.scorer and data.splits else None
  slower = dataclasses.replace(config, learning_rate=config.discriminator_learning_rate or config.learning_rate)
  rounds = config.discriminator_steps
  optimisers = {'discriminator': optim.configured(slower, Pace(rounds)), 'generator': optim.configured(config)}
  if config.objective == 'wasserstein':
    optimisers['discriminator'] = optax.chain(optimisers['discriminator'], optim.limit_weights(config.clip_weights))

  def init(key):
    keys = jax.random.split(first_key(key))
    z, x, label = first_inputs(config, spec)
    variables = {
      'discriminator': discriminator.init(keys[0], x, label, train=True),
      'generator': generator.init(keys[1], z, label, train=True),
    }
    return TrainState.create(key, variables, optimisers, ema=('generator',) if config.ema else ())

  def predict(state, batch, key):
    """Samples of the batch's labels, and latents where it has them, the averaged generator's: [batch, *shape],
    raw scale.
    """
    z = batch['latent'] if 'latent' in batch else latents(config, key, batch)
    x = generator.apply(state.variables('generator'), z, batch['label'], train=False)
    return spec.maximum * ((x + 1) / 2 if len(spec.shape) == 3 else x)

  scored = functools.partial(
    distribution.sums, scorer, maximum=spec.maximum, examples=collect.evaluated(config, data.splits),
    conditional=config.conditional != 'none', modes=modes_of(spec),
  )  # fmt: skip
  train = data.splits.get('train')
  train_features = functools.cache(lambda count: scorer.features(train, splitting.sample(train.size, count)))
  example = data.splits['train'].fetch(np.zeros(1, np.int32)) if data.splits else {}
  example |= {'index': np.zeros(1, np.int32)}

  def evaluate(state, batch, key):
    first = None if scorer else (example['image'][0], predict(state, example, jax.random.key(0))[0])
    return scored(predict(state, batch, key), batch, first)

  losses = game(config, spec, generator, discriminator)
  return Program(
    init, alternating_step(losses, optimisers, config, rounds=rounds),
    evaluate=evaluate,
    summarise=functools.partial(distribution.summarise, train=train_features if scorer else None),
    exports={'sample': (predict, {'latent': Input((config.latent,)), 'label': Input((), 'int32')})},
    predict=predict, lent=features.lent(config.scorer) if scorer else {},
    report=functools.partial(samples.report, config, data, scorer, modes_of(spec), predict),
  )  # fmt: skip


def modes_of(spec: Spec):
  """(means, standard deviation) of the modes, where they are known."""
  return (bundled.GRID, bundled.GRID_STD) if spec.name == 'gaussians25' else None


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Sampling(image_verbs.Sampling):
  label: str = config.flag('', 'The class to draw, where the run is conditional; empty: all in turn.')


def draw(run, inputs, chosen) -> dict:
  """Latents, and the labels to draw."""
  labels = np.arange(chosen.count, dtype=np.int32) % len(run.spec.classes)
  if chosen.label:
    if run.config.conditional == 'none':
      raise errors.UsageError(f'label={chosen.label}: the run is not conditional, its samples are of no class')
    labels[:] = errors.choose('label', chosen.label, {name: i for i, name in enumerate(run.spec.classes)})
  return {'latent': jax.random.normal(jax.random.key(chosen.seed), (chosen.count, run.config.latent)), 'label': labels}


def generate(run, chosen):
  return jax.jit(lambda state, batch: run.program.predict(state, batch, jax.random.key(0)) / run.spec.maximum)


verbs = {'sample': image_verbs.sample(draw, generate, Sampling)}
