"""What a run writes must survive crashes, and what is derived from it must agree with it."""

import csv
import dataclasses
import json
import math
import os
import struct
import subprocess
import sys
import types
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import image_classification
from karpjax import errors
from karpjax.report import writers
from karpjax.train import run_dir


def lines(folder):
  return (folder / 'metrics.jsonl').read_bytes()


def test_rows_are_one_json_object_a_line(tmp_path):
  with closing(writers.Rows(tmp_path)) as rows:
    rows.append({'step': np.int32(10), 'train/loss': np.float32(0.5), 'steps_per_second': 3})
    rows.append({'step': 20, 'train/loss': np.array([0.25, np.nan]), 'test/accuracy': [1.0, -math.inf]})
  expected = (
    b'{"step": 10, "train/loss": 0.5, "steps_per_second": 3}\n'
    b'{"step": 20, "train/loss": [0.25, null], "test/accuracy": [1.0, null]}\n'
  )
  assert lines(tmp_path) == expected
  first, second = writers.read_rows(tmp_path)
  assert first == {'step': 10, 'train/loss': 0.5, 'steps_per_second': 3}
  assert second['train/loss'][0] == 0.25 and math.isnan(second['train/loss'][1])


def test_jax_numbers_are_plain_numbers():
  jnp = pytest.importorskip('jax.numpy')
  assert writers.plain({'a': jnp.float32(2), 'b': (jnp.arange(2), float('inf'))}) == {'a': 2.0, 'b': [[0, 1], None]}


def test_resume_keeps_the_rows_up_to_the_checkpoint_to_the_byte_wherever_the_file_was_torn(tmp_path):
  with closing(writers.Rows(tmp_path)) as rows:
    for step in range(0, 50, 10):
      rows.append({'step': step, 'train/loss': 1 / (step + 3)})
  whole = lines(tmp_path)
  kept = b''.join(whole.splitlines(keepends=True)[:3])  # steps 0, 10, 20
  for end in [*range(len(kept), len(whole), 6), len(whole)]:
    (tmp_path / 'metrics.jsonl').write_bytes(whole[:end])
    with closing(writers.Rows(tmp_path, resume_step=20)):
      assert lines(tmp_path) == kept
  # and going on from there gives the file of a run that was never interrupted
  with closing(writers.Rows(tmp_path, resume_step=20)) as rows:
    for step in (30, 40):
      rows.append({'step': step, 'train/loss': 1 / (step + 3)})
  assert lines(tmp_path) == whole
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_file_that_needs_no_cut_is_not_rewritten(tmp_path):
  with closing(writers.Rows(tmp_path)) as rows:
    rows.append({'step': 1, 'loss': 2.0})
  before = (tmp_path / 'metrics.jsonl').stat().st_ino
  writers.Rows(tmp_path, resume_step=1).close()
  assert (tmp_path / 'metrics.jsonl').stat().st_ino == before


def test_beginning_anew_leaves_no_old_row(tmp_path):
  with closing(writers.Rows(tmp_path)) as rows:
    rows.append({'step': 0, 'loss': 2.0})
  writers.Rows(tmp_path).close()
  assert lines(tmp_path) == b''


