"""launch.py runs and launch.py compare, on folders as runs leave them."""

import fcntl
import json
import re
import urllib.parse

import pytest

from karpjax.commands import runs


def make(folder, *, test=None, steps=20, written=20, seeds=1, experiment='image_classification', **flags):
  """A run's folder: with final numbers where `test` says a loss, else stopped at step `written`."""
  folder.mkdir(parents=True)
  flags = {'model': 'cnn', 'learning_rate': 0.001, 'steps': steps, 'workdir': str(folder), **flags}
  changed = {name: value for name, value in flags.items() if name not in ('model', 'workdir', 'steps')}
  (folder / 'config.json').write_text(json.dumps({'experiment': experiment, 'flags': flags, 'changed': changed}))
  rows = [{'step': t, 'train/loss': [1 / t] * seeds if seeds > 1 else 1 / t} for t in range(10, written + 1, 10)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  if test is not None:
    value = {'mean': test, 'std': 0.5, 'values': [test - 0.5, test + 0.5]} if seeds > 1 else test
    (folder / 'summary.json').write_text(json.dumps({'steps': steps, 'test/loss': value, 'seconds': 61.2}))
  (folder / '.lock').touch()
  return folder


def test_the_table_says_what_differs_and_how_each_run_stands(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  make(tmp_path / 'a', test=0.25, learning_rate=0.1, batch_size=7)
  make(tmp_path / 'deep' / 'b', written=10, learning_rate=0.2, batch_size=7)
  make(tmp_path / 'c', experiment='gan', written=0)
  (tmp_path / 'c' / 'error.txt').write_text('NaN')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'config.json').write_text('{"model_type": "gpt2"}')  # another program's
  with open(tmp_path / 'deep' / 'b' / '.lock') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert runs.runs([str(tmp_path)]) == 0
  lines = [re.split(r'  +', line.strip()) for line in capsys.readouterr().out.splitlines()]
  first = next(x for x in lines if x[0] == 'a')
  assert first[1:5] == ['finished', '20/20', 'test/loss 0.25', '0:01:01'] and first[-1] == '--learning_rate=0.1'
  second = next(x for x in lines if x[0] == 'deep/b')
  assert second[1:4] == ['running', '10/20', 'train/loss 0.1'] and second[-1] == '--learning_rate=0.2'
  assert ['all with --batch_size=7'] in lines
  assert next(x for x in lines if x[0] == 'c')[1] == 'failed'
  assert not any('other' in x[0] for x in lines)


def test_the_list_as_json_and_a_folder_that_is_missing(tmp_path, capsys):
  make(tmp_path / 'a', test=0.25)
  assert runs.runs([str(tmp_path), '--json']) == 0
  told = json.loads(capsys.readouterr().out)
  assert (told['experiment'], told['state'], told['metrics']) == (
    'image_classification',
    'finished',
    {'test/loss': 0.25},
  )
  assert runs.runs([str(tmp_path / 'nowhere')]) == 2
  assert 'no such folder' in capsys.readouterr().err


def test_a_sweep_is_one_line_and_its_parts_are_not_listed(tmp_path, capsys):
  folder = tmp_path / 's'
  make(folder / 'part-001', test=1.0)
  (folder / 'sweep.json').write_text(json.dumps({'command': 'python launch.py sweep gan --grid latent=1,2'}))
  heads = 'trial,latent,status,validation/loss,validation/loss/std,reason,folder,member'
  (folder / 'trials.csv').write_text(
    f'{heads}\n2,2,done,0.5,,,{folder}/part-001,1\n1,1,failed,,,NaN,{folder}/part-001,0\n'
  )
  assert runs.runs([str(tmp_path)]) == 0
  told = capsys.readouterr().out
  assert 'sweep of gan' in told and 'validation/loss 0.5' in told and '1/2' in told and '--latent=2' in told
  assert 'part-001' not in told


def test_a_page_has_the_numbers_the_flags_that_differ_and_the_curves(tmp_path, capsys):
  a = make(tmp_path / 'a', test=0.25, learning_rate=0.1)
  b = make(tmp_path / 'b', test=0.75, seeds=2, learning_rate=0.2)
  assert runs.compare([str(a), str(b), f'--output={tmp_path / "page"}']) == 0
  told, page = capsys.readouterr().out, (tmp_path / 'page' / 'index.html').read_text()
  for text in (told, page):
    assert '0.75 ± 0.5' in text and '0.25' in text and re.search(r'0\.1\b', text) and re.search(r'0\.2\b', text)
  assert 'workdir' not in told and 'model' not in told
  assert 'curve_train_loss.png' in page and (tmp_path / 'page' / 'plots' / 'curve_train_loss.png').stat().st_size > 5000


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (('a', 'a'), 'a run is given twice'),
    (('a', 'nowhere'), 'no such folder'),
    (('a', ''), 'is no run'),
    (('a', 'other'), 'share no metric'),
  ],
)
def test_bad_input_is_one_line(tmp_path, capsys, given, message):
  make(tmp_path / 'a', test=0.25)
  make(tmp_path / 'other', written=0)
  assert runs.compare([*(str(tmp_path / name) for name in given), f'--output={tmp_path / "page"}']) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1 and not (tmp_path / 'page').exists()


