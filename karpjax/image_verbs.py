"""Verbs of experiments on images: the images of files, new samples in one picture, and an image made of each file."""

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from karpjax import config as configs
from karpjax import paths
from karpjax.data import folders, image_files, images, table_files
from karpjax.errors import UsageError
from karpjax.report import multi_label, pictures, writers
from karpjax.verbs import Verb, likeliest, probabilities


def files(given: list[str]) -> list[str]:
  """A verb's `expand`: a folder stands for the PNG and JPEG files in it and below."""
  listed = []
  for path in map(paths.expand, given):
    inside = [*map(str, folders.files(Path(path), image_files.SUFFIXES))]
    if Path(path).is_dir() and not inside:
      raise UsageError(f'{path} is a folder without PNG or JPEG files')
    listed += inside if Path(path).is_dir() else [path]
  return listed


def load(run, paths: Sequence[str], chosen=None) -> dict[str, np.ndarray]:
  """A verb's `encode`: {'image': [n, *shape]} of image files, raw examples such as the run's own."""
  return {'image': np.stack([images.load_image(path, run.spec) for path in paths])}


def of_table(run, table: table_files.Table, chosen) -> dict[str, np.ndarray]:
  """The same of a table's column `chosen.input`, or file: image files from its folder on; a UsageError says a line."""
  found = [table.path.parent / name for name in table.filled(chosen.input or 'file', 'input')]
  for (line, _), file in zip(table.rows, found):
    if not file.is_file():
      raise UsageError(f'{table.path}, line {line}: {file} is no file')
  return load(run, found)


@dataclasses.dataclass(frozen=True)
class Annotating:
  threshold: float | None = configs.flag(
    None, 'From which probability on a tag is given. Default: of each that which training has chosen.', low=0, high=1
  )
  output: str = configs.flag(
    '', 'A table to write too, FILE.csv of file and tags, or FILE.json with probabilities.', path=True
  )


def annotate() -> Verb:
  """The verb of a run whose images may have several tags, see `Spec.multi_label`: those that images have."""

  def encode(run, paths, chosen):
    if not run.spec.multi_label:
      raise UsageError(f'{run.folder}: an image has one class there, which `predict` gives; annotate is for tags')
    if chosen.output and Path(chosen.output).suffix not in ('.csv', '.json'):
      raise UsageError(f'output={chosen.output}: FILE.csv or FILE.json')
    return load(run, paths)

  def decode(run, outputs, inputs, chosen):
    kept = writers.read_json(run.folder / multi_label.THRESHOLDS)
    given = {tag: kept.get(tag, 0.5) if chosen.threshold is None else chosen.threshold for tag in run.spec.classes}
    found = [likeliest(run.spec.classes, row, len(row)) for row in outputs]
    tags = [{tag: p for tag, p in row.items() if p >= given[tag]} for row in found]
    answers = [{'input': each, 'tags': own} for each, own in zip(inputs, tags)]
    if chosen.output:
      writers.write_bytes(Path(chosen.output), _table(answers, Path(chosen.output)).encode())
    return answers

  numbers = lambda tags: (f'{tag} {p:.4f}' for tag, p in tags.items())
  show = lambda answer: '  '.join([answer['input'], *numbers(answer['tags'])]) + '\n'
  writes = lambda run, inputs, chosen: [Path(chosen.output)] if chosen.output else []
  return Verb(
    'The tags of image files.', encode, probabilities, decode, 'IMAGE …', Annotating, show, files, writes
  )  # fmt: skip


def _table(answers, path: Path) -> str:
  """FILE.json, or the FILE.csv that --dataset=tags:FILE.csv reads, of files from its folder on."""
  if path.suffix == '.json':
    return json.dumps(answers, indent=2, ensure_ascii=False) + '\n'
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(['file', 'tags'])
  table.writerows([os.path.relpath(each['input'], path.parent), '|'.join(each['tags'])] for each in answers)
  return text.getvalue()


@dataclasses.dataclass(frozen=True)
class Sampling:
  count: int = configs.flag(64, 'How many images to draw.', low=1)
  seed: int = configs.seed_flag('The seed of the draw.')
  output: str = configs.flag('', 'The picture to write. Default: samples.png.', path=True)


def sample(encode: Callable, function: Callable, options: type = Sampling) -> Verb:
  """The verb of a generator: samples in one picture; of rows of numbers, the numbers.

  Args:
    encode, function: as for `Verb`; outputs are images [n, height, width, channels] in [0, 1], or rows [n, d].
    options: `Sampling`, or a dataclass that inherits from it.
  """

  def decode(run, outputs, inputs, chosen):
    samples, (place,) = np.asarray(outputs), writes(run, inputs, chosen)
    if samples.ndim == 2:
      return ({'sample': row.tolist()} for row in samples)
    return [{'file': str(pictures.write_grid(samples, math.ceil(math.sqrt(len(samples))), place))}]

  writes = lambda run, inputs, chosen: [Path(chosen.output or run.own_path(Path('samples.png')))]
  return Verb('New samples, in one picture.', encode, function, decode, options=options, writes=writes)


@dataclasses.dataclass(frozen=True)
class Output:
  output: str = configs.flag('', 'The folder for the new images. Default: beside each.', path=True)


def of_each(help: str, encode: Callable, function: Callable, ending: Callable, options: type = Output) -> Verb:
  """The verb of what makes an image of each image file: a PNG, NAME and an ending, beside it or in `output`.

  Args:
    help, function, options: as for `Verb`; outputs are an iterable of images [height, width, 1 or 3] in [0, 1].
    encode: (run, paths of files that exist, options) -> arrays.
    ending: run -> the ending of a name.
  """

  def places(run, inputs, chosen):
    paths = map(Path, inputs)
    return [run.own_path(Path(chosen.output or path.parent) / f'{path.stem}{ending(run)}.png') for path in paths]

  def checked(run, inputs, chosen):
    for path in inputs:
      if not Path(path).is_file():
        raise UsageError(f'{path}: no such file')
    return encode(run, [Path(path) for path in inputs], chosen)

  def written(run, outputs, inputs, chosen):
    for path, place, image in zip(inputs, places(run, inputs, chosen), outputs):
      try:
        place.parent.mkdir(parents=True, exist_ok=True)
        pictures.write_image(np.asarray(image), place)
      except OSError as error:
        raise UsageError(f'{place} cannot be written: {error.strerror}') from None
      yield {'input': path, 'file': str(place)}

  show = lambda answer: f'{answer["input"]} -> {answer["file"]}\n'
  return Verb(help, checked, function, written, 'IMAGE …', options, show, files, places)
