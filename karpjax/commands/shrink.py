"""`launch.py shrink WORKDIR [--output=WORKDIR2]`: the smaller network of a finished run that has pruned channels.

It is a run of its own, with the weights that are left: it predicts the same, and all that runs can do it can. A step of
both is timed, turn by turn.
"""

import dataclasses
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from karpjax import command_line, config, errors, options, verbs
from karpjax.data import fingerprint
from karpjax.errors import UsageError
from karpjax.lean import pruning, structure
from karpjax.report import progress, tables, writers
from karpjax.train import checkpoint, prepare, run_dir, runtime, weights
from karpjax.train.runner import Runner

TURNS, STEPS = 7, 64  # how often, and in turns of how many steps at the most


@dataclasses.dataclass(frozen=True)
class Command:
  output: str = config.flag('', "The new run's folder. Default: the old one's name with -small behind it.", path=True)


def shrink(workdir: str, output: str = '', say: Callable = print) -> Path:
  """Leaves the smaller network's run, and gives its folder; raises UsageError."""
  run = verbs.Run(workdir)
  folder, old_config = run.folder, dataclasses.replace(run.config, parallel='none', mesh='')
  if run.stored['population']:
    raise UsageError(f'{folder} is of a sweep; give a run')
  if not (finished := run_dir.summary(folder, old_config.steps)):
    raise UsageError(f'{folder}: this run is not finished; what it prunes is known at its end')
  if not old_config.structured:
    raise UsageError(f'{folder}: this run has pruned no channels; train with sparsity and structured')
  place = Path(output or f'{folder}-small')
  with run_dir.claim(place):
    if config.saved(place):
      raise UsageError(f'{place} holds a run; choose another output')
    run_dir.refuse_foreign(place)
    old, new, small = _networks(run, old_config, place)
    compiled = [runner.compile() for runner in (old, new)]
    seconds = _seconds_in_turns(old, new)
    store = checkpoint.Checkpoints(place / 'checkpoints', say=say)
    for kind, (carry, information) in small.items():
      store.save(information['step'], carry, {n: information[n] for n in ('seconds', 'best', 'seeds')}, kind=kind)
    store.wait()
    store.close()
    for name in (writers.METRICS, run_dir.DATA):
      shutil.copyfile(folder / name, place / name)
    description = run_dir.describe(place, run.stored['experiment'], new, compiled[1], run.stored, {})
    description['command'] = shlex.join(['python', 'launch.py', 'shrink', str(folder), f'--output={place}'])
    writers.write_json(place / 'config.json', description)
    counts = [sum(each['count'] for each in x['parameters']) for x in (run.stored, description)]
    after = {'parameters': counts[1], 'flops': new.flops, 'step_seconds': seconds[1]}
    before = {'parameters': counts[0], 'flops': old.flops, 'step_seconds': seconds[0]}
    times = {**finished, **after, **{f'{name}_before': x for name, x in before.items()}}
    run_dir.write_results(place, new.config, description, times, [])
  rows = [('parameters', *(f'{x:,}' for x in counts), _ratio(*counts))]
  rows += [('FLOPs of a step', *(progress.quantity(r.flops, 'FLOP') for r in (old, new)), _ratio(old.flops, new.flops))]
  rows += [('time of a step', *(f'{1000 * x:.3g} ms' for x in seconds), _ratio(*seconds))]
  for line in tables.table(rows, ('', str(folder), str(place), 'before / after')):
    say(line)
  return place