def test_reading_leaves_out_the_line_that_is_being_written(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(
    b'{"step": 1, "a": null}\n\x00\x00\n{"step": 2, "a": 0.1}\n{"step": 3, "a": 0.'
  )
  assert [row['step'] for row in writers.read_rows(tmp_path)] == [1, 2]
  assert writers.read_rows(tmp_path / 'absent') == []


def test_a_full_disk_leaves_no_half_line(tmp_path):
  rows = writers.Rows(tmp_path)
  rows.append({'step': 1, 'loss': 1.0})

  class Full:  # takes ten bytes of a line, then fails
    def __init__(self, file):
      self.file, self.room = file, 10

    def __getattr__(self, name):
      return getattr(self.file, name)

    def write(self, content):
      if not self.room:
        raise OSError(28, 'No space left on device')
      written, self.room = self.file.write(content[: self.room]), 0
      return written

  disk, rows._file = rows._file, Full(rows._file)
  with pytest.raises(OSError, match='No space'):
    rows.append({'step': 2, 'loss': 1.0})
  rows._file = disk
  rows.append({'step': 3, 'loss': 1.0})
  assert lines(tmp_path) == b'{"step": 1, "loss": 1.0}\n{"step": 3, "loss": 1.0}\n'
  rows.close()


def test_json_is_written_in_one_piece(tmp_path, monkeypatch):
  path = tmp_path / 'summary.json'
  writers.write_json(path, {'test/accuracy': 0.5, 'bad': np.float32('nan'), 'folder': tmp_path})
  assert json.loads(path.read_text()) == {'test/accuracy': 0.5, 'bad': None, 'folder': str(tmp_path)}

  def crash(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(writers.os, 'replace', crash)
  with pytest.raises(OSError):
    writers.write_json(path, {})
  assert json.loads(path.read_text())['test/accuracy'] == 0.5
  assert [item.name for item in tmp_path.iterdir()] == ['summary.json']


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='Linux has a device that is always full')
def test_on_a_full_disk_the_old_content_stays_and_the_error_names_the_file(tmp_path):
  path = tmp_path / 'summary.json'
  writers.write_json(path, {'steps': 1})
  (tmp_path / 'summary.json.tmp').symlink_to('/dev/full')
  with pytest.raises(OSError) as failed:
    writers.write_json(path, {'steps': 2})
  assert errors.full_disk(failed.value) == f'the disk is full: {path} could not be written (No space left on device)'
  assert writers.read_json(path) == {'steps': 1} and [item.name for item in tmp_path.iterdir()] == ['summary.json']


def test_an_object_is_read_and_whatever_else_is_empty(tmp_path):
  for content, read in (('{"a": 1}', {'a': 1}), ('{"a": 1', {}), ('[1]', {}), ('', {})):
    (tmp_path / 'a.json').write_text(content)
    assert writers.read_json(tmp_path / 'a.json') == read
  assert writers.read_json(tmp_path / 'b.json') == {}


def test_seeds_are_summarised_by_the_sample_standard_deviation():
  assert writers.summarise_seeds([1, 2, 6]) == {'mean': 3.0, 'std': math.sqrt(7), 'values': [1.0, 2.0, 6.0]}
  assert math.isnan(writers.summarise_seeds([1.0])['std'])
  assert math.isnan(writers.summarise_seeds([1.0, math.inf])['std'])


def test_the_interval_of_a_mean_over_seeds():
  interval = lambda values: writers.final_of_seeds(values)['interval']
  for count in (2, 3, 10, 400):
    values = np.random.default_rng(count).normal(5, 2, count)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(values), list(expected), rtol=1e-10)
  assert all(math.isnan(x) for x in interval([1.0]))
  assert interval([3.0, 3.0, 3.0]) == [3.0, 3.0]
  assert all(math.isnan(x) for x in interval([1.0, math.nan]))


@pytest.mark.parametrize('seeds', [3, 10, 30])
def test_the_interval_covers_the_mean_as_often_as_it_says(seeds):
  drawn = np.random.default_rng(seeds).normal(5, 2, (2000, seeds))
  intervals = np.array([writers.final_of_seeds(values)['interval'] for values in drawn])
  assert np.mean((intervals[:, 0] <= 5) & (intervals[:, 1] >= 5)) == pytest.approx(0.95, abs=0.015)


def test_csv_has_a_column_per_metric_and_per_seed(tmp_path):
  with closing(writers.Rows(tmp_path)) as rows:
    rows.append({'step': 1, 'train/loss': [1.0, 3.0], 'steps_per_second': 5.0})
    rows.append({'step': 2, 'train/loss': [1.0, math.nan], 'test/error': [0.0, 1.0]})
  writers.write_csv(tmp_path)
  with open(tmp_path / 'metrics.csv', newline='') as file:
    first, second = csv.DictReader(file)
  seeds = ['mean', 'std', '0', '1']
  assert list(first) == [
    'step',
    *(f'train/loss/{s}' for s in seeds),
    'steps_per_second',
    *(f'test/error/{s}' for s in seeds),
  ]
  assert [float(first[f'train/loss/{s}']) for s in seeds] == [2.0, math.sqrt(2), 1.0, 3.0]
  assert first['test/error/mean'] == '' and second['steps_per_second'] == ''
  assert second['train/loss/1'] == 'nan' and second['test/error/0'] == '0.0'


def events(folder):
  """Every event of a TensorBoard folder: records of length (8 bytes), checksum (4), content, checksum (4)."""
  from tensorboardX.proto import event_pb2

  for path in sorted((folder / 'tensorboard').iterdir()):
    content = path.read_bytes()
    while content:
      (length,) = struct.unpack('<Q', content[:8])
      event = event_pb2.Event()
      event.ParseFromString(content[12 : 12 + length])
      content = content[16 + length :]
      yield event


