"""Masked language model: BERT's pretraining, on any text.

python launch.py masked_language_model                                           # the Python documentation, bundled
python launch.py masked_language_model --dataset=text:PATH --vocabulary=4000 --whole_words
python launch.py predict WORKDIR 'the <mask> of a list'                          # fills the gap
python launch.py text_classification --model=transformer --init_from=WORKDIR     # goes on from its encoder

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding": 15 % of the tokens are
to be guessed, of which 80 % are <mask>, 10 % another token and 10 % unchanged. No sentence pairs (as Liu et al. 2019).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, optim, options
from karpjax.data import batches, masking, text
from karpjax.data.dataset import Dataset
from karpjax.losses.language import cross_entropy
from karpjax.metrics import language as metrics
from karpjax.models.transformer import Encoder, MaskedLanguageModel
from karpjax.program import AUGMENT, Program, TrainState, dropout_key, example_keys, pair, partitioning
from karpjax.report import writers
from karpjax.train.step import train_step
from karpjax.verbs import Verb

Spec = text.TextSpec
ENCODER = {'encoder': Encoder}


@config.defaults(
  steps='2000', eval_every='500', checkpoint_every='500', batch_size=32, eval_batch_size=128, validation=0.05, optimiser='adamw',
  warmup='20', weight_decay=0.01, tokeniser='bpe', vocabulary=2000, lower=True, std=0.088,
)  # fmt: skip
class Config(config.Train, text.LanguageFlags, config.model_flags(ENCODER)):
  mask: float = config.flag(0.15, 'Share of the tokens that are to be guessed.', above=0, high=1)
  whole_words: bool = config.flag(False, 'Mask whole words, where tokens are characters or bpe.')


def data(config: Config) -> Dataset:
  return masking.load(config)


def program(config: Config, data: Dataset) -> Program:
  """The method: the cross-entropy of masked tokens."""
  tokeniser, length = data.spec.tokenisers['text'], data.spec.lengths['text']
  inputs = jnp.ones((1, length), jnp.int32)
  sizes = {'vocabulary': tokeniser.size, 'context': length, 'dtype': jnp.dtype(config.dtype)}
  model = MaskedLanguageModel(options.build(ENCODER, 'encoder', config, inputs, **sizes))
  optimiser = optim.configured(config)
  mask = functools.partial(
    masking.mask_tokens,
    ends=masking.ends_of_tokens(tokeniser),
    share=config.mask,
    vocabulary=tokeniser.size,
    whole_words=config.whole_words,
  )

  def init(key):
    return TrainState.create(key, model.init(key, inputs), optimiser, ema=config.ema > 0)

  def loss(params, collections, batch, key):
    tokens, positions, targets = mask(example_keys(jax.random.fold_in(key, AUGMENT), batch), batch)
    rngs = {'dropout': dropout_key(key, batch)}
    logits = model.apply({'params': params}, tokens, positions, train=True, rngs=rngs)
    each, scored = cross_entropy(logits, targets), targets >= 0
    return {'loss': pair(each, scored), 'accuracy': pair(logits.argmax(-1) == targets, scored)}, collections

  def guess(state, batch):
    """Logits [batch, guesses, vocabulary] at the positions [batch, guesses], and the targets there."""
    tokens, positions, targets = mask(masking.fixed_keys(batch), batch)
    return model.apply(state.variables(), tokens, positions), positions, targets

  def example_losses(state, batch, key):
    logits, _, targets = guess(state, batch)
    return cross_entropy(logits, targets).sum(1) / jnp.maximum((targets >= 0).sum(1), 1)

  def evaluate(state, batch, key):
    logits, _, targets = guess(state, batch)
    right = logits.argmax(-1) == targets
    return metrics.sums(cross_entropy(logits, targets), targets, batch['mask'], right=right)

  return Program(
    init=init,
    step=train_step(loss, optimiser, config),
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=lambda state, batch, key: model.apply(state.variables(), batch['tokens']),
    example_losses=example_losses,
    uninformed_loss=math.log(tokeniser.size),
    axes=partitioning(model, inputs),
    report=report(guess, data, config.seeds),
  )


SHOWN = 20  # texts of the report


def report(guess, data: Dataset, seeds: int):
  """Writes report.txt: texts of the test split (else validation, else train), their masked tokens guessed."""

  @jax.jit
  def best(state, batch):
    logits, positions, targets = guess(state, batch)
    return positions, logits.argmax(-1), targets

  def write(state, t, folder):
    name = next(name for name in ('test', 'validation', 'train') if name in data.splits)
    split = data.splits[name]
    batch = batches.fetch(split, np.unique(np.linspace(0, split.size - 1, SHOWN).astype(np.int32)))
    found = [list(zip(*row)) for row in zip(*(np.asarray(x) for x in best(state, batch)))]
    scored = [{position: (guess, true) for position, guess, true in row if true >= 0} for row in found]
    right = sum(guess == true for row in scored for guess, true in row.values())
    note = f' · first of {seeds} seeds' if seeds > 1 else ''
    lines = [
      f'{name} split, step {t}{note}: {right:,} of {sum(map(len, scored)):,} tokens guessed right',
      '',
      '[guess] is right, [guess | truth] is not; a place may show the model <mask>, another token or the true one.',
      '',
    ]
    for tokens, guesses in zip(batch['targets'], scored):
      lines += [masking.show_guesses(data.spec.tokenisers['text'], tokens, guesses), '']
    writers.write_bytes(folder / 'report.txt', '\n'.join(lines).encode())

  return write


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Top:
  top: int = config.flag(5, 'The number of guesses for each <mask>.', low=1)


def function(run, chosen: Top):
  return jax.jit(lambda state, batch: jax.nn.softmax(run.program.predict(state, batch, jax.random.key(0))))


def decode(run, outputs, texts, chosen: Top):
  """The most probable tokens of each <mask>, as [[token, probability], …]."""
  tokeniser = run.spec.tokenisers['text']
  tokens, probabilities = masking.encode(texts, run.spec)['tokens'], np.array(outputs)
  probabilities[..., : tokeniser.specials] = 0
  for given, row, chances in zip(texts, tokens, probabilities):
    masks = []
    for at in chances[row == masking.MASK]:
      best = np.argsort(-at)[: chosen.top]
      masks.append([[tokeniser.decode([token]).strip(), float(at[token])] for token in best])
    yield {'input': given, 'masks': masks}


def show(answer) -> str:
  rows = ['  ' + '  '.join(f'{token} {chance:.4f}' for token, chance in guesses) for guesses in answer['masks']]
  return '\n'.join([answer['input'], *rows]) + '\n'


verbs = {
  'predict': Verb(
    'Guesses the tokens of each <mask> in texts.',
    lambda run, texts, chosen: masking.encode(texts, run.spec),
    function,
    decode,
    'TEXT …',
    Top,
    show,
  )
}
