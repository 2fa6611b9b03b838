"""Token classification: the names in a text, or any other tags of its words.

python launch.py token_classification                                      # made sentences whose names are new: 1 min on two CPU cores
python launch.py token_classification --model=bilstm_crf
python launch.py token_classification --dataset=conll:DIR                  # train, valid and test, .txt or .conll
python launch.py token_classification --dataset=conll2003 --data_dir=DIR   # TFDS, where it is prepared

Ma & Hovy 2016, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF"; entity F1 by seqeval.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from karpjax import config, errors, optim
from karpjax.data import dataset, tagged, tokenisers
from karpjax.metrics import tagging as metrics
from karpjax.models import tagging as models
from karpjax.program import AUGMENT, Program, TrainState, dropout_key, example_keys
from karpjax.report import tagging as report
from karpjax.train.step import train_step


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  dataset: str = config.flag('entities', 'entities, conll:DIR, or a TFDS name of tokens and tags, such as conll2003.')
  encoding: str = config.flag('utf-8', 'Of the files of conll:DIR.')
  lower: bool = config.flag(True, 'Lower-case words; their characters stay.')
  minimum_frequency: int = config.flag(1, 'A word that train has more rarely is <unk>.')
  word_dropout: float = config.flag(0.1, 'Share of words that are <unk> in training, so that new ones have a meaning.')
  length: int = config.flag(0, 'Cut longer sentences into pieces of so many words; 0: cut none.')
  word_length: int = config.flag(20, 'Characters of a word; of a longer one the first and the last.')
  model: str = config.flag('bilstm', 'Tags on their own, or in a chain.', choices=models.MODELS)
  embedding: int = config.flag(100, 'Numbers for each word.', group='Model')
  character_embedding: int = config.flag(30, 'Numbers for each character.', group='Model')
  filters: int = config.flag(30, 'Of the convolution over characters; 0: none.', group='Model')
  window: int = config.flag(3, 'Characters that a filter sees.', group='Model')
  units: tuple[int, ...] = config.flag((100,), 'Of each LSTM layer, for each direction.', group='Model')
  dropout: float = config.flag(0.5, 'Rate on the inputs of each layer.', group='Model')
  steps: config.Duration = config.run_flag('10epochs', 'How long to train.')
  select: str = config.run_flag(
    '-validation/f1', 'The metric whose smallest value marks the best checkpoint; -NAME for the largest.'
  )
  batch_size: int = config.data_flag(32, 'Examples in one step, over all devices; 0: the whole train split.')
  learning_rate: float = config.optimiser_flag(3e-3, 'The peak of the schedule.')
  clip: float = config.optimiser_flag(5.0, 'Largest global norm of the gradient; 0: no clipping.')


def data(config: Config) -> dataset.Dataset:
  return tagged.load(
    config.dataset,
    data_dir=config.data_dir,
    encoding=config.encoding,
    validation=config.validation,
    seed=config.split_seed,
    minimum_frequency=config.minimum_frequency,
    lower=config.lower,
    length=config.length,
    word_length=config.word_length,
  )


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: the likelihood of the right tags, on their own or as a chain; config with durations in steps."""
  spec = data.spec
  if not 0 <= config.word_dropout < 1:
    raise errors.UsageError(f'--word_dropout={config.word_dropout}: a share of at least 0 and under 1 is needed')
  model = models.Tagger(
    words=spec.tokenisers['text'].size,
    alphabet=spec.tokenisers['characters'].size,
    tags=len(spec.classes),
    chain=models.MODELS[config.model],
    dtype=jnp.dtype(config.dtype),
    **config.model_options(),
  )
  optimiser = optim.configured(config)
  shape = (1, spec.lengths['text'], spec.lengths['characters'])

  def init(key):
    variables = model.init(key, jnp.ones(shape[:2], jnp.int32), jnp.ones(shape, jnp.int32))
    return TrainState.create(key, variables, optimiser, ema=config.ema > 0)

  def loss(params, collections, batch, key):
    tokens = batch['tokens']
    if config.word_dropout:
      keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
      dropped = jax.vmap(lambda k: jax.random.bernoulli(k, config.word_dropout, tokens.shape[1:]))(keys)
      tokens = jnp.where(dropped & (tokens > 0), tokenisers.UNKNOWN, tokens)
    rngs = {'dropout': dropout_key(key, batch)}
    emissions, chain = model.apply({'params': params}, tokens, batch['characters'], train=True, rngs=rngs)
    words = (batch['targets'] >= 0).sum().astype(jnp.float32)
    return {'loss': (-models.log_likelihood(emissions, chain, batch['targets']).sum(), words)}, collections

  def scores(state, batch):
    return model.apply({'params': state.eval_params}, batch['tokens'], batch['characters'])

  def predict(state, batch, key):
    return models.decode(*scores(state, batch), batch['tokens'] > 0)

  def example_losses(state, batch, key):
    words = (batch['targets'] >= 0).sum(1)
    return -models.log_likelihood(*scores(state, batch), batch['targets']) / jnp.maximum(words, 1)

  def evaluate(state, batch, key):
    outputs = scores(state, batch)
    losses, tags = -models.log_likelihood(*outputs, batch['targets']), models.decode(*outputs, batch['tokens'] > 0)
    return metrics.sums(tags, batch['targets'], losses, batch['index'], batch['mask'], examples=spec.about['evaluated'])

  functions = Program(
    init=init,
    step=train_step(loss, optimiser, config),
    evaluate=evaluate,
    summarise=functools.partial(metrics.summarise, classes=spec.classes),
    predict=predict,
    example_losses=example_losses,
    uninformed_loss=math.log(len(spec.classes)),
  )
  return dataclasses.replace(functions, report=functools.partial(report.draw, functions, data, seeds=config.seeds))


predictions = report.columns  # what `launch.py predict` says
