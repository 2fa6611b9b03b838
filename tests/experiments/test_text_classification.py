"""The experiment as a user runs it: texts of several kinds, what a run leaves, resuming, fine-tuning, bad input."""

import csv
import json
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import text_classification as experiment
from karpjax import command_line, config, errors
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import labelled_text, text, tokenisers
from karpjax.data.dataset import Dataset
from karpjax.models import text as models
from karpjax.report import writers
from karpjax.train import checkpoint, loop, run_dir

QUICK = dict(
  embedding=6, channels=4, windows=(2, 3), steps='12', batch_size=16, buckets=1, baseline=False, tensorboard=False,
  plots=False, steps_per_call='3', log_every='3', eval_every='6', learning_rate=0.01,
)  # fmt: skip


def sentences(size=120, seed=0):
  """(text, label): a text is 'hot' where it holds more of sun than of ice."""
  draw = np.random.default_rng(seed)
  rows = []
  for _ in range(size):
    words = draw.choice(['sun', 'ice', 'and', 'the', 'wind'], draw.integers(1, 12)).tolist()
    rows.append((' '.join(words), 'hot' if words.count('sun') > words.count('ice') else 'cold'))
  return rows


@pytest.fixture
def table(tmp_path):
  with open(tmp_path / 'mine.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('text', 'label'), *sentences()])
  return str(tmp_path / 'mine.csv')


def run(folder, say=lambda _: None, **changes):
  return loop.run(experiment, experiment.Config(**QUICK | changes, workdir=str(folder)), say=say)


def arrays(summary):
  return checkpoint.to_arrays(summary.state)


def abstract(model='textcnn', length=12, **changes):
  """(program, shapes of its state and of a batch) without computing anything."""
  tokeniser = tokenisers.Tokeniser('words', tuple(map(str, range(30))), 4)
  spec = text.TextSpec('none', 100, {'text': tokeniser}, {'text': length}, ('a', 'b', 'c'), buckets=(4, length))
  settings = config.resolve(experiment.Config(model=model, batch_size=8, **changes), 100)
  program = experiment.program(settings, Dataset(spec, {}))
  batch = {
    'tokens': jax.ShapeDtypeStruct((8, length), jnp.int32),
    'label': jax.ShapeDtypeStruct((8,), jnp.int32),
    'index': jax.ShapeDtypeStruct((8,), jnp.int32),
  }
  return program, jax.eval_shape(program.init, jax.random.key(0)), batch


@pytest.mark.parametrize('model, options', [('textcnn', {}), ('bilstm', {}), ('transformer', {'layers': 1})])
def test_every_program_lowers_for_accelerators(model, options):
  program, state, batch = abstract(model, **options)
  text = jax.jit(program.step).trace(state, batch).lower(lowering_platforms=('tpu', 'cuda')).as_text()
  assert 'stablehlo.case' in text  # of the lengths
  masked = {**batch, 'mask': jax.ShapeDtypeStruct((8,), jnp.bool_)}
  jax.jit(program.evaluate).trace(state, masked, jax.random.key(0)).lower(lowering_platforms=('tpu', 'cuda'))


@pytest.mark.slow
def test_the_default_is_learnt_and_leaves_a_report_with_tfidf_beside(tmp_path):
  said = []
  small = dict(embedding=24, channels=24, windows=(1, 2), max_length=32, steps='6epochs', batch_size=32, eval_every='0')
  summary = run(tmp_path, said.append, **small, baseline=True, plots=True, learning_rate=0.006)
  # 7 chapters, the largest of which has 28 % of the sentences
  assert summary.numbers['test/accuracy'] > 0.5
  assert {'test/loss', 'test/error', 'test/macro_f1', 'test/ece', 'validation/accuracy'} <= set(summary.numbers)
  table = [line for line in said if 'linear SVM' in line]
  assert len(table) == 1 and any(line.startswith('textcnn ') for line in said)
  report = json.loads((tmp_path / 'report.json').read_text())
  assert 0.6 < report['baselines']['linear SVM']['test/accuracy'] < 0.9
  texts = experiment.data(experiment.Config()).raw['test']
  own = {' '.join(text.split()): label for text, label in zip(texts.arrays['text'], texts.arrays['label'])}
  for row in report['worst_mistakes']:
    assert report['classes'][own[row['text']]]['class'] == row['true'] != row['predicted']
  words = (tmp_path / 'report.txt').read_text()
  assert 'Worst mistakes' in (tmp_path / 'index.html').read_text()
  assert 'Worst mistakes' in words and 'TF-IDF, logistic regression' in words and 'weighted average' in words
  assert {'confusion_matrix', 'reliability_diagram'} <= {p.stem for p in (tmp_path / 'plots').glob('*.png')}
  assert sum(row['support'] for row in report['classes']) == texts.size


@pytest.mark.parametrize('tokeniser', tokenisers.KINDS)
def test_every_tokeniser_is_of_train_alone_and_its_tokens_are_the_texts(table, tokeniser):
  vocabulary = 280 if tokeniser == 'bpe' else 0
  settings = experiment.Config(dataset=table, tokeniser=tokeniser, vocabulary=vocabulary, max_length=60)
  data = experiment.data(settings)
  made = data.spec.tokenisers['text']
  rows = data.splits['test'].arrays['tokens']
  assert [made.decode(row[row > 0]) for row in rows] == data.raw['test'].arrays['text'].tolist()
  alone = tokenisers.make(
    tokeniser,
    data.raw['train'].arrays['text'],
    specials=tokenisers.SPECIALS if made.specials else (),
    vocabulary=vocabulary,
    lower=True,
  )
  assert made == alone


NO_CNN = dict(embedding=None, channels=None, windows=None)


@pytest.mark.parametrize(
  'options',
  [
    pytest.param(dict(tokeniser='characters', windows=(4,), channels=12), marks=pytest.mark.slow),
    pytest.param(NO_CNN | dict(model='bilstm', embedding=8, units=(8,)), marks=pytest.mark.slow),
    NO_CNN | dict(model='transformer', layers=1, heads=2, width=16),
  ],
  ids=['characters', 'bilstm', 'transformer'],
)
@pytest.mark.slow
def test_other_models_and_tokens_learn(tmp_path, table, options):
  options = dict(steps='90', dropout=0.0, eval_splits=(), final_splits=('test',)) | options
  numbers = run(tmp_path / 'run', dataset=table, **options).numbers
  assert numbers['train/error'] < 0.25


@pytest.mark.slow
@pytest.mark.parametrize('seeds', [1, 2])
def test_interrupted_and_continued_gives_the_same_bits(tmp_path, table, seeds):
  options = dict(dataset=table, seeds=seeds, buckets=2)
  whole = run(tmp_path / 'whole', **options)

  def stop(line):
    if line.startswith('step 6/'):
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(SystemExit):
    run(tmp_path / 'parts', stop, **options)
  parts = run(tmp_path / 'parts', **options)
  a, b = arrays(whole), arrays(parts)
  assert a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
  rows = [
    [{n: x for n, x in row.items() if '/' in n} for row in map(json.loads, open(tmp_path / name / writers.METRICS))]
    for name in ('whole', 'parts')
  ]
  assert rows[0] == rows[1]


@pytest.mark.slow
def test_cutting_batches_to_shorter_lengths_changes_no_result(tmp_path, table):
  plain = dict(
    dataset=table, dropout=0.0, steps='6', optimiser='sgd', learning_rate=0.1, eval_splits=(), final_splits=()
  )
  a, b = (arrays(run(tmp_path / str(n), buckets=n, **plain)) for n in (1, 4))
  for name in a:
    np.testing.assert_allclose(b[name], a[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_norms_of_the_last_layer_stay_within_their_limit(tmp_path, table):
  free, bound = (
    arrays(run(tmp_path / str(n), dataset=table, max_norm=n, steps='30', learning_rate=0.05, final_splits=()))
    for n in (0.0, 0.5)
  )
  norms = lambda x: np.linalg.norm(x['params/logits/kernel'], axis=0)
  assert norms(free).max() > 0.6 and norms(bound).max() <= 0.5 + 1e-6


@pytest.mark.slow
def test_an_encoder_trained_before_is_fine_tuned_with_its_own_tokens(tmp_path, table):
  """A made workdir, as masked_language_model leaves it: config.json with spec and sizes, a checkpoint with 'encoder'."""
  words = tokenisers.make('words', [words for words, _ in sentences()], specials=(*tokenisers.SPECIALS, '<mask>'))
  spec = text.TextSpec('made', 10, {'text': words}, {'text': 16})
  sizes = dict(layers=1, heads=2, width=8)
  before = tmp_path / 'before'
  before.mkdir()
  flags = {**sizes, 'dropout': 0.3}
  stored = {'format': run_dir.FORMAT, 'experiment': 'masked_language_model', 'flags': flags, 'spec': spec.to_json()}
  (before / 'config.json').write_text(json.dumps(stored))
  encoder = models.build(experiment.Config(model='transformer', **sizes), spec)
  params = nn.meta.unbox(jax.jit(encoder.init)(jax.random.key(7), jnp.ones((1, 16), jnp.int32))['params'])
  store = checkpoint.Checkpoints(before / 'checkpoints')
  store.save(1, {'state': {'params': {'encoder': params['encoder']}}}, {'seeds': 1})
  store.close()

  said = []
  options = NO_CNN | dict(learning_rate=1e-9, steps='1', dropout=0.0, eval_splits=(), final_splits=())
  summary = run(tmp_path / 'after', said.append, dataset=table, init_from=str(before), **options)
  for name, x in checkpoint.to_arrays(params['encoder']).items():
    np.testing.assert_allclose(arrays(summary)[f'params/encoder/{name}'], x, atol=1e-6, err_msg=name)
  rows = {line.split()[0]: line for line in said if line.startswith('params/')}
  assert 'matched' in rows['params/encoder/tokens/embedding'] and 'new' in rows['params/logits/kernel']
  after = text.TextSpec.from_json(json.loads((tmp_path / 'after' / 'config.json').read_text())['spec'])
  assert after.tokenisers['text'] == words and after.lengths == {'text': 16}
  begun = labelled_text.tokens(['sun'], after)[0]
  assert begun.tolist() == [tokenisers.BEGIN, *words.encode('sun'), *[0] * 14]  # as the encoder has always seen it

  # from there once more, on another table, with the same tokens
  settings = experiment.Config(dataset=table, init_from=str(tmp_path / 'after'), max_length=20)
  data = experiment.data(settings)
  again = data.spec
  assert again.tokenisers == after.tokenisers and again.pretrained == after.pretrained
  with pytest.raises(errors.UsageError, match='20 tokens are more than the 16 positions'):
    experiment.program(config.resolve(settings, 90), data)
  (before / 'config.json').unlink()  # predicting needs the run alone
  assert use.main('predict', [str(tmp_path / 'after'), 'sun and ice']) == 0


@pytest.mark.slow
def test_the_recipe_passes(table, capsys):
  flags = ['--embedding=16', '--channels=8', '--windows=1,2', '--batch_size=32', '--buckets=1', '--learning_rate=0.02']
  assert recipe.main(['text_classification', f'--dataset={table}', *flags]) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('name, least', [('textcnn_trec', 0.882), ('textcnn_finance', 0.71)])
def test_the_flagfiles(tmp_path, shared_data, name, least):
  flags = [
    f'--flagfile=experiments/papers/{name}.flags',
    f'--data_dir={shared_data}',
    '--seeds=1',
    f'--workdir={tmp_path}',
    '--noplots',
  ]
  assert loop.run(experiment, command_line.parse(experiment.Config, flags)).numbers['test/accuracy'] >= least


def test_a_text_without_known_words_and_an_empty_one():
  words = tokenisers.make('words', ['sun'])
  spec = text.TextSpec('none', 1, {'text': words}, {'text': 3}, ('a', 'b'))
  assert labelled_text.tokens(['moon and stars shine'], spec).tolist() == [[tokenisers.UNKNOWN] * 3]
  with pytest.raises(errors.UsageError, match='text 2 is empty'):
    labelled_text.tokens(['sun', ' \n'], spec)


class Normed(nn.Module):
  """A model of a user's own, with a collection."""

  classes: int

  @nn.compact
  def __call__(self, tokens, *, train: bool = False):
    x = nn.BatchNorm(use_running_average=not train)(nn.Embed(50, 4)(tokens % 50).mean(1))
    return nn.Dense(self.classes)(x)


def test_a_model_of_one_s_own_may_have_collections(monkeypatch):
  from karpjax import options

  monkeypatch.setattr(options, 'own_model', lambda name: Normed)
  given = experiment.Config(model='mine:Normed', baseline=False, steps='2', batch_size=8)
  program, data, _ = loop.prepare(experiment, given)
  state = jax.eval_shape(program.init, jax.random.key(0))
  batch = {**data.splits['train'].fetch(np.arange(8)), 'index': np.arange(8, dtype=np.int32)}
  after, _ = jax.eval_shape(program.step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state) and 'batch_stats' in after.collections
