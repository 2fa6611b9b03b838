"""Features of pictures and series without labels: SimCLR, BYOL, Barlow Twins, masked autoencoders, rotations.

python launch.py self_supervised                                              # scikit-learn's digits
python launch.py self_supervised --dataset=mnist1d --augment=detrend,cycle:10,slope:0.04,offset:0.3
python launch.py self_supervised --method=mae --model=vit --dataset=mnist --data_dir=DIR
python launch.py embed WORKDIR IMAGE …                                        # the features of image files
python launch.py image_classification --init_from=WORKDIR --freeze=trunk      # what they are worth, with labels

Two views of each example are drawn by --augment. Labels, where there are any, are looked at in evaluation alone: whether an
example's nearest neighbours are of its class, and a logistic regression on the features.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, image_verbs, models, optim, options
from karpjax.data import augmentation, dataset, images, splitting
from karpjax.errors import UsageError
from karpjax.losses import classification, contrastive
from karpjax.metrics import collect, embeddings
from karpjax.models import self_supervised as embedders
from karpjax.program import (
  AUGMENT,
  Input,
  Program,
  TrainState,
  apply,
  divide,
  dropout_key,
  example_keys,
  pair,
  partitioning,
)
from karpjax.report import embeddings as reports
from karpjax.train.step import train_step
from karpjax.verbs import Verb, predictions

METHODS = 'simclr', 'byol', 'barlow', 'mae', 'rotation'
COUPLED = 'simclr', 'byol', 'barlow'  # whose loss, or norm, is of a whole batch
TRUNKS = {name: model for name, model in models.MODELS.items() if name not in ('logistic', 'lenet1989')}
VIEWS = {3: 'crop:0.3,jitter:0.4', 2: 'cycle:5,offset:0.3'}  # by the rank of an example
BANK = 4000  # examples of train, in which neighbours are looked for


@config.defaults(steps='100epochs', batch_size=128, select='-validation/knn_accuracy')
class Config(config.Train, images.Flags, config.model_flags(TRUNKS, 'cnn')):
  method: str = config.flag('simclr', 'The method that learns features.', choices=METHODS)
  scale: str = config.flag('standard', 'As image_classification has it.', choices=dataset.SCALES)
  augment: str = config.flag(
    '', f'How a view differs from its example. Default: {VIEWS[3]} of images, {VIEWS[2]} of series.'
  )
  projection: tuple[int, ...] = config.flag(
    (128, 64), 'Widths of the layers on top of the trunk; none: the trunk alone.', low=1
  )
  projection_norm: bool = config.flag(True, 'Whether these have batch norm.')
  temperature: float = config.flag(0.5, 'The temperature that similarities are divided by (simclr).', above=0)
  negatives: str = config.flag(
    'both',
    'What a view is told from: all others of both views, or of the other one alone (simclr).',
    choices=('both', 'other'),
  )
  barlow_weight: float = config.flag(0.005, 'Weight of correlations between different units (barlow).', low=0)
  target_decay: float = config.flag(
    0.99, "Of the target network's average at first; 1 in the end (byol).", low=0, high=1
  )
  masked: float = config.flag(0.75, 'The share of patches that are not seen (mae).', above=0, below=1)
  decoder: tuple[int, ...] = config.flag((64, 1), 'Width and depth of what makes the others (mae).', low=1)


def data(config: Config) -> dataset.Dataset:
  return images.load(config, unlabelled=True)


def network(config: Config, spec):
  """The model of a method, its trunk checked."""
  inputs, dtype = np.zeros((1, *spec.shape), np.float32), jnp.dtype(config.dtype)
  trunk = options.build(TRUNKS, config.model, config, inputs, call={'train': False}, classes=0, dtype=dtype)
  if config.method == 'mae':
    if config.model != 'vit' or len(config.decoder) != 2:
      raise UsageError(f'method=mae is of model=vit, not {config.model}, and decoder is WIDTH,DEPTH')
    return embedders.MaskedAutoencoder(trunk, spec.shape, config.decoder, dtype)
  if config.method == 'rotation' and (len(spec.shape) != 3 or spec.shape[0] != spec.shape[1]):
    raise UsageError(f'method=rotation is of square images; an example of {spec.name} has shape {spec.shape}')
  predictor = ()
  if config.method == 'byol':
    if not config.projection:
      raise UsageError('method=byol needs a projection, whose target it predicts')
    predictor = config.projection[0], config.projection[-1]
  projection = () if config.method == 'rotation' else config.projection
  norm = bool(projection) and config.projection_norm
  return embedders.Embedder(trunk, projection, norm, predictor, config.method == 'rotation', dtype)


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method, of two views of each example, or of what is hidden of one."""
  spec, model, method = data.spec, network(config, data.spec), config.method
  steps, inputs = (
    augmentation.parse(config.augment or VIEWS.get(len(spec.shape), '')),
    np.zeros((1, *spec.shape), np.float32),
  )
  optimiser, labelled = optim.configured(config), len(spec.classes) > 1

  def view(key, batch, number):
    keys = example_keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), number), batch)
    return spec.scale(augmentation.augment(steps, keys, batch['image'], None)[0], config.scale)

  def loss(target, params, collections, batch, key):
    if config.dp_noise and method in COUPLED:
      raise UsageError(f'dp_noise: the loss of method={method} is of a whole batch; mae and rotation can be private')
    rngs = {'dropout': dropout_key(key, batch)}
    outputs = lambda params, x, collections=collections, **how: apply(
      model, params, collections, x, train=True, rngs=rngs, **how
    )
    keys = example_keys(jax.random.fold_in(jax.random.fold_in(key, AUGMENT), 2), batch)
    if method == 'mae':
      x = view(key, batch, 0)
      places = spec.shape[0] * spec.shape[1] // model.trunk.patch**2
      order = jax.vmap(lambda key: jax.random.permutation(key, places))(keys)
      seen = order[:, : max(1, round((1 - config.masked) * places))]
      made, collections = outputs(params, x, seen=seen)
      return {'loss': pair(embedders.masked_loss(made['patches'], x, model.trunk.patch, seen))}, collections
    if method == 'rotation':
      turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys)
      turned = jax.vmap(lambda x, n: jax.lax.switch(n, [lambda x, k=k: jnp.rot90(x, k) for k in range(4)], x))
      made, collections = outputs(params, turned(view(key, batch, 0), turns))
      losses = classification.cross_entropy(made['turns'], turns)
      return {'loss': pair(losses), 'error': pair(made['turns'].argmax(-1) != turns)}, collections
    a, b = view(key, batch, 0), view(key, batch, 1)
    first, collections_ = outputs(params, a)
    second, collections_ = outputs(params, b, collections_)
    if method == 'simclr':
      within = config.negatives == 'both'
      losses = contrastive.nt_xent(first['projection'], second['projection'], config.temperature, within=within)
    elif method == 'barlow':
      losses = contrastive.barlow(first['projection'], second['projection'], config.barlow_weight)
    else:
      aims = [jax.lax.stop_gradient(outputs(target, x)[0]['projection']) for x in (b, a)]
      losses = sum(contrastive.distance(own['prediction'], aim) for own, aim in zip((first, second), aims)) / 2
    return {'loss': pair(losses)}, collections_

  def init(key):
    variables = model.init(key, inputs, *([np.zeros((1, 1), np.int32)] if method == 'mae' else []))
    state = TrainState.create(key, variables, optimiser, ema=config.ema > 0)
    return state.replace(target=jax.tree.map(jnp.copy, state.params)) if method == 'byol' else state

  by_loss = lambda target: train_step(functools.partial(loss, target), optimiser, config)
  plain = by_loss(None)

  def step(state, batch):
    if method != 'byol':
      return plain(state, batch)
    new, metrics = by_loss(state.target)(state, batch)
    # from target_decay to 1 by a cosine, as Grill et al. 2020 have it
    decay = 1 - (1 - config.target_decay) * (1 + jnp.cos(math.pi * state.step / config.steps)) / 2
    moved = jax.tree.map(lambda old, x: decay * old + (1 - decay) * x, state.target, new.params)
    return new.replace(target=moved), metrics

  def embed(state, x):
    return model.apply(state.variables(), spec.scale(x, config.scale), train=False)

  def predict(state, batch, key):
    """The features, [batch, units]."""
    return embed(state, batch['image'])['features']

  train = data.splits.get('train')
  few = train.fetch(splitting.sample(train.size, BANK)) if train and labelled else {}
  examples = collect.evaluated(config, data.splits)

  def evaluate(state, batch, key):
    made, mask = embed(state, batch['image']), batch['mask']
    sums = {'spread': embeddings.spread_sums(made['projection'], mask)}
    if not few:
      return sums
    bank, labels = embed(state, jnp.asarray(few['image'])), jnp.asarray(few['label'])
    right = lambda kind: embeddings.neighbours_right(
      made[kind], batch['label'], mask, bank[kind], labels, len(spec.classes)
    )
    sums['neighbours'] = {'knn_accuracy': right('features'), 'projection_knn_accuracy': right('projection')}
    own = made['features'], batch['label'], batch, bank['features'], labels
    return sums | {'probe': embeddings.probe_sums(*own, examples)}

  def summarise(sums):
    found = divide(sums['neighbours']) if few else {}
    return (
      found | ({'linear_accuracy': embeddings.probe(sums['probe'])} if few else {}) | embeddings.spread(sums['spread'])
    )

  def report(state, t, folder):
    name, split = data.reported(t == config.steps)
    numbers = splitting.sample(split.size, 4)
    batch = {**split.fetch(numbers), 'index': numbers}
    views = [
      np.asarray(augmentation.augment(steps, example_keys(jax.random.key(i), batch), batch['image'], None)[0])
      for i in range(3)
    ]
    reports.write(folder, predict, state, split, spec, f' · {name} split, step {t}', [batch['image'], *views])

  return Program(
    init=init, step=step, evaluate=evaluate, summarise=summarise, predict=predict, report=report, loss_floor=method != 'rotation',
    axes=partitioning(model, inputs, *([np.zeros((1, 1), np.int32)] if method == 'mae' else [])),
    exports={'predict': (predict, {'image': Input(spec.shape, spec.dtype)})},
  )  # fmt: skip


def _decode(run, outputs, inputs, chosen):
  return ({'input': path, 'features': row.tolist()} for path, row in zip(inputs, outputs))


_show = lambda answer: (
  f'{answer["input"]}  {" ".join(f"{x:.4g}" for x in answer["features"][:8])} … ({len(answer["features"])})\n'
)
verbs = {
  'embed': Verb(
    'The features of image files; with --json all of them.', image_verbs.load, predictions, _decode, 'IMAGE …', show=_show,
    expand=image_verbs.files,
  )
}  # fmt: skip
