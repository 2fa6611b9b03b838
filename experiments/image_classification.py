"""Image classification, from LeCun 1989 to ResNet and the Vision Transformer.

python launch.py image_classification                                      # scikit-learn's digits, bundled
python launch.py image_classification --dataset=mnist --data_dir=DIR       # as published, or any image set of TFDS
python launch.py image_classification --dataset=folder:PATH --image_size=64 --model=resnet20
python launch.py image_classification --model=vit --optimiser=adamw --learning_rate=3e-3 --schedule=cosine --warmup=50
python launch.py reproduce lecun1989                                       # LeCun et al. 1989, five seeds
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import adversary, config, image_verbs, labels, models, options
from karpjax.commands import audit, explain
from karpjax.data import augmentation, batches, images
from karpjax.data.dataset import SCALES, Dataset
from karpjax.lean import distillation
from karpjax.losses.multi_label import LOSSES as TAG_LOSSES
from karpjax.models import published
from karpjax.program import AUGMENT, Input, Program, apply, divide, dropout_key, example_keys, pair
from karpjax.report import classification as reports
from karpjax.report import robustness
from karpjax.train.predict import predict_split
from karpjax.train.step import ordinary
from karpjax.verbs import classes


@config.defaults(steps='25epochs', batch_size=64)
class Config(config.Train, images.Flags, adversary.Flags, config.model_flags(models.MODELS)):
  model: str = config.flag(
    'cnn', 'The network; its options, with defaults of its own, are below.', choices=models.MODELS, own=True
  )
  scale: str = config.flag('standard', 'Pixels in [0, 1], in [-1, 1], or standardised by channel.', choices=SCALES)
  augment: str = config.flag('', 'Augmentation: flip,shift:4,rotate:10,jitter:0.4,cutout:8,mixup:0.2,cutmix:1.0.')
  loss: str = config.flag(
    'cross_entropy', "squared_error is LeCun 1989's: to targets of +1 and -1.", choices=('cross_entropy', 'squared_error')
  )  # fmt: skip
  label_smoothing: float = config.flag(0.0, 'The fraction of a target spread over all classes.', low=0, high=1)
  auc: bool = config.flag(
    False,
    'Measure the area under the ROC curve too; of two classes report sensitivity and specificity, with intervals.',
  )
  tag_loss: str = config.flag(
    'binary',
    'Of tags, where an image has any number of them: cross-entropy, or what spares the easy ones.',
    choices=TAG_LOSSES,
  )
  class_weights: str = config.flag(
    'none', 'balanced: rare classes, or tags, weigh as much as frequent ones.', choices=('none', 'balanced')
  )


data = functools.partial(images.load, tags=True)


def program(config: Config, data: Dataset) -> Program:
  """The method: cross-entropy of the class, LeCun 1989's squared error, or that of tags, of augmented images."""
  spec, count = data.spec, len(data.spec.classes)
  inputs, decided = np.zeros((1, *spec.shape), np.float32), {'classes': count, 'dtype': jnp.dtype(config.dtype)}
  model = options.build(models.MODELS, config.model, config, inputs, call={'train': False}, **decided)
  augmentations, taught = augmentation.parse(config.augment), distillation.configured(config, data)
  label, against = labels.kind(spec)(config, data), adversary.configured(config, spec)

  def logits_of(variables, x):
    return model.apply(variables, spec.scale(x, config.scale), train=False)

  def loss(params, collections, batch, key):
    x, targets = batch['image'], batch['label']
    if augmentations:
      keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
      x, targets = augmentation.augment(augmentations, keys, x, label.targets(targets))
    x = against.seen(key, batch, x, batch['label'], lambda x: logits_of({'params': params, **collections}, x))
    scaled, rngs = spec.scale(x, config.scale), {'dropout': dropout_key(key, batch)}
    logits, collections = apply(model, params, collections, scaled, train=True, rngs=rngs)
    losses, logits = against.losses(label.loss, logits, targets)
    measured = {'loss': pair(losses), 'error': label.wrong(logits, batch['label'])}
    return taught(measured, logits, {**batch, 'image': x[: len(logits)]}), collections

  def predict(state, batch, key):
    return logits_of(state.variables(), batch['image'])

  def probabilities(state, batch, key):
    return label.probabilities(predict(state, batch, key))

  def example_losses(state, batch, key):
    return label.loss(predict(state, batch, key), batch['label'])

  def evaluate(state, batch, key):
    sums = label.evaluate(predict(state, batch, key), batch)
    return sums | against.evaluated(batch, lambda x: logits_of(state.variables(), x))

  def summarise(sums):
    return label.summarise(sums) | divide({name: sums[name] for name in ('robust_accuracy',) if name in sums})

  def report(state, t, folder):
    name, split = data.reported(t == config.steps)
    known = {'validation': data.splits['validation']} if 'validation' in data.splits else {}
    lines = label.report(
      folder, known | {name: split}, lambda split: predict_split(probabilities, state, split),
      heading=f'{name} split, step {t}', seeds=config.seeds,
      images=lambda numbers: split.fetch(numbers)['image'].astype(np.float32) / spec.maximum,
      kernel=reports.first_kernel(state.eval_params, spec.shape),
      saliency=lambda numbers: reports.saliency(predict, state, batches.fetch(split, numbers)),
    )  # fmt: skip
    if against.evaluation:
      lines += robustness.write(folder, against, lambda x: logits_of(state.variables(), x), split, spec.classes)
    return lines

  return label.begin(ordinary(
    config, model, [inputs], loss, evaluate=evaluate, summarise=summarise, predict=predict, report=report,
    example_losses=example_losses, exports={'predict': (predict, {'image': Input(spec.shape, spec.dtype)})},
    rename_weights=published.renamed, frozen=taught.frozen, lent=taught.lent, **label.uninformed,
    checks=robustness.checks(against, lambda state, x: logits_of(state.variables(), x)),
  ))  # fmt: skip


predict = classes('The likeliest classes of image files.', 'IMAGE …', image_verbs.load, image_verbs.files)
judge = audit.verb(image_verbs.of_table, lambda run: 'label')
verbs = {'predict': predict, 'annotate': image_verbs.annotate(), 'explain': explain.IMAGE_VERB, 'audit': judge}
