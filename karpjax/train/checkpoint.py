"""Checkpoints by orbax: save, find, restore whole or not at all.

A checkpoint is a flat dict of arrays named by their path in the global form of the carry, with a JSON item beside it
that holds the step, a checksum per array and what a prediction needs. orbax itself restores flipped bits and lists
truncated steps as the latest; here a checkpoint that does not restore whole is moved aside and the one before it is
used.
"""

import contextlib
import logging
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from karpjax.errors import UsageError, first_line
from karpjax.train import hosts

SEPARATOR = '/'

logging.getLogger('absl').setLevel(logging.CRITICAL)  # orbax logs what is reported here in a line


def _quiet(unraisable, otherwise=sys.unraisablehook) -> None:
  """A hook that passes over what tensorstore's threads say, once for each array,
  after the first write of a save has failed.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    otherwise(unraisable)


sys.unraisablehook = _quiet


def _alone():
  """orbax's options for one host: host 0 writes what all have brought together, and each reads for itself."""
  import orbax.checkpoint as ocp

  number = jax.process_index()
  names = dict(primary_host=number, active_processes={number}, barrier_sync_key_prefix=f'host{number}')
  return ocp.options.MultiprocessingOptions(**names)


class Damaged(Exception):
  """A checkpoint that does not restore whole."""


def names(tree) -> list[str]:
  """The path of each leaf, such as 'state/params/Conv_0/kernel', in the order of `jax.tree.leaves`."""
  paths = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [jax.tree_util.keystr(path, simple=True, separator=SEPARATOR) for path, _ in paths]


def _bits(tree):
  """The same tree, its keys as their bits."""
  return jax.tree.map(lambda x: jax.random.key_data(x) if hosts.is_key(x) else x, tree)


def to_arrays(tree) -> dict[str, np.ndarray]:
  """A pytree as {path: array}, copied to the host, so that its buffers may be donated at once. Keys become their
  bits.
  """
  return {name: np.array(x) for name, x in zip(names(tree), jax.device_get(jax.tree.leaves(_bits(tree))))}


def from_arrays(arrays: Mapping[str, np.ndarray], shapes) -> Any:
  """The reverse: a pytree like `shapes` (ShapeDtypeStructs).

  Raises:
    UsageError: naming the first array that is missing or has another shape.
  """
  leaves = []
  for name, shape, stored in zip(names(shapes), jax.tree.leaves(shapes), _stored(shapes)):
    if name not in arrays:
      raise UsageError(f'the checkpoint has no {name}: it was written by another program; choose another workdir')
    if arrays[name].shape != stored.shape:
      raise UsageError(f'the checkpoint has {name} {list(arrays[name].shape)} where {list(stored.shape)} is needed')
    bits = jnp.asarray(arrays[name], stored.dtype)
    leaves.append(jax.random.wrap_key_data(bits) if hosts.is_key(shape) else bits)
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _stored(shapes) -> list[jax.ShapeDtypeStruct]:
  return jax.tree.leaves(jax.eval_shape(_bits, shapes))


def checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
  return {name: zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8)) for name, x in arrays.items()}


