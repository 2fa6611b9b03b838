"""Several processes train as one, and survive what clusters do."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from karpjax import config
from karpjax.commands import local_cluster as rehearse
from karpjax.errors import UsageError
from karpjax.train import hosts, placement

ROOT = Path(__file__).parents[2]
FLAGS = ('--model=mlp', '--widths=64', '--noplots', '--notensorboard', '--steps_per_call=1', '--eval_every=0')


def command(*flags, processes=2, devices=1):
  front = [f'--processes={processes}', f'--devices={devices}'] if processes > 1 else []
  return [sys.executable, str(ROOT / 'launch.py'), *front, 'image_classification', *FLAGS, *flags]


def run(*flags, **counts):
  environment = {**os.environ, 'XLA_FLAGS': ''}
  return subprocess.run(command(*flags, **counts), env=environment, capture_output=True, text=True, timeout=300)


def rows(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_two_hosts_are_one_device_and_go_on_as_one(tmp_path, capsys):
  front = lambda *flags: launch.main(['image_classification', *FLAGS, '--compilation_cache=off', *flags])  # one process
  assert front(f'--workdir={tmp_path / "one"}', '--steps=15', '--log_every=5') == 0
  both = run(f'--workdir={tmp_path / "two"}', '--steps=10', '--log_every=5', '--parallel=fsdp', devices=2)
  assert both.returncode == 0, both.stderr
  assert 'on 2 hosts' in both.stdout and both.stdout.count('workdir:') == 1  # only the first speaks
  capsys.readouterr()
  assert front(f'--workdir={tmp_path / "two"}', '--steps=15', '--parallel=none') == 0
  assert 'goes on at step 10' in capsys.readouterr().out
  one, two = rows(tmp_path / 'one'), rows(tmp_path / 'two')
  assert [r['step'] for r in two] == [r['step'] for r in one] == [5, 10, 15]
  np.testing.assert_allclose([r['train/loss'] for r in two], [r['train/loss'] for r in one], rtol=1e-3)
  assert abs(one[-1]['test/loss'] - two[-1]['test/loss']) < 1e-3


@pytest.mark.parametrize('parallel', ['none', 'pmap'])
def test_several_hosts_need_a_mesh(parallel, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(UsageError, match=f'parallel={parallel} is for one host, and there are 2; give parallel=data'):
    placement.place(config.Train(parallel=parallel), None)


def started(tmp_path):
  """A long run on two hosts, past its first checkpoint: (the rehearsal, process ids of the two)."""
  environment = {**os.environ, 'XLA_FLAGS': ''}
  flags = (
    f'--workdir={tmp_path / "run"}',
    '--steps=200000',
    '--log_every=20',
    '--checkpoint_every=40',
    '--checkpoint_seconds=0',
    '--parallel=data',
  )
  process = subprocess.Popen(
    command(*flags), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 200
  while not list((tmp_path / 'run').glob('checkpoints/last/[0-9]*')):
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.5)
  children = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
  return process, sorted(map(int, children.stdout.split()))


def goes_on(tmp_path):
  """The step at which the same command goes on; it is stopped again once it has trained a little."""
  process, _ = started(tmp_path)
  step = next(int(line.split('step ')[1].split()[0]) for line in process.stdout if line.startswith('goes on at step'))
  next(line for line in process.stdout if line.startswith('step '))
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=120)
  assert process.returncode == 143
  return step


@pytest.mark.slow
def test_a_signal_to_one_host_stops_both_at_the_same_saved_step(tmp_path):
  process, (_, second) = started(tmp_path)
  os.kill(second, signal.SIGTERM)
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 143, errors
  step = int(output.split('stopped by signal 15: step ')[1].split()[0])
  assert step % 20 == 0 and (tmp_path / 'run' / 'checkpoints' / 'last' / str(step)).is_dir()
  assert goes_on(tmp_path) == step


@pytest.mark.slow
def test_when_one_host_is_killed_the_other_ends_in_bounded_time_and_a_restart_goes_on(tmp_path):
  process, (_, second) = started(tmp_path)
  os.kill(second, signal.SIGKILL)
  begun = time.monotonic()
  process.communicate(timeout=150)
  assert process.returncode not in (0, None) and time.monotonic() - begun < 120
  saved = max(int(p.name) for p in (tmp_path / 'run').glob('checkpoints/last/[0-9]*') if p.name.isdigit())
  assert goes_on(tmp_path) == saved


def meet(*calls, timeout=3):
  """What each of some (number, count) meets: None, or its error."""
  port, answers = rehearse.free_port(), {}

  def one(i, number, count):
    try:
      answers[i] = hosts.meet(f'127.0.0.1:{port}', count, number, timeout)
    except UsageError as error:
      answers[i] = str(error)

  threads = [threading.Thread(target=one, args=(i, *call)) for i, call in enumerate(calls)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [answers[i] for i in range(len(calls))]


def test_all_meet():
  assert meet((0, 3), (1, 3), (2, 3), timeout=10) == [None] * 3


def test_the_missing_are_named_to_all_who_came():
  begun = time.monotonic()
  answers = meet((0, 4), (2, 4), timeout=2)
  assert all('of 4 processes these are missing: 1, 3' in a and 'on one worker only' in a for a in answers)
  assert time.monotonic() - begun < 10


def test_without_process_0_the_others_say_so():
  (answer,) = meet((1, 2), timeout=1)
  assert 'process 0 was not found at 127.0.0.1' in answer and 'port is closed' in answer


def test_ids_that_collide_and_counts_that_differ_are_refused():
  assert all('two processes have process_id=1' in a for a in meet((0, 3), (1, 3), (1, 3)))
  assert any('was started with num_processes=2, process 0 with 3' in a for a in meet((0, 3), (1, 2), timeout=2))


@pytest.mark.parametrize(
  'flags, message',
  [
    (dict(process_id=1), 'process_id needs coordinator and num_processes beside it'),
    (dict(coordinator='a:1', num_processes=2, process_id=2), 'process ids run from 0 to 1'),
    (dict(coordinator='a', num_processes=2, process_id=0), 'write HOST:PORT'),
    (dict(coordinator='a:1', num_processes=2, process_id=0, start_timeout=0), 'start_timeout=0'),
  ],
)
def test_flags_that_do_not_fit_together_are_refused(flags, message):
  with pytest.raises(UsageError, match=message):
    hosts.start(config.Train(**flags))


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--processes=0', 'regression'], '--processes=0'),
    (['--processes=2'], 'name an experiment'),
    (['--processes=2', 'regression', '--process_id=1'], 'sets --coordinator'),
  ],
)
def test_a_rehearsal_that_makes_no_sense_is_refused(argv, message, capsys):
  assert rehearse.main(argv) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  'argv, counts',
  [
    (['--devices=8'], dict(processes=1, devices=8)),
    (['--processes', '2'], dict(processes=2, devices=1)),
    (['--processes=2', '--devices=4'], dict(processes=2, devices=4)),
  ],
)
def test_devices_alone_are_those_of_one_process(argv, counts, monkeypatch):
  started = []
  monkeypatch.setattr(rehearse, 'run', lambda argv, **counts: started.append((argv, counts)) or 0)
  assert rehearse.main([*argv, 'regression', '--steps=1']) == 0
  assert started == [(['regression', '--steps=1'], counts)]
