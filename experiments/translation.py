"""Translation, from the recurrent encoder and decoder to the Transformer.

python launch.py translation                                               # dates in free form to ISO, made by rule
python launch.py translation --flagfile=experiments/papers/addition.flags  # three-digit sums
python launch.py reproduce multi30k_transformer_small --data_dir=DIR       # German to English
python launch.py translation --dataset=files:my.de,my.en --model=transformer
python launch.py translate WORKDIR "Zwei Männer …"                         # by a run's best checkpoint
"""

import dataclasses
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, optim, options
from karpjax.data import bucketing, parallel, text, tokenisers
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.losses import language as losses
from karpjax.metrics import collect
from karpjax.metrics import translation as metrics
from karpjax.models import seq2seq
from karpjax.program import Program, TrainState, dropout_key, pair, partitioning
from karpjax.report import plots, writers
from karpjax.report.tables import table
from karpjax.train.predict import predict_split
from karpjax.train.step import train_step
from karpjax.verbs import Verb

Spec = parallel.Spec
BEAMS = (1, 4, 5)  # those of the report
PICTURES, LONGEST = 4, 24  # sentences whose attention is drawn, and their tokens at most


@config.defaults(
  lower=True, validation=0.05, steps='5epochs', batch_size=64, eval_batch_size=250, learning_rate=2e-3, clip=1.0
)
class Config(config.Train, text.Flags, config.model_flags(seq2seq.MODELS)):
  dataset: str = config.flag(
    'dates',
    'dates, addition, multi30k, files:SOURCE,TARGET, or a translation set of TFDS such as wmt16_translate/de-en.',
  )
  source_language: str = config.data_flag('', "The source of multi30k (default de) and TFDS (default the set's first).")
  target_language: str = config.data_flag('', 'The target of multi30k (default en) and TFDS.')
  tokeniser: str = config.data_flag(
    '', 'characters, words or bpe, learnt of each side. Default: words; characters of generated sets.'
  )
  max_length: int = config.data_flag(
    100, 'Tokens of a side; longer pairs are not trained on, others cut. 0: any.', low=0
  )
  reverse: bool = config.data_flag(False, 'Read sources from their end (Sutskever et al. 2014).')
  examples: int = config.data_flag(0, 'Pairs of a generated set; 0: 10,000 dates, 50,000 sums.', low=0)
  model: str = config.flag(
    'gru', "The model; options that are not given have the model's own defaults.", choices=seq2seq.MODELS
  )
  label_smoothing: float = config.flag(0.0, 'Fraction of the target spread over all tokens.', low=0, high=1)
  beam: int = config.flag(1, 'Sequences kept when evaluation decodes; 1: greedy.', low=1)
  length_penalty: float = config.flag(
    1.0, 'The power of (5 + length) / 6 that divides scores of a beam (Wu et al. 2016); 0: none.', low=0
  )


def data(config: Config) -> Dataset:
  if config.order == 'streams':
    raise UsageError('order=streams is for running texts; pairs do not go on from one to the next')
  return parallel.load(config)


def network(config: Config, spec: Spec):
  """The model for the tokens and lengths of a spec."""
  inputs = [jnp.zeros((1, spec.lengths[side]), jnp.int32) for side in parallel.SIDES]
  sizes = {'source_vocabulary': spec.tokenisers['source'].size, 'vocabulary': spec.tokenisers['target'].size}
  contexts = {'source_context': spec.lengths['source'], 'context': spec.lengths['target']}
  dtype = jnp.dtype(config.dtype)
  return options.build(seq2seq.MODELS, config.model, config, *inputs, dtype=dtype, **sizes, **contexts)


def program(config: Config, data: Dataset) -> Program:
  spec = data.spec
  model, optimiser = network(config, spec), optim.configured(config)
  inputs = [jnp.zeros((1, spec.lengths[side]), jnp.int32) for side in parallel.SIDES]
  references = [target for split in data.raw.values() for target in split.column('target')]
  examples = collect.evaluated(config, data.splits)
  search = {'steps': spec.lengths['target'], 'length_penalty': config.length_penalty}

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
    step = bucketing.bucketed(step, spec.buckets, {'source': 0, 'targets': -1})

  def predict(state, batch, key):
    return model.apply(state.variables(), batch['source'], batch['target_in'])

  def token_losses(state, batch, key):
    return losses.cross_entropy(predict(state, batch, key), batch['targets'])

  def translate(state, batch, beam):
    return seq2seq.translate(model, state.eval_params, batch['source'], beam=beam, **search)

  def evaluate(state, batch, key):
    tokens = translate(state, batch, config.beam)
    return metrics.sums(token_losses(state, batch, key), batch['targets'], tokens, batch, examples)

  return Program(
    init=init,
    step=step,
    evaluate=evaluate,
    summarise=lambda sums: metrics.summarise(sums, spec, references),
    predict=predict,
    example_losses=token_losses,
    uninformed_loss=math.log(spec.tokenisers['target'].size),
    report=lambda state, t, folder: report(model, translate, data, state, t, folder),
    axes=partitioning(model, *inputs),
  )