class Checkpoints:
  """The checkpoints of one workdir: `last/` holds the newest few, `best/` the best one. Saving is asynchronous."""

  def __init__(self, folder: Path, *, keep: int = 2, seconds: float = 0, say=print):
    """Args:
    folder: created by the first save.
    keep: how many of the newest to keep.
    seconds: from one write to the next at the least; of what is saved meanwhile the newest of each kind is held.
    say: is given a line wherever something was repaired.
    """
    self.folder, self.keep, self.seconds, self.say = Path(folder), keep, seconds, say
    self.managers = {}
    self.started = {}  # kind -> the step last given to orbax
    self.held = {}  # kind -> what is to be written: step, arrays, information
    self.written = None  # when something was last; from the first `check` on

  def _manager(self, kind: str):
    if kind not in self.managers:
      import orbax.checkpoint as ocp
      from orbax.checkpoint import checkpoint_managers as policies

      options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.LatestN(self.keep if kind == 'last' else 1),
        cleanup_tmp_directories=True,  # of a save that was killed
        multiprocessing_options=_alone(),
        create=False,
      )
      (self.folder / kind).mkdir(parents=True, exist_ok=True)
      self.managers[kind] = ocp.CheckpointManager((self.folder / kind).absolute(), options=options)
    return self.managers[kind]

  def steps(self, kind: str) -> list[int]:
    """The steps that are kept, newest first; read before orbax looks, which stumbles over an empty folder."""
    return sorted((int(p.name) for p in (self.folder / kind).glob('[0-9]*') if p.name.isdigit()), reverse=True)

  def save(self, step: int, carry, information: dict, *, kind: str = 'last') -> None:
    """Holds the checkpoint of a step, for `check` to write when it is time, or `wait` at once.

    Args:
      step: a step that is already saved is not saved again.
      carry: in global form; its buffers may be donated as soon as this returns.
      information: for the JSON item.
      kind: 'last' or 'best'.

    Raises:
      OSError: where a write fails, as on a full disk, of the save before; what was saved earlier stays.
    """
    if not self.seconds and kind in self.held:
      self.flush()  # each is written
    if hosts.is_host0():
      self.held[kind] = step, to_arrays(carry), information

  def flush(self) -> None:
    """Starts writing what is held, the best first, of which the last says where it is; raises OSError as `save`."""
    for kind in sorted(self.held):
      self._write(kind, *self.held.pop(kind))
      self.written = time.monotonic()

  def _write(self, kind, step, arrays, information):
    import orbax.checkpoint as ocp

    self.wait([kind])
    try:
      manager = self._manager(kind)
      if step in manager.all_steps():
        return
      meta = {**information, 'step': step, 'checksums': checksums(arrays)}
      items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
      self.started[kind] = step
      manager.save(step, args=items, force=True)
    except Exception as error:
      self._fail(kind, step, error)

  def _fail(self, kind, step, error):
    """Raises OSError for a save that did not come through."""
    self.managers.pop(kind, None)  # its background thread keeps raising; the next save starts anew
    number = re.search(r"os_error_code='?(\d+)", str(error))  # as tensorstore says it
    number = int(number[1]) if number else getattr(error, 'errno', None)
    if number:
      raise OSError(number, os.strerror(number), str(self.folder / kind / str(step))) from None
    raise OSError(f'the checkpoint of step {step} could not be written: {first_line(error)[:300]}') from None

  def wait(self, kinds: Iterable[str] | None = None) -> None:
    """Until everything, or what is begun of these kinds, is on the disk; raises OSError as `save`."""
    if kinds is None:
      self.flush()
    for kind in [kind for kind in self.managers if kinds is None or kind in kinds]:
      try:
        self.managers[kind].wait_until_finished()
      except Exception as error:
        self._fail(kind, self.started.get(kind), error)

  def check(self) -> None:
    """Starts writing what is held, where it is time; raises OSError where a save has failed meanwhile."""
    self.written = time.monotonic() if self.written is None else self.written
    if time.monotonic() - self.written >= self.seconds:
      self.flush()
    self.wait([kind for kind, manager in self.managers.items() if not manager.is_saving_in_progress()])

  def close(self) -> None:
    """Ends all; to be asked after `wait`, which says what failed."""
    with contextlib.suppress(OSError):
      self.flush()
    for manager in self.managers.values():
      with contextlib.suppress(Exception):
        manager.close()
    for part in self.folder.glob('*/*-tmp') if self.started else ():  # of saves that failed
      shutil.rmtree(part, ignore_errors=True)
    self.managers = {}

  def load(self, kind: str, step: int) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, information) of one checkpoint.

    Raises:
      Damaged: where anything is missing, unreadable, or not what was written.
    """
    import orbax.checkpoint as ocp

    path = self.folder / kind / str(step)
    try:
      with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=_alone()) as reader:
        meta = reader.restore((path / 'meta').absolute())
      with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
        shapes = reader.metadata((path / 'state').absolute()).item_metadata.tree
        target = {name: np.empty(x.shape, x.dtype) for name, x in shapes.items()}
        arrays = reader.restore((path / 'state').absolute(), target)
    except Exception as error:
      raise Damaged(f'{type(error).__name__}: {first_line(error)}'[:150]) from None
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    sums = checksums(arrays)
    if sums != meta['checksums']:
      wrong = next(n for n in meta['checksums'] if sums.get(n) != meta['checksums'][n])
      raise Damaged(f'{wrong} has another checksum than when it was saved')
    return arrays, meta

  def restore(self, shapes, kind: str = 'last') -> tuple[int, Any, dict] | None:
    """(step, carry in global form, information) of the newest checkpoint that restores whole; None if there is none.

    Newer ones that do not are moved to `damaged/`, with a line. Host 0 reads and tells the others, whose disks need not
    hold what it has written.
    """
    arrays = {}

    def read_newest():
      for step in self.steps(kind):
        try:
          whole, information = self.load(kind, step)
        except Damaged as why:
          aside = self.folder / 'damaged' / f'{kind}-{step}'
          shutil.rmtree(aside, ignore_errors=True)
          aside.parent.mkdir(parents=True, exist_ok=True)
          (self.folder / kind / str(step)).rename(aside)
          self.say(f'checkpoint of step {step} is damaged ({why}); moved to {aside}')
          continue
        from_arrays(whole, shapes)  # for its errors, which are everyone's
        arrays.update((name, whole[name]) for name in names(shapes))
        return step, information

    newest = hosts.run_on_host0(read_newest)
    if not newest:
      return None
    if not hosts.is_host0():
      arrays = {name: np.zeros(x.shape, x.dtype) for name, x in zip(names(shapes), _stored(shapes))}
    return newest[0], from_arrays(multihost_utils.broadcast_one_to_all(arrays), shapes), newest[1]

  def forget_after(self, step: int) -> None:
    """Removes checkpoints beyond a step, which the run goes on to write anew."""
    for kind in ('last', 'best') if hosts.is_host0() else ():
      for later in self.steps(kind):
        if later > step:
          shutil.rmtree(self.folder / kind / str(later))