def scalars(folder):
  points = [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]
  return [point for point in points if point[0] != 'config/text_summary' and not point[0].startswith('curves')]


def test_tensorboard_is_rebuilt_on_resume_without_stale_or_double_points(tmp_path):
  def run(first, last, resume_step=-1):
    with closing(writers.Rows(tmp_path, resume_step)) as rows:
      board = writers.TensorBoard(tmp_path)
      for step in range(first, last):
        row = {'step': step, 'train/loss': [step + 0.0, step + 1.0], 'steps_per_second': 2.0, 'bad': math.nan}
        rows.append(row)
        board.append(row)
      board.close()

  run(0, 5)
  run(3, 6, 2)
  expected = []
  for step in range(6):
    expected += [('train/loss', step, step + 0.5), ('train/loss/0', step, step), ('train/loss/1', step, step + 1)]
    expected += [('steps_per_second', step, 2.0)]
  assert scalars(tmp_path) == expected


def test_tensorboard_ends_with_the_config_and_the_plots(tmp_path):
  from PIL import Image

  writers.write_json(tmp_path / 'config.json', {'experiment': 'regression'})
  (tmp_path / 'plots').mkdir()
  Image.new('L', (7, 5)).save(tmp_path / 'plots' / 'curves.png')
  board = writers.TensorBoard(tmp_path)
  board.finish({'steps': 9})
  board.close()
  values = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
  step, text = values['config/text_summary']
  assert step == 9 and b'"experiment": "regression"' in text.tensor.string_val[0]
  step, image = values['curves']
  assert step == 9 and (image.image.height, image.image.width) == (5, 7)


def test_nothing_here_imports_tensorflow(tmp_path):
  writers.TensorBoard(tmp_path).close()
  assert 'tensorflow' not in sys.modules


def test_wandb_goes_on_in_the_same_run_and_gets_rows_and_summary(tmp_path, monkeypatch):
  runs = []

  class Run:
    def __init__(self, **arguments):
      self.arguments, self.rows, self.summary, self.finished = arguments, [], {}, False
      runs.append(self)

    def log(self, row, step):
      self.rows.append((step, row))

    def finish(self):
      self.finished = True

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=Run))
  config = dataclasses.replace(image_classification.Config(), steps=2, wandb='offline', plots=False, tensorboard=False)
  description = {'population': None, 'parameters': []}
  sinks = run_dir.open_sinks(tmp_path, 0, config, description, print)
  for step in (1, 2):
    for sink in sinks:
      sink.append({'step': step, 'test/error': [0.5, 0.25], 'steps_per_second': 1.0})
  run_dir.write_results(tmp_path, config, description, {}, sinks)
  for sink in sinks:
    sink.close()
  again = writers.Wandb(tmp_path, 'offline', {})
  again.append({'step': 3, 'train/loss': [1.0, 3.0]})
  again.close()
  half = stats.t.ppf(0.975, 1) * 0.125  # of two seeds
  first, second = runs
  assert first.arguments['id'] == second.arguments['id'] and second.arguments['mode'] == 'offline'
  assert [step for run in runs for step, _ in run.rows] == [1, 2, 3]
  assert second.rows[0][1]['train/loss/mean'] == 2.0 and 'step' not in second.rows[0][1]
  assert first.summary['steps'] == 2 and first.summary['test/error']['interval'] == pytest.approx(
    [0.375 - half, 0.375 + half]
  )
  assert all(run.finished for run in runs)


def test_wandb_that_is_absent_is_said_in_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)  # makes its import fail
  with pytest.raises(errors.UsageError, match='pip install wandb'):
    writers.require_wandb('offline')


def test_a_sweep_s_table_is_read_alike_in_every_locale(tmp_path):
  (tmp_path / 'trials.csv').write_text('trial,model,status,loss\n1,größe,done,0.5\n', 'utf-8')
  script = 'import sys; from karpjax.report import writers; print(ascii(writers.read_trials(sys.argv[1])[0]["model"]))'
  locale = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  read = subprocess.run(
    [sys.executable, '-c', script, tmp_path], env=os.environ | locale, capture_output=True, text=True
  )
  assert read.stdout.strip() == ascii('größe'), read.stderr
