"""Pictures of shapes, made by rule, with all that a picture can be asked: tags, boxes, a mask, captions. No download.

A scene is a function of (seed, split, number) alone. On a noisy slope of colour lie one to four shapes; a later one hides
what is under it, and of each at least VISIBLE is seen. What is true of it follows from its mask: boxes are around what is
seen, as COCO's.
"""

from typing import NamedTuple

import numpy as np

from karpjax.data import cache, splitting
from karpjax.data.dataset import Dataset, Spec, Split

SIZE, MOST = 64, 4  # pixels each way; shapes in a scene
SHAPES = 'circle', 'square', 'triangle', 'star'
COLOURS = {
  'red': (200, 40, 40), 'green': (40, 160, 60), 'blue': (50, 80, 210), 'yellow': (225, 205, 50), 'purple': (140, 60, 170),
  'white': (235, 235, 235),
}  # fmt: skip
RADII = {'small': (6, 8), 'large': (11, 14)}  # from the centre to the furthest point, in pixels
TAGS = *SHAPES, *COLOURS, *RADII
UNSEEN = (
  (0, 4),
  (3, 1),
)  # (shape, colour) that lie in the split 'compositional' alone, in each scene one: (circle, purple), …
# A shape of straight sides: the angle of the normal of its first side, clockwise from below; the distance of sides from the
# centre, as a part of the radius; how many sides there are; and to the inner side of how many a place inside lies.
SIDES = {'square': (0, 0.5**0.5, 4, 4), 'triangle': (0, 0.5, 3, 3), 'star': (0, np.cos(0.4 * np.pi), 5, 4)}
VISIBLE = 0.4  # of each shape, at the least
VERSION = 1  # of what is drawn: a cache of another one is not read
SIZES = {'train': 8000, 'validation': 1000, 'test': 1000, 'compositional': 1000}


class Thing(NamedTuple):
  """A shape in a scene: numbers of SHAPES, COLOURS and RADII, and its centre and radius in pixels; its brightness."""

  shape: int
  colour: int
  size: int
  y: float
  x: float
  radius: float
  shade: float


def scene(seed: int, split: str, number: int) -> dict[str, np.ndarray]:
  """One scene.

  Returns:
    image: [SIZE, SIZE, 3] uint8.
    mask: [SIZE, SIZE] uint8: 0 the ground, else 1 + the number of the shape in SHAPES.
    boxes: [MOST, 4] float32: top, left, bottom, right of what is seen, in pixels, the last two one beyond; padded by 0.
    class: [MOST] int32, of SHAPES; padded by -1.
    tags: [12] int8: whether each of TAGS is there.
  """
  draw = _generator(seed, split, number, 0)
  things, seen = _layout(draw, split)
  image, mask = _ground(draw), np.zeros((SIZE, SIZE), np.uint8)
  boxes, classes, tags = np.zeros((MOST, 4), np.float32), np.full(MOST, -1, np.int32), np.zeros(len(TAGS), np.int8)
  for i, (thing, places) in enumerate(zip(things, seen)):
    image[places] = thing.shade * np.array(list(COLOURS.values())[thing.colour])
    mask[places], classes[i] = thing.shape + 1, thing.shape
    rows, columns = np.flatnonzero(places.any(1)), np.flatnonzero(places.any(0))
    boxes[i] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    tags[[thing.shape, len(SHAPES) + thing.colour, len(SHAPES) + len(COLOURS) + thing.size]] = 1
  image = np.clip(image + draw.integers(-12, 13, image.shape, np.int16), 0, 255).astype(np.uint8)
  return {'image': image, 'mask': mask, 'boxes': boxes, 'class': classes, 'tags': tags}


def splits(seed: int = 0) -> dict[str, Split]:
  """{split: its scenes}, whole: made once, and kept in the cache."""
  kept = lambda name, size: cache.kept(f'scenes-{seed}-{name}', [VERSION, size], lambda: _all(seed, name))
  return {name: Split.of(**kept(name, size)) for name, size in SIZES.items()}


def tagged() -> Dataset:
  """The scenes as pictures with TAGS, in the splits of SIZES."""
  spec = Spec('scenes', (SIZE, SIZE, 3), TAGS, 255.0, multi_label=True)
  of = lambda arrays: Split.of(image=arrays['image'], label=arrays['tags'])
  return Dataset(spec, {name: of(split.arrays) for name, split in splits().items()})


def _all(seed, split):
  def fetch(numbers):
    made = [scene(seed, split, int(number)) for number in numbers]
    return {name: np.stack([x[name] for x in made]) for name in made[0]}

  return splitting.materialise(Split(SIZES[split], None, fetch), f'making scenes of {split}').arrays


