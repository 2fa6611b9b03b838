"""Image classification, from LeCun 1989 to ResNet.

python launch.py image_classification                                      # scikit-learn's digits, bundled
python launch.py image_classification --dataset=mnist --data_dir=DIR       # any TFDS image set that is prepared
python launch.py image_classification --dataset=folder:PATH --image_size=64 --model=resnet20
python launch.py reproduce lecun1989                                       # LeCun et al. 1989, five seeds
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, errors, models, optim
from karpjax.data import augmentation, dataset, images
from karpjax.losses import classification as losses
from karpjax.metrics import classification as metrics
from karpjax.program import AUGMENT, Program, TrainState, dropout_key, example_keys, pair, partitioning
from karpjax.report import classification as report
from karpjax.train.step import train_step
from karpjax.verbs import classes

LOSSES = ('cross_entropy', 'squared_error')


@dataclasses.dataclass(frozen=True)
class Config(config.Train, images.Flags):
  scale: str = config.flag(
    'standard',
    'Of the pixels: [0, 1], [-1, 1], or mean 0 and deviation 1 per channel.',
    choices=('unit', 'symmetric', 'standard'),
  )
  augment: str = config.flag('', 'Of training images: flip,shift:4,rotate:10,jitter:0.4,cutout:8,mixup:0.2,cutmix:1.0.')
  model: str = config.flag(
    'cnn', "Its options are below; one that is not given has the model's own default.", choices=models.MODELS
  )
  loss: str = config.flag('cross_entropy', "squared_error is LeCun 1989's: to targets of +1 and -1.", choices=LOSSES)
  label_smoothing: float = config.flag(0.0, 'Share of the target that is spread over all classes.')
  steps: config.Duration = config.run_flag('25epochs', 'How long to train.')
  batch_size: int = config.data_flag(64, 'Examples in one step, over all devices; 0: the whole train split.')

  widths: tuple[int, ...] | None = config.flag(None, 'Channels or units of each block or layer.', group='Model')
  depth: tuple[int, ...] | None = config.flag(None, 'Convolutions in a block.', group='Model')
  kernel_size: tuple[int, ...] | None = config.flag(None, 'Of the convolutions; one, or one per block.', group='Model')
  stride: tuple[int, ...] | None = config.flag(None, "Of each block's first convolution.", group='Model')
  padding: str | None = config.flag(None, 'SAME, VALID, or zeros on each side.', group='Model')
  pool: tuple[int, ...] | None = config.flag(
    None, 'Window of the max pooling after each block; 1: none.', group='Model'
  )
  head: str | None = config.flag(None, 'flatten or average.', group='Model')
  hidden: tuple[int, ...] | None = config.flag(
    None, 'Units of the dense layers before the last; empty: none.', group='Model'
  )
  norm: str | None = config.flag(None, 'none or batch.', group='Model')
  dropout: tuple[float, ...] | None = config.flag(None, "Rates on the dense layers' inputs.", group='Model')
  attention: str | None = config.flag(None, 'none, se (squeeze-and-excitation) or cbam.', group='Model')
  activation: str | None = config.flag(None, 'relu, tanh or gelu.', group='Model')
  residual: bool | None = config.flag(None, "Adds each hidden layer's input to its output (mlp).", group='Model')
  output: str | None = config.flag(None, 'tanh or linear (lenet1989).', group='Model')
  remat: str | None = config.flag(
    None,
    'What of a ResNet block the backward pass computes anew instead of keeping: none, full, or dots (all but matrix '
    'products; convolutions are none of them).',
    group='Model',
  )


def data(config: Config) -> dataset.Dataset:
  return images.load(config)


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: config with durations in steps; its rates, decays and shares may be traced numbers."""
  spec = data.spec
  if not 0 <= config.label_smoothing <= 1:
    raise errors.UsageError(f'--label_smoothing={config.label_smoothing}: a share of 0 to 1 is needed')
  classes = len(spec.classes)
  dtype = jnp.dtype(config.dtype)
  model = models.build(config.model, shape=spec.shape, classes=classes, dtype=dtype, options=config.model_options())
  optimiser = optim.configured(config)
  augmentations = augmentation.parse(config.augment)
  prepare = functools.partial(spec.scale, how=config.scale)
  inputs = jnp.zeros((1, *spec.shape))

  def example_loss(logits, labels):  # labels [batch] or, mixed, [batch, classes]
    if config.loss == 'squared_error':
      return losses.squared_error_to_targets(logits, labels)
    return losses.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)

  def init(key):
    return TrainState.create(key, model.init(key, inputs, train=False), optimiser, ema=config.ema > 0)

  def loss(params, collections, batch, key):
    x, labels = batch['image'], batch['label']
    if augmentations:
      keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
      x, labels = augmentation.augment(augmentations, keys, x, jax.nn.one_hot(labels, classes))
    x = prepare(x)
    dropout = dropout_key(key, batch)
    variables = {'params': params, **collections}
    logits, collections = model.apply(variables, x, train=True, rngs={'dropout': dropout}, mutable=list(collections))
    wrong = logits.argmax(-1) != batch['label']
    return {'loss': pair(example_loss(logits, labels)), 'error': pair(wrong)}, collections

  def predict(state, batch, key):
    logits = model.apply({'params': state.eval_params, **state.collections}, prepare(batch['image']), train=False)
    return logits

  def example_losses(state, batch, key):
    return example_loss(predict(state, batch, key), batch['label'])

  def evaluate(state, batch, key):
    logits = predict(state, batch, key)
    return metrics.sums(logits, batch['label'], example_loss(logits, batch['label']), batch['mask'])

  functions = Program(
    init=init,
    step=train_step(loss, optimiser, config),
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    example_losses=example_losses,
    uninformed_loss=math.log(classes) if config.loss == 'cross_entropy' else None,
    axes=partitioning(model, inputs, train=False),
  )
  return dataclasses.replace(functions, report=functools.partial(report.draw, functions, data, seeds=config.seeds))


def encode(run, paths) -> dict[str, np.ndarray]:
  """Image files as a batch."""
  return {'image': np.stack([images.load_image(path, run.spec) for path in paths])}


verbs = {'predict': classes('The likeliest classes of image files.', 'IMAGE …', encode)}
