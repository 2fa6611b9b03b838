"""Distillation: a run learns what another, its teacher, holds probable (Hinton, Vinyals & Dean 2015, section 2)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from karpjax import features
from karpjax.data import fingerprint
from karpjax.data.dataset import Dataset, listed
from karpjax.errors import UsageError
from karpjax.program import FROZEN, Metrics, pair
from karpjax.report import writers
from karpjax.train import checkpoint

# Of a spec: what inputs and outputs are. Scales, by mean and deviation, are a teacher's own.
ALIKE = 'shape', 'maximum', 'classes', 'tokenisers', 'lengths', 'lines'


def soft_loss(student, teacher, temperature: float):
  """T² KL(teacher ‖ student), both at temperature T, in nats; by T² its gradients are about as large at every T.

  Args:
    student, teacher: logits [..., classes], any float dtype.

  Returns:
    [...] float32.
  """
  q, p = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (student, teacher))
  return temperature**2 * jnp.where(p > -jnp.inf, jnp.exp(p) * (p - q), 0).sum(-1)


@dataclasses.dataclass(frozen=True)
class Teaching:
  """What a teacher adds to a loss; without one, nothing.

  Attributes:
    logits: batch -> the teacher's, [batch, …, classes], without dropout; None: there is none.
    temperature, weight: T, and the share of `soft_loss`.
    frozen, lent: as a Program has them.
  """

  logits: Callable | None = None
  temperature: float = 1.0
  weight: float = 0.0
  frozen: Any = dataclasses.field(default_factory=dict)
  lent: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __call__(self, metrics: Metrics, logits, batch, scored=None) -> Metrics:
    """A loss's metrics, whose 'loss' becomes (1 − weight) · itself + weight · `soft_loss`, and both parts beside it.

    Args:
      metrics: with 'loss', of labels alone.
      logits: the student's, [batch, …, classes].
      batch: what the student has seen, augmented alike.
      scored: [batch, …] bool: of which logits that loss is; None: of all.
    """
    if self.logits is None:
      return metrics
    teacher, (hard, count) = self.logits(batch), metrics['loss']
    soft = pair(soft_loss(logits, teacher, self.temperature), scored)
    loss = (1 - self.weight) * hard + self.weight * soft[0], count
    agreement = pair(logits.argmax(-1) == teacher.argmax(-1), scored)
    return {**metrics, 'loss': loss, 'hard_loss': (hard, count), 'soft_loss': soft, 'agreement': agreement}


def configured(config, data: Dataset) -> Teaching:
  """By the best weights of the finished run that `config.teacher` names, of several seeds the first's; nothing is compiled.

  Raises:
    UsageError: where there is no such run, it is of other inputs or classes, or it is this run itself.
  """
  if not config.teacher or not data.splits:
    return Teaching()
  flag = f'teacher={config.teacher}'
  if config.workdir and Path(config.workdir).resolve() == Path(config.teacher).resolve():
    raise UsageError(f'{flag} is this run itself; give the workdir of another')
  if getattr(data.spec, 'multi_label', False):
    raise UsageError(f'{flag}: distillation compares probabilities of classes; {data.spec.name} has tags')
  run = features.opened('teacher', config.teacher, type(config).__module__.rpartition('.')[2])
  for whose, each in (('', config), (f'{flag}: ', run.config)):
    if getattr(each, 'loss', 'cross_entropy') != 'cross_entropy':
      raise UsageError(f'{whose}loss={each.loss}: distillation compares probabilities; loss=cross_entropy has them')
  refuse_other(flag, run.spec, data.spec)
  predict, key, variables = run.program.logits or run.program.predict, jax.random.key(0), run.state.variables()
  lent = {f'the weights of {flag}': fingerprint.checksum(checkpoint.to_arrays(variables))}
  none = dict.fromkeys(('step', 'opt_state', 'key', 'nonfinite_step'), ())
  params = variables.pop('params')
  state = run.state.replace(params=params, collections=variables, ema=None, ema_collections={}, **none)
  logits = lambda batch: predict(batch.get(FROZEN, state), batch, key)
  return Teaching(logits, config.temperature, config.teacher_weight, state, lent)


def refuse_other(flag: str, there, here) -> None:
  """Raises UsageError, with what differs, where the spec of a teacher, `there`, is of other inputs or classes than `here`."""
  before, now = (writers.plain(spec.to_json()) for spec in (there, here))
  for name in ALIKE:
    if before.get(name) != now.get(name):
      old, new = (_told(name, getattr(spec, name)) for spec in (there, here))
      others = f'{old}, not {new}' if old != new else f'{old}, but others, or in another order'
      raise UsageError(f'{flag} was trained on other {name}: {others}')


def _told(name: str, value) -> str:
  if name == 'tokenisers':
    return ', '.join(f'{each.size:,} tokens ({each.kind})' for each in value.values())
  return listed(value) if name == 'classes' else str(value)
