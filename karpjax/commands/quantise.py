"""`launch.py quantise`: the kernels of a trained run in 8 or 4 bits, each output channel with a scale, in one file.

python launch.py quantise WORKDIR --bits=8    writes WORKDIR/int8.safetensors
python launch.py VERB WORKDIR … --checkpoint=int8
python launch.py NAME … --init_from=WORKDIR/int8.safetensors

Biases, norms, their statistics and embeddings stay as they are. What fraction of a channel's largest weight is the largest that
is not clipped, one for all kernels, is the one that changes the metric of the run's `select` the least, on the validation split;
never on test.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import safetensors.numpy

from karpjax import command_line, config, errors, options, verbs
from karpjax.commands import evaluate
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError, choose
from karpjax.lean import quantisation
from karpjax.report import progress, tables, writers
from karpjax.train import checkpoint, integers, run_dir, runtime, weights

CLIPS = 1.0, 0.9, 0.8, 0.7, 0.6


@dataclasses.dataclass(frozen=True)
class Command:
  bits: int = config.flag(8, 'Bits of a weight.', choices=tuple(integers.OFFERED.values()))
  member: int | None = config.flag(None, "Which of several seeds, or of a sweep's part, from 0.", low=0)
  trial: int | None = config.flag(None, 'Which setting of a sweep, by its number. Default: the best.', low=1)


def kernels(run: verbs.Run) -> dict[str, str]:
  """{name of a param, as in `weights.of_state`: its axes, as `axes.kernels`} of what training would quantise."""
  flags = dataclasses.replace(run.config, quantise='w8', ema=0.0)
  state = jax.eval_shape(run.experiment.program(flags, Dataset(run.spec, {})).init, jax.random.key(0))
  players = state.opt_state if isinstance(state.opt_state, Mapping) else {'': state.opt_state}
  is_one, found = lambda x: isinstance(x, quantisation.Quantised), {}
  for player, own in players.items():
    prefix = f'params/{player}/' if player else 'params/'
    for x in filter(is_one, jax.tree.leaves(own, is_leaf=is_one)):
      found |= {prefix + name: axes for name, axes in zip(checkpoint.names(x.rest), x.kernels) if axes}
  return found


def quantise(run: verbs.Run, bits: int, say: Callable = print) -> Path:
  """Writes the file, says what it costs, and gives its place.

  Raises:
    UsageError: for a run that is not finished, or has no kernels; where the file exists.
  """
  if run_dir.summary(run.folder, run.stored['flags']['steps']) is None:
    raise UsageError(f'{run.folder}: its training has not come to its end')
  place = run.own_path(run.folder / f'int{bits}.safetensors')
  if place.exists():
    raise UsageError(f'{place} exists; it stays until you move or delete it')
  data, arrays, quantised = evaluate.read_data(run), weights.of_state(run.state), kernels(run)
  if not quantised:
    raise UsageError(f'{run.folder}: its model has no kernels')
  splits = list(dict.fromkeys(s for s in ('validation', *run.config.final_splits) if s in data.splits))
  measure = evaluate.evaluator(run, data, splits)

  def rounded(clip):
    file = integers.packed(arrays, quantised, bits, clip)
    return file, weights.replace_weights(run.state, integers.unpacked(file))[0]

  clip, how = CLIPS[0], 'the largest, for there is no validation split to choose by'
  if 'validation' in splits:
    name = run.config.select.rpartition('/')[2]
    numbers = [measure(state, 'validation') for state in (run.state, *(rounded(each)[1] for each in CLIPS))]
    exact, *each = (choose('metric', name, x) for x in numbers)
    change = {clip: abs(x - exact) if math.isfinite(x) else math.inf for clip, x in zip(CLIPS, each)}
    clip = min(CLIPS, key=change.get)
    how = f'the largest, which of {", ".join(map(str, CLIPS))} changes validation/{name} the least'
  file, state = rounded(clip)
  rows = []
  for split in splits:
    before, after = measure(run.state, split), measure(state, split)
    for name, x in after.items():
      numbers = tables.decimal(before[name]), tables.decimal(x), tables.decimal(x - before[name], '+')
      rows.append((f'{split}/{name}', *numbers))
  writers.write_bytes(place, safetensors.numpy.save(file))
  say(f'weights of step {run.step}{run.whose}; clipped in each channel at {clip} of {how}')
  for line in tables.table(rows, ('metric', 'before', f'{bits} bits', 'change')):
    say(line)
  before, after = sum(x.nbytes for x in arrays.values()), place.stat().st_size
  say(f'{progress.quantity(before, "B")} before, {progress.quantity(after, "B")} ({after / before:.1%}) in {place}')
  return place


def main(argv: Sequence[str]) -> int:
  if command_line.asks_help(argv) or not argv:
    print(__doc__, *command_line.flag_lines(dataclasses.fields(Command)), sep='\n')
    return 0
  try:
    chosen = command_line.parse(Command, [x for x in argv if x.startswith('-')])
    options.check(chosen)
    if len(folders := [x for x in argv if not x.startswith('-')]) != 1:
      raise UsageError('one run is needed: python launch.py quantise WORKDIR --bits=8')
    runtime.set_up()
    with errors.refuse_too_large():
      quantise(verbs.Run(folders[0], member=chosen.member, trial=chosen.trial), chosen.bits)
  except UsageError as error:
    return command_line.refuse('quantise', error, Command)
  return 0
