"""A full disk: one line at the first write that fails, whatever it was to be; what was saved stays, and the run goes on from it."""

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import image_classification as experiment
from karpjax.report import writers
from karpjax.train import checkpoint, loop

SMALL = dict(
  model='mlp', widths=(16,), batch_size=16, steps='24', log_every='2', eval_every='8', checkpoint_every='2', checkpoint_seconds=0, keep=100,
  steps_per_call='2', compilation_cache='off',
)  # fmt: skip


class SmallDisk:
  """A folder in which little fits: a file system of its own where one may be mounted, else by a limit on each file's size."""

  def __init__(self, folder: Path, size: int, limit: int):
    folder.mkdir()
    self.folder, self.limits = folder, resource.getrlimit(resource.RLIMIT_FSIZE)
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', str(folder)]
    self.mounted = bool(shutil.which('mount')) and not subprocess.run(mount, capture_output=True).returncode
    if not self.mounted:
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1024, self.limits[1]))

  def grow(self):
    if self.mounted:
      subprocess.run(['mount', '-o', 'remount,size=100m', str(self.folder)], check=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

  def close(self):
    self.grow()
    if self.mounted:
      subprocess.run(['umount', '-l', str(self.folder)], check=True)


def run(folder, **changes):
  return loop.run(experiment, experiment.Config(**SMALL | changes, workdir=str(folder)), say=lambda line: None)


def rows(folder):
  timed = 'steps_per_second'
  return [{n: x for n, x in row.items() if n != timed} for row in writers.read_rows(folder)]


def same_bits(a, b):
  a, b = (checkpoint.to_arrays(summary.state) for summary in (a, b))
  return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(tmp_path, capfd):
  whole = run(tmp_path / 'whole', keep=2, plots=False, tensorboard=False)
  disk = SmallDisk(tmp_path / 'disk', 400, 20)
  with contextlib.closing(disk):
    folder = disk.folder / 'run'
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
      run(folder, plots=False)
    why = 'the disk is full' if disk.mounted else 'a file would be larger than is allowed'
    text = stopped.value.code
    assert re.fullmatch(
      rf'stopped: {why}: {folder}\S* could not be written \(.*\)\. What was saved is intact; .*', text
    )
    assert capfd.readouterr() == ('', '')
    store = checkpoint.Checkpoints(folder / 'checkpoints')
    saved = store.steps('last')
    assert saved and all(store.load('last', step) for step in saved)
    assert not list((folder / 'checkpoints').rglob('*tmp*'))
    disk.grow()
    assert same_bits(run(folder, plots=False), whole) and rows(folder) == rows(tmp_path / 'whole')


FILES = ('data.json', 'config.json', 'report.txt', 'metrics.csv', 'plots/curve_loss.png', 'summary.json', 'index.html')


def stops(folder, name):
  with pytest.raises(SystemExit, match=rf'^stopped: the disk is full: \S*/{name}\S* could not be written') as stopped:
    run(folder, steps='4')
  assert '\n' not in stopped.value.code


@pytest.mark.slow
@pytest.mark.skipif(not Path('/dev/full').exists(), reason='Linux has a device that is always full')
def test_every_file_of_a_run(tmp_path):
  """In the order in which they are written; each time the run goes on, and at last ends as one that was never stopped."""
  for name in FILES:
    place = tmp_path / 'run' / f'{name}.tmp'  # as it is called while it is written
    place.parent.mkdir(exist_ok=True, parents=True)
    place.symlink_to('/dev/full')
    stops(tmp_path / 'run', name)
  assert same_bits(run(tmp_path / 'run', steps='4'), run(tmp_path / 'whole', steps='4', plots=False, tensorboard=False))
  assert json.loads((tmp_path / 'run' / 'summary.json').read_text())['steps'] == 4


def no_room():
  raise OSError(28, 'No space left on device')


def test_rows_and_scalars(tmp_path, monkeypatch):
  from tensorboardX.event_file_writer import EventsWriter

  write = writers.write_whole
  full = lambda file, x: no_room() if b'"step": 4' in x and 'json' in str(file.name) else write(file, x)
  monkeypatch.setattr(writers, 'write_whole', full)
  stops(tmp_path, 'metrics.jsonl')
  assert [row['step'] for row in rows(tmp_path)] == [2]
  monkeypatch.setattr(writers, 'write_whole', write)
  monkeypatch.setattr(EventsWriter, 'flush', lambda self: no_room())
  stops(tmp_path, 'tensorboard')


@pytest.mark.slow
def test_of_the_whole_process_nothing_else_is_said(tmp_path):
  disk = SmallDisk(tmp_path / 'disk', 1500, 20)
  flags = [f'--{name}={",".join(map(str, x)) if isinstance(x, tuple) else x}' for name, x in SMALL.items()]
  with contextlib.closing(disk):
    command = [
      sys.executable,
      'launch.py',
      'image_classification',
      *flags,
      '--steps=2000',
      f'--workdir={disk.folder}/run',
    ]
    with open(disk.folder / 'output.txt', 'w') as output:  # on the same disk
      done = subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], check=False
      )
    assert done.returncode == 1 and done.stderr.count('\n') == 1 and done.stderr.startswith('stopped: '), done.stderr
