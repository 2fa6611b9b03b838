"""Runs that are stopped in the middle, as a person or a scheduler stops them."""

import os
import signal

import pytest

from karpjax.train import checkpoint, loop


def run(experiment, settings, folder, stop_at=0, say=None, **changes):
  """Runs an experiment in a folder, by the settings and what changes them; where told, SIGTERM comes at a row's step."""

  def stop(line):
    if stop_at and line.startswith(f'step {stop_at}/'):
      os.kill(os.getpid(), signal.SIGTERM)

  return loop.run(experiment, experiment.Config(**settings | changes, workdir=str(folder)), say=say or stop)


def goes_on_to(whole, run, folder, stop_at: int, **changes) -> dict:
  """The arrays of a run that was stopped at a row's step and went on, which are those of one that never was, to the bit.

  Args:
    whole: {name: array} of that one.
    run: as above, of an experiment and its settings.
  """
  with pytest.raises(SystemExit):
    run(folder, stop_at=stop_at, **changes)
  again = checkpoint.to_arrays(run(folder, **changes).state)
  assert again.keys() == whole.keys() and all(again[name].tobytes() == x.tobytes() for name, x in whole.items())
  return again
