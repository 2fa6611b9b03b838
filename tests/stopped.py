"""Runs that are stopped in the middle, as a person or a scheduler stops them."""

import os
import signal

from karpjax.train import loop


def run(experiment, settings, folder, stop_at=0, say=None, **changes):
  """Runs an experiment in a folder, by the settings and what changes them; where told, SIGTERM comes at a row's step."""

  def stop(line):
    if stop_at and line.startswith(f'step {stop_at}/'):
      os.kill(os.getpid(), signal.SIGTERM)

  return loop.run(experiment, experiment.Config(**settings | changes, workdir=str(folder)), say=say or stop)
