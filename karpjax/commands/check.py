"""What a careful person checks before training: the first half of Karpathy, "A Recipe for Training Neural Networks" (2019).

Each check is a pure function of a Program and a batch, and gives a figure and whether it passes.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import command_line, config, errors
from karpjax import program as programs
from karpjax.data import batches
from karpjax.report import progress
from karpjax.train import checkpoint, loop
from karpjax.train import runner as runners

OVERFIT_STEPS = 400


@dataclasses.dataclass(frozen=True)
class Result:
  """What a check found: `passed` is None where it does not apply."""

  name: str
  passed: bool | None
  figure: str

  def __post_init__(self):
    if self.passed is not None:  # of NumPy's or JAX's booleans, Python's
      object.__setattr__(self, 'passed', bool(self.passed))


def _losses(program, state, batch):
  """Per-example losses, [batch] or [batch, time], in evaluation mode."""
  return jax.jit(program.example_losses)(state, batch, programs.step_key(state, programs.EVALUATE))


def _one_loss(program, state, batch) -> bool:
  """Whether the step minimises one loss; players have one each."""
  return 'loss' in jax.eval_shape(program.step, state, batch)[1]


def loss_at_initialisation(program, state, batch) -> Result:
  """Close to that of a guess that knows nothing: within half of it above, whatever below."""
  name = 'loss at initialisation'
  if program.uninformed_loss is None or program.example_losses is None:
    return Result(name, None, 'no uninformed loss is known')
  losses = _losses(program, state, batch)
  loss = float(losses.mean() if losses.ndim == 1 else losses[batch['targets'] >= 0].mean())
  return Result(
    name,
    abs(loss - program.uninformed_loss) <= 0.5 * program.uninformed_loss + 0.1,
    f'{loss:.4f}; uninformed {program.uninformed_loss:.4f}',
  )


def no_leak_across_the_batch(program, state, batch) -> Result:
  """Replacing example 0 leaves all other examples' losses as they were, to rounding, and changes its own."""
  name = 'examples are independent'
  if program.example_losses is None:
    return Result(name, None, 'the program gives no losses per example')
  other = {n: x.at[0].set(x[-1]) if n != 'index' else x for n, x in batch.items()}
  before, after = np.asarray(_losses(program, state, batch)), np.asarray(_losses(program, state, other))
  moved = float(np.abs(after - before)[1:].max())
  return Result(
    name, moved <= 1e-5 * (1 + np.abs(before).max()), f"largest change of another example's loss {moved:.1e}"
  )


def no_leak_from_the_future(program, state, batch) -> Result:
  """Another token in the middle leaves the losses of all before it as they were, to rounding, and changes later ones."""
  name = 'tokens see none from the future'
  if not program.causal:
    return Result(name, None, 'no causal model')
  tokens = batch['tokens']
  middle = tokens.shape[1] // 2
  other = {**batch, 'tokens': tokens.at[:, middle].set((tokens[:, middle] + 1) % jnp.maximum(tokens.max(), 2))}
  moved = np.abs(np.asarray(_losses(program, state, other)) - np.asarray(_losses(program, state, batch)))
  earlier, later = float(moved[:, :middle].max(initial=0)), float(moved[:, middle:].max())
  return Result(
    name, earlier <= 1e-5 < later, f'losses before token {middle} moved by {earlier:.1e}, from it on by {later:.1e}'
  )


def gradients_reach_all(program, state, batch) -> Result:
  """After one step every parameter is finite, and none has stayed as it was over the first few steps."""
  after = state
  step = jax.jit(program.step)
  for _ in range(3):
    after, _ = step(after, batch)
  still, wild = [], []
  for name, a, b in zip(checkpoint.names(state.params), jax.tree.leaves(state.params), jax.tree.leaves(after.params)):
    if not np.isfinite(b).all():
      wild.append(name)
    elif np.array_equal(a, b):
      still.append(name)
  text = (
    f'not finite: {", ".join(wild)}'
    if wild
    else f'never moved: {", ".join(still)}'
    if still
    else f'all {len(jax.tree.leaves(state.params))} arrays finite and moving'
  )
  return Result('gradients reach every parameter', not (still or wild), text)


def overfits_one_batch(program, state, batch, *, steps: int = OVERFIT_STEPS) -> Result:
  """The same batch again and again: the training loss falls to under a tenth, or 1 % of the examples are wrong at most."""
  name = 'one batch can be overfitted'
  if not _one_loss(program, state, batch):
    return Result(name, None, 'its step minimises no single loss')
  step = jax.jit(program.step)
  few = {n: x[: min(16, len(x))] for n, x in batch.items()}
  first = last = None
  for _ in range(steps):
    state, metrics = step(state, few)
    total, count = metrics['loss']
    last = float(total / count)
    first = last if first is None else first
    if last < 0.05 * first:
      break
  return Result(
    name,
    last < 0.1 * first,
    f'loss {first:.4f} -> {last:.4f} in at most {steps} steps of {len(few["index"])} examples',
  )


