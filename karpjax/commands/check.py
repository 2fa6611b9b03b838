"""What a careful person checks before training: the first half of Karpathy, "A Recipe for Training Neural Networks" (2019).

Each check is a pure function of a Program and a batch, and gives a figure and whether it passes.
"""

import dataclasses
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
from karpjax.train.runner import Runner

OVERFIT_STEPS = 400
TARGETS = {'label', 'target', 'targets', 'high'}  # the names of what is to be predicted, in the batches of experiments


@dataclasses.dataclass(frozen=True)
class Result:
  """The outcome of a check: `passed` is None where it does not apply."""

  name: str
  passed: bool | None
  figure: str

  def __post_init__(self):
    if self.passed is not None:  # of NumPy's or JAX's booleans, Python's
      object.__setattr__(self, 'passed', bool(self.passed))


def _losses(program, state, batch) -> np.ndarray:
  """Per-example losses, [batch] or [batch, time], in evaluation mode."""
  return np.asarray(program.example_losses(state, batch, programs.step_key(state, programs.EVALUATE)))


def _one_loss(program, state, batch) -> bool:
  """Whether the step minimises one loss; players have one each."""
  return 'loss' in jax.eval_shape(program.step, state, batch)[1]


def _train(program, state, batch, steps: int, below: float = 0):
  """(state after so many steps on one batch, losses); stops where the loss is under `below` of the first."""
  losses = []
  for _ in range(steps):
    state, metrics = program.step(state, batch)
    if 'loss' in metrics:
      losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
      if losses[-1] < below * losses[0]:
        break
  return state, losses


def loss_at_initialisation(program, state, batch) -> Result:
  """At most about twice that of a guess that knows nothing."""
  name, uninformed = 'loss at initialisation', program.uninformed_loss
  if uninformed is None or program.example_losses is None:
    return Result(name, None, 'no uninformed loss is known')
  losses = _losses(program, state, batch)
  loss = float(losses.mean() if losses.ndim == 1 else losses[np.asarray(batch['targets']) >= 0].mean())
  return Result(name, abs(loss - uninformed) <= uninformed + 0.1, f'{loss:.4f}; uninformed {uninformed:.4f}')


def no_leak_across_the_batch(program, state, batch) -> Result:
  """Replacing example 0 leaves all other examples' losses as they were, to rounding."""
  name = 'examples are independent'
  if program.example_losses is None:
    return Result(name, None, 'the program gives no losses per example')
  other = {n: x.at[0].set(x[-1]) if n != 'index' else x for n, x in batch.items()}
  before, after = _losses(program, state, batch), _losses(program, state, other)
  moved = float(np.abs(after - before)[1:].max())
  figure = f"largest change of another example's loss {moved:.1e}"
  return Result(name, moved <= 1e-5 * (1 + np.abs(before).max()), figure)


def no_leak_from_the_future(program, state, batch) -> Result:
  """Another token in the middle leaves all earlier losses as they were, to rounding, and changes later ones."""
  name = 'tokens see none from the future'
  if not program.causal:
    return Result(name, None, 'no causal model')
  tokens = batch['tokens']
  middle = tokens.shape[1] // 2
  other = {**batch, 'tokens': tokens.at[:, middle].set((tokens[:, middle] + 1) % jnp.maximum(tokens.max(), 2))}
  moved = np.abs(_losses(program, state, other) - _losses(program, state, batch))
  earlier, later = float(moved[:, :middle].max(initial=0)), float(moved[:, middle:].max())
  figure = f'losses before token {middle} moved by {earlier:.1e}, from it on by {later:.1e}'
  return Result(name, earlier <= 1e-5 < later, figure)


def gradients_reach_all(program, state, batch) -> Result:
  """After three steps every parameter is finite, and none has stayed as it was."""
  name, (after, _) = 'gradients reach every parameter', _train(program, state, batch, 3)
  before, after = checkpoint.to_arrays(state.params), checkpoint.to_arrays(after.params)
  wild = [n for n, x in after.items() if not np.isfinite(x).all()]
  still = [n for n, x in after.items() if np.array_equal(x, before[n])]
  if wild or still:
    return Result(name, False, f'not finite: {", ".join(wild)}' if wild else f'never moved: {", ".join(still)}')
  return Result(name, True, f'all {len(after)} arrays finite and moving')


def overfits_one_batch(program, state, batch) -> Result:
  """The same batch again and again: the training loss falls to under a tenth."""
  name = 'one batch can be overfitted'
  if not _one_loss(program, state, batch):
    return Result(name, None, 'its step minimises no single loss')
  few = {n: x[: min(16, len(x))] for n, x in batch.items()}
  first, *_, last = _train(program, state, few, OVERFIT_STEPS, below=0.05)[1]
  figure = f'loss {first:.4f} -> {last:.4f} in at most {OVERFIT_STEPS} steps of {len(few["index"])} examples'
  return Result(name, last < 0.1 * first, figure)


