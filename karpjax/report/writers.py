"""Where a run's numbers go: metrics.jsonl, the truth, and what is derived from it: CSV, TensorBoard, W&B.

A row is `{'step': t, 'train/loss': 0.3, ...}`; with several seeds a metric's value is a list, one per seed.
"""

import contextlib
import csv
import io
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from karpjax.errors import UsageError

METRICS = 'metrics.jsonl'
FLUSH_SECONDS = 10  # what TensorBoard is shown waits so long, as each flush waits for the disk


def write_bytes(path: Path, content: bytes) -> None:
  """Replaces a file in one piece: a reader, or a crash, finds the old content or the new, never half. Makes its folder."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  try:
    with named(path), open(temporary, 'wb', buffering=0) as file:
      write_whole(file, content)
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)  # a full disk leaves no litter
    raise


def write_whole(file, rest: bytes) -> None:
  """Writes to an unbuffered file, which may stop short, as on a disk that fills up; on the disk when it returns."""
  while rest:
    rest = rest[file.write(rest) :]
  os.fsync(file.fileno())


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
  """Errors of a write within name the file."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
  """Writes JSON in one piece; NumPy and JAX numbers become plain ones, NaN and infinity become null."""
  write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + '\n').encode())


def read_json(path: Path) -> dict[str, Any]:
  """The object in a file; {} where there is none, or it cannot be read, as one that is half written."""
  try:
    content = json.loads(Path(path).read_text())
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def read_trials(folder: Path) -> list[dict[str, Any]]:
  """The rows of a sweep's trials.csv, best first, with 'setting' {flag: value} and 'metric', by which they are ranked, beside."""
  path, trials = Path(folder) / 'trials.csv', []
  for row in csv.DictReader(io.StringIO(path.read_bytes().decode(), newline='')) if path.exists() else ():
    names = list(row)
    status = names.index('status')
    if row['status']:  # a whole line
      trials.append({**row, 'setting': {n: row[n] for n in names[1:status]}, 'metric': names[status + 1]})
  return trials


def plain(value: Any) -> Any:
  """The same value in JSON's own types: arrays and tuples as lists, NaN and infinity as None."""
  if hasattr(value, '__array__'):
    value = np.asarray(value).tolist()
  if isinstance(value, Mapping):
    return {str(name): plain(item) for name, item in value.items()}
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Path):
    return str(value)
  return [plain(item) for item in value] if isinstance(value, Iterable) and not isinstance(value, str) else value


def summarise_seeds(values: Iterable[float]) -> dict[str, Any]:
  """{'mean', 'std', 'values'} over seeds; std is the sample's (divided by n - 1), NaN for a single seed."""
  values = np.array([float(value) for value in values])
  with np.errstate(invalid='ignore'):  # inf - inf of a diverged seed
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return {'mean': float(values.mean()), 'std': std, 'values': values.tolist()}


def final_of_seeds(values: Iterable[float]) -> dict[str, Any]:
  """What summary.json says of several seeds' numbers: `summarise_seeds`, and 'interval', the 95 % [low, high] of their mean.

  It is Student's t, exact for numbers that are normally distributed. A bootstrap's percentiles cover the mean of such ones
  76 times in 100 with three seeds and 90 with ten, BCa's no more, and of skewed numbers hardly more than t. NaN where
  a seed's number is not finite.
  """
  from scipy import special

  summary = summarise_seeds(values)
  mean, std, count = summary['mean'], summary['std'], len(summary['values'])
  half = float(special.stdtrit(max(count - 1, 1), 0.975)) * std / math.sqrt(count)
  return summary | {'interval': [mean - half, mean + half] if math.isfinite(half) else [math.nan, math.nan]}


class Rows:
  """metrics.jsonl, open for appending.

  A row is on the disk when `append` returns. Append a step's row before its checkpoint is saved: on resume
  the rows up to the checkpoint's step stay as they are, to the byte; those beyond it, and torn lines, go.

  Args:
    resume_step: the step of the checkpoint the run goes on from; −1 begins anew, with no rows.
  """

  def __init__(self, folder: Path, resume_step: int = -1):
    path = Path(folder) / METRICS
    valid = b''.join(line for line, row in _lines(path) if row['step'] <= resume_step)
    if not path.exists() or valid != path.read_bytes():
      write_bytes(path, valid)
    self._file = open(path, 'ab', buffering=0)
    with contextlib.suppress(OSError):  # the file's name is to last as well, where the system syncs folders
      descriptor = os.open(path.parent, os.O_RDONLY)
      os.fsync(descriptor)
      os.close(descriptor)

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds one row; `row['step']` is an int, every other value a number or one number per seed."""
    rest = (json.dumps(plain({'step': int(row['step']), **row}), allow_nan=False) + '\n').encode()
    start = self._file.seek(0, os.SEEK_END)
    try:
      with named(self._file.name):
        write_whole(self._file, rest)
    except OSError:
      self._file.truncate(start)  # no half line for the next row to be glued to
      raise

  def close(self) -> None:
    self._file.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
  """All whole rows of a run, in order; a null reads as NaN. A line half written is left out."""
  number = lambda x: [number(item) for item in x] if isinstance(x, list) else math.nan if x is None else x
  return [{name: number(value) for name, value in row.items()} for _, row in _lines(Path(folder) / METRICS)]


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  """The metrics' names in order of first appearance, without 'step'."""
  return list(dict.fromkeys(name for row in rows for name in row if name != 'step'))


