"""The experiment from its front door: it goes on to the bit, its numbers are those of its texts, and bad input is said."""

import dataclasses
import io
import json
import os
import signal
import types

import jax
import numpy as np
import pytest

import karpjax
from experiments import translation as experiment
from karpjax.commands import check as recipe
from karpjax.commands import use
from karpjax.data import parallel
from karpjax.report import writers
from karpjax.train import checkpoint, loop

SMALL = dict(
  examples=300, model='gru', units=(12,), embedding=8, dropout=0.1, batch_size=16, steps='33', beam=5,
  log_every='5', eval_every='11', checkpoint_every='11', checkpoint_seconds=0, eval_batch_size=15, steps_per_call='1', plots=False,
  tensorboard=False,
)  # fmt: skip
PLAIN = dict(model='lstm', attention='none', dropout=0.0)
TRANSFORMER = dict(model='transformer', layers=1, heads=2, width=8, hidden=8, units=None, embedding=None, dropout=0.0)


def run(folder, stop_at=None, **changes):
  """Trains; sends itself SIGTERM when the row of step `stop_at` is printed."""

  def say(line):
    if stop_at and line.startswith(f'step {stop_at}/'):
      os.kill(os.getpid(), signal.SIGTERM)

  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=say)


def rows(folder):
  times = ('seconds', 'steps_per_second')
  return [{n: x for n, x in row.items() if n not in times} for row in map(json.loads, open(folder / writers.METRICS))]


@pytest.fixture(autouse=True, scope='module')
def fewer_programs():
  """Two lengths instead of four, and one beam instead of three, are less compilation."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, 'BUCKETS', 2)
    patch.setattr(experiment, 'BEAMS', (5,))
    yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A short run with all that it leaves."""
  folder = tmp_path_factory.mktemp('whole')
  return run(folder, plots=True), folder


@pytest.mark.slow
def test_stopped_and_gone_on_gives_the_same_bits(tmp_path):
  """With batches cut to their lengths."""
  whole = run(tmp_path / 'whole', order='bucketed')
  with pytest.raises(SystemExit):
    run(tmp_path / 'parts', stop_at=22, order='bucketed')
  again = run(tmp_path / 'parts', order='bucketed')
  ours, theirs = (checkpoint.to_arrays(s.state) for s in (again, whole))
  assert [n for n in theirs if ours[n].tobytes() != theirs[n].tobytes()] == []
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')


def test_what_a_run_reports_is_of_the_texts_it_leaves(whole):
  numbers, folder = whole[0].numbers, whole[1]
  data = experiment.data(experiment.Config(**SMALL))
  texts = [block.splitlines() for block in (folder / 'translations.txt').read_text().split('\n\n')]
  lines = [[line.split('  ', 1)[1].strip() if '  ' in line else '' for line in block[:3]] for block in texts]
  assert [line[0] for line in lines] == data.raw['test'].arrays['source'].tolist()
  assert [line[1] for line in lines] == data.raw['test'].arrays['target'].tolist()
  report = json.loads((folder / 'report.json').read_text())
  assert report['beams']['5']['accuracy'] == np.mean([ours == theirs for _, theirs, ours in lines])
  assert report['beams']['5']['accuracy'] == numbers['test/accuracy']
  assert 'beam 5' in (folder / 'report.txt').read_text()
  assert (folder / 'plots' / 'alignments.png').stat().st_size > 5000
  np.testing.assert_allclose(numbers['test/perplexity'], np.exp(numbers['test/loss']))


def test_translate_says_what_the_report_says(whole, capsys, monkeypatch):
  blocks = [b.splitlines() for b in (whole[1] / 'translations.txt').read_text().split('\n\n')][:3]
  sources, ours = ([block[i].split('  ', 1)[1].strip() for block in blocks] for i in (0, 2))
  assert use.main('translate', [str(whole[1]), *sources]) == 0
  assert capsys.readouterr().out.splitlines() == ours
  monkeypatch.setattr('sys.stdin', io.StringIO(f'{sources[1]}\n\n{sources[2]} €\n'))
  assert use.main('translate', [str(whole[1]), '-', '--beam=5']) == 0
  captured = capsys.readouterr()
  assert captured.out.splitlines()[:2] == [ours[1], ''] and len(captured.out.splitlines()) == 3
  assert "taken as unknown: '€'" in captured.err
  assert [answer['translation'] for answer in karpjax.open(whole[1]).translate(sources)] == ours


