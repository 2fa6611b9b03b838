"""What becomes of one picture or series by chance: pure in (key, example), with NumPy's shapes kept.

All of it commutes with scaling the values: raw images on the scale of 255 serve as well as [0, 1].
"""

import math

import jax
import jax.numpy as jnp


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
  return jnp.where(box(key, height, width, int(length), int(length)), 0, image)


def box(key, height, width, box_height, box_width):
  """[height, width, 1] bool: a box with its centre drawn uniformly from the image, clipped by that."""
  row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
  top, left = row - box_height // 2, column - box_width // 2
  y, x = jnp.arange(height), jnp.arange(width)
  return (((y >= top) & (y < top + box_height))[:, None] & ((x >= left) & (x < left + box_width)))[..., None]


def crop(key: jax.Array, image: jax.Array, least: float) -> jax.Array:
  """A box of `least` to all of the area, its sides as 3:4 to 4:3, resized (bilinear) to the image's size (Szegedy et al. 2015).

  [height, width, channels] of any real type -> the same shape, float32.
  """
  height, width, _ = image.shape
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  area = jax.random.uniform(area_key, minval=least, maxval=1.0)
  ratio = jnp.exp(jax.random.uniform(ratio_key, minval=-math.log(4 / 3), maxval=math.log(4 / 3)))
  share = jnp.minimum(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)]), 1.0)  # of height and width
  corner = jax.random.uniform(place_key, (2,)) * (1 - share) * jnp.array([height, width])
  scale = 1 / share
  return jax.image.scale_and_translate(
    image.astype(jnp.float32), image.shape, (0, 1), scale, -corner * scale, 'linear', antialias=False
  )


def hue(key: jax.Array, image: jax.Array, amount: float) -> jax.Array:
  """Colours [height, width, 3] turned about the axis of greys by up to `amount` of a circle either way; grey ones stay."""
  if image.shape[-1] != 3:
    return image
  angle = 2 * math.pi * jax.random.uniform(key, minval=-amount, maxval=amount)
  cos, sin = jnp.cos(angle), jnp.sin(angle) / math.sqrt(3)
  turn = cos * jnp.eye(3) + (1 - cos) / 3 + sin * jnp.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
  return image.astype(jnp.float32) @ turn


def grey(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
  """An image without its colours, by a chance."""
  if image.shape[-1] != 3:
    return image
  luma = 0.299 * image[..., 0:1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:3]
  return jnp.where(jax.random.bernoulli(key, probability), luma, image.astype(jnp.float32))


def blur(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
  """By a chance blurred by a Gaussian of a deviation of 0.1 to 2 pixels (Chen et al. 2020, appendix A)."""
  chance_key, width_key = jax.random.split(key)
  radius = max(1, min(image.shape[:2]) // 20)
  deviation = jax.random.uniform(width_key, minval=0.1, maxval=2.0)
  window = jnp.exp(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / deviation))
  window, plain = window / window.sum(), image.astype(jnp.float32)
  blurred = plain
  for axis in (0, 1):
    padded = jnp.pad(blurred, [(radius, radius) if i == axis else (0, 0) for i in range(3)], 'edge')
    parts = (jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis) for i in range(2 * radius + 1))
    blurred = sum(weight * part for weight, part in zip(window, parts))
  return jnp.where(jax.random.bernoulli(chance_key, probability), blurred, plain)


# ---- series [length, channels] ----


def _line(length: int):
  return (jnp.arange(length) - (length - 1) / 2)[:, None]


def detrend(key: jax.Array, series: jax.Array) -> jax.Array:
  """Without its mean and its slope, by least squares."""
  line, centred = _line(len(series)), series - series.mean(0)
  return centred - (centred * line).sum(0) / jnp.square(line).sum() * line


def cycle(key: jax.Array, series: jax.Array, places: float) -> jax.Array:
  """Turned on by fewer than so many whole places; what leaves at the end comes in at the beginning."""
  return jnp.roll(series, jax.random.randint(key, (), 0, int(places)), 0)


def slope(key: jax.Array, series: jax.Array, deviation: float) -> jax.Array:
  """With a slope, drawn from a Gaussian."""
  return series + deviation * jax.random.normal(key) * _line(len(series))


def offset(key: jax.Array, series: jax.Array, deviation: float) -> jax.Array:
  """With a number added, drawn from a Gaussian."""
  return series + deviation * jax.random.normal(key)
