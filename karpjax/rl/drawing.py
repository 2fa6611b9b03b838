"""Frames of an episode: states -> pictures, on the host, drawn by Pillow at twice the size and made smaller."""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, TWICE = 300, 200, 2
SKY, GROUND, BODY, LIMB, JOINT = '#f4f5f7', '#8a8f98', '#0072B2', '#D55E00', '#222222'


class Pen:
  """Draws into a picture of twice the size; points [n, 2] and widths are in pixels of the frame."""

  def __init__(self, image: Image.Image):
    self.draw = ImageDraw.Draw(image)

  def _scaled(self, points) -> list[tuple[float, float]]:
    return [(float(x) * TWICE, float(y) * TWICE) for x, y in points]

  def line(self, points, colour: str, width: int = 1) -> None:
    self.draw.line(self._scaled(points), fill=colour, width=width * TWICE)

  def rectangle(self, points, colour: str) -> None:
    self.draw.rectangle(self._scaled(points), fill=colour)

  def polygon(self, points, colour: str, outline: str | None = None) -> None:
    self.draw.polygon(self._scaled(points), fill=colour, outline=outline, width=TWICE)

  def disc(self, x, y, radius: float, colour: str) -> None:
    self.draw.ellipse(self._scaled([(x - radius, y - radius), (x + radius, y + radius)]), fill=colour)


def frames(count: int, paint: Callable, height: int = HEIGHT) -> np.ndarray:
  """[count, height, WIDTH, 3] uint8; `paint` is given (number, Pen)."""
  pictures = []
  for i in range(count):
    image = Image.new('RGB', (WIDTH * TWICE, height * TWICE), SKY)
    paint(i, Pen(image))
    pictures.append(np.asarray(image.resize((WIDTH, height), Image.Resampling.BOX)))
  return np.stack(pictures)


def painter(paint: Callable, height: int = HEIGHT) -> Callable:
  """States [time, numbers] -> frames [time, height, WIDTH, 3] uint8; `paint` is given (Pen, state)."""
  return lambda states: frames(len(states), lambda i, pen: paint(pen, states[i]), height)


# ---- classic control ----


@painter
def cartpole(pen: Pen, state) -> None:
  position, _, angle, _ = state
  x, y = WIDTH / 2 + position * WIDTH / 5.2, 150
  pen.line([(0, y + 10), (WIDTH, y + 10)], GROUND)
  pen.rectangle([(x - 22, y - 10), (x + 22, y + 10)], BODY)
  pen.line([(x, y - 10), (x + 100 * np.sin(angle), y - 10 - 100 * np.cos(angle))], LIMB, 8)
  pen.disc(x, y - 10, 4, JOINT)


@functools.partial(painter, height=260)
def acrobot(pen: Pen, state) -> None:
  first, second, length = state[0], state[0] + state[1], 55
  axis = np.array([WIDTH / 2, 130])
  middle = axis + length * np.array([np.sin(first), np.cos(first)])
  tip = middle + length * np.array([np.sin(second), np.cos(second)])
  pen.line([(0, axis[1] - length), (WIDTH, axis[1] - length)], GROUND)
  for start, end, colour in ((axis, middle, BODY), (middle, tip, LIMB)):
    pen.line([start, end], colour, 8)
  for joint in (axis, middle):
    pen.disc(*joint, 5, JOINT)


@painter
def pendulum(pen: Pen, state) -> None:
  angle, (x, y) = state[0], (WIDTH / 2, HEIGHT / 2)
  pen.line([(x, y), (x - 80 * np.sin(angle), y - 80 * np.cos(angle))], LIMB, 12)
  pen.disc(x, y, 5, JOINT)


@painter
def mountain_car(pen: Pen, state) -> None:
  across = lambda x: (x + 1.2) / 1.8 * WIDTH
  down = lambda x: 170 - (np.sin(3 * x) * 0.45 + 0.55) * 140
  xs = np.linspace(-1.2, 0.6, 100)
  pen.line(zip(across(xs), down(xs)), GROUND, 2)
  pen.line([(across(0.5), down(0.5)), (across(0.5), down(0.5) - 30)], LIMB, 2)
  pen.disc(across(state[0]), down(state[0]) - 8, 8, BODY)


# ---- grids, as of MinAtar ----

PALETTE = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233))


def channels(observations) -> np.ndarray:
  """Observations [time, height, width, channels] of 0 and 1, a colour for each channel -> frames,
  20 pixels an entry.
  """
  pictures = np.full((*observations.shape[:3], 3), 244, np.uint8)
  for channel in range(observations.shape[-1]):
    pictures[observations[..., channel] > 0] = PALETTE[channel % len(PALETTE)]
  return pictures.repeat(20, 1).repeat(20, 2)
