"""A run's folder: claimed by one process, remembered by its config.json, refused to a run that is another."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from karpjax import config as configs
from karpjax import optim
from karpjax.errors import UsageError
from karpjax.report import writers
from karpjax.train import checkpoint, hosts, weights

FORMAT = 2  # of what a run's folder holds; another one is refused
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def default(experiment: str) -> Path:
  """runs/EXPERIMENT/DATE-TIME, with a number where that is taken."""
  path = Path('runs') / experiment / datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  return next(p for p in [path, *(path.with_name(f'{path.name}-{i}') for i in range(2, 1000))] if not p.exists())


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[Path]:
  """Makes the folder and locks it for as long as the context lasts; a lock dies with its process. The first host does it.

  Raises:
    UsageError: where it cannot be written, or another process has it.
  """
  held = []
  hosts.on_first(lambda: held.extend(_lock(folder)))
  lock, made = held or (None, [])
  try:
    yield folder
  except UsageError:
    if made and [p.name for p in folder.iterdir()] == ['.lock']:  # nothing has begun: nothing is left behind
      (folder / '.lock').unlink()
      _remove(made)
    raise
  finally:
    if lock:
      lock.close()


def _lock(folder: Path):
  """The open lock, and the folders that were made for it, innermost first."""
  made = [p for p in (folder, *folder.parents) if not p.exists()]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / '.lock', 'w')
  except OSError as error:
    _remove(made)
    raise UsageError(f'--workdir={folder} cannot be written: {error.strerror}') from None
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    lock.close()
    raise UsageError(f'another process is at work in {folder}; wait for it, or choose another --workdir') from None
  return lock, made


def _remove(made: list[Path]) -> None:
  for path in made:
    with contextlib.suppress(OSError):
      path.rmdir()


def _git_revision() -> str | None:
  try:
    command = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty']
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None


def describe(experiment: str, config, *, spec=None) -> dict:
  """What config.json holds: enough to run it again, and to predict without the data."""
  flags = configs.as_flags(config, leave_out=('workdir',))
  return {
    'format': FORMAT,
    'experiment': experiment,
    'flags': configs.to_json(config),
    'command': ' '.join(['python launch.py', experiment, *flags]),
    'command_line': sys.argv,
    'spec': spec.to_json() if spec else None,
    'versions': {'python': platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
    'devices': [str(d) for d in jax.devices()],
    'device_kind': jax.local_devices()[0].device_kind,
    'git': _git_revision(),
  }


def stored(folder: Path) -> dict:
  """The config.json of a run's folder.

  Raises:
    UsageError: where there is none, or one that this version of karpjax cannot read.
  """
  if not Path(folder).is_dir():
    raise UsageError(f'{folder}: no such folder')
  found = configs.saved(folder)
  if found is None:
    raise UsageError(f'{folder} is no run: it holds no config.json')
  if found.get('format', 1) != FORMAT:
    age = 'a newer' if found.get('format', 1) > FORMAT else 'an older'
    raise UsageError(f'{folder} was written by {age} version of karpjax, which this one cannot read')
  return found


def load_state(folder: Path, shapes, which: str = 'best', seed: int = 0):
  """(state, step) of a run's checkpoint.

  Args:
    folder: the run's.
    shapes: the state of one seed, as ShapeDtypeStructs.
    which: 'best' (the last where none is), 'last', or a step that is kept.
    seed: which of several seeds, from 0.

  Raises:
    UsageError: where no such checkpoint restores whole.
  """
  arrays, meta = weights.load_checkpoint(folder, which)
  state = {n.removeprefix('state/'): x for n, x in arrays.items() if n.startswith('state/')}
  if meta['seeds'] > 1:
    state = {n: x if n == 'step' else x[seed] for n, x in state.items()}
  return checkpoint.from_arrays(state, shapes), meta['step']


def refuse_changes(folder: Path, experiment: str, config) -> dict | None:
  """The stored config.json, or None in a fresh folder.

  Raises:
    UsageError: naming the fixed flags that have changed since the run began.
  """
  if configs.saved(folder) is None:
    return None
  before = stored(folder)
  if before['experiment'] != experiment:
    raise UsageError(f'{folder} holds a run of {before["experiment"]}, not of {experiment}; choose another --workdir')
  now, changed = configs.to_json(config), []
  old_flags = configs.to_json(
    configs.from_json(type(config), before['flags'])
  )  # flags that are newer had their defaults
  for field in dataclasses.fields(config):
    old = old_flags[field.name]
    if configs.metadata(field)['may_change'] or old == now[field.name]:
      continue
    if field.name not in before['flags'] and field.type in (
      configs.Duration,
      tuple[configs.Duration, ...],
    ):  # of now in steps, of before not yet
      continue
    if field.name == 'steps' and now['steps'] > old and config.schedule in optim.INDEPENDENT_OF_STEPS:
      continue
    changed.append(f'--{field.name} was {old}, now {now[field.name]}')
  if changed:
    hint = ' (steps may grow, but not under a schedule that ends with them)' if 'steps' in changed[0] else ''
    raise UsageError(
      f'{folder} holds a run with other flags: {"; ".join(changed)}{hint}. Give the old ones, or another --workdir'
    )
  return before


def write_config(folder: Path, description: dict) -> None:
  writers.write_json(folder / 'config.json', description)