def test_bytes_that_are_no_text_are_refused_in_one_line(whole, capsys, monkeypatch):
  """As an argument, which Python then gives lone surrogates for, and on standard input."""
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'1 May 2020\n\xff\xfe1\n'), encoding='utf-8'))
  for given, said in (('\udcff1', r'input 1, \udcff1: it has bytes'), ('-', r'input 2, \udcff\udcfe1: it has bytes')):
    assert use.main('translate', [str(whole[1]), given]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count('\n') == 1 and not captured.out


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['nowhere', 'x'], 'nowhere: no such folder'),
    (['{run}', 'x', '--beam=0'], '--beam=0: at least 1'),
    (['{run}', 'x', '--length_penalty=-1'], '--length_penalty=-1'),
  ],
)
def test_translate_refuses_in_one_line(whole, capsys, arguments, message):
  assert use.main('translate', [a.format(run=whole[1]) for a in arguments]) == 2
  *before, last = capsys.readouterr().err.splitlines()
  assert message in last and all(line.startswith('weights of step') for line in before)


def test_what_is_chosen_goes_before_what_the_run_has(monkeypatch):
  monkeypatch.setattr(experiment.seq2seq, 'translate', lambda *_, **search: search)
  run = types.SimpleNamespace(spec=types.SimpleNamespace(lengths={'target': 7}), eval_params={})
  made = lambda chosen: experiment.translator(
    None, run.spec, experiment.Config(beam=2, unknown=True), **dataclasses.asdict(chosen)
  )(run, {'source': ()}, None)
  assert made(experiment.Search()) == {'beam': 5, 'length_penalty': 1.0, 'unknown': True, 'steps': 7}
  chosen = made(experiment.Search(beam=3, length_penalty=0.0, unknown=False))
  assert chosen == {'beam': 3, 'length_penalty': 0.0, 'unknown': False, 'steps': 7}


@pytest.mark.slow
def test_each_seed_is_what_it_is_alone(tmp_path):
  options = dict(dropout=0.0, steps='3', eval_every='0', checkpoint_every='0', log_every='1', final_splits=('test',))
  both = run(tmp_path / 'both', seeds=2, **options)
  alone = run(tmp_path / 'alone', seed=1, **options)
  for a, b in zip(jax.tree.leaves(both.state.params), jax.tree.leaves(alone.state.params)):
    np.testing.assert_allclose(a[1], b, atol=1e-5)
  np.testing.assert_allclose(both.numbers['test/loss']['values'][1], alone.numbers['test/loss'], rtol=1e-4)


@pytest.mark.parametrize(
  'layout, model',
  [
    ('pmap', PLAIN),
    ('pmap', TRANSFORMER),
    ('fsdp', TRANSFORMER),
    ('tensor', TRANSFORMER | {'heads': 8}),
  ],
)
@pytest.mark.slow
def test_many_devices_give_the_same_losses_and_translations(tmp_path, layout, model):
  options = dict(
    **model, steps='3', eval_every='0', checkpoint_every='0', log_every='1', eval_splits=(), final_splits=('test',)
  )
  one, many = (run(tmp_path / how, parallel=how, **options) for how in ('none', layout))
  for a, b in zip(rows(tmp_path / 'none'), rows(tmp_path / layout)):
    np.testing.assert_allclose(a['train/loss'], b['train/loss'], rtol=1e-5)
  assert one.numbers['test/accuracy'] == many.numbers['test/accuracy']
  np.testing.assert_allclose(one.numbers['test/loss'], many.numbers['test/loss'], rtol=1e-5)


@pytest.mark.slow
def test_the_recipe_finds_nothing_wrong(capsys):
  flags = ['--examples=400', '--units=48', '--embedding=24', '--order=bucketed', '--learning_rate=0.005']
  assert recipe.main(['translation', *flags]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_default_learns_to_write_dates(tmp_path):
  settings = experiment.Config(workdir=str(tmp_path), tensorboard=False, plots=False)
  assert loop.run(experiment, settings, say=lambda _: None).numbers['test/accuracy'] > 0.99


@pytest.mark.slow
def test_multi30k_runs_and_is_scored(shared_data, tmp_path):
  options = dict(
    dataset='multi30k',
    data_dir=str(shared_data / 'files'),
    minimum_frequency=2,
    examples=experiment.Config.examples,
    eval_batch_size=250,
  )
  numbers = run(tmp_path, **TRANSFORMER, **options, steps='20', eval_every='0', plots=True).numbers
  report = json.loads((tmp_path / 'report.json').read_text())
  for name in ('bleu', 'bleu_13a', 'chrf'):
    np.testing.assert_allclose(numbers[f'test/{name}'], report['beams']['5'][name])
  assert 'tok:none' in (tmp_path / 'report.txt').read_text()
