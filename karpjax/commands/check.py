"""What a careful person checks before training: the first half of Karpathy, "A Recipe for Training Neural Networks" (2019).

Each check is a pure function of a Program and a batch, and gives a figure and whether it passes.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import command_line, errors
from karpjax import program as programs
from karpjax.data import batches
from karpjax.report import progress, tables
from karpjax.train import checkpoint, loop
from karpjax.train.runner import Runner

USAGE = 'python launch.py check NAME [--flag=value …]'
OVERFIT_STEPS, BLIND_STEPS = 400, 60  # at most; without inputs
EARLIEST, LATEST, LAST = 50, 200, 10  # steps after which something should be learnt; over whose last the loss is taken
TARGETS = {'label', 'target', 'targets'}  # the names of what is to be predicted, in the batches of experiments


Result = tuple[bool, str]  # (whether it passes, a figure)
CHECKS: dict[str, tuple[Callable[..., Result], str]] = {}  # {name: (check, what to do where it fails)}


class NotApplicable(Exception):
  """Why a check does not apply."""


def named(name: str, remedy: str):
  """Registers a check."""

  def register(function):
    CHECKS[name] = function, remedy
    return function

  return register


def _losses(program, state, batch) -> np.ndarray:
  """Per-example losses, [batch] or [batch, time], in evaluation mode."""
  if program.example_losses is None:
    raise NotApplicable('the program gives no losses per example')
  return np.asarray(program.example_losses(state, batch, programs.step_key(state, programs.EVALUATE)))


def _train(program, state, batch, steps: int):
  """The state after so many steps on one batch."""
  for _ in range(steps):
    state, _ = program.step(state, batch)
  return state


def _minimise(program, state, batch, steps: int, below: float = 0) -> list[float]:
  """The losses of so many steps on one batch, all with the draws of the first, until one is under `below` of the first."""
  if 'loss' not in jax.eval_shape(program.step, state, batch)[1]:  # players have one each
    raise NotApplicable('its step minimises no single loss')
  losses, first = [], state.step
  while len(losses) < steps and not (losses and losses[-1] < below * losses[0]):
    state, metrics = program.step(state.replace(step=first), batch)
    losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
  return losses


@named(
  'loss at initialisation',
  'The net begins sure of wrong answers: let the last layer begin near 0, inputs have mean 0 and deviation 1',
)
def loss_at_initialisation(program, state, batch) -> Result:
  """Within half of that of a guess that knows nothing."""
  if program.uninformed_loss is None:
    raise NotApplicable('no uninformed loss is known')
  losses, uninformed = _losses(program, state, batch), program.untrained_loss or program.uninformed_loss
  loss = float(losses.mean() if losses.ndim == 1 else losses[np.asarray(batch['targets']) >= 0].mean())
  return abs(loss - uninformed) <= 0.5 * uninformed + 0.1, f'{loss:.4f}; uninformed {uninformed:.4f}'


@named(
  'examples are independent', "An example changes another's loss: look for a norm, a mean or a reshape over the batch"
)
def no_leak_across_the_batch(program, state, batch) -> Result:
  """Replacing example 0 leaves all other examples' losses as they were, to rounding."""
  other = {n: x.at[0].set(x[-1]) if n != 'index' else x for n, x in batch.items()}
  before, after = _losses(program, state, batch), _losses(program, state, other)
  moved = float(np.abs(after - before)[1:].max())
  return moved <= 1e-5 * (1 + np.abs(before).max()), f"largest change of another example's loss {moved:.1e}"


@named(
  'tokens see none from the future',
  'A token sees what comes after it: look at the causal mask and the shift of the targets',
)
def no_leak_from_the_future(program, state, batch) -> Result:
  """Another token in the middle leaves all earlier losses as they were, to rounding, and changes later ones."""
  if not program.causal:
    raise NotApplicable('no causal model')
  tokens = batch['tokens']
  middle = tokens.shape[1] // 2
  other = {**batch, 'tokens': tokens.at[:, middle].set((tokens[:, middle] + 1) % jnp.maximum(tokens.max(), 2))}
  moved = np.abs(_losses(program, state, other) - _losses(program, state, batch))
  earlier, later = float(moved[:, :middle].max(initial=0)), float(moved[:, middle:].max())
  figure = f'losses before token {middle} moved by {earlier:.1e}, from it on by {later:.1e}'
  return earlier <= 1e-5 < later, figure


