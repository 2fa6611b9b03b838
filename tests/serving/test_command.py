"""`launch.py serve`: as a process, under many connections, and what it refuses to serve."""

import asyncio
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import launch
from experiments import image_classification, policy_gradient
from karpjax import errors
from karpjax.lean import quantisation
from karpjax.serving import app, command, predicting

ROOT = Path(__file__).parents[2]


def picture():
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(file := io.BytesIO(), 'PNG')
  return file.getvalue()


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_process_answers_until_it_is_told_to_stop(classifier, number):
  argv = [sys.executable, 'launch.py', 'serve', classifier, '--port=0', '--top=1']
  environment = {**os.environ, 'XLA_FLAGS': ''}
  with subprocess.Popen(
    argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    try:
      address = process.stdout.readline().split()[0]
      with urllib.request.urlopen(f'{address}/predict', picture()) as response:
        assert len(json.load(response)['answers'][0]['classes']) == 1
      process.send_signal(number)
      _, said = process.communicate(timeout=20)
    finally:
      process.kill()
  assert process.returncode == 0 and said == 'weights of step 60 (best)\n'


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--port=99999'], '--port=99999: at least 0 and at most 65535'), (['--host=203.0.113.9'], 'cannot be used'),
    (['--host=nowhere.invalid'], 'cannot be used'), (['--prot=1'], 'Did you mean --port?'), (['--queue=0'], '--queue=0: at least 1'),
    (['--token=a '], 'no header can hold it'), (['--token=a\nb'], 'no header can hold it'),
    (['--timeout=nan'], '--timeout'), (['--beam=3'], 'unknown flag --beam'), (['--checkpoint=7'], '--checkpoint=7'),
  ],
)  # fmt: skip
def test_bad_flags_are_refused_in_a_line(classifier, flags, said, capsys):
  assert launch.main(['serve', classifier, *flags]) == 2
  assert said in (err := capsys.readouterr().err) and err.count('\n') == 1


def test_a_busy_port_is_refused_before_anything_is_compiled(classifier, capsys, monkeypatch):
  monkeypatch.setattr(command, 'service', None)
  with socket.create_server(('127.0.0.1', 0)) as taken:
    assert launch.main(['serve', classifier, f'--port={taken.getsockname()[1]}']) == 2
  assert 'cannot be used: Address already in use' in (err := capsys.readouterr().err) and err.count('\n') == 1


def test_what_is_not_installed_is_said(classifier, capsys, monkeypatch):
  monkeypatch.setattr(command, 'NEEDED', ('starlette', 'starlette_of_nobody'))
  assert launch.main(['serve', classifier]) == 2
  assert capsys.readouterr().err == 'serve: serve needs starlette_of_nobody: pip install -r requirements-serve.txt\n'


def test_what_is_no_run_or_not_begun_is_refused(tmp_path, capsys):
  assert launch.main(['serve']) == launch.main(['serve', str(tmp_path)]) == 2
  assert launch.main(['serve', '--help']) == 0
  captured = capsys.readouterr()
  assert 'which run?' in captured.err and '--megabytes' in captured.out


def test_a_run_without_a_checkpoint_is_refused(classifier, tmp_path, capsys):
  for name in ('config.json', 'data.json'):
    if (Path(classifier) / name).exists():
      (tmp_path / name).write_bytes((Path(classifier) / name).read_bytes())
  assert launch.main(['serve', str(tmp_path), '--port=0']) == 2
  assert 'holds no checkpoint yet' in capsys.readouterr().err


def test_a_run_of_reinforcement_learning_answers_no_requests(untrained):
  run = untrained(image_classification, model='mlp', widths=(2,))
  run.verbs, run.stored = policy_gradient.verbs, {'experiment': 'policy_gradient'}
  with pytest.raises(errors.UsageError, match='policy_gradient, none of whose verbs, play, answers requests'):
    command.service(run, command.known_flags(run)())


def test_what_enters_layers_is_quantised_as_in_training(untrained, monkeypatch):
  x = np.array([1, 0.301], np.float32)
  monkeypatch.setattr(predicting, 'Predicting', lambda *_: quantisation.entering(x, 0))
  for kind, same in (('none', True), ('w8a8', False)):
    run = untrained(image_classification, model='mlp', widths=(2,), quantise=kind)
    assert np.array_equal(command.service(run, command.known_flags(run)()), x) == same


def test_other_machines_are_warned_of(classifier, capsys, monkeypatch):
  monkeypatch.setattr(command, 'service', lambda *_: (_ for _ in ()).throw(errors.UsageError('stop')))
  for flags in ([], ['--token=a'], ['--host=localhost']):
    launch.main(['serve', classifier, '--port=0', '--host=0.0.0.0', *flags])
  assert capsys.readouterr().err.count('anybody who reaches 0.0.0.0') == 1
  assert app.is_loopback('127.1.2.3') and app.is_loopback('::1') and not app.is_loopback('127.example')


def test_a_head_that_has_no_end_or_does_not_come_is_cut_off(answering, monkeypatch):
  monkeypatch.setattr(command, 'LONGEST_HEAD', 1000)
  answer = Starlette(routes=[Route('/', lambda request: PlainTextResponse('ok'))])
  made = types.SimpleNamespace(asgi=answer, limits=app.Limits(timeout=0.5))
  good = b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'

  def said(*parts):
    with socket.create_connection((host, int(port)), timeout=20) as client:
      for part in parts:
        client.sendall(part)
        time.sleep(0.2)
      return b''.join(iter(lambda: client.recv(4096), b''))

  with answering(made) as address:
    host, port = address.removeprefix('http://').split(':')
    for parts in ([b''], [b'GET / HT'], [b'GET / HTTP/1.1\r\nX: '], [good, b'GET']):
      assert b' 408 Request Timeout' in said(*parts)
    assert said(good).endswith(b'ok')  # and nothing behind it, when it is closed
    assert b' 431 ' in said(b'GET / HTTP/1.1\r\nX: ', b'a' * 2000)
    assert said(good[:-2], b'Connection: close\r\n\r\n').endswith(b'ok')


def test_a_thousand_connections_at_once_are_answered_and_the_server_lives_on(untrained, application, answering):
  low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
  if high < 4096:
    pytest.skip('too few open files are allowed')
  body, statuses = picture(), []
  head = f'POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'.encode()

  async def one(port):
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(head + body)
    answer = await reader.read()
    statuses.append(int(answer.split()[1]))
    writer.close()

  async def many(port):
    await asyncio.gather(*(one(port) for _ in range(1000)))

  run = untrained(image_classification, model='mlp', widths=(2,))
  resource.setrlimit(resource.RLIMIT_NOFILE, (max(low, 4096), high))
  try:
    with answering(application(run, app.Limits(timeout=600))) as address:  # slow clients
      asyncio.run(many(int(address.rpartition(':')[2])))
      assert len(statuses) == 1000 and set(statuses) <= {200, 429, 503} and 200 in statuses
      with urllib.request.urlopen(f'{address}/predict', body) as response:
        assert response.status == 200
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))