def inputs_matter(program, state, batch, *, steps: int = 60) -> Result:
  """Trained for a few steps on zeroed inputs it does worse than on the real ones: it looks at them."""
  name = 'real inputs beat zeroed ones'
  if not _one_loss(program, state, batch):
    return Result(name, None, 'its step minimises no single loss')
  step = jax.jit(program.step)
  labels = {'label', 'target', 'targets', 'high', 'index', 'mask'}
  zeroed = {n: x if n in labels else jnp.zeros_like(x) for n, x in batch.items()}

  def trained(on):
    s, loss = state, None
    for _ in range(steps):
      s, metrics = step(s, on)
      loss = float(metrics['loss'][0] / metrics['loss'][1])
    return loss

  real, blind = trained(batch), trained(zeroed)
  return Result(name, real < blind, f'loss {real:.4f} against {blind:.4f} after {steps} steps')


def same_seed_same_bits(program, state, batch) -> Result:
  """Two runs of three steps from the same state: equal to the bit."""
  step = jax.jit(program.step)

  def after():
    s = state
    for _ in range(3):
      s, _ = step(s, batch)
    return checkpoint.to_arrays(s.params)

  a, b = after(), after()
  different = [n for n in a if a[n].tobytes() != b[n].tobytes()]
  return Result(
    'the same seed gives the same bits',
    not different,
    'three steps, twice' if not different else f'differ: {", ".join(different)}',
  )


def no_dead_units(program, state, batch) -> Result:
  """No output is constant over the batch, before or after three steps."""
  name = 'outputs respond to inputs'
  if program.predict is None:
    return Result(name, None, 'the program predicts nothing')
  for _ in range(3):
    state, _ = jax.jit(program.step)(state, batch)
  outputs = np.asarray(jax.jit(program.predict)(state, batch, programs.step_key(state, programs.EVALUATE)))
  if not np.issubdtype(outputs.dtype, np.floating):
    return Result(name, None, 'the program predicts choices, such as tags, not scores')
  if len(outputs) == 1:
    return Result(name, None, 'one example is no comparison; --batch_size=8 makes one')
  outputs = outputs.reshape(len(outputs), -1)
  dead = int((outputs.std(0) == 0).sum())
  return Result(name, dead == 0, f'{dead} of {outputs.shape[1]} outputs are the same for every example')


def one_compilation(program, state, batch) -> Result:
  """Three steps trace the step once: no shape, dtype or weak type changes from step to step."""
  traces = []

  @jax.jit
  def step(state, batch):
    traces.append(1)
    return program.step(state, batch)

  for _ in range(3):
    state, _ = step(state, batch)
  return Result('one compilation only', len(traces) == 1, f'{len(traces)} in three steps')


CHECKS: tuple[Callable, ...] = (
  loss_at_initialisation,
  no_leak_across_the_batch,
  no_leak_from_the_future,
  gradients_reach_all,
  overfits_one_batch,
  inputs_matter,
  same_seed_same_bits,
  no_dead_units,
  one_compilation,
)


def check(program, batch, *, seed: int = 0, checks=CHECKS) -> list[Result]:
  """All checks of a Program on one training batch, from the state in which the seed begins to learn."""

  @jax.jit
  def collected(state):
    return jax.lax.fori_loop(0, program.collecting, lambda _, state: program.step(state, batch)[0], state)

  state = jax.jit(program.init)(jax.random.key(seed))
  state = collected(state) if program.collecting else state
  return [one(program, state, batch) for one in checks]


def main(argv: list[str]) -> int:
  """`launch.py check NAME [flags]`: prints the table; 0 where nothing failed, else 1."""
  try:
    if not argv:
      raise errors.UsageError('which experiment? python launch.py check NAME [--flag=value …]')
    try:
      experiment = importlib.import_module(f'experiments.{argv[0]}')
    except ModuleNotFoundError:
      raise errors.UsageError(f'unknown experiment {argv[0]!r}; python launch.py lists them') from None
    given = command_line.parse(experiment.Config, argv[1:])
    program, data, resolved = loop.prepare(experiment, dataclasses.replace(given, seeds=1, parallel='none'))
    runners.bind(program, data, resolved)  # its errors, before anything is compiled
    train = data.splits['train']
    numbers = batches.indices(resolved.seed, 0, 1, batch_size=resolved.batch_size, size=train.size)[0]
    batch = jax.tree.map(jnp.asarray, batches.fetch(train, numbers))
    results = check(program, batch, seed=resolved.seed)
  except errors.UsageError as error:
    print(f'check: {command_line.flagged(error, config.Train)}', file=sys.stderr)
    return 2
  word = {True: 'pass', False: 'FAIL', None: '-'}
  print(*progress.table([(word[r.passed], r.name, r.figure) for r in results], ('', 'check', 'figure')), sep='\n')
  return int(any(r.passed is False for r in results))
