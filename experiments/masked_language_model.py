"""Masked language model: BERT's pretraining, on any text.

python launch.py masked_language_model                                           # the Python documentation, bundled
python launch.py masked_language_model --dataset=text:PATH --vocabulary=4000 --whole_words
python launch.py text_classification --model=transformer --init_from=WORKDIR     # goes on from its encoder

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding": 15 % of the tokens are
to be guessed, of which 80 % are <mask>, 10 % another token and 10 % unchanged. No sentence pairs (as Liu et al. 2019).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from karpjax import config, errors, optim
from karpjax.data import dataset, masking, text
from karpjax.layers.transformer import POSITIONS
from karpjax.losses import language as losses
from karpjax.metrics import masking as metrics
from karpjax.models import bert
from karpjax.program import AUGMENT, Program, TrainState, dropout_key, example_keys, pair, partitioning
from karpjax.report import masking as report
from karpjax.train.step import train_step


@config.defaults(tokeniser='bpe', vocabulary=2000, lower=True)
class Config(config.Train, text.LanguageFlags):
  mask: float = config.flag(0.15, 'Share of the tokens that are to be guessed.')
  whole_words: bool = config.flag(False, 'Leave out whole words, where tokens are characters or bpe.')
  layers: int = config.flag(2, 'Blocks.', group='Model')
  heads: int = config.flag(4, 'Of the attention.', group='Model')
  width: int = config.flag(128, 'Of the embeddings and blocks.', group='Model')
  positions: str = config.flag(
    'learned',
    "How the order is told. learned is BERT's; rotary is quicker to learn.",
    choices=POSITIONS,
    group='Model',
  )
  pre_norm: bool = config.flag(False, "Norms before each part of a block instead of BERT's, after it.", group='Model')
  std: float = config.flag(0.088, "Of the kernels at the start; BERT's 0.02 suits large widths.", group='Model')
  dropout: float = config.flag(0.1, 'Rate on the embeddings and on what each part of a block adds.', group='Model')
  remat: str = config.flag(
    'none', 'What of a block the backward pass computes anew: none, full or dots.', group='Model'
  )
  steps: config.Duration = config.run_flag('2000', 'How long to train.')
  eval_every: config.Duration = config.run_flag('500', 'Evaluate this often; 0: at the end only.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '500', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  eval_batch_size: int = config.run_flag(128, 'Examples in one call of the evaluation.', may_change=True)
  batch_size: int = config.data_flag(32, 'Examples in one step, over all devices; 0: the whole train split.')
  validation: float = config.data_flag(0.05, 'Share of the text before test that is validation where the set has none.')
  optimiser: str = config.optimiser_flag('adamw', 'The update rule.', choices=optim.OPTIMISERS)
  warmup: config.Duration = config.optimiser_flag(
    '20', 'Linear warm-up; its first step takes 1 / (warmup + 1) of the rate.'
  )
  weight_decay: float = config.optimiser_flag(
    0.01, 'Spares biases and norms; decoupled for adamw, lion and muon, else L2.'
  )


def data(config: Config) -> dataset.Dataset:
  return masking.load(config)


def leave_out(config: Config, spec: text.TextSpec):
  """(keys, batch) -> (tokens, places, targets): what is seen and what is to be guessed."""
  if not 0 < config.mask <= 1:
    raise errors.UsageError(f'--mask={config.mask}: a share above 0, at most 1, is needed')
  made = spec.tokenisers['text']
  return functools.partial(
    masking.mask,
    ends=masking.ends_of_tokens(made),
    share=config.mask,
    vocabulary=made.size,
    whole_words=config.whole_words,
  )


def program(config: Config, data: dataset.Dataset) -> Program:
  """The method: cross-entropy of what was left out; config with durations in steps."""
  spec = data.spec
  vocabulary, hide = spec.tokenisers['text'].size, leave_out(config, spec)
  model = bert.MaskedLanguageModel(
    vocabulary, spec.lengths['text'], dtype=jnp.dtype(config.dtype), **config.model_options()
  )
  optimiser = optim.configured(config)
  inputs = jnp.ones((1, spec.lengths['text']), jnp.int32)

  def init(key):
    return TrainState.create(key, model.init(key, inputs), optimiser, ema=config.ema > 0)

  def loss(params, collections, batch, key):
    keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
    rngs = {'dropout': dropout_key(key, batch)}
    tokens, places, targets = hide(keys, batch)
    logits = model.apply({'params': params}, tokens, places, train=True, rngs=rngs)
    each, scored = losses.cross_entropy(logits, targets), targets >= 0
    return {'loss': pair(each, scored), 'accuracy': pair(logits.argmax(-1) == targets, scored)}, collections

  def guesses(state, batch):
    tokens, places, targets = hide(masking.fixed_keys(batch), batch)
    return model.apply({'params': state.eval_params}, tokens, places), targets

  def example_losses(state, batch, key):
    logits, targets = guesses(state, batch)
    return losses.cross_entropy(logits, targets).sum(1) / jnp.maximum((targets >= 0).sum(1), 1)

  def evaluate(state, batch, key):
    logits, targets = guesses(state, batch)
    return metrics.sums(logits, losses.cross_entropy(logits, targets), targets, batch['mask'])

  functions = Program(
    init=init,
    step=train_step(loss, optimiser, config),
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=lambda state, batch, key: model.apply({'params': state.eval_params}, batch['tokens']),
    example_losses=example_losses,
    uninformed_loss=math.log(vocabulary),
    axes=partitioning(model, inputs),
  )
  return dataclasses.replace(
    functions, report=functools.partial(report.draw, functions, data, leave_out(config, spec), seeds=config.seeds)
  )


predictions = report.fill  # what `launch.py predict` says
