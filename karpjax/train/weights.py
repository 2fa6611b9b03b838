"""Weights that come from elsewhere: --init_from, and what `predict` reads."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.errors import UsageError
from karpjax.models import published
from karpjax.train import checkpoint

PICKLED = '.pth', '.pt', '.bin', '.pkl'  # as PyTorch saves; never opened here


def read(path: str) -> dict[str, np.ndarray]:
  """{'params/…' or 'batch_stats/…': array} of a run's best (else newest) checkpoint, first seed, or of a safetensors file; that of
  a published GPT-2 under our names.

  Raises:
    UsageError: where there is nothing to read.
  """
  file = Path(path)
  if file.suffix == '.safetensors':
    found = read_safetensors(path, '--init_from=')
    try:
      return published.renamed({n.replace('.', checkpoint.SEPARATOR): x for n, x in found.items()})
    except ValueError as error:
      raise UsageError(f'--init_from={path} cannot be read: {error}') from None
  arrays, meta = load_checkpoint(file)
  chosen = {}
  for prefix in ('state/params/', 'state/ema/'):  # the averages, where they are kept, in the place of the params
    chosen |= {f'params/{n.removeprefix(prefix)}': x for n, x in arrays.items() if n.startswith(prefix)}
  chosen |= {n.removeprefix('state/collections/'): x for n, x in arrays.items() if n.startswith('state/collections/')}
  return {n: x[0] for n, x in chosen.items()} if meta.get('seeds', 1) > 1 else chosen


def read_safetensors(path: str, flag: str) -> dict[str, np.ndarray]:
  """{name: array} of a safetensors file.

  Args:
    path: of the file.
    flag: which named it, as it is typed before the path.

  Raises:
    UsageError: where it cannot be read; of a file of PyTorch's, which may hold code, how to convert it.
  """
  import safetensors.numpy

  file = Path(path).expanduser()
  if file.suffix in PICKLED:
    made = file.with_suffix('.safetensors').name
    raise UsageError(
      f'{flag}{path} is no .safetensors; type python -c "import torch, safetensors.torch as s; '
      f"s.save_file(torch.load('{file.name}', weights_only=True), '{made}')\" beside it once, and give {made}"
    )
  try:
    return safetensors.numpy.load_file(file)
  except Exception as error:
    raise UsageError(f'{flag}{path} cannot be read: {error}') from None


def load_checkpoint(workdir: str | Path, which: str = 'best') -> tuple[dict[str, np.ndarray], dict]:
  """(arrays, information) of a workdir's checkpoint: 'best' (the last where no best was kept), 'last', or a step.

  Raises:
    UsageError: where none restores whole.
  """
  store = checkpoint.Checkpoints(Path(workdir) / 'checkpoints')
  found = [(kind, step) for kind in ('best', 'last') for step in store._steps(kind)]
  if which == 'last':
    found.sort(key=lambda place: (-place[1], place[0] == 'best'))
  elif which != 'best':
    kept = sorted({step for _, step in found})
    found = [place for place in found if str(place[1]) == which]
    if not found:
      raise UsageError(f'checkpoint={which}: best, last, or one of the steps kept: {", ".join(map(str, kept))}')
  for kind, step in found:
    try:
      return store.load(kind, step)
    except checkpoint.Damaged as why:
      print(f'checkpoint of step {step} in {workdir} is damaged ({why}); looking for another', file=sys.stderr)
  raise UsageError(f'{workdir} holds no checkpoint yet; give the workdir of a run, or a FILE.safetensors')


def replace_weights(state, found: Mapping[str, np.ndarray]) -> tuple[Any, list[tuple[str, str, str]]]:
  """The state with every parameter and statistic that `found` has in the same shape, its averages included.

  Args:
    state: a TrainState, of one seed or of several (each gets the same weights).
    found: as `read` gives them.

  Returns:
    The state, and rows (name, shape, 'matched' | 'new' | 'skipped: …') that say what became of each.

  Raises:
    UsageError: when nothing matches.
  """
  own = {'params': state.params, **state.collections}
  rows, leaves = [], []
  lead = state.nonfinite_step.shape  # () or (seeds,)
  for name, leaf in zip(checkpoint.names(own), jax.tree.leaves(own)):
    other = found.get(name)
    if other is not None and other.shape == leaf.shape[len(lead) :]:
      leaf = jnp.broadcast_to(jnp.asarray(other, leaf.dtype), leaf.shape)
      rows.append((name, str(list(other.shape)), 'matched'))
    else:
      why = '' if other is None else f' (there {list(other.shape)})'
      rows.append((name, str(list(leaf.shape[len(lead) :])), f'new{why}'))
    leaves.append(leaf)
  known = set(checkpoint.names(own))
  rows += [(name, str(list(x.shape)), 'skipped') for name, x in found.items() if name not in known]
  if not any(row[2] == 'matched' for row in rows):
    raise UsageError(f"--init_from: none of its {len(found)} arrays has the name and shape of one of this model's")
  own = jax.tree.unflatten(jax.tree.structure(own), leaves)
  params = own.pop('params')
  ema = state.ema  # of all params, or of some of the players'
  if ema is not None:
    ema = jax.tree.map(jnp.copy, {name: params[name] for name in ema})
  return state.replace(params=params, collections=own, ema=ema), rows
