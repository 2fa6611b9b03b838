"""`launch.py translate_image WORKDIR IMAGE …`: images of images, by the newest checkpoint of a run of image_to_image. Needs no
data set.

An image is resized to the size that the net was trained on, and stays so. Each becomes NAME_translated.png beside it, or in
--output.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from karpjax import errors, predict
from karpjax.data import image_files, paired
from karpjax.train import runtime
from karpjax.upscale import destinations, save


def read(path: Path, spec: paired.Spec, edges: bool) -> np.ndarray:
  """An image file as an input of a run: [*spec.input] uint8; with `edges`, those of the picture after it was resized.

  Raises:
    UsageError: where it is no picture, or the run's inputs are no edges.
  """
  if not path.is_file():
    raise errors.UsageError(f'{path}: no such file')
  if not edges:
    return image_files.read(path, spec.input[-1], spec.input[:2])
  if spec.input[-1] != 1:
    raise errors.UsageError(f'--edges: the inputs of this run have {spec.input[-1]} channels, edges have one')
  return paired.edges(image_files.read(path, 1, spec.input[:2]))


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py translate_image', description=__doc__)
  parser.add_argument('workdir', help='of a run of image_to_image')
  parser.add_argument('image', nargs='+', type=Path, help='PNG or JPEG files; transparency is dropped')
  parser.add_argument('--edges', action='store_true', help='take the edges of the images as inputs')
  parser.add_argument('--output', type=Path, help='folder for what is made (default: beside each)')
  options = parser.parse_args(argv)
  runtime.tune_malloc()
  runtime.enable_compilation_cache('')
  try:
    program, state, spec, _, _ = predict.load_run(options.workdir)
    if not isinstance(spec, paired.Spec):
      raise errors.UsageError(f'{options.workdir} holds no run of image_to_image')
    places = destinations(options.image, '_translated', options.output)
    inputs = [read(path, spec, options.edges) for path in options.image]
    if options.output:
      options.output.mkdir(parents=True, exist_ok=True)
    translate = jax.jit(program.predict)
    for number, (path, place, image) in enumerate(zip(options.image, places, inputs)):
      batch = {'input': image[None], 'index': np.full(1, number, np.int32)}
      save(np.asarray(translate(state, batch, jax.random.key(0)))[0], place)
      print(f'{path} -> {place}', flush=True)
  except (errors.UsageError, OSError) as error:
    print(f'translate_image: {error}', file=sys.stderr)
    return 2
  return 0
