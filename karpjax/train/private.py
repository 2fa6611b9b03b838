"""Private training (DP-SGD: Abadi et al. 2016): the gradient of each example is clipped, their sum gets noise; ε is told.

`privacy` has the arithmetic of ε.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from karpjax import collectives
from karpjax.errors import UsageError
from karpjax.lean import privacy
from karpjax.program import FROZEN, NOISE, Program
from karpjax.report import writers

LEARNT = {'scale': 'standard', 'class_weights': 'balanced'}  # flags by which losses depend on all examples
ROWS = 'mask', 'left_out'  # of a batch: about its rows, not for the loss
# bytes of gradients at once, for a CPU's caches: of the network of `bench mnist_cnn` 1.5 times the plain step; all at once 2.7
CACHED = 2**24


@dataclasses.dataclass(frozen=True)
class Private:
  """The two halves of a private gradient: `clipped` is made of rows, `finished` once of the sum over all of them.

  Attributes:
    noise: its deviation, as a multiple of clip.
    clip: the largest norm of an example's gradient.
    batch_size: how many examples are expected: a divisor that tells nothing of who is in the batch.
  """

  noise: float
  clip: float
  batch_size: int

  def parts(self, params, rows: int, microbatches: int) -> int:
    """Into how many a batch is cut, a multiple of the microbatches: on a CPU so many that its caches hold their gradients."""
    if jax.default_backend() != 'cpu':
      return microbatches
    fit = max(1, CACHED // sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)))
    return next(n for n in range(microbatches, rows + 1, microbatches) if rows % n == 0 and rows // n <= fit)

  def clipped(self, loss: Callable) -> Callable:
    """(params, collections, batch, key) -> (sum of clipped gradients, (metrics, collections, {})).

    Args:
      loss: as for `step.compute_gradients`; it is given one example at a time, whose loss is its mean. Rows that
        batch['mask'], where there is one, says are no examples count nothing.
    """

    def of_one(params, row, whole, key):
      with collectives.alone():  # else a loss that gathers its batch would see other replicas' examples
        metrics, _, *each = loss(params, {}, {**jax.tree.map(lambda x: x[None], row), **whole}, key)
      if each and jax.tree.leaves(each):
        raise UsageError('dp_noise: what goes on from batch to batch is not private; give a model without it')
      total, count = metrics['loss']
      return total / jnp.maximum(count, 1), metrics

    def clipped(params, collections, batch, key):
      if jax.tree.leaves(collections):
        names = ', '.join(collections)
        text = f'dp_noise: {names} is of the whole batch, so that no example has a gradient of its own'
        raise UsageError(f'{text}; give a model without batch norm, as norm=none')
      mask = batch.get('mask', jnp.ones(batch['index'].shape, bool))
      rows = {name: x for name, x in batch.items() if name not in (*ROWS, FROZEN)}
      whole = {FROZEN: batch[FROZEN]} if FROZEN in batch else {}
      grads, metrics = jax.vmap(jax.grad(of_one, has_aux=True), (None, 0, None, None))(params, rows, whole, key)
      norms = jnp.sqrt(sum(jnp.square(g).reshape(len(mask), -1).sum(1) for g in jax.tree.leaves(grads)))  # [batch]
      scale = jnp.where(mask, 1 / jnp.maximum(norms / self.clip, 1), 0)
      # not in the lower precision of a GPU's matmuls, by which a gradient could be longer than the clip
      grads = jax.tree.map(lambda g: jnp.tensordot(scale, g, 1, precision='highest'), grads)
      metrics = jax.tree.map(lambda x: jnp.where(mask, x, 0).sum(), metrics)
      metrics['clipped'] = (mask & (norms > self.clip)).sum().astype(jnp.float32), mask.sum().astype(jnp.float32)
      counts = {'examples': mask, 'left_out': batch['left_out']} if 'mask' in batch else {}
      metrics |= {name: (x.sum().astype(jnp.float32), jnp.zeros(())) for name, x in counts.items()}
      return grads, (metrics, collections, {})

    return clipped

  def finished(self, grads, metrics, key):
    """(gradient, metrics) from the sums over all rows: noise, the same on all replicas, is added once."""
    leaves, tree = jax.tree.flatten(grads)
    keys = jax.random.split(jax.random.fold_in(key, NOISE), len(leaves))
    noise = (self.noise * self.clip * jax.random.normal(k, g.shape, g.dtype) for k, g in zip(keys, leaves))
    grads = tree.unflatten([(g + x) / self.batch_size for g, x in zip(leaves, noise)])
    return grads, metrics | {
      name: (metrics[name][0], jnp.ones(())) for name in ('examples', 'left_out') if name in metrics
    }


def of(config) -> Private | None:
  """What a resolved `config.Train` asks of a gradient; None where it is not private."""
  return Private(config.dp_noise, config.dp_clip, config.batch_size) if config.dp_noise else None


# ---- ε of a run ----


def accounted(program: Program, examples: int, config) -> Program:
  """The Program of a private run, which says at its start what ε will be, in each row what it is, and in the end what it was.

  Where batches are not drawn as ε supposes it is called nominal.

  Args:
    program: whose step is `step.train_step` of this config.
    examples: of the train split.
    config: resolved.

  Raises:
    UsageError: where ε would be false.
  """
  if config.dp_noise < privacy.LEAST_NOISE:
    raise UsageError(f'dp_noise={config.dp_noise:g}: so little protects nobody; at least {privacy.LEAST_NOISE:g}, or 0')
  rate, accepted = config.batch_size / examples, config.dp_accept_shuffle
  exact = config.order == 'poisson' or rate == 1
  if not exact and not (accepted and config.order in ('reshuffle', 'shuffle')):
    why = 'ε supposes that each example is in a batch by chance, whoever else is'
    advice = 'give order=poisson; or order=reshuffle with dp_accept_shuffle, by which ε is only nominal'
    raise UsageError(f'order={config.order}: {why}; {advice}')
  about, prefix = (rate, config.dp_noise), '' if exact else 'nominal_'

  def spent(t):
    each = {kind: privacy.epsilon(*about, t, config.dp_delta, kind) for kind in privacy.CONVERSIONS}
    return {f'{prefix}epsilon': each['tight'], f'{prefix}epsilon_classical': each['classical']}

  def said(t):
    each = [
      f'{privacy.epsilon(*about, t, config.dp_delta, kind):.3f} ({name})' for kind, name in privacy.CONVERSIONS.items()
    ]
    others = privacy.by_dp_accounting(*about, t, config.dp_delta)
    each += [f'{x:.3f} ({kind} of dp_accounting)' for kind, x in others.items()]
    return f'{"" if exact else "nominal "}ε at δ = {config.dp_delta:g} after {t:,} steps: {", ".join(each)}'

  def report(state, t, folder):
    lines = [said(t), *caveats]
    writers.write_bytes(Path(folder) / 'texts' / 'privacy.txt', '\n'.join(lines).encode())
    return [*((program.report(state, t, folder) if program.report else None) or ()), *lines]

  seeds = len(set(program.population.seeds)) if program.population else config.seeds
  caveats = _caveats(config, examples, exact, about, seeds)
  aim = f' for dp_epsilon={config.dp_epsilon:g}' if config.dp_epsilon else ''
  mechanism = f'private: noise {config.dp_noise:g}{aim} × clip {config.dp_clip:g}, each example in a step with probability {rate:.3g}'
  notes = lambda: [*program.notes(), mechanism, said(config.steps), *caveats]
  return dataclasses.replace(program, report=report, notes=notes, of_step=spent)


def _caveats(config, examples: int, exact: bool, about, seeds: int) -> list[str]:
  """What a reader of ε has to know."""
  lines = [
    'not accounted: choices made by looking at results, and numbers of train and validation; who knows the seed knows the '
    'noise, and runs of one seed share it'
  ]
  if not exact:
    lines.append(
      'ε is nominal: batches are those of a shuffled order, and it is counted as if they were of order=poisson'
    )
  if config.dp_delta >= 1 / examples:
    lines.append(
      f'dp_delta={config.dp_delta:g} is not below 1 / {examples:,} examples: to publish one of them would be as private'
    )
  if seeds > 1:
    together = privacy.epsilon(*about, config.steps * seeds, config.dp_delta)
    lines.append(f'that is of one seed; of all {seeds}, where more than one is published, ε is {together:.3f}')
  given = {name: getattr(config, name) for name in ('init_from', 'mask_from', 'teacher')}
  given |= {name: x for name, x in LEARNT.items() if getattr(config, name, '') == x}
  if told := [f'{name}={x}' for name, x in given.items() if x]:
    lines.append(f'not accounted: what {", ".join(told)} has learnt from the same examples')
  return lines