def inputs_matter(program, state, batch, *, steps: int = 60) -> Result:
  """Trained for a few steps on zeroed inputs it does worse than on the real ones: it looks at them."""
  name = 'real inputs beat zeroed ones'
  if not _one_loss(program, state, batch):
    return Result(name, None, 'its step minimises no single loss')
  if not TARGETS & set(batch):
    return Result(name, None, f'nothing in the batch is a target by its name: {", ".join(sorted(TARGETS))}')
  keep = TARGETS | {'index', 'mask'}
  zeroed = {n: x if n in keep else jnp.zeros_like(x) for n, x in batch.items()}
  real, blind = (_train(program, state, inputs, steps)[1][-1] for inputs in (batch, zeroed))
  return Result(name, real < blind, f'loss {real:.4f} against {blind:.4f} after {steps} steps')


def same_seed_same_bits(program, state, batch) -> Result:
  """Two runs of three steps from the same state: equal to the bit."""
  a, b = (checkpoint.to_arrays(_train(program, state, batch, 3)[0].params) for _ in range(2))
  different = [n for n in a if a[n].tobytes() != b[n].tobytes()]
  figure = f'differ: {", ".join(different)}' if different else 'three steps, twice'
  return Result('the same seed gives the same bits', not different, figure)


def no_dead_units(program, state, batch) -> Result:
  """No output is constant over the batch after three steps."""
  name = 'outputs respond to inputs'
  if program.predict is None:
    return Result(name, None, 'the program predicts nothing')
  state, _ = _train(program, state, batch, 3)
  outputs = np.asarray(program.predict(state, batch, programs.step_key(state, programs.EVALUATE)))
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

  _train(dataclasses.replace(program, step=step), state, batch, 3)
  return Result('one compilation only', len(traces) == 1, f'{len(traces)} in three steps')


# Each check, and what to do where it fails.
CHECKS: dict[Callable, str] = {
  loss_at_initialisation: 'the last layer begins too large: look at its initialiser and at the scale of the inputs',
  no_leak_across_the_batch: 'something is computed over the batch: a norm, a mean, a wrong axis or reshape',
  no_leak_from_the_future: 'the causal mask or the shift of the targets is off by one',
  gradients_reach_all: 'a part of the model is left out of the loss, or learning_rate is too high or too low',
  overfits_one_batch: 'most often learning_rate is wrong by a factor of ten or more; else dropout, or labels that are noise',
  inputs_matter: 'the model sees little of its inputs: look at the preprocessing, the learning_rate and dead units',
  same_seed_same_bits: 'something draws from outside the keys, or an operation is not deterministic (--deterministic)',
  no_dead_units: 'units are dead: look at learning_rate, initialisers and activations',
  one_compilation: 'the step changes the shape or dtype of its state',
}


def check(program, batch, *, seed: int = 0) -> dict[Callable, Result]:
  """All checks of a Program on one training batch, from the state in which the seed begins to learn."""
  jitted = {name: jax.jit(f) for name in ('step', 'predict', 'example_losses') if (f := getattr(program, name))}
  program = dataclasses.replace(program, **jitted)

  @jax.jit
  def collect(state):
    return jax.lax.fori_loop(0, program.collecting, lambda _, state: program.step(state, batch)[0], state)

  state = jax.jit(program.init)(jax.random.key(seed))
  state = collect(state) if program.collecting else state
  return {one: one(program, state, batch) for one in CHECKS}


def main(argv: list[str]) -> int:
  """`launch.py check NAME [flags]`: prints the table; 0 where nothing failed, else 1."""
  try:
    if not argv:
      raise errors.UsageError('which experiment? python launch.py check NAME [--flag=value …]')
    experiment = command_line.experiment(argv[0])
    given = command_line.parse(experiment.Config, argv[1:])
    program, data, resolved = loop.prepare(experiment, dataclasses.replace(given, seeds=1, parallel='none'))
    Runner(program, data, resolved)  # its errors, before anything is compiled
    train = data.splits['train']
    numbers = batches.indices(resolved.seed, 0, 1, batch_size=resolved.batch_size, size=train.size)[0]
    batch = jax.tree.map(jnp.asarray, batches.fetch(train, numbers))
    results = check(program, batch, seed=resolved.seed)
  except errors.UsageError as error:
    print(f'check: {command_line.flagged(error, config.Train)}', file=sys.stderr)
    return 2
  word = {True: 'pass', False: 'FAIL', None: '-'}
  rows = [(word[r.passed], r.name, r.figure) for r in results.values()]
  failures = [f'{r.name}: {CHECKS[one]}.' for one, r in results.items() if r.passed is False]
  print(*progress.table(rows, ('', 'check', 'figure')), *([''] if failures else []), *failures, sep='\n')
  return int(bool(failures))
