"""Token classification: the names in a text, or any other tags of its words.

python launch.py token_classification                                      # made sentences whose names are new: 1 min on two CPU cores
python launch.py token_classification --model=bilstm_crf
python launch.py token_classification --dataset=conll:DIR                  # train, valid and test, .txt or .conll
python launch.py token_classification --dataset=conll2003 --data_dir=DIR   # TFDS, where it is prepared

Ma & Hovy 2016, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF"; entity F1 by seqeval.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config, options
from karpjax.commands import explain
from karpjax.data import frequencies, splitting, tagged, text, tokenisers
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.explaining import texts as explaining
from karpjax.lean import distillation
from karpjax.metrics import classification, collect
from karpjax.metrics import tagging as metrics
from karpjax.models import tagging as models
from karpjax.program import AUGMENT, Input, Program, dropout_key, example_keys
from karpjax.report import classification as reports
from karpjax.train.predict import predict_split
from karpjax.train.step import ordinary
from karpjax.verbs import Verb, predictions

Spec = text.TextSpec
MISTAKES = 30  # sentences of report.txt


@config.defaults(
  lower=True, test=0.2, steps='10epochs', select='-validation/f1', batch_size=32, learning_rate=3e-3, clip=5.0
)
class Config(config.Train, text.Flags, config.model_flags(models.MODELS)):
  dataset: str = config.flag(
    'entities', 'entities, conll:DIR, or a TFDS name of tokens and tags, such as conll2003.', path=True
  )
  word_dropout: float = config.flag(
    0.1, 'Fraction of words that are <unk> in training, so that <unk> learns a meaning.', low=0, below=1
  )
  length: int = config.data_flag(
    0, 'Longer sentences are read in pieces of so many words, and scored whole; 0: none is.', low=0
  )
  word_length: int = config.data_flag(20, 'Characters of a word; of a longer one the first and the last.', low=2)
  model: str = config.flag('bilstm', 'The model: tags on their own, or in a chain.', choices=models.MODELS)


data = tagged.load


def program(config: Config, data: Dataset) -> Program:
  spec = data.spec
  sizes = {'words': spec.tokenisers['text'].size, 'alphabet': spec.tokenisers['characters'].size}
  shape, letters = (spec.lengths['text'],), spec.lengths['characters']
  inputs = [jnp.ones((1, *shape, *rest), jnp.int32) for rest in ((), (letters,))]
  decided = {**sizes, 'tags': len(spec.classes), 'dtype': jnp.dtype(config.dtype)}
  model = options.build(models.MODELS, config.model, config, *inputs, **decided)
  examples, taught = collect.evaluated(config, data.splits), distillation.configured(config, data)

  def loss(params, collections, batch, key):
    tokens, words = batch['tokens'], (batch['targets'] >= 0).sum().astype(jnp.float32)
    if config.word_dropout:
      keys = example_keys(jax.random.fold_in(key, AUGMENT), batch)
      dropped = jax.vmap(lambda k: jax.random.bernoulli(k, config.word_dropout, tokens.shape[1:]))(keys)
      tokens = jnp.where(dropped & (tokens > 0), tokenisers.UNKNOWN, tokens)
    rngs = {'dropout': dropout_key(key, batch)}
    outputs = model.apply({'params': params}, tokens, batch['characters'], train=True, rngs=rngs)
    measured = {'loss': (-models.log_likelihood(*outputs, batch['targets']).sum(), words)}
    logits = models.logits(*outputs, tokens > 0)
    return taught(measured, logits, {**batch, 'tokens': tokens}, batch['targets'] >= 0), collections

  def scores(state, batch):
    return model.apply(state.variables(), batch['tokens'], batch['characters'])

  def predict(state, batch, key):
    return models.decode(*scores(state, batch), batch['tokens'] > 0)

  def logits(state, batch, key):
    return models.logits(*scores(state, batch), batch['tokens'] > 0)

  def example_losses(state, batch, key):
    words = (batch['targets'] >= 0).sum(1)
    return -models.log_likelihood(*scores(state, batch), batch['targets']) / jnp.maximum(words, 1)

  def evaluate(state, batch, key):
    outputs = scores(state, batch)
    losses, tags = -models.log_likelihood(*outputs, batch['targets']), models.decode(*outputs, batch['tokens'] > 0)
    whose = batch['begins'], batch['index'], batch['mask']
    return metrics.sums(tags, batch['targets'], losses, *whose, examples=examples)

  return ordinary(
    config,
    model,
    inputs,
    loss,
    evaluate=evaluate,
    summarise=lambda sums: metrics.summarise(sums, spec.classes),
    predict=predict,
    logits=logits,
    exports={'predict': (predict, {'tokens': Input(shape, 'int32'), 'characters': Input((*shape, letters), 'int32')})},
    example_losses=example_losses,
    frozen=taught.frozen,
    lent=taught.lent,
    **frequencies.uninformed(data, 'targets', len(spec.classes)),
    report=functools.partial(report, predict, data, config),
  )


def report(predict, data: Dataset, config: Config, state, t, folder):
  """Leaves the scores by type of entity, the confusion of tags, and some sentences with mistakes."""
  (name, split), classes = data.reported(t == config.steps), data.spec.classes
  targets, begins, predicted = split.column('targets'), split.column('begins'), predict_split(predict, state, split)
  counts = np.zeros((len(classes),) * 2, np.int64)
  np.add.at(counts, (targets[targets >= 0], predicted[targets >= 0]), 1)
  both = [metrics.named(tags, targets, begins, classes) for tags in (targets, predicted)]
  chunks = tagged.marks_chunks(classes)
  scores = metrics.entity_report(*both) if chunks else classification.per_class_report(counts, classes)
  sentences = zip(data.raw[name].column('text'), *both)
  wrong = [lines for sentence, *tags in sentences if (lines := mistake(sentence, *tags))]
  lines = [f'{len(wrong):,} of {len(both[0]):,} sentences with a mistake' + (':' if wrong else ''), '']
  lines += [line for i in splitting.sample(len(wrong), MISTAKES) for line in wrong[i]]
  reports.write_scores(folder, scores, counts, classes, f'{name} split, step {t}', config.seeds, lines)


def mistake(sentence: str, *tags) -> list[str]:
  """A sentence and, as lines, the entities in which its true and its predicted tags differ; [] where in none."""
  expected, predicted = (tagged.chunks(sentence.split(' '), each) for each in tags)

  def listed(ones, others):
    return ', '.join(f'{words} ({kind})' for i, words, kind in ones if (i, words, kind) not in others) or '–'

  if expected == predicted:
    return []
  return [sentence, f'  expected:  {listed(expected, predicted)}', f'  predicted: {listed(predicted, expected)}', '']


# ---- what a run can do ----


def encode(run, texts, chosen):
  return tagged.encode(run.spec, [tagged.words_of(each) for each in texts])


def decode(run, outputs, texts, chosen):
  for given, row in zip(texts, outputs):
    words = tagged.words_of(given)
    yield {'input': given, 'words': words, 'tags': [run.spec.classes[tag] for tag in row[: len(words)]]}


def show(answer):
  return ''.join(f'{word} {tag}\n' for word, tag in zip(answer['words'], answer['tags'])) + '\n'


def encode_why(run, texts, chosen):
  """As `encode`, and 'weights' [n, L] float32: 1 for the words whose tags are explained."""
  sentences, weights = [tagged.words_of(each) for each in texts], []
  for number, words in enumerate(sentences, 1):
    asked = [i for i, word in enumerate(words, 1) if chosen.word in ('', word, str(i))]
    if not asked:
      raise UsageError(f'word={chosen.word}: text {number} has no such word, and {len(words)} words')
    weights.append(asked)
  arrays = tagged.encode(run.spec, sentences)
  places = 1 + np.arange(arrays['tokens'].shape[1])
  return {**arrays, 'weights': np.array([np.isin(places, asked) for asked in weights], np.float32)}


why = explain.text_verb(
  'What words of a text make the tag of a word, or those of all.', encode_why, explaining.Words, explaining.WordOptions,
  lambda spec, text, tokens: tagged.words_of(text),
)  # fmt: skip
predict = Verb('The tags of the words of texts.', encode, predictions, decode, 'TEXT …', show=show)
verbs = {'predict': predict, 'explain': why}
