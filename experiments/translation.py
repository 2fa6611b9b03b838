"""Translation, from the recurrent encoder and decoder to the Transformer.

python launch.py translation                                               # dates in free form to ISO, made by rule
python launch.py translation --flagfile=experiments/papers/addition.flags  # three-digit sums
python launch.py reproduce multi30k_transformer_small --data_dir=DIR       # German to English
python launch.py translation --dataset=files:my.de,my.en --model=transformer
python launch.py translate WORKDIR "Zwei Männer …"                         # by a run's best checkpoint
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from karpjax import config, errors, optim
from karpjax.data import bucketing as buckets
from karpjax.data import generated, parallel
from karpjax.data.dataset import Dataset
from karpjax.losses import language as losses
from karpjax.metrics import translation as metrics
from karpjax.models import seq2seq
from karpjax.program import Program, TrainState, dropout_key, pair, partitioning
from karpjax.report import translation as report
from karpjax.train.step import train_step

Spec = parallel.Spec


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  dataset: str = config.flag(
    'dates',
    'dates, addition, multi30k, files:SOURCE,TARGET, or a translation set of TFDS such as wmt16_translate/de-en.',
  )
  source_language: str = config.flag('', "Of multi30k and TFDS; the set's first if not given: multi30k's de.")
  target_language: str = config.flag('', "Of multi30k and TFDS; multi30k's en if not given.")
  tokeniser: str = config.flag(
    '', 'characters, words or bpe, learnt of each side. Default: words; characters of generated sets.'
  )
  vocabulary: int = config.flag(0, 'Tokens of bpe; of words the most that are kept, 0: all.')
  minimum_frequency: int = config.flag(1, 'Of words; rarer ones are unknown.')
  lower: bool = config.flag(True, 'Whether texts are lower-cased.')
  max_length: int = config.flag(100, 'Tokens of a side; longer pairs are not trained on, others cut. 0: any.')
  reverse: bool = config.flag(False, 'Read sources from their end (Sutskever et al. 2014).')
  examples: int = config.flag(0, 'Of generated sets: how many; 0: 10,000 dates, 50,000 sums.')
  encoding: str = config.flag('utf-8', 'Of text files.')
  model: str = config.flag(
    'gru', "Its options are below; one that is not given has the model's own default.", choices=seq2seq.MODELS
  )
  label_smoothing: float = config.flag(0.0, 'Share of the target that is spread over all tokens.')
  beam: int = config.flag(1, "Of the evaluation's decoding; 1: greedy.")
  length_penalty: float = config.flag(1.0, 'Of beams: the power of (5 + length) / 6 (Wu et al. 2016); 0: none.')
  steps: config.Duration = config.run_flag('5epochs', 'How long to train.')
  eval_batch_size: int = config.run_flag(250, 'Examples in one call of the evaluation.', may_change=True)
  batch_size: int = config.data_flag(64, 'Examples in one step, over all devices; 0: the whole train split.')
  validation: float = config.data_flag(0.05, 'Share or number of pairs set aside where the set has no such split.')
  test: float = config.data_flag(0.05, 'The same, for the test split.')
  learning_rate: float = config.optimiser_flag(2e-3, 'The peak of the schedule.')
  clip: float = config.optimiser_flag(1.0, 'Largest global norm of the gradient; 0: no clipping.')

  attention: str | None = config.flag(
    None, 'none, additive (Bahdanau et al. 2015) or multiplicative (Luong et al. 2015).', group='Model'
  )
  embedding: int | None = config.flag(None, "Width of recurrent models' embeddings.", group='Model')
  units: tuple[int, ...] | None = config.flag(None, 'Of each recurrent layer.', group='Model')
  layers: int | None = config.flag(None, "Blocks of the Transformer's encoder, and of its decoder.", group='Model')
  heads: int | None = config.flag(None, 'Of its attention.', group='Model')
  width: int | None = config.flag(None, 'Of its embeddings and blocks.', group='Model')
  hidden: int | None = config.flag(None, 'Units of its MLPs.', group='Model')
  positions: str | None = config.flag(None, 'learned, sinusoidal, rotary or none.', group='Model')
  pre_norm: bool | None = config.flag(None, 'Norms before each part of a block, not after it.', group='Model')
  activation: str | None = config.flag(None, 'gelu, relu or silu.', group='Model')
  tied: bool | None = config.flag(None, "Whether logits are by the target's embeddings.", group='Model')
  dropout: float | None = config.flag(None, 'Rate.', group='Model')


def data(config: Config) -> Dataset:
  made_by_rule = config.dataset in generated.GENERATORS
  return parallel.load(
    config.dataset,
    data_dir=config.data_dir,
    languages=(config.source_language, config.target_language),
    tokeniser=config.tokeniser or ('characters' if made_by_rule else 'words'),
    vocabulary=config.vocabulary,
    minimum_frequency=config.minimum_frequency,
    lower=config.lower,
    max_length=config.max_length,
    reverse=config.reverse,
    validation=config.validation,
    test=config.test,
    seed=config.split_seed,
    examples=config.examples,
    encoding=config.encoding,
  )


def network(config: Config, spec: Spec) -> nn.Module:
  return seq2seq.build(
    config.model, spec.tokenisers, spec.lengths, dtype=jnp.dtype(config.dtype), options=config.model_options()
  )


def translator(config: Config, spec: Spec) -> Callable:
  """(params, source [batch, places] int32, beam) -> tokens [batch, time] int32."""
  options = {'steps': spec.lengths['target'], 'length_penalty': config.length_penalty}
  model = network(config, spec)
  return lambda params, source, beam: seq2seq.translate(model, params, source, beam=beam, **options)


def program(config: Config, data: Dataset) -> Program:
  """The method: config with durations in steps; its rates and shares may be traced numbers."""
  spec = data.spec
  if config.beam < 1 or not 0 <= config.length_penalty < math.inf:
    raise errors.UsageError(
      f'--beam={config.beam} must be at least 1, and --length_penalty={config.length_penalty} not negative'
    )
  if config.order == 'streams':
    raise errors.UsageError('--order=streams is for running texts; pairs do not go on from one to the next')
  model, optimiser, translate = network(config, spec), optim.configured(config), translator(config, spec)
  inputs = [jnp.zeros((1, spec.lengths[side]), jnp.int32) for side in ('source', 'target')]
  references = [text for texts in spec.references.values() for text in texts]
  sizes = [len(spec.references.get(split, ())) for split in (*config.eval_splits, *config.final_splits)]

  def init(key):
    return TrainState.create(key, model.init(key, *inputs), optimiser, ema=config.ema > 0)

  def loss(params, collections, batch, key):
    rngs = {'dropout': dropout_key(key, batch)}
    logits = model.apply({'params': params}, batch['source'], batch['target_in'], train=True, rngs=rngs)
    targets = batch['targets']
    each = losses.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    wrong = pair(logits.argmax(-1) != targets, targets >= 0)
    return {'loss': pair(each, targets >= 0), 'token_error': wrong}, collections

  step = train_step(loss, optimiser, config)
  if config.order == 'bucketed':
    step = buckets.bucketed(step, spec.about['buckets'], {'source': 0, 'targets': -1})

  def predict(state, batch, key):
    return model.apply({'params': state.eval_params}, batch['source'], batch['target_in'])

  def token_losses(state, batch, key):
    return losses.cross_entropy(predict(state, batch, key), batch['targets'])

  def evaluate(state, batch, key):
    tokens = translate(state.eval_params, batch['source'], config.beam)
    return metrics.sums(token_losses(state, batch, key), batch['targets'], tokens, batch, max([1, *sizes]))

  functions = Program(
    init=init,
    step=step,
    evaluate=evaluate,
    summarise=lambda sums: metrics.summarise(sums, spec.tokenisers['target'], references, bleu=spec.about['text']),
    predict=predict,
    example_losses=token_losses,
    uninformed_loss=math.log(spec.tokenisers['target'].size),
    axes=partitioning(model, *inputs),
  )
  return dataclasses.replace(
    functions,
    report=functools.partial(
      report.draw, translator(config, spec), functools.partial(seq2seq.alignment, network(config, spec)), data
    ),
  )
