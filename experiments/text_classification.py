"""Text classification: Kim 2014's TextCNN, an LSTM read both ways, a Transformer, and TF-IDF beside.

python launch.py text_classification                                       # chapters of the Python reference, bundled
python launch.py text_classification --dataset=trec --data_dir=DIR         # questions; DIR holds TREC.train.all, TREC.test.all
python launch.py text_classification --dataset=mine.csv --model=bilstm     # columns text and label
python launch.py text_classification --dataset=mine.csv --init_from=WORKDIR   # of a masked_language_model run: fine-tunes it
python launch.py reproduce textcnn_trec --data_dir=DIR                     # Kim 2014, five seeds
python launch.py monitor WORKDIR FILE.csv                                  # alerts where a class becomes more frequent
"""

import functools
from pathlib import Path

import jax
import numpy as np
import optax

from karpjax import config, optim
from karpjax.commands import audit, explain, monitor
from karpjax.data import bucketing, frequencies, labelled_text, text
from karpjax.data.dataset import Dataset
from karpjax.lean import distillation
from karpjax.losses import classification as losses
from karpjax.metrics import classification as metrics
from karpjax.metrics import tfidf
from karpjax.models import text as models
from karpjax.program import Input, Program, apply, dropout_key, pair
from karpjax.report import classification, writers
from karpjax.train.predict import predict_split
from karpjax.train.step import ordinary
from karpjax.verbs import classes

Spec = text.TextSpec


@config.defaults(
  tokeniser='words', lower=True, test=0.2, order='bucketed', batch_size=50, steps='10epochs', eval_batch_size=100
)
class Config(config.Train, text.TokeniserFlags, config.model_flags(models.MODELS, 'textcnn', own=True)):
  dataset: str = config.flag(
    'python_docs',
    'python_docs, trec, financial_phrasebank, table:DIR (train, validation, test as .csv or .tsv), FILE.csv, FILE.tsv, '
    'or a TFDS name such as imdb_reviews, glue/sst2, ag_news_subset.',
    path=True,
  )
  columns: tuple[str, ...] = config.data_flag(('text', 'label'), "A table's columns of texts and of labels.")
  max_length: int = config.data_flag(0, "Tokens kept of a text; 0: as many as train's longest has.", low=0)
  buckets: int = config.data_flag(
    4, 'Lengths to which a batch may be cut, the shortest that holds it being taken.', low=1
  )
  label_smoothing: float = config.flag(0.0, 'Fraction of the target spread over all classes.', low=0, high=1)
  max_norm: float = config.flag(0.0, "Largest norm of a class's weights in the last layer (Kim 2014); 0: any.", low=0)
  baseline: bool = config.flag(True, 'Linear models on TF-IDF are fitted too, and shown beside.', may_change=True)


def pretrained(workdir: str) -> dict:
  """What the weights of a run of texts mean: its tokeniser, its length and, of an encoder, its sizes; {} of others."""
  stored = config.saved(workdir) if workdir and Path(workdir).is_dir() else None
  if not stored or stored['experiment'] not in ('masked_language_model', 'text_classification'):
    return {}
  spec = Spec.from_json(stored['spec'])
  masked = stored['experiment'] == 'masked_language_model'
  sizes = models.pretrained(spec, stored['flags']) if masked else spec.pretrained
  return {'tokeniser': spec.tokenisers['text'], 'length': spec.lengths['text'], 'pretrained': sizes}


def data(config: Config) -> Dataset:
  text.refuse_streams(config, 'labelled texts')
  return labelled_text.load(config, **pretrained(config.init_from))


def program(config: Config, data: Dataset) -> Program:
  """The method: the cross-entropy of classes; weights of the last layer limited by their norm, if asked (Kim 2014)."""
  spec, model = data.spec, models.build(config, data.spec)
  optimiser, taught = optim.configured(config), distillation.configured(config, data)
  if config.max_norm:
    optimiser = optax.chain(optimiser, optim.limit_norms(config.max_norm))

  def example_loss(logits, labels):
    return losses.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)

  def loss(params, collections, batch, key):
    rngs = {'dropout': dropout_key(key, batch)}
    logits, collections = apply(model, params, collections, batch['tokens'], train=True, rngs=rngs)
    wrong = logits.argmax(-1) != batch['label']
    measured = {'loss': pair(example_loss(logits, batch['label'])), 'error': pair(wrong)}
    return taught(measured, logits, batch), collections

  def predict(state, batch, key):
    return model.apply(state.variables(), batch['tokens'])

  def probabilities(state, batch, key):
    return jax.nn.softmax(predict(state, batch, key))

  def example_losses(state, batch, key):
    return example_loss(predict(state, batch, key), batch['label'])

  def evaluate(state, batch, key):
    logits = predict(state, batch, key)
    return metrics.sums(logits, batch['label'], example_loss(logits, batch['label']), batch['mask'])

  @functools.cache
  def baselines(last: bool):
    splits = {name: split for name, split in data.raw.items() if last or name != 'test'}
    return tfidf.baselines(splits) if config.baseline else {}

  def report(state, t, folder):
    """Leaves what a classifier's does; gives lines that compare the numbers of step t with those of the baselines."""
    name, split = data.reported(t == config.steps)
    classification.write(
      folder,
      classes=spec.classes,
      labels=split.column('label'),
      probabilities=predict_split(probabilities, state, split),
      texts=data.raw[name].column('text'),
      baselines=baselines(t == config.steps),
      heading=f'{name} split, step {t}',
      seeds=config.seeds,
    )
    row = {n: x for row in writers.read_rows(folder) if row['step'] == t for n, x in row.items()}
    row = {n: writers.summarise_seeds(x) if isinstance(x, list) else x for n, x in row.items()}
    return classification.compared(baselines(t == config.steps), row, config.model)

  return ordinary(
    config,
    model,
    [np.zeros((1, spec.lengths['text']), np.int32)],
    loss,
    optimiser=optimiser,
    change_step=lambda step: bucketing.bucketed(step, spec.buckets, {'tokens': 0}),
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    exports={'predict': (predict, {'tokens': Input((spec.lengths['text'],), 'int32')})},
    example_losses=example_losses,
    frozen=taught.frozen,
    lent=taught.lent,
    **frequencies.uninformed(data, 'label', len(spec.classes), config.label_smoothing),
    report=report,
  )


def encode(run, texts):
  run.spec.tokenisers['text'].warn_of_unknown(texts)
  return {'tokens': labelled_text.tokens(texts, run.spec)}


predict = classes('The likeliest classes of texts.', 'TEXT …', encode)
why = explain.text_verb(
  'What words of a text make the model say what it says.', lambda run, texts, _: encode(run, texts)
)
judge = audit.verb(
  lambda run, table, chosen: encode(run, table.filled(chosen.input or run.config.columns[0], 'input')),
  lambda run: run.config.columns[1],
)
verbs = {'predict': predict, 'explain': why, 'audit': judge, 'monitor': monitor.VERB}
