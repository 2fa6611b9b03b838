"""`python -m karpjax.commands.sweep EXPERIMENT '{"learning_rate": [0.1, 0.2]}' [--flag=value …]` trains settings ×
seeds.

They are the seeds of one run, in this order; else it is as `launch.py EXPERIMENT`.
"""

import json
import sys

import numpy as np

from karpjax import command_line, population


def main(name: str, hyper: str, *flags: str) -> int:
  """Trains settings × seeds, in this order, as the seeds of one run; the exit code of `launch.py`."""
  experiment, values = command_line.experiment(name), json.loads(hyper)
  config, settings = command_line.parse(experiment.Config, flags), len(next(iter(values.values())))
  seeds = [config.seed + s for s in range(config.seeds)]
  each = {name: np.repeat(numbers, len(seeds)).tolist() for name, numbers in values.items()}
  # Curves of all members together, as of so many seeds, would mislead.
  own = [f'--seeds={settings * len(seeds)}', '--noplots']
  return command_line.main(population.varied(experiment, each, seeds * settings), [*flags, *own])


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