def flat(row: Mapping[str, Any]) -> dict[str, float]:
  """A row with each list of seeds spread out: name/mean, name/std, name/0, name/1, ..."""
  spread = {}
  for name, value in row.items():
    if isinstance(value, list | tuple | np.ndarray):
      summary = summarise_seeds(value)
      spread |= {f'{name}/mean': summary['mean'], f'{name}/std': summary['std']}
      spread |= {f'{name}/{seed}': number for seed, number in enumerate(summary['values'])}
    else:
      spread[name] = value
  return spread


def write_csv(folder: Path) -> None:
  """metrics.csv from metrics.jsonl: a line per row, a column per metric of `flat`, empty where it lacks."""
  rows = [flat(row) for row in read_rows(folder)]
  text = io.StringIO()
  writer = csv.DictWriter(text, ['step', *columns(rows)], restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_bytes(Path(folder) / 'metrics.csv', text.getvalue().encode())


class TensorBoard:
  """The run's tensorboard folder, written without TensorFlow.

  Opening it rebuilds the folder from metrics.jsonl: a resumed run shows each point once, none that is gone.
  With several seeds a metric gets the tag of its mean, and one per seed: name, name/0, name/1, ...
  """

  def __init__(self, folder: Path):
    from tensorboardX import event_file_writer

    self._folder = Path(folder)
    self._logs = self._folder / 'tensorboard'
    shutil.rmtree(self._logs, ignore_errors=True)
    with named(self._logs):  # without the thread of a SummaryWriter, whose errors would be nobody's
      self._logs.mkdir(parents=True)
      self._writer = event_file_writer.EventsWriter(str(self._logs / 'events'))
    self._flushed = time.monotonic()
    for row in read_rows(folder):
      self.append(row)

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds one row's numbers as scalars; NaN and infinity, which have no place on a curve, are left out."""
    from tensorboardX import summary

    finite = {n: x for n, x in flat(row).items() if n != 'step' and not n.endswith('/std') and math.isfinite(x)}
    self._add(row['step'], [summary.scalar(name.removesuffix('/mean'), value) for name, value in finite.items()])

  def _add(self, step: int, summaries: Iterable[Any] = (), flush: bool = False) -> None:
    from tensorboardX.proto import event_pb2

    with named(self._logs):
      for each in summaries:
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=int(step), summary=each))
      if flush or time.monotonic() - self._flushed > FLUSH_SECONDS:
        self._writer.flush()
        self._flushed = time.monotonic()

  def finish(self, numbers: Mapping[str, Any]) -> None:
    """Adds config.json as text and plots/*.png as images, as far as they exist."""
    from tensorboardX import summary

    step, config = numbers['steps'], self._folder / 'config.json'
    if config.exists():  # indented by four: Markdown's verbatim text
      text = '\n'.join('    ' + line for line in config.read_text().splitlines())
      self._add(step, [summary.text('config', text)])
    for path in sorted((self._folder / 'plots').glob('*.png')):
      with Image.open(path) as image:
        size = {'width': image.width, 'height': image.height, 'colorspace': len(image.getbands())}
      picture = summary.Summary.Image(**size, encoded_image_string=path.read_bytes())
      self._add(step, [summary.Summary(value=[summary.Summary.Value(tag=path.stem, image=picture)])])
    self._add(step, flush=True)

  def close(self) -> None:
    with contextlib.suppress(OSError):  # raised by `finish`; of a run that goes on all is written anew
      self._writer.close()


class Wandb:
  """The same rows in Weights & Biases. A resumed run goes on in the same W&B run; its id lies in `wandb_id`.

  Args:
    mode: 'offline' or 'online'.
    config: what config.json holds.
  """

  def __init__(self, folder: Path, mode: str, config: Mapping[str, Any]):
    identity = Path(folder) / 'wandb_id'
    if not identity.exists():
      write_bytes(identity, uuid.uuid4().hex[:8].encode())
    about = {'project': 'karpjax', 'name': Path(folder).resolve().name, 'id': identity.read_text(), 'resume': 'allow'}
    self._run = require_wandb(mode).init(mode=mode, dir=str(folder), config=plain(config), **about)

  def append(self, row: Mapping[str, Any]) -> None:
    numbers = {name: value for name, value in flat(row).items() if name != 'step'}
    self._run.log(numbers, step=int(row['step']))

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes the final numbers into the W&B run's summary."""
    self._run.summary.update(plain(summary))

  def close(self) -> None:
    self._run.finish()


def require_wandb(mode: str):
  """The module `wandb`, or a UsageError with what to install; to be asked before anything is compiled."""
  try:
    import wandb
  except ImportError:
    raise UsageError(f'wandb={mode} needs the package wandb: pip install wandb') from None
  return wandb


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Each whole line of metrics.jsonl, as it stands and parsed."""
  for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
    with contextlib.suppress(ValueError):  # torn, or not text
      row = json.loads(line)
      if line.endswith(b'\n') and isinstance(row, dict) and isinstance(row.get('step'), int):
        yield line, row
