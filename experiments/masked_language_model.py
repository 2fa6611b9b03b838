"""Masked language model: BERT's pretraining, on any text.

python launch.py masked_language_model                                           # the Python documentation, bundled
python launch.py masked_language_model --dataset=text:PATH --vocabulary=4000 --whole_words
python launch.py predict WORKDIR 'the <mask> of a list'                          # fills the gap
python launch.py text_classification --model=transformer --init_from=WORKDIR     # goes on from its encoder

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding": 15 % of the tokens are
to be guessed, of which 80 % are <mask>, 10 % another token and 10 % unchanged. No sentence pairs (as Liu et al. 2019), and no
dropout of attention weights, as theirs has, without --attention_dropout=0.1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, options
from karpjax.data import batches, frequencies, language, masking, text
from karpjax.data.dataset import Dataset
from karpjax.losses.language import cross_entropy
from karpjax.metrics import language as metrics
from karpjax.models.transformer import Encoder, MaskedLanguageModel
from karpjax.program import AUGMENT, Input, Program, dropout_key, example_keys, pair
from karpjax.report import tables, writers
from karpjax.train.step import ordinary
from karpjax.verbs import Verb, probabilities

Spec = text.TextSpec
ENCODER = {'encoder': Encoder}
SHOWN = 20  # texts of the report


@config.defaults(
  steps='2000', eval_every='500', checkpoint_every='500', batch_size=32, eval_batch_size=128, validation=0.05, optimiser='adamw',
  warmup='1%', weight_decay=0.01, tokeniser='bpe', vocabulary=2000, lower=True, std=0.088,
  positions='rotary',  # learned ones stay at the unigrams' loss for 500 steps
)  # fmt: skip
class Config(config.Train, language.LanguageFlags, config.model_flags(ENCODER)):
  mask: float = config.flag(0.15, 'Share of the tokens that are to be guessed.', above=0, high=1)
  whole_words: bool = config.flag(False, 'Mask whole words, where tokens are characters or bpe.')


data = masking.load


def program(config: Config, data: Dataset) -> Program:
  """The method: the cross-entropy of masked tokens."""
  tokeniser, length = data.spec.tokenisers['text'], data.spec.lengths['text']
  inputs = jnp.ones((1, length), jnp.int32)
  sizes = {'vocabulary': tokeniser.size, 'context': length, 'dtype': jnp.dtype(config.dtype)}
  model = MaskedLanguageModel(options.build(ENCODER, 'encoder', config, inputs, **sizes))
  masks = {'ends': masking.ends_of_tokens(tokeniser), 'share': config.mask, 'whole_words': config.whole_words}

  def guess(params, keys, batch, **training):
    """Logits [batch, guesses, vocabulary] at the positions [batch, guesses], and the targets there."""
    tokens, positions, targets = masking.mask_tokens(keys, batch, vocabulary=tokeniser.size, **masks)
    return model.apply({'params': params}, tokens, positions, **training), positions, targets

  def loss(params, collections, batch, key):
    keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
    logits, _, targets = guess(params, keys, batch, train=True, rngs={'dropout': dropout_key(key, batch)})
    each, scored = cross_entropy(logits, targets), targets >= 0
    return {'loss': pair(each, scored), 'accuracy': pair(logits.argmax(-1) == targets, scored)}, collections

  def predict(state, batch, key):
    return model.apply(state.variables(), batch['tokens'])

  def fixed(state, batch):  # of evaluation
    return guess(state.eval_params, masking.fixed_keys(batch), batch)

  def example_losses(state, batch, key):
    logits, _, targets = fixed(state, batch)
    return cross_entropy(logits, targets).sum(1) / jnp.maximum((targets >= 0).sum(1), 1)

  def evaluate(state, batch, key):
    logits, _, targets = fixed(state, batch)
    right = logits.argmax(-1) == targets
    return metrics.sums(cross_entropy(logits, targets), targets, batch['mask'], right=right)

  return ordinary(
    config,
    model,
    [inputs],
    loss,
    evaluate=evaluate,
    summarise=metrics.summarise,
    predict=predict,
    exports={'predict': (predict, {'tokens': Input((length,), 'int32')})},
    example_losses=example_losses,
    **frequencies.uninformed(data, 'targets', tokeniser.size, first=tokeniser.specials),
    report=functools.partial(report, fixed, data, config),
  )


def report(fixed, data: Dataset, config: Config, state, t, folder):
  """Leaves report.txt: texts of a split, their masked tokens guessed."""
  name, split = data.reported(t == config.steps)
  batch = batches.fetch(split, np.unique(np.linspace(0, split.size - 1, SHOWN).astype(np.int32)))
  logits, positions, targets = map(np.asarray, jax.jit(fixed)(state, batch))
  guesses, scored = logits.argmax(-1), targets >= 0
  right = ((guesses == targets) & scored).sum()
  lines = [
    f'{name} split, step {t}{tables.first_of(config.seeds)}: {right:,} of {scored.sum():,} tokens guessed right',
    '',
    '[guess] is right, [guess | truth] is not; a place may show the model <mask>, another token or the true one.',
    '',
  ]
  for tokens, *row, real in zip(batch['targets'], positions, guesses, targets, scored):
    found = {position: pair for position, *pair in np.stack(row, 1)[real]}
    lines += [masking.show_guesses(data.spec.tokenisers['text'], tokens, found), '']
  writers.write_bytes(folder / 'report.txt', '\n'.join(lines).encode())


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Top:
  top: int = config.flag(5, 'The number of guesses for each <mask>.', low=1)


def decode(run, outputs, texts, chosen: Top):
  """The most probable tokens of each <mask>, as [[token, probability], …]."""
  tokeniser = run.spec.tokenisers['text']
  for given, row, chances in zip(texts, masking.encode(texts, run.spec)['tokens'], outputs):
    chances = chances * (np.arange(tokeniser.size) >= tokeniser.specials)
    best = [(at, np.argsort(-at, kind='stable')[: chosen.top]) for at in chances[row == masking.MASK]]
    masks = [[[tokeniser.decode([token]).strip(), float(at[token])] for token in tokens] for at, tokens in best]
    yield {'input': given, 'masks': masks}


def show(answer) -> str:
  rows = ['  ' + '  '.join(f'{token} {chance:.4f}' for token, chance in guesses) for guesses in answer['masks']]
  return '\n'.join([answer['input'], *rows]) + '\n'


verbs = {
  'predict': Verb(
    'Guesses the tokens of each <mask> in texts.', lambda run, texts, chosen: masking.encode(texts, run.spec),
    probabilities, decode, 'TEXT …', Top, show,
  )
}  # fmt: skip
