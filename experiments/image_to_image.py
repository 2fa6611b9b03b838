"""Image to image: a conditional GAN with a U-Net (pix2pix, Isola et al. 2017).

python launch.py image_to_image                                                 # edges to photo, bundled pictures in crops
python launch.py image_to_image --dataset=pairs:PATH --image_size=256 --width=64
python launch.py image_to_image --dataset=side_by_side:PATH --direction=backward   # as the authors' own sets are
python launch.py reproduce pix2pix_edges                                        # L1, cGAN and both, at equal settings
python launch.py translate_image WORKDIR drawing.png

https://arxiv.org/abs/1611.07004
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, errors, image_verbs, optim, options
from karpjax.data import augmentation, batches, dataset, image_files, pairs
from karpjax.data import pictures as sources
from karpjax.losses import adversarial
from karpjax.metrics import image_quality
from karpjax.models import image_to_image as models
from karpjax.program import AUGMENT, Input, Program, TrainState, apply, dropout_key, first_key, pair, step_key
from karpjax.report import pictures, tables
from karpjax.train.step import alternating_step

SHOWN = 8  # held-out pairs
Spec = pairs.Spec


@config.defaults(
  steps='500', eval_every='250', checkpoint_every='250', report_every='100', eval_batch_size=64, select='', batch_size=4,
  learning_rate=2e-4, beta1=0.5,
)  # fmt: skip
class Config(config.Train, config.model_flags(models.DISCRIMINATORS), config.model_flags(models.GENERATORS)):
  dataset: str = config.flag(
    'edges', 'edges (of bundled pictures), edges:PATH, pairs:PATH or side_by_side:PATH.', path=True
  )
  direction: str = config.flag('forward', 'backward makes inputs of targets.', choices=pairs.DIRECTIONS)
  image_size: int = config.flag(
    0, 'Height and width. 0: as stored, edges in crops of 64; 128 for scalar.', low=0, high=2**14
  )
  channels: int = config.flag(0, '1: grey, 3: colour. 0: as stored, edges from grey; 1 for scalar.', choices=(0, 1, 3))
  even_light: float = config.flag(
    16.0, "Edges' targets are pictures less their mean within so many pixels; 0: as they are.", low=0, below=1000
  )
  augment: str = config.flag('flip,enlarge:8', f'Augmentation of a pair alike: {", ".join(pairs.MOVES)}.')
  objective: str = config.flag('both', 'L1 alone, the conditional GAN alone, or both.', choices=('both', 'l1', 'cgan'))
  l1_weight: float = config.flag(100.0, 'λ, the weight of the L1 distance of images in [-1, 1].', low=0)
  adversarial: str = config.flag('non_saturating', 'The objective of the two players.', choices=adversarial.OBJECTIVES)
  discriminator: str = config.flag('patch', 'It scores patches, or an image as a whole.', choices=models.DISCRIMINATORS)
  noise: bool = config.flag(False, 'Keep dropout on after training, as the paper does.')


def data(config: Config) -> dataset.Dataset:
  if config.discriminator == 'scalar':  # whose size is that of its images
    config = dataclasses.replace(config, image_size=config.image_size or 128, channels=config.channels or 1)
  return pairs.load(config)


def networks(config: Config, spec: Spec):
  """(generator, discriminator) for pairs of these shapes."""
  image = np.zeros((1, *spec.input), np.float32)
  both = np.zeros((1, *spec.input[:2], spec.input[-1] + spec.target[-1]), np.float32)
  dtype, call = jnp.dtype(config.dtype), {'train': True, 'noise': False}
  unet = options.build(models.GENERATORS, 'unet', config, image, call=call, channels=spec.target[-1], dtype=dtype)
  return unet, options.build(models.DISCRIMINATORS, config.discriminator, config, both, dtype=dtype)


def symmetric(images):
  """Raw images […] of 0 … 255 -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: two players, or without a GAN the generator alone; config with durations in steps."""
  spec, moves = data.spec, augmentation.parse(config.augment, pairs.MOVES)
  if (size := min(spec.input[:2])) < image_quality.WINDOW:
    raise errors.UsageError(f'image_size={size}: SSIM needs images of at least {image_quality.WINDOW} pixels')
  generator, discriminator = networks(config, spec)
  objective = adversarial.OBJECTIVES[config.adversarial]
  alone = config.objective == 'l1'

  def init(key):
    image, target = np.zeros((1, *spec.input), np.float32), np.zeros((1, *spec.target), np.float32)
    keys = jax.random.split(first_key(key))
    variables = {'generator': generator.init(keys[0], image, train=True, noise=False)}
    if not alone:
      both = jnp.concatenate([image, target], -1)
      variables['discriminator'] = discriminator.init(keys[1], both)
    return TrainState.create(key, variables, optimisers, ema=('generator',) if config.ema else ())

  def translate(params, collections, batch, key):
    """(outputs in [-1, 1], the generator's collections), alike in both players' turns."""
    rngs, inputs = {'dropout': dropout_key(key, batch)}, symmetric(batch['input'])
    return apply(generator, params['generator'], collections['generator'], inputs, train=True, noise=True, rngs=rngs)

  def score(params, own, batch, outputs):
    """Each example's scores, [batch, patches], and the discriminator's collections."""
    both = jnp.concatenate([symmetric(batch['input']), outputs], -1)
    scores, own = apply(discriminator, params['discriminator'], own, both)
    return scores.reshape(len(scores), -1), own

  def discriminators_turn(params, collections, batch, key):
    fakes, _ = translate(params, collections, batch, key)
    real, after = score(params, collections['discriminator'], batch, symmetric(batch['target']))
    fake, after = score(params, after, batch, fakes)
    loss = objective.discriminator(real, fake).mean(-1) / 2  # section 3.3
    real_right, fake_right = (pair(x.mean(-1)) for x in objective.right(real, fake))
    return {'loss': pair(loss), 'accuracy_on_real': real_right, 'accuracy_on_fake': fake_right}, after

  def generators_turn(params, collections, batch, key):
    outputs, after = translate(params, collections, batch, key)
    l1 = image_quality.l1(outputs, symmetric(batch['target']))
    loss = 0 if config.objective == 'cgan' else config.l1_weight * l1
    terms = {'l1': pair(l1 / 2)}  # of images in [0, 1]
    if not alone:
      fake, _ = score(params, collections['discriminator'], batch, outputs)
      fooled = objective.generator(fake).mean(-1)
      loss, terms['adversarial'] = loss + fooled, pair(fooled)
    return {'loss': pair(loss), **terms}, after

  turns = ({} if alone else {'discriminator': discriminators_turn}) | {'generator': generators_turn}
  optimisers = {player: optim.configured(config) for player in turns}
  alternate = alternating_step(turns, optimisers, config)

  def step(state, batch):  # augmented once for both players, whose images are then the same computation
    return alternate(state, pairs.augment(moves, step_key(state, AUGMENT), batch))

  def predict(state, batch, key):
    """[batch, height, width, channels] float32 in [0, 1]."""
    rngs, inputs = {'dropout': dropout_key(key, batch)}, symmetric(batch['input'])
    outputs = generator.apply(state.variables('generator'), inputs, train=False, noise=config.noise, rngs=rngs)
    return (outputs + 1) / 2

  def example_losses(state, batch, key):
    return image_quality.l1(predict(state, batch, key), batch['target'] / 255)

  def evaluate(state, batch, key):
    return image_quality.sums(predict(state, batch, key), batch['target'] / 255, batch['mask'])

  def report(state, t, folder):
    """Held-out pairs beside their translations, now and over time."""
    name = 'validation' if 'validation' in data.splits else data.reported(t == config.steps)[0]
    numbers = np.unique(np.linspace(0, data.splits[name].size - 1, SHOWN).astype(np.int32))
    batch = batches.fetch(data.splits[name], numbers)
    output = np.asarray(jax.jit(predict)(state, batch, jax.random.key(t)))
    note = f' · {name} split, step {t}{tables.first_of(config.seeds)}'
    columns = {'input': batch['input'] / 255, 'output': output, 'target': batch['target'] / 255}
    pictures.beside(columns, folder, 'translations', note)
    pictures.over_time(folder, 'translations', t)

  return Program(
    init, step, evaluate, image_quality.summarise, predict=predict, example_losses=example_losses, report=report,
    exports={'translate_image': (predict, {'input': Input(spec.input, 'uint8')})},
  )  # fmt: skip


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Translating(image_verbs.Output):
  edges: bool = config.flag(False, 'Take the edges of the images as inputs.')


def encode(run, paths, chosen) -> list[np.ndarray]:
  """Image files as inputs [*spec.input] uint8, which they are resized to."""
  *size, channels = run.spec.input
  if chosen.edges and channels != 1:
    raise errors.UsageError(f'edges: the inputs of this run have {channels} channels, edges have one')
  images = (image_files.read(path, channels, tuple(size)) for path in paths)
  return [sources.edges(image) if chosen.edges else image for image in images]


def function(run, chosen):
  translate = jax.jit(run.program.predict)
  batch = lambda i, image: {'input': image[None], 'index': np.full(1, i, np.int32)}
  return lambda state, images: (translate(state, batch(*x), jax.random.key(0))[0] for x in enumerate(images))


verbs = {
  'translate_image': image_verbs.of_each(
    'Translates images; each becomes NAME_translated.png.', encode, function, lambda run: '_translated', Translating
  )
}
