"""`launch.py predict WORKDIR IMAGE …`: the top classes of image files, by a run's best checkpoint. Needs no data set."""

import argparse
import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import checkpoint, config, errors, weights
from karpjax.data import images
from karpjax.data.dataset import Spec
from karpjax.data.text import TextSpec


def load_run(workdir: str | Path):
  """(program, state, spec, experiment, settings) of a run, from its config and its best checkpoint (first seed).

  Raises:
    UsageError: where the folder holds no run or no whole checkpoint.
  """
  workdir = Path(workdir)
  stored = config.saved(workdir)
  if stored is None:
    raise errors.UsageError(f'{workdir} holds no run: it has no config.json')
  experiment = importlib.import_module(f'experiments.{stored["experiment"]}')
  kind = getattr(experiment, 'Spec', TextSpec if 'tokenisers' in stored['spec'] else Spec)
  settings, spec = config.from_json(experiment.Config, stored['flags']), kind.from_json(stored['spec'])
  program = experiment.program(settings, spec)
  arrays, meta = weights.newest(workdir)
  state = {n.removeprefix('state/'): x for n, x in arrays.items() if n.startswith('state/')}
  if meta['seeds'] > 1:
    state = {n: x if n == 'step' else x[0] for n, x in state.items()}
  state = checkpoint.from_arrays(state, jax.eval_shape(program.init, jax.random.key(0)))
  return program, state, spec, experiment, settings


def load(workdir: str | Path):
  """(program, state, spec): what predicting needs of `load_run`."""
  return load_run(workdir)[:3]


def probabilities(program, state, batch: np.ndarray) -> np.ndarray:
  """[batch, *shape] raw examples -> [batch, classes] float32."""
  examples = {'image': jnp.asarray(batch), 'index': jnp.zeros(len(batch), jnp.int32)}
  return np.asarray(jax.jit(lambda s, b: jax.nn.softmax(program.predict(s, b, jax.random.key(0))))(state, examples))


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py predict', description=__doc__)
  parser.add_argument('workdir', help='of an image_classification run')
  parser.add_argument('image', nargs='+', help='PNG or JPEG files')
  parser.add_argument('--top', type=int, default=3, help='how many classes to print (default 3)')
  options = parser.parse_args(argv)
  try:
    program, state, spec = load(options.workdir)
    batch = np.stack([images.load_image(path, spec) for path in options.image])
  except errors.UsageError as error:
    print(f'predict: {error}', file=sys.stderr)
    return 2
  for path, row in zip(options.image, probabilities(program, state, batch)):
    best = np.argsort(-row)[: options.top]
    print(path, *(f'{spec.classes[c]} {row[c]:.4f}' for c in best), sep='  ')
  return 0
