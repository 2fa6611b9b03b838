"""Augmentation, pure in (key, image), so that it runs inside the step and an example's draw is its own.

All of it commutes with scaling the pixel values: raw images on the scale of 255 serve as well as [0, 1].
Apply it before `Spec.scale`: then a filled border is black, not the mean.
"""

import functools
import math
import re
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp

from karpjax import collectives
from karpjax.errors import UsageError, choose


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
  """[height, width, channels] -> the same, mirrored left to right with probability ½."""
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def symmetry(key: jax.Array, image: jax.Array) -> jax.Array:
  """[size, size, channels] -> the same, turned by quarters and mirrored: one of the square's eight symmetries.

  Images of other sizes with the same key are moved alike.
  """
  upside_down, mirrored, transposed = jax.random.bernoulli(key, shape=(3,))
  image = jnp.where(upside_down, image[::-1], image)
  image = jnp.where(mirrored, image[:, ::-1], image)
  return jnp.where(transposed, image.swapaxes(0, 1), image)


def translate(image: jax.Array, offset: jax.Array, mode: str = 'zero') -> jax.Array:
  """The image [height, width, channels] as seen through a window that has moved by `offset`.

  Args:
    image: of any type.
    offset: [2] int32, rows down and columns right: output (y, x) is input (y + offset[0], x + offset[1]).
    mode: what lies outside: 'zero', 'edge' (the nearest pixel) or 'wrap' (the other side).
  """
  # Two takes, of rows and of columns: selects among shifted copies, or one-hot products, cost seven times that.
  height, width, _ = image.shape
  inside = True
  for axis, size in enumerate((height, width)):
    at = jnp.arange(size) + offset[axis]
    image = jnp.take(image, at % size if mode == 'wrap' else jnp.clip(at, 0, size - 1), axis=axis, mode='clip')
    inside = inside & jnp.expand_dims((at >= 0) & (at < size), (1 - axis, 2))
  return jnp.where(inside, image, 0) if mode == 'zero' else image


def shift(key: jax.Array, image: jax.Array, pixels: float, mode: str = 'zero') -> jax.Array:
  """`translate` by up to `pixels` whole pixels each way: padding by that many and cropping back at random."""
  pixels = int(pixels)
  return translate(image, jax.random.randint(key, (2,), -pixels, pixels + 1), mode)


def enlarge(key: jax.Array, image: jax.Array, pixels: float) -> jax.Array:
  """Resized (bilinear) to `pixels` more each way and cropped back at random: the jitter of Isola et al. 2017, section
  6.2.

  [height, width, channels] of any real type -> the same shape, float32.
  """
  height, width, channels = image.shape
  more = int(pixels)
  large = jax.image.resize(image.astype(jnp.float32), (height + more, width + more, channels), 'bilinear')
  row, column = jax.random.randint(key, (2,), 0, more + 1)
  return jax.lax.dynamic_slice(large, (row, column, 0), image.shape)


def rotate(image: jax.Array, radians: jax.Array) -> jax.Array:
  """[height, width, channels] float32 turned anticlockwise by `radians` about its centre; bilinear, zero outside."""
  height, width, _ = image.shape
  y, x = jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
  cos, sin = jnp.cos(radians), jnp.sin(radians)
  # Where each output pixel comes from, [height, width]: rows grow downwards, hence the signs.
  rows = cos * y[:, None] + sin * x + (height - 1) / 2
  columns = cos * x - sin * y[:, None] + (width - 1) / 2
  turn = lambda channel: jax.scipy.ndimage.map_coordinates(channel, [rows, columns], order=1)
  return jax.vmap(turn, -1, -1)(image)


def random_rotate(key: jax.Array, image: jax.Array, degrees: float) -> jax.Array:
  """`rotate` by an angle drawn uniformly from ± `degrees`."""
  limit = math.radians(degrees)
  return rotate(image.astype(jnp.float32), jax.random.uniform(key, minval=-limit, maxval=limit))


