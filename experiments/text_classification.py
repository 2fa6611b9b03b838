"""Text classification: Kim 2014's TextCNN, an LSTM read both ways, a Transformer, and TF-IDF beside.

python launch.py text_classification                                       # chapters of the Python reference, bundled
python launch.py text_classification --dataset=trec --data_dir=DIR         # questions; DIR holds TREC.train.all, TREC.test.all
python launch.py text_classification --dataset=mine.csv --model=bilstm     # columns text and label
python launch.py text_classification --dataset=mine.csv --init_from=WORKDIR   # of a masked_language_model run: fine-tunes it
python launch.py reproduce textcnn_trec --data_dir=DIR                     # Kim 2014, five seeds
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import optax

from karpjax import config, errors, optim
from karpjax.data import bucketing as buckets
from karpjax.data import dataset, labelled_text, text, tokenisers
from karpjax.losses import classification as losses
from karpjax.metrics import classification as metrics
from karpjax.metrics import tfidf
from karpjax.models import text as models
from karpjax.program import Program, TrainState, dropout_key, pair, partitioning
from karpjax.report import classification as report
from karpjax.train.step import train_step

PRETRAINED = 'masked_language_model'


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  dataset: str = config.flag(
    'python_docs',
    'python_docs, trec, financial_phrasebank, table:DIR (train, validation, test as .csv or .tsv), FILE.csv, FILE.tsv, '
    'or a TFDS name such as imdb_reviews, glue/sst2, ag_news_subset.',
  )
  columns: tuple[str, ...] = config.flag(('text', 'label'), 'Of a table: that of the texts, that of the labels.')
  encoding: str = config.flag('', 'Of files. Default: utf-8, or latin-1 for trec and financial_phrasebank.')
  tokeniser: str = config.flag('words', 'How a text is cut.', choices=tokenisers.KINDS)
  minimum_frequency: int = config.flag(1, 'Words that are rarer in train are unknown.')
  vocabulary: int = config.flag(0, 'The most tokens of words and bpe; 0: all words, 4,000 of bpe.')
  lower: bool = config.flag(True, 'Whether texts are lower-cased.')
  max_length: int = config.flag(0, 'Tokens that are kept of a text; 0: as many as the longest of train has.')
  model: str = config.flag(
    'textcnn', "Its options are below; one that is not given has the model's own default.", choices=models.MODELS
  )
  label_smoothing: float = config.flag(0.0, 'Share of the target that is spread over all classes.')
  max_norm: float = config.flag(0.0, "Largest norm of a class's weights in the last layer, as in Kim 2014; 0: any.")
  baseline: bool = config.flag(
    True, 'Whether linear models on TF-IDF are fitted too, and shown beside.', may_change=True
  )
  steps: config.Duration = config.run_flag('10epochs', 'How long to train.')
  eval_batch_size: int = config.run_flag(100, 'Examples in one call of the evaluation.', may_change=True)
  order: str = config.data_flag(
    'bucketed',
    'Examples in a new order each epoch, of batches of similar lengths (bucketed) or of any; in one shuffled order; or as '
    'stored.',
    choices=('bucketed', 'reshuffle', 'shuffle', 'stored'),
  )
  buckets: int = config.data_flag(4, 'To how many lengths a batch may be cut, the shortest that holds it being taken.')
  batch_size: int = config.data_flag(50, 'Examples in one step, over all devices; 0: the whole train split.')

  embedding: int | None = config.flag(None, 'Size of the word vectors.', group='Model')
  windows: tuple[int, ...] | None = config.flag(None, 'Words in a window (textcnn).', group='Model')
  channels: int | None = config.flag(None, 'Features of each kind of window (textcnn).', group='Model')
  units: tuple[int, ...] | None = config.flag(None, 'Of each layer and direction (bilstm).', group='Model')
  layers: int | None = config.flag(None, 'Blocks (transformer).', group='Model')
  heads: int | None = config.flag(None, 'Of the attention (transformer).', group='Model')
  width: int | None = config.flag(None, 'Of the blocks (transformer).', group='Model')
  hidden: int | None = config.flag(None, "Units of a block's MLP; 0: four times the width.", group='Model')
  positions: str | None = config.flag(None, 'learned, sinusoidal, rotary or none (transformer).', group='Model')
  pre_norm: bool | None = config.flag(None, 'Norms before each part, not behind (transformer).', group='Model')
  dropout: float | None = config.flag(None, 'Rate.', group='Model')


def earlier(config_: Config) -> tuple[tokenisers.Tokeniser, int, dict] | None:
  """The tokeniser, the length and, of an encoder, the sizes of the run that --init_from names, if it is one of texts."""
  stored = config.saved(config_.init_from) if config_.init_from else None
  if not stored or stored['experiment'] not in (PRETRAINED, 'text_classification'):
    return None
  spec, flags = text.TextSpec.from_json(stored['spec']), stored['flags']
  length = spec.lengths['text']
  about = {name: value for name, value in spec.about.items() if name == 'pretrained'}
  if stored['experiment'] == PRETRAINED:
    about['pretrained'] = {'context': length, **{name: flags[name] for name in models.SIZES if name in flags}}
  return spec.tokenisers['text'], length, about


def read(config_: Config) -> labelled_text.Texts:
  return labelled_text.read(
    config_.dataset,
    data_dir=config_.data_dir,
    encoding=config_.encoding,
    columns=config_.columns,
    validation=config_.validation,
    seed=config_.split_seed,
  )


def encode(config_: Config, texts: labelled_text.Texts) -> dataset.Dataset:
  if found := earlier(config_):
    made, length, about = found
    length = config_.max_length or length
    return labelled_text.encode(texts, made, max_length=length, count=config_.buckets, about=about)
  made = tokenisers.make(
    config_.tokeniser,
    texts.splits['train'].arrays['text'],
    specials=() if config_.tokeniser == 'bytes' else tokenisers.SPECIALS,
    minimum_frequency=config_.minimum_frequency,
    vocabulary=config_.vocabulary or (4000 if config_.tokeniser == 'bpe' else 0),
    lower=config_.lower,
  )
  return labelled_text.encode(texts, made, max_length=config_.max_length, count=config_.buckets)


def data(config_: Config) -> dataset.Dataset:
  texts = read(config_)
  return dataclasses.replace(encode(config_, texts), raw=texts.splits)


def program(config_: Config, data: dataset.Dataset) -> Program:
  """The method: config with durations in steps; its rates, decays and shares may be traced numbers."""
  spec = data.spec
  if not 0 <= config_.label_smoothing <= 1:
    raise errors.UsageError(f'--label_smoothing={config_.label_smoothing}: a share of 0 to 1 is needed')
  model = models.build(config_.model, spec, dtype=jnp.dtype(config_.dtype), options=config_.model_options())
  optimiser = optim.configured(config_)
  if config_.max_norm:
    optimiser = optax.chain(optimiser, optim.limit_norms(config_.max_norm))
  inputs = jnp.zeros((1, spec.lengths['text']), jnp.int32)

  def example_loss(logits, labels):
    return losses.cross_entropy(logits, labels, label_smoothing=config_.label_smoothing)

  def init(key):
    return TrainState.create(key, model.init(key, inputs), optimiser, ema=config_.ema > 0)

  def loss(params, collections, batch, key):
    dropout = dropout_key(key, batch)
    logits = model.apply({'params': params}, batch['tokens'], train=True, rngs={'dropout': dropout})
    wrong = logits.argmax(-1) != batch['label']
    return {'loss': pair(example_loss(logits, batch['label'])), 'error': pair(wrong)}, collections

  def predict(state, batch, key):
    return model.apply({'params': state.eval_params}, batch['tokens'])

  def example_losses(state, batch, key):
    return example_loss(predict(state, batch, key), batch['label'])

  def evaluate(state, batch, key):
    logits = predict(state, batch, key)
    return metrics.sums(logits, batch['label'], example_loss(logits, batch['label']), batch['mask'])

  beside = functools.cache(lambda: tfidf.baselines(data.raw) if config_.baseline else {})
  step = train_step(loss, optimiser, config_)
  functions = Program(
    init=init,
    step=buckets.bucketed(step, spec.about['buckets'], {'tokens': 0}),
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    example_losses=example_losses,
    uninformed_loss=math.log(len(spec.classes)),
    axes=partitioning(model, inputs),
  )
  draw = functools.partial(report.draw_texts, functions, data, data.raw, seeds=config_.seeds, baselines=beside)
  return dataclasses.replace(functions, report=draw)