def test_what_is_half_written_or_of_another_program_stops_no_list(tmp_path, capsys):
  make(tmp_path / 'good', test=0.25)
  for name, content in {
    'half': '{"experiment": "x", ',
    'number': '5',
    'null': '{"experiment": "x", "flags": null}',
  }.items():
    (make(tmp_path / name, test=0.5) / 'config.json').write_text(content)
  (make(tmp_path / 'summary', test=0.5) / 'summary.json').write_text('{"steps": 20, "test/lo')
  for name, content in {'sweep': '{"comm', 'other': '{"a": 1}'}.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'sweep.json').write_text(content)
  assert runs.runs([str(tmp_path), '--json']) == 0
  told = {run['run'].rpartition('/')[2]: run for run in map(json.loads, capsys.readouterr().out.splitlines())}
  assert told.keys() == {'good', 'null', 'summary'} and told['good']['state'] == 'finished'
  assert told['summary']['state'] == 'stopped' and told['summary']['metrics'] == {'train/loss': 0.05}


def test_a_run_that_goes_on_to_more_steps_is_not_finished_by_its_old_summary(tmp_path):
  folder = make(tmp_path / 'a', test=0.25, steps=40, written=30)
  (folder / 'summary.json').write_text('{"steps": 20, "test/loss": 0.25, "seconds": 1.0}')
  told = runs.describe(folder)
  assert told['state'] == 'stopped' and told['metrics'] == {'train/loss': 1 / 30} and told['seconds'] is None


def test_a_comparison_takes_no_place_of_a_runs_page_and_keeps_no_old_curves(tmp_path, capsys):
  a, b = (make(tmp_path / name, test=0.25) for name in 'ab')
  part = make(tmp_path / 'part-001', test=0.25)
  (part / 'config.json').write_text('{"experiment": "x", "flags": {}, "population": {"seeds": [0], "hyper": {}}}')
  (tmp_path / 'file').touch()
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own/index.html').write_text('mine')
  for folders, output, message in (
    ((a, b), a, 'holds a run, with a page of its own'),
    ((a, b), tmp_path / 'own', 'has a page that is no comparison'),
    ((a, b), tmp_path / 'file', 'cannot be written'),
    ((a, part), tmp_path / 'page', 'is a part of a sweep'),
  ):
    assert runs.compare([*map(str, folders), f'--output={output}']) == 2
    assert message in capsys.readouterr().err
  assert (tmp_path / 'own/index.html').read_text() == 'mine'
  old = tmp_path / 'page' / 'plots' / 'curve_of_another.png'
  old.parent.mkdir(parents=True)
  old.touch()
  assert runs.compare([str(a), str(b), f'--output={tmp_path / "page"}']) == 0 and not old.exists()


def test_a_page_finds_runs_whose_folders_have_marks_of_addresses(tmp_path, capsys):
  folders = [make(tmp_path / name, test=0.5) for name in ('a#1 50%', 'b?ü')]
  for folder in folders:
    (folder / 'index.html').touch()
  assert runs.compare([*map(str, folders), f'--output={tmp_path / "page"}']) == 0
  found = re.findall(r'href="(\.\./[^"]*)"', (tmp_path / 'page' / 'index.html').read_text('utf-8'))
  assert [urllib.parse.unquote(urllib.parse.urlsplit(link).path) for link in found] == [
    '../a#1 50%/index.html', '../b?ü/index.html',
  ]  # fmt: skip
