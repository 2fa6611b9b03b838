"""Frames of an episode: states -> pictures, on the host, drawn by Pillow at twice the size and made smaller."""

from collections.abc import Callable

import numpy as np

WIDTH, HEIGHT, TWICE = 300, 200, 2
SKY, GROUND, BODY, LIMB, JOINT = '#f4f5f7', '#8a8f98', '#0072B2', '#D55E00', '#222222'


def frames(count: int, paint: Callable, height: int = HEIGHT) -> np.ndarray:
  """[count, height, WIDTH, 3] uint8; `paint` is given (number, pen)."""
  from PIL import Image, ImageDraw

  pictures = []
  for i in range(count):
    image = Image.new('RGB', (WIDTH * TWICE, height * TWICE), SKY)
    paint(i, ImageDraw.Draw(image))
    pictures.append(np.asarray(image.resize((WIDTH, height), Image.Resampling.BOX)))
  return np.stack(pictures)


def points(places) -> list[tuple[float, float]]:
  """Pixels of a frame [points, 2] as Pillow's pen takes them."""
  return [(float(x) * TWICE, float(y) * TWICE) for x, y in places]


def _disc(pen, x, y, radius, colour):
  pen.ellipse(points([(x - radius, y - radius), (x + radius, y + radius)]), fill=colour)


def cartpole(states) -> np.ndarray:
  """states [time, 4] -> frames [time, height, width, 3] uint8."""

  def paint(i, pen):
    position, _, angle, _ = states[i]
    x, y = WIDTH / 2 + position * WIDTH / 5.2, 150
    pen.line(points([(0, y + 10), (WIDTH, y + 10)]), fill=GROUND, width=TWICE)
    pen.rectangle(points([(x - 22, y - 10), (x + 22, y + 10)]), fill=BODY)
    tip = (x + 100 * np.sin(angle), y - 10 - 100 * np.cos(angle))
    pen.line(points([(x, y - 10), tip]), fill=LIMB, width=8 * TWICE)
    _disc(pen, x, y - 10, 4, JOINT)

  return frames(len(states), paint)


def acrobot(states) -> np.ndarray:
  """states [time, 4] -> frames [time, height, width, 3] uint8."""
  length = 55

  def paint(i, pen):
    first, second = states[i][0], states[i][0] + states[i][1]
    axis = np.array([WIDTH / 2, 130])
    middle = axis + length * np.array([np.sin(first), np.cos(first)])
    tip = middle + length * np.array([np.sin(second), np.cos(second)])
    pen.line(points([(0, axis[1] - length), (WIDTH, axis[1] - length)]), fill=GROUND, width=TWICE)
    pen.line(points([axis, middle]), fill=BODY, width=8 * TWICE)
    pen.line(points([middle, tip]), fill=LIMB, width=8 * TWICE)
    _disc(pen, *axis, 5, JOINT)
    _disc(pen, *middle, 5, JOINT)

  return frames(len(states), paint, 260)


def pendulum(states) -> np.ndarray:
  """states [time, 2] -> frames [time, height, width, 3] uint8."""

  def paint(i, pen):
    angle, middle = states[i][0], (WIDTH / 2, HEIGHT / 2)
    tip = (middle[0] - 80 * np.sin(angle), middle[1] - 80 * np.cos(angle))
    pen.line(points([middle, tip]), fill=LIMB, width=12 * TWICE)
    _disc(pen, *middle, 5, JOINT)

  return frames(len(states), paint)


def mountain_car(states) -> np.ndarray:
  """states [time, 2] -> frames [time, height, width, 3] uint8."""
  across = lambda x: (np.asarray(x) + 1.2) / 1.8 * WIDTH
  down = lambda x: 170 - (np.sin(3 * np.asarray(x)) * 0.45 + 0.55) * 140
  xs = np.linspace(-1.2, 0.6, 100)

  def paint(i, pen):
    pen.line(points(zip(across(xs), down(xs))), fill=GROUND, width=2 * TWICE)
    goal = (across(0.5), down(0.5))
    pen.line(points([goal, (goal[0], goal[1] - 30)]), fill=LIMB, width=2 * TWICE)
    _disc(pen, across(states[i][0]), down(states[i][0]) - 8, 8, BODY)

  return frames(len(states), paint)


PALETTE = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233))


def channels(observations) -> np.ndarray:
  """Observations [time, height, width, channels] of 0 and 1, a colour for each channel -> frames, 20 pixels an entry."""
  frames = np.full((*observations.shape[:3], 3), 244, np.uint8)
  for channel in range(observations.shape[-1]):
    frames[observations[..., channel] > 0] = PALETTE[channel % len(PALETTE)]
  return frames.repeat(20, 1).repeat(20, 2)