@named(
  'gradients reach every parameter',
  'A part learns nothing, or is not finite: is it left out of the loss? Try a lower learning_rate',
)
def gradients_reach_all(program, state, batch) -> Result:
  """After three steps every parameter is finite, and none has stayed as it was."""
  before = checkpoint.to_arrays(state.params)
  after = checkpoint.to_arrays(_train(program, state, batch, 3).params)
  wild = [n for n, x in after.items() if not np.isfinite(x).all()]
  still = [n for n, x in after.items() if np.array_equal(x, before[n])]
  if wild or still:
    return False, f'not finite: {", ".join(wild)}' if wild else f'never moved: {", ".join(still)}'
  return True, f'all {len(after)} arrays finite and moving'


@named(
  'one batch can be overfitted',
  'Not even one batch is learnt: try learning_rate ten times lower or higher, no dropout; are labels in order?',
)
def overfits_one_batch(program, state, batch) -> Result:
  """The same batch, masked and augmented alike, again and again: the training loss falls to under a tenth."""
  if program.loss_floor:
    raise NotApplicable('its loss has a floor above 0')
  few = {n: x[: min(16, len(x))] for n, x in batch.items()}
  first, *_, last = _minimise(program, state, few, OVERFIT_STEPS, below=0.05)
  figure = f'loss {first:.4f} -> {last:.4f} in at most {OVERFIT_STEPS} steps of {len(few["index"])} examples'
  return last < 0.1 * first, figure


@named(
  'it learns more than frequencies',
  'It does no better than a guess that looks at no input: try a lower learning_rate, or warmup=10%; or a higher rate',
)
def learns(program, state, batch, later) -> Result:
  """The training loss of the last of `later`, the run's first batches, is under that of such a guess."""
  if not program.uninformed_loss:
    raise NotApplicable('no uninformed loss above 0 is known')
  pairs = []
  for each in later:
    state, metrics = program.step(state, each)
    pairs.append(metrics.get('hard_loss', metrics['loss']))
  if not pairs:
    raise NotApplicable('there are no other batches')
  loss = float(np.divide(*np.array(pairs[-LAST:], np.float64).sum(0)))
  guess, first = program.uninformed_loss, max(1, len(pairs) - LAST + 1)
  return loss < progress.STANDS * guess, f'loss {loss:.4f} in steps {first} to {len(pairs)}; a guess {guess:.4f}'


@named(
  'real inputs beat zeroed ones',
  'It does as well without its inputs: look at the preprocessing and for dead units; try a lower learning_rate',
)
def inputs_matter(program, state, batch) -> Result:
  """Trained for a few steps on zeroed inputs it does worse than on the real ones: it looks at them."""
  if not TARGETS & set(batch):
    raise NotApplicable(f'nothing in the batch is a target by its name: {", ".join(sorted(TARGETS))}')
  alike = {n: jnp.broadcast_to(x[:1], x.shape) if n in TARGETS else x for n, x in batch.items()}
  if _minimise(program, state, batch, 3) == _minimise(program, state, alike, 3):
    raise NotApplicable('the loss looks at no target but at the inputs themselves')
  keep = TARGETS | {'index', 'mask'}
  zeroed = {n: x if n in keep else jnp.zeros_like(x) for n, x in batch.items()}
  real, blind = (_minimise(program, state, inputs, BLIND_STEPS)[-1] for inputs in (batch, zeroed))
  return real < blind, f'loss {real:.4f} against {blind:.4f} after {BLIND_STEPS} steps'


@named(
  'the same seed gives the same bits',
  'Something draws from outside of the keys: look for NumPy or time in the step; on GPUs try --deterministic',
)
def same_seed_same_bits(program, state, batch) -> Result:
  """Two runs of three steps from the same state, each traced anew, or NumPy's draws would be constants: equal to the bit."""
  anew = lambda: dataclasses.replace(program, step=jax.jit(lambda *arguments: program.step.__wrapped__(*arguments)))
  a, b = (checkpoint.to_arrays(_train(anew(), state, batch, 3).params) for _ in range(2))
  different = [n for n in a if a[n].tobytes() != b[n].tobytes()]
  return not different, f'differ: {", ".join(different)}' if different else 'three steps, twice'


