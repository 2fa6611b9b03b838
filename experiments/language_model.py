"""Language models, from counted bigrams to GPT.

python launch.py language_model                                                # a GPT on the documentation inside of Python
python launch.py language_model --dataset=text:PATH --model=lstm --order=streams
python launch.py language_model --dataset=names --data_dir=DIR --model=mlp     # lines: each one an example
python launch.py sample WORKDIR --prompt='def '
python launch.py reproduce gpt_shakespeare_cpu                                 # nanoGPT's figure for a CPU
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax import collectives, config, errors, optim
from karpjax.data import text
from karpjax.data.dataset import Dataset
from karpjax.losses import language as losses
from karpjax.metrics import language as metrics
from karpjax.models import language as models
from karpjax.program import Program, TrainState, dropout_key, pair, partitioning
from karpjax.report import language as report
from karpjax.train.step import train_step


@config.defaults(validation=0.05)
class Config(config.Train, text.LanguageFlags):
  overlap: int = config.flag(0, 'Of these tokens, how many an evaluated window sees but does not score.')
  model: str = config.flag(
    'gpt', "Its options are below; one that is not given has the model's own default.", choices=models.MODELS
  )
  steps: config.Duration = config.run_flag('2000', 'How long to train.')
  eval_every: config.Duration = config.run_flag('500', 'Evaluate this often; 0: at the end only.', may_change=True)
  checkpoint_every: config.Duration = config.run_flag(
    '500', 'Save this often; 0: at the end and when stopped.', may_change=True
  )
  report_every: config.Duration = config.run_flag(
    '500', 'Write samples this often; 0: at the end only.', may_change=True
  )
  eval_batch_size: int = config.run_flag(64, 'Examples in one call of the evaluation.', may_change=True)
  batch_size: int = config.data_flag(32, 'Examples in one step, over all devices; 0: the whole train split.')
  optimiser: str = config.optimiser_flag('adamw', 'The update rule.', choices=optim.OPTIMISERS)
  sample_length: int = config.flag(
    256, 'Tokens of each sample of the report; lines end where they end.', may_change=True
  )

  layers: int | None = config.flag(None, 'Blocks of a gpt.', group='Model')
  heads: int | None = config.flag(None, 'Of the attention.', group='Model')
  kv_heads: int | None = config.flag(None, 'Of keys and values, which groups of heads share.', group='Model')
  width: int | None = config.flag(None, 'Of a gpt.', group='Model')
  positions: str | None = config.flag(None, 'learned, sinusoidal, rotary or none (gpt).', group='Model')
  bias: bool | None = config.flag(None, 'Whether linear layers and norms have biases (gpt).', group='Model')
  std: float | None = config.flag(
    None, "Of a gpt's kernels at the start; GPT-2's 0.02 suits large widths.", group='Model'
  )
  tied: bool | None = config.flag(None, 'Whether the logits are by the embeddings (gpt).', group='Model')
  implementation: str | None = config.flag(
    None, 'cudnn for its flash attention, on GPUs, in bfloat16 (gpt).', group='Model'
  )
  remat: str | None = config.flag(
    None, 'What the backward pass computes anew: none, full or dots (gpt).', group='Model'
  )
  dropout: float | None = config.flag(None, 'Rate (gpt, rnn, lstm, gru).', group='Model')
  units: tuple[int, ...] | None = config.flag(None, 'Of each recurrent layer.', group='Model')
  embedding: int | None = config.flag(None, "Width of a token's (mlp, wavenet, rnn, lstm, gru).", group='Model')
  window: int | None = config.flag(None, 'Tokens that an mlp or wavenet sees.', group='Model')
  hidden: int | None = config.flag(None, 'Units of the hidden layers of an mlp or wavenet.', group='Model')
  norm: str | None = config.flag(None, 'none or batch (mlp, wavenet).', group='Model')
  smoothing: float | None = config.flag(None, 'Added to each count (counts).', group='Model')


def data(config: Config) -> Dataset:
  stride = config.context if config.order == 'streams' else 1
  tokeniser = text.tokeniser_of_run(config.init_from)
  return text.load(config, overlap=config.overlap, train_stride=stride, tokeniser=tokeniser)


def build(config: Config, spec: text.TextSpec) -> nn.Module:
  vocabulary, context = spec.tokenisers['text'].size, spec.lengths['text']
  return models.build(
    config.model, vocabulary=vocabulary, context=context, dtype=jnp.dtype(config.dtype), options=config.model_options()
  )


def program(config: Config, data: Dataset) -> Program:
  """The method: config with durations in steps; its rates and decays may be traced numbers."""
  spec = data.spec
  tokeniser, model = spec.tokenisers['text'], build(config, spec)
  carries = config.order == 'streams' and config.model in models.RECURRENT
  if config.order == 'streams' and spec.lines:
    raise errors.UsageError('order=streams is for running texts; lines do not go on from one to the next')
  optimiser, characters = optim.configured(config), tokeniser.characters()
  inputs = jnp.zeros((1, spec.lengths['text']), jnp.int32)

  def init(key):
    carried = model.initial(config.batch_size) if carries else {}
    return TrainState.create(key, model.init(key, inputs), optimiser, ema=config.ema > 0, carried=carried)

  def loss(params, collections, batch, key):
    variables, tokens, targets = {'params': params, **collections}, batch['tokens'], batch['targets']
    dropout = dropout_key(key, batch)
    options = dict(train=True, rngs={'dropout': dropout}, mutable=list(collections))
    if carries:
      going_on = batch['index'] % (spec.examples // config.batch_size) != 0  # the others are at a stream's beginning
      before = jax.tree.map(lambda x: x * going_on[:, None], batch['carried'])
      (logits, after), collections = model.apply(variables, tokens, before, method='read', **options)
      each = (jax.tree.map(jax.lax.stop_gradient, after),)
    else:
      logits, collections = model.apply(variables, tokens, **options)
      each = ()
    return {'loss': pair(losses.cross_entropy(logits, targets), targets >= 0)}, collections, *each

  def predict(state, batch, key):
    return model.apply({'params': state.eval_params, **state.collections}, batch['tokens'])

  def token_losses(state, batch, key):
    return losses.cross_entropy(predict(state, batch, key), batch['targets'])

  def evaluate(state, batch, key):
    return metrics.sums(token_losses(state, batch, key), batch['targets'], batch['mask'], characters)

  def count(state, batch):
    counts, targets = state.params['counts'], batch['targets']
    seen = jnp.zeros_like(counts).at[batch['tokens'], jnp.maximum(targets, 0)].add(targets >= 0)
    state = state.replace(step=state.step + 1, params={'counts': counts + collectives.total(seen)})
    each = losses.cross_entropy(model.apply({'params': state.params}, batch['tokens']), targets)
    return state, collectives.total({'loss': pair(each, targets >= 0)})

  step = train_step(loss, optimiser, config)
  functions = Program(
    init=init,
    step=count if config.model == 'counts' else step,
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    example_losses=token_losses,
    causal=True,
    uninformed_loss=math.log(tokeniser.size),
    axes=partitioning(model, inputs),
  )
  return dataclasses.replace(
    functions, report=functools.partial(report.draw, build(config, spec), data, length=config.sample_length)
  )
