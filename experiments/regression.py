"""Linear and logistic regression by gradient descent, on tables of one's own and scikit-learn's.

python launch.py regression                                   # diabetes: ten columns, linear
python launch.py reproduce diabetes                           # one column: scikit-learn's least-squares example
python launch.py regression --dataset=breast_cancer           # logistic
python launch.py regression --dataset=mine.csv --target=price # numbers and categories of a table of one's own
python launch.py predict WORKDIR FILE.csv                     # of each row
"""

import jax.numpy as jnp
import numpy as np

from karpjax import config, options, table_verbs
from karpjax.commands import audit, explain
from karpjax.data import frequencies, table_files, tables
from karpjax.data.dataset import Dataset
from karpjax.losses import classification as losses
from karpjax.metrics import classification, collect, regression
from karpjax.models import mlp
from karpjax.program import Input, Program, apply, dropout_key, pair
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
  dataset: str = config.flag(
    'diabetes', f'A table: {", ".join(tables.TABLES)} (two classes), or FILE.csv, FILE.tsv with a head.', path=True
  )
  target: str = config.data_flag('', 'The column of a file that is predicted.')
  columns: tuple[str, ...] = config.data_flag((), 'The columns of a file that are learnt from. Default: all others.')
  task: str = config.data_flag(
    'auto', "What a file's target is; auto: classes where it holds words, or two values.", choices=table_files.TASKS
  )
  encoding: str = config.data_flag('', 'The encoding of a file. Default: as its byte-order mark says, or utf-8.')
  model: str = config.flag('linear', 'linear in the columns, or mlp.', choices=MODELS, own=True)


Spec, data = table_files.TableSpec, tables.load


def program(config: Config, data: Dataset) -> Program:
  """Least squares for numbers, cross-entropy for classes; columns are standardised."""
  spec, classes = data.spec, len(data.spec.classes)
  inputs, decided = jnp.zeros((1, *spec.shape)), {'classes': classes or 1, 'dtype': jnp.dtype(config.dtype)}
  model = options.build(MODELS, config.model, config, inputs, call={'train': False}, **decided)
  examples = collect.evaluated(config, data.splits)

  def example_loss(outputs, targets):
    return losses.cross_entropy(outputs, targets) if classes else losses.squared_error(outputs, spec.to_learn(targets))

  def loss(params, collections, batch, key):
    x, rngs = spec.scale(batch['features'], 'standard'), {'dropout': dropout_key(key, batch)}
    outputs, collections = apply(model, params, collections, x, train=True, rngs=rngs)
    return {'loss': pair(example_loss(outputs, batch['target']))}, collections

  def learnt(state, batch):
    return model.apply(state.variables(), spec.scale(batch['features'], 'standard'), train=False)

  def predict(state, batch, key):
    return spec.in_unit(learnt(state, batch))

  def evaluate(state, batch, key):
    outputs = learnt(state, batch)
    each = example_loss(outputs, batch['target'])
    if classes:
      return classification.sums(outputs, batch['target'], each, batch['mask'])
    sums = regression.sums(spec.in_unit(outputs[:, 0]), batch['target'], each, batch, examples)
    if spec.shape == (1,) and config.model == 'linear':  # in the column's own unit, as scikit-learn reports it
      kernel = state.eval_params['logits']['kernel'][0, 0]
      sums['coefficient'] = (kernel / spec.std[0] * spec.target_std, jnp.ones(()))
    return sums

  def report(state, t, folder):
    _, split = data.reported(t == config.steps)
    outputs, target = predict_split(predict, state, split), split.column('target')
    if classes:
      plots.confusion(classification.tally(target, outputs)[0], spec.classes, folder)
      return
    if config.model == 'linear':  # in the columns' own units
      logits = state.eval_params['logits']
      slope = np.asarray(logits['kernel'], float)[:, 0] / spec.std * spec.target_std
      intercept = float(spec.in_unit(logits['bias'][0]) - slope @ spec.mean)
      found = {'coefficients': slope, 'columns': spec.features, 'intercept': intercept}
      writers.write_json(folder / 'report.json', found)
    plots.fit(target, outputs[:, 0], folder, split.column('features')[:, 0] if spec.shape == (1,) else None)

  if classes:
    uninformed = frequencies.uninformed(data, 'target', classes)
  else:
    uninformed = frequencies.uninformed_mean(data, 'target', spec.to_learn)
  return ordinary(
    config, model, [inputs], loss, evaluate=evaluate, summarise=(classification if classes else regression).summarise,
    predict=predict, report=report, exports={'predict': (predict, {'features': Input(spec.shape)})}, **uninformed,
    example_losses=lambda state, batch, key: example_loss(learnt(state, batch), batch['target']),
  )  # fmt: skip


AUDIT = audit.verb(lambda run, table, _: table_verbs.arrays(run, table), lambda run: run.spec.target, audit.Options)
verbs = {'predict': table_verbs.PREDICT, 'explain': explain.TABLE_VERB, 'audit': AUDIT}