@named(
  'outputs respond to inputs',
  'Some outputs do not depend on the inputs: try a lower learning_rate; look at initialisers and activations',
)
def no_dead_units(program, state, batch) -> Result:
  """No output is constant over the batch after three steps."""
  if program.predict is None:
    raise NotApplicable('the program predicts nothing')
  state = _train(program, state, batch, 3)
  outputs = np.asarray(program.predict(state, batch, programs.step_key(state, programs.EVALUATE)))
  if not np.issubdtype(outputs.dtype, np.floating):
    raise NotApplicable('the program predicts choices, such as tags, not scores')
  if len(outputs) == 1:
    raise NotApplicable('one example is no comparison; --batch_size=8 makes one')
  outputs = outputs.reshape(len(outputs), -1)
  if not np.isfinite(outputs).all():
    return False, f'{(~np.isfinite(outputs)).sum()} of {outputs.size} outputs are not finite'
  dead = int((outputs.std(0) == 0).sum())
  return dead == 0, f'{dead} of {outputs.shape[1]} outputs are the same for every example'


@named('one compilation only', 'The step is compiled again: look for what changes the shape or dtype of the state')
def one_compilation(program, state, batch) -> Result:
  """Three steps trace the step once: no shape, dtype or weak type changes from step to step."""
  traces = []

  @jax.jit
  def step(state, batch):
    traces.append(1)
    return program.step(state, batch)

  _train(dataclasses.replace(program, step=step), state, batch, 3)
  return len(traces) == 1, f'{len(traces)} in three steps'


def check(program, batch, *, seed: int = 0, later=()) -> dict[str, tuple[bool | None, str]]:
  """All checks of a Program on one training batch, from the state in which the seed begins to learn.

  Args:
    later: other batches, of as many steps as a run should take to be better than a guess.

  Returns:
    {name: (whether it passes, None where it does not apply; a figure, or why)}.
  """
  jitted = {name: jax.jit(f) for name in ('step', 'predict', 'example_losses') if (f := getattr(program, name))}
  program = dataclasses.replace(program, **jitted)

  @jax.jit
  def collect(state):
    return jax.lax.fori_loop(0, program.collecting, lambda _, state: program.step(state, batch)[0], state)

  state = jax.jit(program.init)(jax.random.key(seed))
  state, results = collect(state) if program.collecting else state, {}
  for name, (one, _) in CHECKS.items():
    try:
      results[name] = one(program, state, batch, *((later,) if one is learns else ()))
    except NotApplicable as reason:
      results[name] = None, str(reason)
  if program.checks:
    learnt = _train(program, state, batch, BLIND_STEPS)
    results |= {name: one(learnt, batch) for name, one in program.checks.items()}
  return results


def main(argv: list[str]) -> int:
  """`launch.py check NAME [flags]`: prints the table; 0 where nothing failed, else 1."""
  try:
    if command_line.asks_help(argv):
      print(__doc__.strip(), '', f'usage: {USAGE}; NAME --help shows the flags', sep='\n')
      return 0
    if not argv:
      raise errors.UsageError(f'which experiment? {USAGE}')
    experiment = command_line.experiment(argv[0])
    given = command_line.parse(experiment.Config, argv[1:])
    program, data, resolved = loop.prepare(experiment, dataclasses.replace(given, seeds=1, parallel='none'))
    feed = Runner(program, data, resolved).feed  # its errors, before anything is compiled
    train, (numbers,) = feed.split, feed.numbers(0, 1)
    batch = jax.tree.map(jnp.asarray, batches.fetch(train, numbers))
    steps = min(resolved.steps, max(EARLIEST, min(LATEST, math.ceil(progress.EARLY * resolved.steps))))
    later = (batches.fetch(train, each) for each in feed.numbers(0, steps))
    results = check(program, batch, seed=resolved.seed, later=later)
  except errors.UsageError as error:
    return command_line.refuse('check', error)
  word = lambda passed: '-' if passed is None else 'pass' if passed else 'FAIL'
  rows = [(word(passed), name, figure) for name, (passed, figure) in results.items()]
  remedies = {name: remedy for name, (_, remedy) in CHECKS.items()}
  failures = [f'{name}: {remedies.get(name, "see its figure")}.' for mark, name, _ in rows if mark == 'FAIL']
  print(*tables.table(rows, ('', 'check', 'figure')), *([''] if failures else []), *failures, sep='\n')
  return int(bool(failures))