# ---- report ----


def report(model, translate, data, state, t, folder):
  """Leaves the scores of each of BEAMS, all translations by the largest, and plots/alignments.png."""
  (name, split), spec = data.reported(), data.spec
  sources, references = (data.raw[name].column(side) for side in parallel.SIDES)
  scores, ours = {}, {}
  for beam in BEAMS:
    decode = lambda state, batch, key, beam=beam: translate(state, batch, beam)
    tokens = predict_split(decode, state, split, batch_size=250)
    ours[beam] = [metrics.text(row, spec.tokenisers['target']) for row in tokens]
    scores[str(beam)] = metrics.compare(ours[beam], references, spec)
  heading = f'{name} split, {split.size:,} texts, step {t}'
  signatures = [] if spec.by_rule else metrics.signatures()
  writers.write_json(folder / 'report.json', {'heading': heading, 'beams': scores, 'signatures': signatures})
  shown = lambda name, x: f'{100 * x:.2f} %' if name == 'accuracy' else f'{x:.2f}'
  rows = [(f'beam {beam}', *(shown(name, x) for name, x in row.items())) for beam, row in scores.items()]
  notes = [f'{row["metric"]}: sacrebleu {row["signature"]}' for row in signatures]
  lines = [heading, '', *table(rows, ('', *scores['1'])), '', *notes, '']
  writers.write_bytes(folder / 'report.txt', '\n'.join(lines).encode())
  texts = [f'source     {a}\nreference  {b}\nours       {c}\n' for a, b, c in zip(sources, references, ours[BEAMS[-1]])]
  writers.write_bytes(folder / 'translations.txt', '\n'.join(texts).encode())
  draw_alignments(model, state, split.fetch(np.arange(split.size)), spec, folder)


def draw_alignments(model, state, batch, spec, folder):
  """Draws, for a few short sentences and their references, the source tokens that each target token attends to."""
  sizes = np.maximum((batch['source'] != 0).sum(1), (batch['targets'] >= 0).sum(1))
  few = np.flatnonzero(sizes <= LONGEST)[:PICTURES]
  inputs = [batch[name][few] for name in ('source', 'target_in')]
  weights = jax.jit(lambda *inputs: seq2seq.alignment(model, state.eval_params, *inputs))(*inputs) if len(few) else None
  if weights is None:
    return
  cells = []
  for source, target, each in zip(inputs[0], batch['targets'][few], np.asarray(weights)):
    names = [
      [spec.tokenisers[side].name(token) for token in tokens]
      for side, tokens in zip(parallel.SIDES, (source[source != 0], target[target >= 0]))
    ]
    cells.append((each[: len(names[1]), : len(names[0])], *names))
  plots.heat_maps(cells, folder, 'alignments')


# ---- verbs ----


@dataclasses.dataclass(frozen=True)
class Search:
  beam: int = config.flag(5, 'Sequences kept in the search; 1: greedy.', low=1)
  length_penalty: float | None = config.flag(None, "The power of (5 + length) / 6; the run's if not given.", low=0)


BATCH = 32  # texts translated together


def encode(run, texts, chosen):
  """Sources as tokens; words that training had not are said on standard error."""
  spec, tokeniser = run.spec, run.spec.tokenisers['source']
  if unknown := tokeniser.unknown(texts):
    print(f'never seen in training, so translated as unknown: {tokenisers.listed(unknown)}', file=sys.stderr)
  rows = parallel.encode(texts, tokeniser, reverse=spec.reverse)
  length, longest = spec.lengths['source'], max(map(len, rows))
  if longest > length and run.config.model == 'transformer':
    raise UsageError(
      f'a text of {longest - 1} tokens is longer than the {length - 1} that this model has positions for; cut it'
    )
  return {'source': bucketing.padded(rows, max(length, longest))}


def function(run, chosen):
  """Decodes BATCH texts at a time, each batch when its first translation is asked for."""
  model, steps = network(run.config, run.spec), run.spec.lengths['target']
  penalty = run.config.length_penalty if chosen.length_penalty is None else chosen.length_penalty

  @jax.jit
  def translate(params, source):
    return seq2seq.translate(model, params, source, steps=steps, beam=chosen.beam, length_penalty=penalty)

  def outputs(state, arrays):
    source = arrays['source']
    size = BATCH if len(source) > 1 else 1
    for start in range(0, len(source), size):
      batch = source[start : start + size]
      filled = np.pad(batch, ((0, size - len(batch)), (0, 0)), 'edge')
      yield from np.asarray(translate(state.eval_params, filled))[: len(batch)]

  return outputs


def decode(run, outputs, texts, chosen):
  for given, tokens in zip(texts, outputs):
    translation = metrics.text(tokens, run.spec.tokenisers['target']) if given.strip() else ''
    yield {'input': given, 'translation': translation}


verbs = {
  'translate': Verb(
    'Translations of texts.', encode, function, decode, 'TEXT …', Search, lambda answer: answer['translation'] + '\n'
  )
}