def jitter(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
  """Brightness, contrast and saturation, each by a factor drawn uniformly from 1 ± `strength`, in that order.

  The image [height, width, channels] is blended with black, with its mean luma, and with its own grey
  version. Values are not clipped. Saturation leaves an image of one channel as it is.
  """
  brightness, contrast, saturation = jax.random.uniform(key, (3,), minval=1 - strength, maxval=1 + strength)
  image = image.astype(jnp.float32)
  grey = image
  if image.shape[-1] == 3:  # ITU-R 601 luma, [height, width, 1]
    grey = 0.299 * image[..., 0:1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:3]
  # All three are linear, and saturation keeps the luma: so they come together, and the luma is computed once.
  coloured = grey + saturation * (image - grey)
  return brightness * (contrast * coloured + (1 - contrast) * grey.mean())


def cutout(key: jax.Array, image: jax.Array, length: float) -> jax.Array:
  """A square of `length` pixels set to zero, its centre anywhere in the image (Cutout, arXiv:1708.04552)."""
  height, width, _ = image.shape
  return jnp.where(_box(key, height, width, int(length), int(length)), 0, image)


def _box(key, height, width, box_height, box_width):
  """[height, width, 1] bool: a box with its centre drawn uniformly from the image, clipped by that."""
  row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
  top, left = row - box_height // 2, column - box_width // 2
  y, x = jnp.arange(height), jnp.arange(width)
  return (((y >= top) & (y < top + box_height))[:, None] & ((x >= left) & (x < left + box_width)))[..., None]


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
    box = _box(box_key, height, width, *((side * size).astype(jnp.int32) for size in (height, width)))
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
  'flip': (flip, None, 0),
  'shift': (shift, 'whole pixels', 4096),
  'shift_edge': (functools.partial(shift, mode='edge'), 'whole pixels', 4096),
  'roll': (functools.partial(shift, mode='wrap'), 'whole pixels', 4096),
  'enlarge': (enlarge, 'whole pixels', 4096),
  'rotate': (random_rotate, 'degrees', 180),
  'jitter': (jitter, 'a fraction', 1),
  'cutout': (cutout, 'whole pixels', 4096),
}
MIXES = {'mixup': (mixup, 'alpha', 100), 'cutmix': (cutmix, 'alpha', 100)}


def parse(text: str, known: Collection[str] = (*IMAGES, *MIXES)) -> tuple[Step, ...]:
  """'flip,shift:4,cutout:8,rotate:10,jitter:0.4,mixup:0.2' -> the steps; '' -> none.

  Raises:
    UsageError: for a name that is not known (here), or an amount that is missing, superfluous or out of range.
  """
  steps = []
  for item in filter(None, map(str.strip, text.split(','))):
    name, _, amount = item.partition(':')
    _, what, highest = choose('augmentation', name, IMAGES | MIXES)
    if name not in known:
      raise UsageError(f'augmentation {name}: here only {", ".join(known)} are known')
    number = float(amount) if re.fullmatch(r'(\d+\.?\d*|\.\d+)(e-?\d+)?', amount) else 0.0
    if what is None and amount:
      raise UsageError(f'augmentation {item!r}: {name} takes no amount; write {name}')
    if what and not (0 < number <= highest and (number.is_integer() or what != 'whole pixels')):
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
    images: [batch, height, width, channels], before `Spec.scale`.
    targets: [batch, classes] float32, one-hot or smoothed.

  Returns:
    Images of the same shape, float32 unless every step only moves or blanks pixels, and targets.
  """
  if not steps:
    return images, targets
  if images.ndim != 4:
    raise UsageError(f'augmentation is for images; an example of this data set has shape {images.shape[1:]}')
  fold = jax.vmap(jax.random.fold_in, (0, None))
  mixes = []
  for i, (name, amount) in enumerate(steps):
    if name in MIXES:
      mixes.append(functools.partial(MIXES[name][0], fold(keys, i), alpha=amount))
      continue
    function, what, _ = IMAGES[name]
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
