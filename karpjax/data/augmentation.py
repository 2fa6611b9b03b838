"""Augmentation, pure in (key, image), so that it runs inside the step and an example's draw is its own.

All of it commutes with scaling the pixel values: raw images on the scale of 255 serve as well as [0, 1].
Apply it before `Spec.scale`: then a filled border is black, not the mean.
"""

import functools
import re
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp

from karpjax import collectives
from karpjax.data import transformations
from karpjax.errors import UsageError, choose


def mixup(keys: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
  """Each example blended with the next one of the whole batch over all replicas (mixup, arXiv:1710.09412).

  Args:
    keys: [batch], one per example; its own weight λ is drawn from Beta(alpha, alpha).
    images: [batch, ...].
    targets: [batch, classes] float32, each adding up to one.
    alpha: above 0.

  Returns:
    λ · example + (1 − λ) · the next, images and targets alike, float32.
  """
  weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
  blend = jax.vmap(lambda weight, own, other: weight * own + (1 - weight) * other)
  return blend(weight, images, _next(images)), blend(weight, targets, _next(targets))


def cutmix(keys: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
  """A box of the next example of the whole batch pasted into each (CutMix, arXiv:1905.04899).

  Args:
    keys: [batch], one per example: λ from Beta(alpha, alpha); the box covers 1 − λ of the image before this
      clips it.
    images: [batch, height, width, channels].
    targets: [batch, classes] float32; they mix by the area that is really covered.
    alpha: above 0.
  """
  _, height, width, _ = images.shape

  def one(key, image, other, target, other_target):
    weight_key, box_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(weight_key, alpha, alpha))
    box = transformations.box(box_key, height, width, *((side * size).astype(jnp.int32) for size in (height, width)))
    covered = box.mean()
    return jnp.where(box, other, image), (1 - covered) * target + covered * other_target

  return jax.vmap(one)(keys, images, _next(images), targets, _next(targets))


def _next(rows):
  """[batch of this replica, ...]: each row's next one in the whole batch, and the first for the last."""
  whole = jnp.roll(collectives.gather(rows), -1, axis=0)  # [whole batch, ...]
  return jax.lax.dynamic_slice_in_dim(whole, collectives.offset(len(rows)), len(rows))


Step = tuple[str, float]  # one augmentation and how much of it, such as ('shift', 4)

# name -> the function; what its amount is, with the highest one (None: it takes no amount)
IMAGES = {
  'flip': (transformations.flip, None, 0),
  'shift': (transformations.shift, 'whole pixels', 4096),
  'shift_edge': (functools.partial(transformations.shift, mode='edge'), 'whole pixels', 4096),
  'roll': (functools.partial(transformations.shift, mode='wrap'), 'whole pixels', 4096),
  'enlarge': (transformations.enlarge, 'whole pixels', 4096),
  'rotate': (transformations.random_rotate, 'degrees', 180),
  'jitter': (transformations.jitter, 'a fraction', 1),
  'cutout': (transformations.cutout, 'whole pixels', 4096),
  'crop': (transformations.crop, 'a fraction', 1),
  'hue': (transformations.hue, 'a fraction', 0.5),
  'grey': (transformations.grey, 'a probability', 1),
  'blur': (transformations.blur, 'a probability', 1),
}
SERIES = {
  'detrend': (transformations.detrend, None, 0),
  'cycle': (transformations.cycle, 'whole places', 4096),
  'slope': (transformations.slope, 'a deviation', 1000),
  'offset': (transformations.offset, 'a deviation', 1000),
}
MIXES = {'mixup': (mixup, 'alpha', 100), 'cutmix': (cutmix, 'alpha', 100)}


def parse(text: str, known: Collection[str] = (*IMAGES, *SERIES, *MIXES)) -> tuple[Step, ...]:
  """'flip,shift:4,cutout:8,rotate:10,jitter:0.4,mixup:0.2' -> the steps; '' -> none.

  Raises:
    UsageError: for a name that is not known (here), or an amount that is missing, superfluous or out of range.
  """
  steps = []
  for item in filter(None, map(str.strip, text.split(','))):
    name, _, amount = item.partition(':')
    _, what, highest = choose('augmentation', name, IMAGES | SERIES | MIXES)
    if name not in known:
      raise UsageError(f'augmentation {name}: here only {", ".join(known)} are known')
    number = float(amount) if re.fullmatch(r'(\d+\.?\d*|\.\d+)(e-?\d+)?', amount) else 0.0
    if what is None and amount:
      raise UsageError(f'augmentation {item!r}: {name} takes no amount; write {name}')
    if what and not (0 < number <= highest and (number.is_integer() or not what.startswith('whole'))):
      raise UsageError(f'augmentation {item!r}: write {name}:N, N {what} above 0 and at most {highest}')
    steps.append((name, number))
  return tuple(steps)


def augment_symmetric(steps: Sequence[Step], keys: jax.Array, images: jax.Array) -> jax.Array:
  """`augment` of images [batch, height, width, channels] in [-1, 1]; differentiable (DiffAugment: Zhao et al. 2020)."""
  return 2 * augment(steps, keys, (images + 1) / 2, None)[0] - 1 if steps else images


def augment(
  steps: Sequence[Step], keys: jax.Array, images: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """All steps in their order; mixup and CutMix come last, and of both together each example draws one.

  Args:
    steps: from `parse`.
    keys: [batch], one per example (`program.example_keys`); step i of an example draws from its key folded with i.
    images: [batch, height, width, channels], or series [batch, length, channels], before `Spec.scale`.
    targets: [batch, classes] float32, one-hot or smoothed.

  Returns:
    Images of the same shape, float32 unless every step only moves or blanks pixels, and targets.
  """
  if not steps:
    return images, targets
  for name, _ in steps:
    wanted = 3 if name in SERIES else 4
    if images.ndim != wanted:
      kind = 'series' if name in SERIES else 'images'
      raise UsageError(f'augmentation {name} is for {kind}; an example of this data set has shape {images.shape[1:]}')
  fold = jax.vmap(jax.random.fold_in, (0, None))
  mixes = []
  for i, (name, amount) in enumerate(steps):
    if name in MIXES:
      mixes.append(functools.partial(MIXES[name][0], fold(keys, i), alpha=amount))
      continue
    function, what, _ = (IMAGES | SERIES)[name]
    if what == 'whole pixels' and amount >= min(images.shape[1:3]):
      size = '×'.join(map(str, images.shape[1:3]))
      raise UsageError(f'augmentation {name}:{amount:g} is too much for images of {size} pixels')
    amounts = () if what is None else (amount,)
    images = jax.vmap(lambda key, image: function(key, image, *amounts))(fold(keys, i), images)
    # keeps XLA from fusing the steps, which would compute each anew for every pixel that the next reads
    images = jax.lax.optimization_barrier(images)
  if not mixes:
    return images, targets
  if len(images) * collectives.replicas() == 1:
    names = ', '.join(name for name, _ in steps if name in MIXES)
    raise UsageError(
      f'augmentation {names}: each example is alone (batch_size=1, or dp_noise), with no other to be mixed with'
    )
  mixed = [mix(images.astype(jnp.float32), targets) for mix in mixes]
  drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(mixed)))(fold(keys, len(steps)))
  pick = lambda *choices: jnp.choose(drawn.reshape(-1, *[1] * (choices[0].ndim - 1)), choices, mode='clip')
  return jax.tree.map(pick, *mixed)
