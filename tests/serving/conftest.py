"""Runs to be served, untrained: a server does not care how good an answer is."""

import contextlib
import importlib.util
import threading
import time
import types
from pathlib import Path

import jax
import pytest

from karpjax.serving import command
from karpjax.train import loop

collect_ignore_glob = [] if all(map(importlib.util.find_spec, (*command.NEEDED, 'httpx2', 'openai'))) else ['test_*']


@pytest.fixture(scope='session')
def untrained():
  """(experiment, **settings) -> what a server asks of a run."""

  def make(experiment, **settings):
    program, data, config = loop.prepare(experiment, experiment.Config(**settings))
    return types.SimpleNamespace(
      folder=Path('runs/mine'), spec=data.spec, program=program, config=config, state=program.init(jax.random.key(3)),
      verbs=experiment.verbs, step=0, checkpoint='best', whose='', stored={'experiment': loop.name_of(experiment)},
    )  # fmt: skip

  return make


@pytest.fixture(scope='session')
def application():
  """(run, limits, **flags) -> an `App`."""
  from karpjax.serving import app

  def make(run, limits=app.Limits(), **flags):
    return app.App(command.service(run, command.known_flags(run)(**flags)), limits)

  return make


@pytest.fixture(scope='session')
def answering():
  """An App -> the address at which a server answers for it, within a `with`."""

  @contextlib.contextmanager
  def serve(made):
    with command.listening('127.0.0.1', 0) as listener:
      server = command.server(made)
      thread = threading.Thread(target=server.run, args=([listener],))
      thread.start()
      while not server.started:
        time.sleep(0.01)
      try:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'
      finally:
        server.should_exit = True
        thread.join()

  return serve


@pytest.fixture
def compilations():
  """A list that grows whenever something is compiled."""
  compiled, going = [], [True]

  def note(name, *_, **__):
    if going and 'compile' in name:
      compiled.append(name)

  jax.monitoring.register_event_duration_secs_listener(note)
  yield compiled
  going.clear()
