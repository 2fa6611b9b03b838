"""A run's folder: claimed by one process, described by config.json, refused to another run, filled with results."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from karpjax import config as configs
from karpjax import errors, optim, options, paths
from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset, listed
from karpjax.errors import UsageError
from karpjax.report import page, plots, progress, rendering, writers
from karpjax.train import checkpoint, commits, hosts
from karpjax.train.transforms import first_seed

FORMAT = 2  # of what a run's folder holds; another one is refused
DATA = 'data.json'  # the fingerprint of the data
OWN = (DATA, writers.METRICS, 'metrics.csv', 'summary.json', 'index.html', 'tensorboard')  # written after config.json
DIVERGED = 'diverged.json'  # {seed: step} of those that have met NaN or infinity
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def default(experiment: str) -> Path:
  """runs/EXPERIMENT/DATE-TIME, with a number where that is taken."""
  path = Path('runs') / experiment / datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  return next(p for p in [path, *(path.with_name(f'{path.name}-{i}') for i in range(2, 1000))] if not p.exists())


# ---- one process at a time ----


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[Path]:
  """Makes the folder and locks it for as long as the context lasts; a lock dies with its process. Host 0 does it.

  Raises:
    UsageError: where it cannot be written, or another process has it.
    SystemExit: a line, and exit code 1, at the first write within that fails.
  """
  new_folders, locks = [p for p in (folder, *folder.parents) if not p.exists()], contextlib.ExitStack()

  def lock():
    try:
      folder.mkdir(parents=True, exist_ok=True)
      file = locks.enter_context(open(folder / '.lock', 'w'))
    except OSError as error:
      if errors.full_disk(error):
        raise
      raise UsageError(f'workdir={folder} cannot be written: {error.strerror}') from None
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise UsageError(f'another process is at work in {folder}; wait for it, or choose another workdir') from None

  with errors.full_disk_said(), locks:
    try:
      hosts.run_on_host0(lock)
      yield folder
    except UsageError:
      if new_folders and hosts.is_host0():  # nothing has begun: nothing is left behind
        if folder.is_dir() and [*folder.iterdir()] == [folder / '.lock']:
          (folder / '.lock').unlink()
        for path in new_folders:
          with contextlib.suppress(OSError):  # where it is not empty
            path.rmdir()
      raise


@contextlib.contextmanager
def failure_said(folder: Path) -> Iterator[None]:
  """error.txt says why a run failed, until it goes on."""
  path = folder / 'error.txt'
  if hosts.is_host0():
    path.unlink(missing_ok=True)
  try:
    yield
  except Exception as error:
    if hosts.is_host0() and not isinstance(error, UsageError):  # a UsageError is no run
      with contextlib.suppress(OSError):
        path.write_text(f'{type(error).__name__}: {error}\n')
    raise


# ---- config.json ----


def describe(folder: Path, experiment: str, runner, compiled: dict, before: dict, data: dict) -> dict:
  """Writes config.json, and gives what it holds: enough to run it again, and to predict without the data.

  Args:
    runner: the `runner.Runner`, whose step is compiled.
    compiled: what its `compile` gave.
    before: what config.json held, {} in a fresh folder: a run's spec stays as it began.
    data: the `fingerprint.of` its data, written where there is none.
  """
  config, population = runner.config, runner.program.population
  params = jax.eval_shape(lambda carry: first_seed(carry.state, config.seeds).params, runner.shapes)
  shapes = zip(checkpoint.names(params), jax.tree.leaves(params))
  changed = configs.changed(config, runner.dataset.spec.examples)
  description = {
    'format': FORMAT,
    'experiment': experiment,
    'flags': configs.to_json(config),
    'changed': configs.to_json(changed),
    'command': ' '.join(['python launch.py', experiment, *options.as_flags(changed)]),
    'command_line': sys.argv,
    'spec': before.get('spec') or runner.dataset.spec.to_json(),
    'versions': {'python': platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
    'devices': [str(d) for d in jax.devices()],
    'device_kind': jax.local_devices()[0].device_kind,
    'git': commits.of_run(folder),
    'parameters': [{'name': name, 'shape': list(x.shape), 'count': math.prod(x.shape)} for name, x in shapes],
    'compiled': compiled,
    'population': population and dataclasses.asdict(population),
    'choices': {'steps_per_call': runner.steps_per_call},
  }
  if hosts.is_host0():
    writers.write_json(folder / 'config.json', description)
    if not before or not (folder / DATA).exists():
      writers.write_json(folder / DATA, data)
  return description


def keep_places(folder: Path, before: dict, config) -> None:
  """Writes into a finished run's config.json where its data lie now."""
  now = {name: getattr(config, name) for name in ('dataset', 'data_dir') if hasattr(config, name)}
  if before['flags'] != before['flags'] | now:
    writers.write_json(folder / 'config.json', before | {'flags': before['flags'] | now})


