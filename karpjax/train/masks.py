"""The masks of runs that prune (see `pruning`): lent to a lottery ticket, and told of at the end."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.lean import quantisation
from karpjax.program import Program
from karpjax.report import progress, writers
from karpjax.report.tables import table
from karpjax.train import checkpoint, compile, run_dir, weights

SLOW = 'XLA multiplies by these zeros as by other numbers: they make no step faster'
SHRINK = f'{SLOW}; launch.py shrink WORKDIR leaves them out'


def _of_params(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """{name of an array of an optimiser's state: array} -> {name of a param: its mask}."""
  matches = {name: re.fullmatch(r'((?:(?!inner/)[A-Za-z_]\w*/)?)(?:\d+/|inner/)*masks/(.+)', name) for name in arrays}
  return {match[1] + match[2]: arrays[name] for name, match in matches.items() if match}


def lend(state, workdir: str, seeds: int):
  """A state whose masks are those of a finished run, and whose weights are 0 where these say so.

  Args:
    state: a TrainState before the first step, in global form, of an optimiser by `pruning.pruned`.
    workdir: of a run with `sparsity`: of one seed, whose masks all get, or of as many.
    seeds: of the state.

  Raises:
    UsageError: where there is no such run, or it is of another model or of other seeds.
  """
  stored = run_dir.stored(workdir)
  if not run_dir.summary(Path(workdir), stored['flags']['steps']):
    raise UsageError(f'mask_from={workdir}: this run is not finished; the masks are those of its last step')
  arrays, information = weights.load_checkpoint(workdir, 'last')
  there = _of_params({n.removeprefix('state/opt_state/'): x for n, x in arrays.items()})
  if not there:
    raise UsageError(f'mask_from={workdir}: this run has pruned nothing; give one with sparsity')
  if information['seeds'] not in (1, seeds):
    raise UsageError(f'mask_from={workdir}: this run has {information["seeds"]} seeds, not {seeds}')
  names, leaves = checkpoint.names(state.opt_state), jax.tree.leaves(state.opt_state)
  own, lead = _of_params(dict(zip(names, leaves))), int(seeds > 1)
  shapes = {name: mask.shape[lead:] for name, mask in own.items()}
  if shapes != {name: mask.shape[information['seeds'] > 1 :] for name, mask in there.items()}:
    raise UsageError(f'mask_from={workdir}: this run is of another model')
  new = {name: jnp.broadcast_to(there[name], mask.shape) for name, mask in own.items()}
  leaves = [new.get(next(iter(_of_params({name: 0})), ''), x) for name, x in zip(names, leaves)]
  zeroed = lambda name, p: jnp.where(new[name], p, 0) if shapes[name] else p
  params = [zeroed(name, p) for name, p in zip(checkpoint.names(state.params), jax.tree.leaves(state.params))]
  whole = lambda like, leaves: jax.tree.unflatten(jax.tree.structure(like), leaves)
  return state.replace(params=whole(state.params, params), opt_state=whole(state.opt_state, leaves))


def reported(program: Program, data: Dataset, config) -> Program:
  """The Program, whose reports tell of the masks as well, and whose best weights are those that are pruned in full."""

  def report(state, t, folder):
    lines = [*described(program, data, state), SHRINK if config.structured else SLOW]
    writers.write_bytes(Path(folder) / 'texts' / 'sparsity.txt', '\n'.join(lines).encode())
    return [*((program.report(state, t, folder) if program.report else None) or ()), *lines]

  settled = 0 if config.mask_from else max(config.sparsity_until, program.collecting + 1)
  return dataclasses.replace(program, report=report, settled=settled)


def described(program: Program, data: Dataset, state) -> list[str]:
  """The lines: of each kernel how much of it is 0, and what is left of bytes and of FLOPs; of a state of one seed."""
  masks = {n: x for n, x in _of_params(checkpoint.to_arrays(state.opt_state)).items() if x.ndim}
  each = [('all of them', '', sum(x.size for x in masks.values()), sum(int(x.sum()) for x in masks.values()))]
  each = [(name, '×'.join(map(str, x.shape)), x.size, int(x.sum())) for name, x in masks.items()] + each
  rows = [(name, shape, f'{size:,}', f'{left:,}', f'{1 - left / size:.2%}') for name, shape, size, left in each]
  dense = sum(x.nbytes for x in jax.tree.leaves(state.params))
  _, _, size, left = each[-1]
  flops, quantity = _flops(program, data, state), progress.quantity
  rest = sum(count * (masks[name].mean() if name in masks else 1) for name, count in flops.items())
  bytes_ = quantity(dense - 4 * (size - left) + size / 8, 'B')
  products = f'{quantity(sum(flops.values()), "FLOP")} of an example with weights, {quantity(rest, "FLOP")}'
  return [
    *table(rows, ('pruned', 'shape', 'weights', 'not 0', 'sparsity')),
    f'parameters: {quantity(dense, "B")}, or {bytes_} with a bit for each weight that may be pruned',
    *([f'products: {products} with those that are not 0'] if flops else []),
  ]


def _flops(program: Program, data: Dataset, state) -> Mapping[str, float]:
  """{name of a param: FLOPs of the products with it, in the prediction of one example}; {} where none is predicted."""
  if not program.predict:
    return {}
  example = {**data.splits['train'].fetch(np.zeros(1, np.int32)), 'index': np.zeros(1, np.int32)}
  arguments = state, example, jax.random.key(0)
  with quantisation.within():  # rounded, an input is another array
    jaxpr = jax.make_jaxpr(program.predict)(*arguments).jaxpr
  own = re.compile('0/params/(.+)').fullmatch
  return compile.flops_by_input(jaxpr, [match and match[1] for match in map(own, checkpoint.names(arguments))])[0]
