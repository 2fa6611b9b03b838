"""Adversarial examples: images changed, within a small distance, until a classifier is wrong; and training against them.

An image is [height, width, channels] in [0, 1] here, whatever its scale elsewhere, and so are distances. An adversary sees the
model as it is in evaluation: batch norm keeps its statistics, nothing is dropped.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from karpjax import options
from karpjax.errors import UsageError
from karpjax.program import PERTURB, example_keys, pair

flag = options.option
ADVERSARIES = 'none', 'fgsm', 'pgd', 'trades'
EVALUATED = '20:1'  # attack on what was trained against one, if not told


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of adversarial training."""

  adversary: str = flag(
    'none',
    'Train on adversarial examples: of one step (fgsm, Wong et al. 2020), of several (pgd, Madry et al. 2018), or beside clean '
    'ones (trades, Zhang et al. 2019).',
    choices=ADVERSARIES,
    group='Adversary',
  )
  attack_epsilon: float = flag(
    8 / 255, 'How far an image may be changed, where pixels are 0 … 1.', above=0, high=1, group='Adversary'
  )
  attack_norm: str = flag(
    'linf', 'The distance: of the pixel changed most, or Euclidean.', choices=('linf', 'l2'), group='Adversary'
  )
  attack_step: float = flag(
    0.0, 'How far one step goes; 0: 1.25 times attack_epsilon in one step, 2.5 times it over all of several.', low=0, high=2,
    group='Adversary',
  )  # fmt: skip
  attack_steps: int = flag(10, 'Steps of pgd and trades.', low=1, high=1000, group='Adversary')
  trades_beta: float = flag(6.0, 'Weight of the difference that the adversary makes.', low=0, group='Adversary')
  evaluate_attack: str = flag(
    '', "STEPS:RESTARTS[:STEP] of PGD in evaluation, as 50:10. Default: 20:1 where there is an adversary, else none.",
    group='Adversary',
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Attack:
  """Projected gradient ascent (Madry et al. 2018, section 2.1) from a random start.

  Attributes:
    epsilon: the largest distance.
    step: how far one step goes.
    steps, restarts: how many; of several restarts the one that misleads counts.
    norm: 'linf' or 'l2'.
    until_wrong: whether an example that is misclassified is left as it is.
  """

  epsilon: float
  step: float
  steps: int
  restarts: int = 1
  norm: str = 'linf'
  until_wrong: bool = True

  def perturbed(self, keys, objective: Callable, images):
    """Images [batch, …] in [0, 1] that are misclassified, as far as can be.

    Args:
      keys: [batch], one for each example.
      objective: images -> (what is to grow, [batch]; whether the class is right, [batch] bool).
      images: [batch, …] float32 in [0, 1].

    Returns:
      [batch, …] in [0, 1], each within epsilon of its image.
    """
    total = lambda x: (lambda loss, right: (loss.sum(), right))(*objective(x))
    each = lambda mask, x: mask.reshape(-1, *[1] * (x.ndim - 1))

    def ascend(_, x):
      (_, right), gradient = jax.value_and_grad(total, has_aux=True)(x)
      moved = self._within(x + self.step * self._direction(gradient), images)
      return jnp.where(each(right, x), moved, x) if self.until_wrong else moved

    def attempt(number):
      own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
      start = self._within(images + jax.vmap(self._start)(own, images), images)
      return ascend(0, start) if self.steps == 1 else jax.lax.fori_loop(0, self.steps, ascend, start)

    if self.restarts == 1:
      return attempt(0)

    def worse(number, kept):
      x, loss, right = kept
      new = attempt(number)
      new_loss, new_right = objective(new)
      better = jnp.where(right == new_right, new_loss > loss, right & ~new_right)
      return jnp.where(each(better, x), new, x), jnp.where(better, new_loss, loss), right & new_right

    first = attempt(0)
    return jax.lax.fori_loop(1, self.restarts, worse, (first, *objective(first)))[0]

  def _start(self, key, image):
    if self.norm == 'linf':
      return jax.random.uniform(key, image.shape, minval=-self.epsilon, maxval=self.epsilon)
    direction_key, size_key = jax.random.split(key)  # anywhere in the ball, all places alike
    direction = jax.random.normal(direction_key, image.shape)
    return self.epsilon * jax.random.uniform(size_key) ** (1 / image.size) * direction / jnp.linalg.norm(direction)

  def _direction(self, gradient):
    return jnp.sign(gradient) if self.norm == 'linf' else gradient / jnp.maximum(_length(gradient), 1e-12)

  def _within(self, x, images):
    """The nearest of the pictures that are within epsilon of `images`, cut to [0, 1]."""
    change = x - images
    if self.norm == 'linf':
      change = jnp.clip(change, -self.epsilon, self.epsilon)
    else:
      change = change * jnp.minimum(1, self.epsilon / jnp.maximum(_length(change), 1e-12))
    return jnp.clip(images + change, 0, 1)


def _length(x):
  """[batch, …] -> [batch, 1, …]: Euclidean."""
  return jnp.sqrt(jnp.square(x).sum(range(1, x.ndim), keepdims=True))


def divergence(clean, changed):
  """KL(clean ‖ changed) of logits [batch, classes], in nats: [batch]."""
  q, p = jax.nn.log_softmax(changed), jax.nn.log_softmax(clean)
  return (jnp.exp(p) * (p - q)).sum(-1)


@dataclasses.dataclass(frozen=True)
class Adversary:
  """What is trained and evaluated against, if anything.

  Attributes:
    kind: one of ADVERSARIES.
    training, evaluation: attacks, or None.
    beta: of trades.
    maximum: of the raw images.
  """

  kind: str = 'none'
  training: Attack | None = None
  evaluation: Attack | None = None
  beta: float = 0.0
  maximum: float = 1.0

  def seen(self, key, batch, images, labels, logits: Callable):
    """What the model sees in training, raw: [batch, …], or [2 · batch, …], clean and changed, for trades.

    Args:
      key: of the step.
      batch: of which the keys of examples are.
      images: [batch, …] raw; labels: [batch].
      logits: raw images -> logits, as in evaluation.
    """
    if self.training is None:
      return images
    keys = example_keys(jax.random.fold_in(key, PERTURB), batch)
    clean = jax.lax.stop_gradient(logits(images)) if self.kind == 'trades' else None
    changed = self._changed(self.training, keys, images, labels, logits, clean)
    return jnp.concatenate([images.astype(changed.dtype), changed]) if self.kind == 'trades' else changed

  def losses(self, loss: Callable, logits, targets):
    """([batch] of `loss`, and trades' difference; the logits [batch, classes] of the images as they were, if they were seen)."""
    if self.kind != 'trades':
      return loss(logits, targets), logits
    clean, changed = jnp.split(logits, 2)
    return loss(clean, targets) + self.beta * divergence(clean, changed), clean

  def evaluated(self, batch, logits: Callable) -> dict[str, Any]:
    """{'robust_accuracy': (sum, count)}, or {} where nothing attacks; keys are those of the examples' numbers."""
    if self.evaluation is None:
      return {}
    right = logits(self.attacked(self.evaluation, batch, logits)).argmax(-1) == batch['label']
    return {'robust_accuracy': pair(right, batch['mask'])}

  def attacked(self, attack: Attack, batch, logits: Callable):
    """Raw images that an attack makes of a batch's, the same for ever."""
    keys = example_keys(jax.random.key(0), batch)
    return self._changed(attack, keys, batch['image'], batch['label'], logits)

  def _changed(self, attack: Attack, keys, images, labels, logits, clean=None):
    def objective(x):
      found = logits(x * self.maximum)
      true = jnp.take_along_axis(found, labels[:, None], -1)[:, 0]
      loss = jax.nn.logsumexp(found, -1) - true if clean is None else divergence(clean, found)
      return loss, found.argmax(-1) == labels

    return jax.lax.stop_gradient(attack.perturbed(keys, objective, images / self.maximum)) * self.maximum


def configured(config, spec) -> Adversary:
  """The adversary of a config.

  Raises:
    UsageError: where data are not images of one class each, a step goes further than across, or labels are mixed.
  """
  if config.adversary == 'none' and not config.evaluate_attack:
    return Adversary()
  name = f'adversary={config.adversary}' if config.adversary != 'none' else f'evaluate_attack={config.evaluate_attack}'
  if len(spec.shape) != 3 or spec.multi_label:
    raise UsageError(f'{name} is for images of one class each; {spec.name} has others')
  if config.adversary != 'none' and ('mixup' in config.augment or 'cutmix' in config.augment):
    raise UsageError(f'{name} needs the class of an image, and augment={config.augment} mixes two')
  epsilon, norm, training = config.attack_epsilon, config.attack_norm, None
  if config.adversary != 'none':
    steps = 1 if config.adversary == 'fgsm' else config.attack_steps
    step = _step(config.attack_step, epsilon, steps)
    training = Attack(epsilon, step, steps, norm=norm, until_wrong=config.adversary == 'pgd')
  asked = config.evaluate_attack or EVALUATED
  if not (found := re.fullmatch(r'([1-9]\d{0,3}):([1-9]\d{0,2})(?::(0?\.\d+|1))?', asked)):
    raise UsageError(f'evaluate_attack={asked}: write STEPS:RESTARTS or STEPS:RESTARTS:STEP, as 50:10:0.01')
  if found[3] and not float(found[3]):
    raise UsageError(f'evaluate_attack={asked}: a step of 0 changes nothing; leave it out for that of the steps')
  steps = int(found[1])
  evaluation = Attack(epsilon, _step(float(found[3] or 0), epsilon, steps), steps, int(found[2]), norm)
  beta = config.trades_beta if config.adversary == 'trades' else 0.0
  return Adversary(config.adversary, training, evaluation, beta, spec.maximum)


def _step(given: float, epsilon: float, steps: int) -> float:
  if given > 2 * epsilon:
    raise UsageError(
      f'a step of {given:g} is more than from one side to the other, {2 * epsilon:g}: a smaller one is needed'
    )
  return given or (1.25 * epsilon if steps == 1 else 2.5 * epsilon / steps)