def _networks(run: verbs.Run, old_config, place: Path):
  """(the runner of a finished run, that of its smaller network, {kind of checkpoint: (the smaller carry, what it says)})."""
  experiment, folder, seeds = run.experiment, run.folder, old_config.seeds
  data = prepare.read_data(experiment, old_config)
  run_dir.refuse_other_data(folder, fingerprint.of(data), run.stored, data.spec)
  tried, state, batch = structure.trial(experiment, old_config, data)
  said = structure.said(experiment, old_config, data)
  channels = structure.find(experiment, said, data, tried, state, batch)
  old, carries = Runner(experiment.program(old_config, data), data, old_config), {}
  for kind in [kind for kind in ('last', 'best') if (folder / 'checkpoints' / kind).exists()]:
    arrays, information = weights.load_checkpoint(folder, kind)
    carries[kind] = checkpoint.from_arrays(arrays, old.shapes), information
  kept = _kept(carries['last'][0].state, channels, seeds)
  new_config = dataclasses.replace(structure.smaller(said, channels, kept[0]), workdir=str(place))
  new = Runner(experiment.program(new_config, data), data, new_config)
  structure.compare(tried, experiment.program(structure.exact(new_config), data), state, batch, channels, kept[0])
  small = {}
  for kind, (carry, information) in carries.items():
    units = _kept(carry.state, channels, seeds)
    for seed, arrays in enumerate(_of_seeds(structure.of_state(carry.state), seeds)):
      structure.refuse_rest(arrays, channels, units[seed])
    small[kind] = checkpoint.from_arrays(_cut(carry, channels, units), new.shapes), information
  return old, new, small


def _ratio(before: float, after: float) -> str:
  return f'{before / after:.2f}'


def _of_seeds(arrays: Mapping, seeds: int) -> list[Mapping]:
  """The arrays of each."""
  return [arrays] if seeds == 1 else [{name: x[seed] for name, x in arrays.items()} for seed in range(seeds)]


def _kept(state, channels: Sequence[pruning.Channels], seeds: int) -> list[list[np.ndarray]]:
  """Of each seed, of all channels which are left."""
  is_pruned = lambda x: isinstance(x, pruning.Pruned)
  [pruned] = [x for x in jax.tree.leaves(state.opt_state, is_leaf=is_pruned) if is_pruned(x)]
  each = _of_seeds(checkpoint.to_arrays({'params': pruned.masks}), seeds)
  left = lambda masks, name, axis, size: np.asarray(pruning.by_unit(masks[name], axis, size).any(0))
  return [[left(masks, *x.makers[0], x.size) for x in channels] for masks in each]


def _cut(carry, channels: Sequence[pruning.Channels], kept) -> Mapping[str, np.ndarray]:
  """The arrays of a carry without pruning: parameters, and what statistics and optimisers hold of each, with the units left."""
  bare = lambda x: x.inner if isinstance(x, pruning.Pruned) else x
  plain = jax.tree.map(bare, carry, is_leaf=lambda x: isinstance(x, pruning.Pruned))
  shapes = {name: x.shape for name, x in structure.of_state(carry.state).items()}
  arrays = checkpoint.to_arrays(plain)
  for name, x in arrays.items():
    owners = [n for n in shapes if name.endswith('/' + n.removeprefix('params/')) and shapes[n] == x.shape]
    if owners:
      owner = max(owners, key=len)
      each = [structure.cut({owner: y}, channels, units)[owner] for y, units in zip(x if len(kept) > 1 else [x], kept)]
      arrays[name] = np.stack(each) if len(kept) > 1 else each[0]
  return arrays


def _seconds_in_turns(*runners: Runner) -> list[float]:
  """The median time of a training step of each, measured in turns."""
  steps = min(STEPS, *(runner.steps_per_call for runner in runners))
  carries, each = [runner.placement.put(runner.init()) for runner in runners], [[] for _ in runners]
  for turn in range(TURNS + 1):
    for i, runner in enumerate(runners):
      start = time.perf_counter()
      carries[i] = jax.block_until_ready(runner.run_steps(carries[i], 0, steps, True))
      each[i] += [(time.perf_counter() - start) / steps] * (turn > 0)  # the first is slower
  return [statistics.median(x) for x in each]


def main(argv: Sequence[str]) -> int:
  """The command line; 2 for bad input."""
  if command_line.asks_help(argv) or not argv:
    print(__doc__, *command_line.flag_lines(dataclasses.fields(Command)), sep='\n')
    return 0
  given = [x for x in argv if not x.startswith('-')]
  try:
    if len(given) != 1:
      raise UsageError('which run? python launch.py shrink WORKDIR [--output=WORKDIR2]')
    chosen = command_line.parse(Command, [x for x in argv if x.startswith('-')])
    options.expand_paths(chosen)
    runtime.set_up()
    place = shrink(given[0], chosen.output)
  except errors.UsageError as error:
    return command_line.refuse('shrink', error, Command)
  print(f'to look at: {place / "index.html"}', file=sys.stderr)
  return 0
