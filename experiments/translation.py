"""Translation, from the recurrent encoder and decoder to the Transformer.

python launch.py translation                                               # dates in free form to ISO, made by rule
python launch.py translation --flagfile=experiments/papers/addition.flags  # three-digit sums
python launch.py reproduce multi30k_transformer_small --data_dir=DIR       # German to English
python launch.py translation --dataset=files:my.de,my.en --model=transformer
python launch.py translate WORKDIR "Zwei Männer …"                         # by a run's best checkpoint
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, options
from karpjax.data import bucketing, frequencies, parallel, text
from karpjax.data.dataset import Dataset, Split
from karpjax.errors import UsageError
from karpjax.losses import language as losses
from karpjax.metrics import collect
from karpjax.metrics import translation as metrics
from karpjax.models import seq2seq
from karpjax.program import Input, Program, dropout_key, pair
from karpjax.report import texts, writers
from karpjax.report.tables import table
from karpjax.train.predict import Predictions, predict_batches, predict_split
from karpjax.train.step import ordinary
from karpjax.verbs import Verb

Spec = parallel.Spec
BEAMS = (1, 4, 5)  # those of the report


@config.defaults(
  lower=True, validation=0.05, steps='5epochs', batch_size=64, eval_batch_size=250, learning_rate=2e-3, clip=1.0,
  models={'transformer': {'learning_rate': 5e-4, 'warmup': '5%'}},
)  # fmt: skip
class Config(config.Train, text.Flags, config.model_flags(seq2seq.MODELS, 'gru')):
  dataset: str = config.flag(
    'dates',
    'dates, addition, multi30k, files:SOURCE,TARGET, or a translation set of TFDS such as wmt16_translate/de-en.',
    path=True,
  )
  source_language: str = config.data_flag('', "The source of multi30k (default de) and TFDS (default the set's first).")
  target_language: str = config.data_flag('', 'The target of multi30k (default en) and TFDS.')
  tokeniser: str = config.data_flag(
    '', 'characters, words or bpe, learnt of each side. Default: words; characters of generated sets.', path=True
  )
  max_length: int = config.data_flag(
    100, 'Tokens of a side; longer pairs are not trained on, others cut. 0: any.', low=0
  )
  reverse: bool = config.data_flag(False, 'Read sources from their end (Sutskever et al. 2014).')
  examples: int = config.data_flag(0, 'Pairs of a generated set; 0: 10,000 dates, 50,000 sums.', low=0)
  label_smoothing: float = config.flag(0.0, 'Fraction of the target spread over all tokens.', low=0, high=1)
  beam: int = config.flag(1, 'Sequences kept when evaluation decodes; 1: greedy.', low=1, high=2**12)
  length_penalty: float = config.flag(
    1.0, 'The power of (5 + length) / 6 that divides scores of a beam (Wu et al. 2016); 0: none.', low=0
  )
  unknown: bool = config.flag(False, 'Whether decoding may say <unk>, which is written ⁇.')


data = parallel.load


def network(config: Config, spec: Spec):
  """The model for the tokens and lengths of a spec, and inputs of its call."""
  inputs = [np.zeros((1, spec.lengths[side]), np.int32) for side in parallel.SIDES]
  sizes = {'source_vocabulary': spec.tokenisers['source'].size, 'vocabulary': spec.tokenisers['target'].size}
  contexts = {'source_context': spec.lengths['source'], 'context': spec.lengths['target']}
  dtype = jnp.dtype(config.dtype)
  return options.build(seq2seq.MODELS, config.model, config, *inputs, dtype=dtype, **sizes, **contexts), inputs


def translator(model, spec: Spec, config: Config, **chosen):
  """(state, batch, key) -> the best translations as tokens [batch, time]; searched as the config says, but for what is chosen."""
  names, steps = ('beam', 'length_penalty', 'unknown'), spec.lengths['target']
  search = {name: getattr(config, name) if chosen.get(name) is None else chosen[name] for name in names}
  return lambda state, batch, key: seq2seq.translate(model, state.eval_params, batch['source'], steps=steps, **search)


def program(config: Config, data: Dataset) -> Program:
  spec, (model, inputs) = data.spec, network(config, data.spec)
  references = [target for split in data.raw.values() for target in split.column('target')]
  examples = collect.evaluated(config, data.splits)
  translate = translator(model, spec, config)

  def loss(params, collections, batch, key):
    rngs, targets = {'dropout': dropout_key(key, batch)}, batch['targets']
    logits = model.apply({'params': params}, batch['source'], batch['target_in'], train=True, rngs=rngs)
    each = losses.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
    wrong = pair(logits.argmax(-1) != targets, targets >= 0)
    return {'loss': pair(each, targets >= 0), 'token_error': wrong}, collections

  def shorten(step):
    lengths = spec.buckets if config.order == 'bucketed' else spec.buckets[-1:]
    return bucketing.bucketed(step, lengths, {'source': 0, 'targets': -1})

  def predict(state, batch, key):
    return model.apply(state.variables(), batch['source'], batch['target_in'])

  def token_losses(state, batch, key):
    return losses.cross_entropy(predict(state, batch, key), batch['targets'])

  def evaluate(state, batch, key):
    tokens = translate(state, batch, key)
    return metrics.sums(token_losses(state, batch, key), batch['targets'], tokens, batch, examples)

  return ordinary(
    config,
    model,
    inputs,
    loss,
    change_step=shorten,
    evaluate=evaluate,
    summarise=lambda sums: metrics.summarise(sums, spec, references),
    predict=predict,
    exports={'translate': (translate, {'source': Input((spec.lengths['source'],), 'int32')})},
    example_losses=token_losses,
    **frequencies.uninformed(data, 'targets', spec.tokenisers['target'].size, config.label_smoothing),
    report=functools.partial(report, model, data, config),
  )


# ---- report ----


def report(model, data: Dataset, config: Config, state, t, folder):
  """Leaves the scores of each of BEAMS, all translations by the largest, and plots/alignments.png."""
  (name, split), spec = data.reported(t == config.steps), data.spec
  sources, references = (data.raw[name].column(side) for side in parallel.SIDES)
  scores = {}
  for beam in BEAMS:
    tokens = predict_split(translator(model, spec, config, beam=beam), state, split, batch_size=250)
    ours = [metrics.text(row, spec.tokenisers['target']) for row in tokens]
    scores[str(beam)] = metrics.compare(ours, references, spec)
  heading, signatures = f'{name} split, {split.size:,} texts, step {t}', [] if spec.by_rule else metrics.signatures()
  writers.write_json(folder / 'report.json', {'heading': heading, 'beams': scores, 'signatures': signatures})
  shown = lambda name, x: f'{100 * x:.2f} %' if name == 'accuracy' else f'{x:.2f}'
  rows = [(f'beam {beam}', *(shown(name, x) for name, x in row.items())) for beam, row in scores.items()]
  notes = [f'{row["metric"]}: sacrebleu {row["signature"]}' for row in signatures]
  lines = [heading, '', *table(rows, ('', *next(iter(scores.values())))), '', *notes, '']
  writers.write_bytes(folder / 'report.txt', '\n'.join(lines).encode())
  each = [f'source     {a}\nreference  {b}\nours       {c}\n' for a, b, c in zip(sources, references, ours)]
  writers.write_bytes(folder / 'translations.txt', '\n'.join(each).encode())
  align = jax.jit(lambda batch: seq2seq.alignment(model, state.eval_params, batch['source'], batch['target_in']))
  texts.alignments(align, split.fetch(np.arange(split.size)), spec.tokenisers, folder)


# ---- what a run can do ----


@dataclasses.dataclass(frozen=True)
class Search:
  beam: int = config.flag(5, 'Sequences kept in the search; 1: greedy.', low=1, high=2**12)
  length_penalty: float | None = config.flag(None, "The power of (5 + length) / 6; the run's if not given.", low=0)
  unknown: bool | None = config.flag(None, "Whether <unk> may be said, as ⁇; the run's if not given.")


def encode(run, texts, chosen):
  """Sources as tokens; words that training had not are said on standard error."""
  spec, tokeniser = run.spec, run.spec.tokenisers['source']
  tokeniser.warn_of_unknown(texts)
  rows = parallel.encode(texts, tokeniser, reverse=spec.reverse)
  length, longest = spec.lengths['source'], max(map(len, rows))
  if longest > length and run.config.model == 'transformer':
    raise UsageError(
      f'a text of {longest - 1} tokens is longer than the {length - 1} that this model has positions for; cut it'
    )
  return {'source': bucketing.padded(rows, max(length, longest))}


class Translations(Predictions):
  """Translates 32 texts at a time, each batch when its first translation is asked for."""

  def __call__(self, state, arrays):
    for rows in predict_batches(self.predict, state, Split.of(**arrays), batch_size=32):
      yield from rows


def function(run, chosen):
  return Translations(translator(network(run.config, run.spec)[0], run.spec, run.config, **dataclasses.asdict(chosen)))


def decode(run, outputs, texts, chosen):
  for given, tokens in zip(texts, outputs):
    translation = metrics.text(tokens, run.spec.tokenisers['target']) if given.strip() else ''
    yield {'input': given, 'translation': translation}


def show(answer):
  return answer['translation'] + '\n'


verbs = {'translate': Verb('Translations of texts.', encode, function, decode, 'TEXT …', Search, show)}
