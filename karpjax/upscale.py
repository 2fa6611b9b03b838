"""`launch.py upscale WORKDIR IMAGE …`: pictures enlarged by the best checkpoint of a run of super_resolution. Needs no data set.

A picture may have any size; it is worked off in tiles. Each becomes NAME_xFACTOR.png beside it, or in --output.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from karpjax import errors, predict
from karpjax.data import image_files
from karpjax.report import super_resolution as report
from karpjax.report import writers
from karpjax.train import runtime


def destinations(paths: list[Path], ending: str, output: Path | None) -> list[Path]:
  """Where what is made of each picture goes: NAME and the ending, beside it or in `output`.

  Raises:
    UsageError: where one would lie on a picture that is given, or two on one another.
  """
  places = [(output or path.parent) / f'{path.stem}{ending}.png' for path in paths]
  given = {path.resolve() for path in paths}
  for path, place in zip(paths, places):
    if place.resolve() in given:
      raise errors.UsageError(f'{path} would become {place}, which is given as well; choose another --output')
    if places.count(place) > 1:
      raise errors.UsageError(f'{path} and another picture would both become {place}; give them one after the other')
  return places


def read(path: Path, spec, colour: str) -> np.ndarray:
  """[height, width, 1 or 3] uint8 with the channels that a run's net takes: for the luma alone those of the file.

  Raises:
    UsageError: where it is no picture, or has colour that the net does not know.
  """
  if not path.is_file():
    raise errors.UsageError(f'{path}: no such file')
  channels = image_files.header(path)[1]
  if colour == 'rgb' and spec.channels != channels:
    if spec.channels == 1:
      raise errors.UsageError(
        f'{path} has colour, and the run saw grey pictures alone: convert it, or train with --colour=y'
      )
    channels = spec.channels
  return image_files.read(path, channels)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='launch.py upscale', description=__doc__)
  parser.add_argument('workdir', help='of a run of super_resolution')
  parser.add_argument('image', nargs='+', type=Path, help='PNG or JPEG files; transparency is dropped')
  parser.add_argument('--output', type=Path, help='folder for the enlarged pictures (default: beside each)')
  options = parser.parse_args(argv)
  runtime.tune_malloc()
  runtime.enable_compilation_cache('')
  try:
    program, state, spec, experiment, settings = predict.load_run(options.workdir)
    if not hasattr(experiment, 'build') or not hasattr(settings, 'factor'):
      raise errors.UsageError(f'{options.workdir} holds no run of super_resolution')
    places = destinations(options.image, f'_x{settings.factor}', options.output)
    pictures = [read(path, spec, settings.colour) for path in options.image]
    if options.output:
      options.output.mkdir(parents=True, exist_ok=True)
    enlarge = report.enlarger(program, state, settings.factor, experiment.build(settings, spec).reach)
    for path, place, low in zip(options.image, places, pictures):
      save(enlarge(low), place)
      print(f'{path} -> {place}', flush=True)
  except (errors.UsageError, OSError) as error:
    print(f'upscale: {error}', file=sys.stderr)
    return 2
  return 0


def save(picture: np.ndarray, path: Path) -> None:
  """Writes a PNG of [height, width, 1 or 3] in [0, 1], in one piece."""
  from PIL import Image

  pixels = np.rint(picture * 255).astype(np.uint8)
  content = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(content, format='PNG')
  writers.write_bytes(path, content.getvalue())
