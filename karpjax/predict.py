"""`launch.py predict WORKDIR IMAGE|TEXT …`: the top classes of image files or texts, by a run's best checkpoint. Needs no data
set.
"""

import argparse
import importlib
import sys
from pathlib import Path

import jax
import numpy as np

from karpjax import config, errors
from karpjax.data import images, labelled_text
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.data.text import TextSpec
from karpjax.train import checkpoint, weights
from karpjax.train.predict import predict_split


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
  program = experiment.program(settings, Dataset(spec, {}))
  arrays, meta = weights.load_checkpoint(workdir)
  state = {n.removeprefix('state/'): x for n, x in arrays.items() if n.startswith('state/')}
  if meta['seeds'] > 1:
    state = {n: x if n == 'step' else x[0] for n, x in state.items()}
  state = checkpoint.from_arrays(state, jax.eval_shape(program.init, jax.random.key(0)))
  return program, state, spec, experiment, settings


def load(workdir: str | Path):
  """(program, state, spec): what predicting needs of `load_run`."""
  return load_run(workdir)[:3]


def check_classifier(workdir: str | Path, spec) -> None:
  """Refuses a run that is not one of text_classification, with UsageError."""
  if not isinstance(spec, TextSpec) or not spec.classes or set(spec.tokenisers) != {'text'}:
    raise errors.UsageError(f'{workdir} holds no run of text_classification: it has no classes of texts')


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py predict', description=__doc__)
  parser.add_argument('workdir', help='of a run of image, text or token classification, or of a masked language model')
  parser.add_argument('example', nargs='+', help='PNG or JPEG files; or texts, each in quotes')
  parser.add_argument('--top', type=int, default=3, help='how many classes to print (default 3)')
  options = parser.parse_args(argv)
  try:
    program, state, spec, experiment, _ = load_run(options.workdir)
    if says := getattr(experiment, 'predictions', None):  # of other kinds than classes
      print(*says(program, state, spec, options.example), sep='\n')
      return 0
    if isinstance(spec, TextSpec):
      check_classifier(options.workdir, spec)
      examples = {'tokens': labelled_text.tokens(options.example, spec)}
    else:
      examples = {'image': np.stack([images.load_image(path, spec) for path in options.example])}
  except errors.UsageError as error:
    print(f'predict: {error}', file=sys.stderr)
    return 2
  for example, row in zip(options.example, jax.nn.softmax(predict_split(program, state, Split.of(**examples)))):
    best = np.argsort(-row)[: options.top]
    print(example, *(f'{spec.classes[c]} {row[c]:.4f}' for c in best), sep='  ')
  return 0
