"""A tagger learns what can be told from letters and neighbours, goes on to the same bits, and refuses bad input in one line."""

import json

import numpy as np
import pytest

import karpjax
from experiments import token_classification as experiment
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import tagged
from karpjax.train import checkpoint, loop

SMALL = dict(
  embedding=8, character_embedding=8, filters=16, units=(16,), dropout=0.1, word_dropout=0.3, batch_size=16, learning_rate=0.02,
  validation=0.0, steps='120', eval_every='0', checkpoint_every='0', tensorboard=False, plots=False, steps_per_call='30',
)  # fmt: skip


@pytest.fixture(scope='module')
def names(tmp_path_factory):
  """Words that begin with Q are names, and 'von' between two of them joins them; there are endlessly many, and other new words too."""
  folder = tmp_path_factory.mktemp('names')
  rng = np.random.default_rng(0)

  def sentence():
    rows, word = [], lambda: ''.join(rng.choice(list('abcdefg'), 5))
    name = lambda: f'Q{word()}'
    for _ in range(rng.integers(3, 7)):
      match rng.integers(5):
        case 0:
          rows += [(name(), 'B-N')]
        case 1:
          rows += [(name(), 'B-N'), ('von', 'I-N'), (name(), 'I-N')]
        case 2:
          rows += [('von', 'O'), ('dort', 'O')]
        case _:
          rows += [(word(), 'O')]
    return ''.join(f'{word} {tag}\n' for word, tag in rows)

  for split, size in (('train', 300), ('valid', 40), ('test', 60)):
    (folder / f'{split}.txt').write_text('\n'.join(sentence() for _ in range(size)))
  return f'conll:{folder}'


def run(folder, names, **changes):
  settings = experiment.Config(**SMALL | {'dataset': names} | changes, workdir=str(folder))
  return loop.run(experiment, settings, say=lambda _: None)


@pytest.fixture(scope='module')
def trained(names, tmp_path_factory):
  return run(tmp_path_factory.mktemp('trained'), names, model='bilstm_crf', plots=True)


@pytest.mark.slow
def test_new_names_are_told_by_their_letters_and_neighbours(trained):
  assert trained.numbers['test/f1'] > 0.98
  assert trained.numbers['test/accuracy'] > 0.99 and trained.numbers['validation/f1'] > 0.95


def test_the_report(trained, names):
  written = json.loads((trained.folder / 'report.json').read_text())
  assert [row['class'] for row in written['classes']] == ['N']
  np.testing.assert_allclose(written['micro']['f1'], trained.numbers['test/f1'], rtol=1e-12)
  text = (trained.folder / 'report.txt').read_text()
  assert text.startswith('test split, step 120') and 'of 60 sentences with a mistake' in text
  assert (trained.folder / 'plots' / 'confusion_matrix.png').exists()


def test_mistakes_are_listed_by_entity():
  words = ['Die', 'Bank', 'von', 'Bern', 'und', 'Ada', 'Lovelace']
  right = ['O', 'B-ORG', 'I-ORG', 'I-ORG', 'O', 'B-PER', 'I-PER']
  found = [
    'O',
    'B-ORG',
    'O',
    'B-LOC',
    'O',
    'I-PER',
    'I-PER',
  ]  # of the person nothing is wrong: seqeval lets I- begin one
  lines = experiment.mistake(' '.join(words), right, found)
  assert lines[:3] == [
    'Die Bank von Bern und Ada Lovelace',
    '  expected:  Bank von Bern (ORG)',
    '  predicted: Bank (ORG), Bern (LOC)',
  ]


def test_texts_are_tagged_without_the_data(trained, capsys):
  assert use.main('predict', [str(trained.folder), 'Dort Qabcab von Qdefef, drei', 'zwei']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines == ['Dort O', 'Qabcab B-N', 'von I-N', 'Qdefef I-N', ', O', 'drei O', '', 'zwei O', '']
  (answer,) = karpjax.open(trained.folder).predict('Dort Qabcab')
  assert answer == {'input': 'Dort Qabcab', 'words': ['Dort', 'Qabcab'], 'tags': ['O', 'B-N']}
  assert use.main('predict', [str(trained.folder), ' ']) == 2
  assert "' ' has no words" in capsys.readouterr().err


def test_plain_texts_become_words():
  assert tagged.words_of('Dr. Li won 3-1, said J. O\'Neil (in "Oslo"); 10,000 euros.') == [
    'Dr.', 'Li', 'won', '3-1', ',', 'said', 'J.', "O'Neil", '(', 'in', '"', 'Oslo', '"', ')', ';', '10,000', 'euros', '.',
  ]  # fmt: skip


@pytest.mark.slow
def test_resumed_equals_uninterrupted(trained, names, tmp_path):
  run(tmp_path, names, model='bilstm_crf', steps='67')
  resumed = run(tmp_path, names, model='bilstm_crf')
  a, b = checkpoint.to_arrays(trained.state), checkpoint.to_arrays(resumed.state)
  assert a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
  assert trained.numbers['test/f1'] == resumed.numbers['test/f1']


@pytest.mark.slow
def test_replicas_microbatches_and_the_cut_of_the_evaluation_change_nothing(names, tmp_path):
  changes = dict(steps='3', steps_per_call='1', optimiser='sgd', dropout=0.0)
  one = run(tmp_path / 'a', names, **changes).numbers
  many = run(tmp_path / 'b', names, **changes, parallel='pmap', microbatches=2, eval_batch_size=16).numbers
  for name in ('train/loss', 'validation/loss', 'test/loss', 'test/f1', 'test/accuracy'):
    np.testing.assert_allclose(many[name], one[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_of_two_seeds_each_has_its_own_scores(names, tmp_path):
  both = run(tmp_path / 'a', names, steps='3', steps_per_call='1', seeds=2).numbers
  alone = run(tmp_path / 'b', names, steps='3', steps_per_call='1', seed=1).numbers
  assert both['test/loss']['values'][0] != both['test/loss']['values'][1]
  for name in ('test/loss', 'test/f1', 'test/accuracy'):
    np.testing.assert_allclose(both[name]['values'][1], alone[name], rtol=1e-4)


@pytest.mark.slow
def test_the_recipe_passes(names, capsys):
  flags = ['--embedding=8', '--filters=16', '--units=32', '--dropout=0.1', '--learning_rate=0.02', '--batch_size=8']
  code = recipe.main(['token_classification', f'--dataset={names}', '--model=bilstm_crf', *flags])
  assert code == 0, capsys.readouterr().out