def stored(folder: str | Path, experiment: str = '') -> dict:
  """The config.json of a run's folder.

  Raises:
    UsageError: where there is none, or it is of another experiment than the one given, or of another version of karpjax.
  """
  if not os.path.isdir(folder):  # False of a name too long
    raise UsageError(f'{folder}: no such folder')
  description = configs.saved(folder)
  if description is None:
    below = f'launch.py runs {shlex.quote(str(folder))} lists what is below it'
    raise UsageError(f'{folder} is no run: it holds no config.json; {below}')
  version = description.get('format', 1)
  if version != FORMAT:
    age = 'a newer' if version > FORMAT else 'an older'
    raise UsageError(f'{folder} was written by {age} version of karpjax, which this one cannot read')
  if experiment not in ('', description['experiment']):
    text = f'{folder} holds a run of {description["experiment"]}, not of {experiment}'
    raise UsageError(f'{text}; choose another workdir')
  return description


def elsewhere(folder: Path, old: str, new: str) -> bool:
  """Whether a `dataset` may be the old one at another place: `refuse_other_data` tells."""
  return bool(writers.read_json(folder / DATA)) and paths.kind(old) == paths.kind(new)


def refuse_foreign(folder: Path) -> None:
  """Raises UsageError where a folder that holds no run has something that one would write over."""
  if there := [name for name in OWN if (folder / name).exists()]:
    raise UsageError(f'{folder} holds no run, but {listed(there)}, which one would write over; choose another workdir')


def refuse_changes(folder: Path, experiment: str, config, spec) -> dict | None:
  """The stored config.json, or None in a fresh folder.

  `fingerprint_of` says what has changed where the data, of which this is the `spec`, have another number of examples,
  by which durations differ too, or lie elsewhere.

  Raises:
    UsageError: naming the flags that have changed since the run began and may not.
  """
  if configs.saved(folder) is None:
    refuse_foreign(folder)
    return None
  before, now = stored(folder, experiment), configs.to_json(config)
  known = configs.from_json(type(config), before['flags'])  # flags that are newer had their defaults
  old, changed = configs.to_json(configs.settled(known)), []
  alike = before['spec'].get('examples') == spec.examples
  for field in dataclasses.fields(config):
    name = field.name
    if configs.metadata(field)['may_change'] or old[name] == now[name]:
      continue
    if field.type in (configs.Duration, tuple[configs.Duration, ...]) and not (alike and name in before['flags']):
      continue  # before not yet in steps, or in those of other data
    if name == 'dataset' and elsewhere(folder, old[name], now[name]):
      continue
    if name == 'steps' and now['steps'] > old['steps'] and config.schedule in optim.INDEPENDENT_OF_STEPS:
      continue
    changed.append(f'{name}={options.text(old[name])}, now {options.text(now[name])}')
  if changed:
    hint = ' (steps may grow, but not under a schedule that ends with them)' if 'steps' in changed[0] else ''
    text = f'{folder} holds a run with other flags: {"; ".join(changed)}{hint}'
    raise UsageError(f'{text}. Give the old ones, or another workdir')
  return before


def fingerprint_of(folder: Path, before: dict, data: Dataset, lent) -> dict:
  """That of a run's data and of what is `Program.lent`; raises UsageError where they are not those that it began with, or not the same on every host."""
  now = fingerprint.of(data, lent)
  if jax.process_count() > 1 and hosts.any_host(now['splits'] != hosts.from_host0(now['splits'])):
    raise UsageError(f'{data.spec.name}: the hosts have read data that differ; give each of them the same')
  if before:
    hosts.run_on_host0(lambda: refuse_other_data(folder, now, before, data.spec))
  return now


