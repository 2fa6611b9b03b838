"""Linear and logistic regression by gradient descent, on scikit-learn's tables.

python launch.py regression                                   # diabetes: ten columns, linear
python launch.py reproduce diabetes                           # one column: scikit-learn's least-squares example
python launch.py regression --dataset=breast_cancer           # logistic
"""

import jax.numpy as jnp
import numpy as np

from karpjax import config, options
from karpjax.data import frequencies, tables
from karpjax.data.dataset import Dataset
from karpjax.losses import classification as losses
from karpjax.metrics import classification, collect, regression
from karpjax.models import mlp
from karpjax.program import Program, apply, dropout_key, pair
from karpjax.report import plots, writers
from karpjax.train.predict import predict_split
from karpjax.train.step import ordinary

MODELS = {'linear': mlp.LogisticRegression, 'mlp': mlp.MLP}


@config.defaults(
  steps='2000', eval_every='200', checkpoint_every='500', final_splits=('train', 'validation', 'test'),
  batch_size=0,  # the whole train split: plain gradient descent
  learning_rate=0.01, models={'linear': {'optimiser': 'nesterov', 'learning_rate': 0.05}},
)  # fmt: skip
class Config(config.Train, config.model_flags(MODELS)):
  dataset: str = config.flag('diabetes', 'A table: breast_cancer has two classes.', choices=tables.TABLES)
  model: str = config.flag('linear', 'linear in the columns, or mlp.', choices=MODELS, own=True)


data = tables.load


def program(config: Config, data: Dataset) -> Program:
  """Least squares for numbers, cross-entropy for classes; columns are standardised."""
  spec, classes = data.spec, len(data.spec.classes)
  inputs, decided = jnp.zeros((1, *spec.shape)), {'classes': classes or 1, 'dtype': jnp.dtype(config.dtype)}
  model = options.build(MODELS, config.model, config, inputs, call={'train': False}, **decided)
  examples = collect.evaluated(config, data.splits)

  def example_loss(outputs, targets):
    return losses.cross_entropy(outputs, targets) if classes else losses.squared_error(outputs, targets)

  def loss(params, collections, batch, key):
    x, rngs = spec.scale(batch['features'], 'standard'), {'dropout': dropout_key(key, batch)}
    outputs, collections = apply(model, params, collections, x, train=True, rngs=rngs)
    return {'loss': pair(example_loss(outputs, batch['target']))}, collections

  def predict(state, batch, key):
    return model.apply(state.variables(), spec.scale(batch['features'], 'standard'), train=False)

  def evaluate(state, batch, key):
    outputs = predict(state, batch, key)
    each = example_loss(outputs, batch['target'])
    if classes:
      return classification.sums(outputs, batch['target'], each, batch['mask'])
    sums = regression.sums(outputs[:, 0], batch['target'], each, batch, examples)
    if spec.shape == (1,) and config.model == 'linear':  # in the column's own unit, as scikit-learn reports it
      sums['coefficient'] = (state.eval_params['logits']['kernel'][0, 0] / spec.std[0], jnp.ones(()))
    return sums

  def report(state, t, folder):
    _, split = data.reported(t == config.steps)
    outputs, target = predict_split(predict, state, split), split.column('target')
    if classes:
      plots.confusion(classification.tally(target, outputs)[0], spec.classes, folder)
      return
    if config.model == 'linear':  # in the columns' own units
      logits = state.eval_params['logits']
      slope = np.asarray(logits['kernel'], float)[:, 0] / spec.std
      intercept = float(logits['bias'][0] - slope @ spec.mean)
      writers.write_json(folder / 'report.json', {'coefficients': slope, 'intercept': intercept})
    plots.fit(target, outputs[:, 0], folder, split.column('features')[:, 0] if spec.shape == (1,) else None)

  uninformed = (
    frequencies.uninformed(data, 'target', classes) if classes else frequencies.uninformed_mean(data, 'target')
  )
  return ordinary(
    config, model, [inputs], loss, evaluate=evaluate, summarise=(classification if classes else regression).summarise,
    predict=predict, report=report, **uninformed,
    example_losses=lambda state, batch, key: example_loss(predict(state, batch, key), batch['target']),
  )  # fmt: skip