def _generator(seed, split, number, purpose):
  key = np.array([seed, (purpose * len(SIZES) + list(SIZES).index(split)) << 32 | number], np.uint64)
  return np.random.Generator(np.random.Philox(key=key))


def _layout(draw, split) -> tuple[list[Thing], np.ndarray]:
  """The shapes of a scene, from the lowest to the uppermost, and where each is seen, [shapes, SIZE, SIZE] bool."""
  kinds = _kinds(draw, split)
  while True:
    things = [_placed(draw, *kind) for kind in kinds]
    whole = np.stack([_covered(thing) for thing in things])
    seen, above = whole.copy(), np.zeros((SIZE, SIZE), bool)
    for own in seen[::-1]:
      own[...], above = own & ~above, above | own
    if (seen.sum((1, 2)) >= VISIBLE * whole.sum((1, 2))).all():
      return things, seen


def _kinds(draw, split) -> list[tuple[int, int, int]]:
  """(shape, colour, size) of each shape of a scene."""
  count, unseen, kinds = draw.integers(1, MOST + 1), split == 'compositional', []
  while len(kinds) < count:
    kind = draw.integers(len(SHAPES)), draw.integers(len(COLOURS)), draw.integers(len(RADII))
    if unseen and not kinds:
      kind = *UNSEEN[draw.integers(len(UNSEEN))], kind[2]
    if unseen or kind[:2] not in UNSEEN:
      kinds.append(tuple(map(int, kind)))
  return [kinds[i] for i in draw.permutation(count)]


def _placed(draw, shape, colour, size) -> Thing:
  radius = draw.uniform(*list(RADII.values())[size])
  y, x = draw.uniform(radius, SIZE - radius, 2)
  return Thing(shape, colour, size, y, x, radius, draw.uniform(0.7, 1))


def _covered(thing: Thing) -> np.ndarray:
  """[SIZE, SIZE] bool: the pixels whose centres lie inside a shape. All its corners are on the circle of its radius."""
  y, x = (np.arange(SIZE)[:, None] + 0.5 - thing.y), (np.arange(SIZE) + 0.5 - thing.x)
  if (name := SHAPES[thing.shape]) == 'circle':
    return x**2 + y**2 <= thing.radius**2
  first, distance, sides, least = SIDES[name]
  angles = first + 2 * np.pi * np.arange(sides) / sides
  within = sum((np.cos(a) * y - np.sin(a) * x <= distance * thing.radius).astype(np.int8) for a in angles)
  return within >= least


def _ground(draw) -> np.ndarray:
  """[SIZE, SIZE, 3] int16: from one dark colour to another, in any direction."""
  ends, angle = draw.integers(20, 120, (2, 3)), draw.uniform(0, 2 * np.pi)
  y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
  along = (np.cos(angle) * y + np.sin(angle) * x) / np.sqrt(2) + 0.5  # 0 … 1
  return (ends[0] + along[..., None] * (ends[1] - ends[0])).astype(np.int16)


# ---- what is said of a scene ----

RELATIONS = ('left of', 'right of'), ('above', 'below')
LISTS = 'there is {}', 'a picture of {}', '{} can be seen', 'this scene has {}', 'here we see {}'
PAIRS = '{} is {} {}', '{} lies {} {}', 'there is {} {} {}', 'a picture of {} {} {}', '{} can be seen {} {}'


def captions(seed: int, split: str, number: int) -> tuple[str, ...]:
  """Five sentences that are true of a scene: each names all its shapes, or tells how two of them lie to each other."""
  things, _ = _layout(_generator(seed, split, number, 0), split)
  draw = _generator(seed, split, number, 1)
  return tuple(_caption(draw, things, form) for form in draw.permutation(len(LISTS)))


def _caption(draw, things: list[Thing], form: int) -> str:
  order = [things[i] for i in draw.permutation(len(things))]
  if len(things) == 1 or draw.random() < 0.5:
    return LISTS[form].format(_listed(order))
  one, other, *rest = order
  across = abs(one.x - other.x) > abs(one.y - other.y)
  before = one.x < other.x if across else one.y < other.y
  said = PAIRS[form].format(_named(one), RELATIONS[0 if across else 1][0 if before else 1], _named(other))
  return f'{said}, and {_listed(rest)}' if rest and draw.random() < 0.5 else said


def _named(thing: Thing) -> str:
  return f'a {list(RADII)[thing.size]} {list(COLOURS)[thing.colour]} {SHAPES[thing.shape]}'


def _listed(things: list[Thing]) -> str:
  *names, last = map(_named, things)
  return f'{", ".join(names)} and {last}' if names else last