def refuse_other_data(folder: Path, now: dict, before: dict | None = None, spec=None) -> None:
  """Raises UsageError, naming what has changed, where data are not those that a run or a sweep began with.

  Args:
    now: the `fingerprint.of` the data.
    before: of a run the stored config.json, with whose spec `spec`, that of the data, is compared.
  """
  kept = writers.read_json(folder / DATA)
  changed = fingerprint.differences(kept, now) if kept else []
  if before and not changed:
    read = getattr(type(spec), 'from_json', lambda values: spec)  # fields that are newer have their defaults
    old, new = (writers.plain(x.to_json()) for x in (read(before['spec']), spec))
    changed = fingerprint.other_spec(old, new)
  if changed:
    text = f'{folder}: the data are not those that it began with: {listed(changed)}'
    raise UsageError(f'{text}. Put them back, or train on these in another workdir')


def summary(folder: Path, steps: int) -> dict | None:
  """The final numbers of a run that has made all its steps."""
  numbers = writers.read_json(folder / 'summary.json')
  return numbers if numbers.get('steps') == steps else None


def setting_of_sweep(folder: Path, trial: int | None) -> tuple[Path, str, int | None]:
  """(folder, what it is, which member of its program) of a setting of a sweep: of the best, which the table has first."""
  done = [row for row in writers.read_trials(folder) if row['status'] == 'done']
  if not done:
    raise UsageError(f'{folder} is a sweep of which no setting has trained to its end yet')
  first = next((row for row in done if trial is None or row['trial'] == str(trial)), None)
  if not first:
    raise UsageError(f'trial={trial}: done are {", ".join(sorted((row["trial"] for row in done), key=int))}')
  text = f'trial {first["trial"]}: ' + ' '.join(f'{name}={x}' for name, x in first['setting'].items())
  place = Path(first['folder'])
  own = folder / place.name  # a sweep's folder may have been moved
  return own if own.exists() else place, text, int(first['member']) if first['member'] else None


# ---- what a run leaves ----


def open_sinks(folder: Path, start: int, config, description: dict, say, guess: float | None = None) -> list:
  """Those who are given the metric rows: on host 0. `guess` is the loss of one that looks at no input, where it is known."""
  if not hosts.is_host0():
    return []
  sinks = [writers.Rows(folder, start), progress.Progress(start, config.steps, say, config.environment_steps())]
  sinks += [progress.Guess(start, guess, config, say), *([writers.TensorBoard(folder)] if config.tensorboard else [])]
  return sinks + ([writers.Wandb(folder, config.wandb, description)] if config.wandb != 'off' else [])


def write_results(
  folder: Path, config, description: dict, times: dict, sinks: list, best: tuple[int, dict] | None = None
) -> dict[str, Any]:
  """Writes curves, metrics.csv, summary.json and the page from metrics.jsonl; returns the final numbers.

  Args:
    description: what config.json holds.
    best: the step of the best checkpoint and its metrics, {} where it is the last; None where there is none.
    times: the rest of the final numbers.
    sinks: those that are told of the end.
  """
  rows = writers.read_rows(folder)
  final = {n: x for n, x in rows[-1].items() if '/' in n}
  if best:
    evaluated = best[1] or {n: x for n, x in final.items() if not n.startswith('train/')}
    final |= {'best/step': best[0], **{f'best/{n}': x for n, x in evaluated.items()}}
  final = {n: writers.final_of_seeds(x) if isinstance(x, list) else x for n, x in final.items()}
  parameters = sum(p['count'] for p in description['parameters'])
  rate = {'steps_per_second': rows[-1]['steps_per_second']}
  numbers = {'steps': config.steps, 'parameters': parameters, **final, **rate, **times}
  if config.plots:
    plots.curves(rows, folder)
  writers.write_csv(folder)
  rendering.wait()
  writers.write_json(folder / 'summary.json', numbers)  # which says that a run is finished
  for sink in sinks:
    if isinstance(sink, writers.TensorBoard | writers.Wandb):
      sink.finish(numbers)
  if not description['population']:  # members of a sweep are no seeds, which a page would call them
    page.write_page(folder)
  return numbers
