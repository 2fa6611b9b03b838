"""Linear and logistic regression by gradient descent, on scikit-learn's tables.

python launch.py regression                                   # diabetes: ten columns, linear
python launch.py reproduce diabetes                           # one column: scikit-learn's least-squares example
python launch.py regression --dataset=breast_cancer           # logistic
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from karpjax import config, models, optim
from karpjax.data import dataset, splitting, tables
from karpjax.losses import classification as losses
from karpjax.metrics import classification, regression
from karpjax.program import DROPOUT, Program, TrainState, pair
from karpjax.report import regression as report
from karpjax.train.step import train_step


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  dataset: str = config.flag(
    'diabetes', 'diabetes and diabetes_bmi (linear), breast_cancer (logistic).', choices=tables.TABLES
  )
  model: str = config.flag('linear', 'linear in the columns, or mlp.', choices=('linear', 'mlp'))
  widths: tuple[int, ...] | None = config.flag(None, 'Units of each hidden layer of the mlp.', group='Model')
  steps: config.Duration = config.run_flag('2000', 'How long to train.')
  eval_every: config.Duration = config.run_flag('200', 'Evaluate this often; 0: at the end only.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '500', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  final_splits: tuple[str, ...] = config.run_flag(
    ('train', 'validation', 'test'), 'Splits evaluated once, at the end.', may_change=True
  )
  batch_size: int = config.data_flag(
    0, 'Examples in one step; 0: the whole train split, which is plain gradient descent.'
  )
  optimiser: str = config.optimiser_flag('nesterov', 'The update rule.', choices=optim.OPTIMISERS)
  learning_rate: float = config.optimiser_flag(0.05, 'The peak of the schedule.')


def data(config: Config) -> dataset.Dataset:
  table = tables.load_table(config.dataset, seed=config.split_seed)
  splits, notes = splitting.hold_out(table.splits, config.validation, config.split_seed)
  spec = dataclasses.replace(table.spec, examples=splits['train'].size)
  return dataset.Dataset(spec, splits, (*table.notes, *notes))


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: least squares for numbers, cross-entropy for classes; columns standardised."""
  spec = data.spec
  classes = len(spec.classes)
  name, options = ('logistic', {}) if config.model == 'linear' else ('mlp', {})
  if config.widths is not None:
    options['widths'] = config.widths
  model = models.build(name, shape=spec.shape, classes=classes or 1, dtype=jnp.dtype(config.dtype), options=options)
  optimiser = optim.configured(config)
  prepare = functools.partial(spec.scale, how='standard')

  def example_loss(outputs, targets):
    return losses.cross_entropy(outputs, targets) if classes else losses.squared_error(outputs, targets)

  def init(key):
    return TrainState.create(
      key, model.init(key, jnp.zeros((1, *spec.shape)), train=False), optimiser, ema=config.ema > 0
    )

  def loss(params, collections, batch, key):
    rngs = {'dropout': jax.random.fold_in(key, DROPOUT)}
    outputs = model.apply({'params': params}, prepare(batch['features']), train=True, rngs=rngs)
    return {'loss': pair(example_loss(outputs, batch['target']))}, collections

  def predict(state, batch, key):
    return model.apply({'params': state.eval_params}, prepare(batch['features']), train=False)

  def evaluate(state, batch, key):
    outputs = predict(state, batch, key)
    each = example_loss(outputs, batch['target'])
    if classes:
      return classification.sums(outputs, batch['target'], each, batch['mask'])
    sums = regression.sums(outputs[:, 0], batch['target'], each, batch['mask'])
    if spec.shape == (1,) and config.model == 'linear':  # in the column's own unit, as scikit-learn reports it
      sums['coefficient'] = (state.eval_params['logits']['kernel'][0, 0] / spec.std[0], jnp.ones(()))
    return sums

  functions = Program(
    init=init,
    step=train_step(loss, optimiser, config),
    evaluate=evaluate,
    summarise=classification.summarise if classes else regression.summarise,
    predict=predict,
    example_losses=lambda state, batch, key: example_loss(predict(state, batch, key), batch['target']),
    uninformed_loss=math.log(classes) if classes else None,
  )
  return dataclasses.replace(functions, report=functools.partial(report.draw, functions, data))
