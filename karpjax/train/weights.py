"""Weights of checkpoints and files: what a verb asks of a run, and what `init_from` lends to a new one."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.errors import UsageError
from karpjax.train import checkpoint, integers, run_dir

PICKLED = '.pth', '.pt', '.bin', '.pkl'  # as PyTorch saves; never opened here


def load_checkpoint(folder: str | Path, which: str | int = 'best') -> tuple[dict[str, np.ndarray], dict]:
  """(arrays, information) of a run's checkpoint: 'best' (the last where no best was kept), 'last', or a step.

  Raises:
    UsageError: where none restores whole.
  """
  store = checkpoint.Checkpoints(Path(folder) / 'checkpoints')
  places = [(kind, step) for kind in ('best', 'last') for step in store.steps(kind)]
  if which == 'last':
    places.sort(key=lambda place: (-place[1], place[0] == 'best'))
  elif which != 'best' and places:
    kept = ', '.join(map(str, sorted({step for _, step in places})))
    places = [place for place in places if str(place[1]) == str(which)]
    if not places:
      files = ', '.join(integers.OFFERED)
      raise UsageError(f'checkpoint={which}: best, last, {files}, FILE.safetensors, or one of the steps kept: {kept}')
  for kind, step in places:
    try:
      return store.load(kind, step)
    except checkpoint.Damaged as why:
      print(f'checkpoint of step {step} in {folder} is damaged ({why}); looking for another', file=sys.stderr)
  raise UsageError(f'{folder} holds no checkpoint' + (' that is whole' if places else ' yet'))


def read(path: str, rename: Callable = dict, flag: str = 'init_from=') -> dict[str, np.ndarray]:
  """{'params/…' or 'batch_stats/…': array} of a run's best checkpoint (averages where it keeps them, first seed), or a
  safetensors file, of few bits too.

  Args:
    path: the run's workdir, or the file.
    rename: {name: array}, with / in the names -> under our names; raises ValueError where it cannot.
    flag: what named it, for messages.

  Raises:
    UsageError: where there is nothing to read.
  """
  if Path(path).suffix == '.safetensors':
    arrays = read_safetensors(path, flag)
    try:
      return rename(integers.unpacked({n.replace('.', checkpoint.SEPARATOR): x for n, x in arrays.items()}))
    except ValueError as error:
      raise UsageError(f'{flag}{path} cannot be read: {error}') from None
  run_dir.stored(path)
  arrays, information = load_checkpoint(path)
  weights = {}
  places = {'params': 'params/', 'ema': 'params/', 'collections': '', 'ema_collections': ''}
  for there, here in ((f'state/{name}/', here) for name, here in places.items()):
    weights |= {here + n.removeprefix(there): x for n, x in arrays.items() if n.startswith(there)}
  return rename({n: x[0] for n, x in weights.items()} if information['seeds'] > 1 else weights)


def of_state(state) -> dict[str, np.ndarray]:
  """The same of a TrainState of one seed."""
  averaged = {**state.collections, **state.ema_collections}
  return checkpoint.to_arrays({'params': {**state.params, **(state.ema or {})}, **averaged})


def read_safetensors(path: str, flag: str) -> dict[str, np.ndarray]:
  """{name: array} of a safetensors file.

  Args:
    path: of the file.
    flag: what named it, for messages, as 'init_from='.

  Raises:
    UsageError: where it cannot be read; of a file of PyTorch's, which may hold code, how to convert it.
  """
  import safetensors.numpy

  file = Path(path)
  if file.suffix in PICKLED:
    new = file.with_suffix('.safetensors').name
    raise UsageError(
      f'{flag}{path} is no .safetensors; type python -c "import torch, safetensors.torch as s; '
      f"s.save_file(torch.load('{file.name}', weights_only=True), '{new}')\" beside it once, and give {new}"
    )
  try:
    return safetensors.numpy.load_file(file)
  except Exception as error:
    raise UsageError(f'{flag}{path} cannot be read: {error}') from None


def replace_weights(state, weights: Mapping[str, np.ndarray]) -> tuple[Any, list[tuple[str, str, str]]]:
  """The state with every parameter and statistic that `weights` has in the same shape, its averages included.

  Args:
    state: a TrainState, of one seed or of several (each gets the same weights).
    weights: as `read` gives them.

  Returns:
    The state, and rows (name, shape, 'matched' | 'new' | 'skipped') that say what became of each.

  Raises:
    UsageError: when nothing matches.
  """
  own = {'params': state.params, **state.collections}
  rows, leaves, lead = [], [], state.nonfinite_step.ndim  # 1 with several seeds
  for name, leaf in zip(checkpoint.names(own), jax.tree.leaves(own)):
    other, shape = weights.get(name), leaf.shape[lead:]
    what = 'new' if other is None else 'matched' if other.shape == shape else f'new (there {list(other.shape)})'
    if what == 'matched':
      leaf = jnp.broadcast_to(jnp.asarray(other, leaf.dtype), leaf.shape)
    rows.append((name, str(list(shape)), what))
    leaves.append(leaf)
  if not any(what == 'matched' for _, _, what in rows):
    raise UsageError(f"init_from: none of its {len(weights)} arrays has the name and shape of one of this model's")
  skipped = weights.keys() - {name for name, _, _ in rows}
  rows += [(name, str(list(x.shape)), 'skipped') for name, x in weights.items() if name in skipped]
  own = jax.tree.unflatten(jax.tree.structure(own), leaves)
  params = own.pop('params')
  copied = lambda tree, like: like and jax.tree.map(jnp.copy, {name: tree[name] for name in like})
  averages = {'ema': copied(params, state.ema), 'ema_collections': copied(own, state.ema_collections)}
  return state.replace(params=params, collections=own, **averages), rows


def of_file(state, path: Path, rename: Callable):
  """The state of one seed with all weights of a safetensors file.

  Raises:
    UsageError: where it cannot be read, or is of another model.
  """
  state, rows = replace_weights(state, read(str(path), rename, 'checkpoint='))
  if others := [name for name, _, what in rows if what != 'matched']:
    raise UsageError(f'checkpoint={path}: this file is of another model; they differ in {others[0]}')
  return state
