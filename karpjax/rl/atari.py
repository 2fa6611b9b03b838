"""What an agent sees of an Atari game: frames of a gymnasium environment made small. NumPy and Pillow only."""

import numpy as np
from PIL import Image


def small_grey(frames) -> np.ndarray:
  """The brighter of each pixel of two frames [210, 160] uint8, since sprites flicker, as [84, 84, 1] uint8 (Mnih et al. 2015,
  methods); each pixel is the mean of its area.
  """
  brighter = np.maximum(*frames)
  return np.asarray(Image.fromarray(brighter).resize((84, 84), Image.Resampling.BOX))[..., None]


BACKGROUNDS = (144, 109)  # red of Pong's field, and of what shows beyond it


def field(frame) -> np.ndarray:
  """Where Pong's paddles and ball are, [80, 80, 1] int8 of 0 and 1: a frame [210, 160, 3] uint8, every second pixel of its
  field (Karpathy, "Deep Reinforcement Learning: Pong from Pixels", 2016).
  """
  red = frame[35:195:2, ::2, 0]
  return (~np.isin(red, (0, *BACKGROUNDS))).astype(np.int8)[..., None]


def lent(environment) -> dict:
  """What an environment around another has of it as it is."""
  return {
    name: getattr(environment, name) for name in ('action_space', 'observation_space', 'metadata', 'render', 'close')
  }


class Grey:
  """An action lasts `skip` frames, of which the last two are seen, as `small_grey`.

  Args:
    environment: of grey frames, which skips none itself.
    skip: at least 1.
  """

  def __init__(self, environment, skip: int):
    self.environment, self.skip = environment, skip
    self.__dict__ |= lent(environment)

  def reset(self, seed):
    frame, about = self.environment.reset(seed=seed)
    return small_grey((frame, frame)), about

  def step(self, action):
    frames, total = [], 0.0
    for _ in range(self.skip):
      frame, reward, terminated, truncated, about = self.environment.step(action)
      frames, total = [*frames, frame], total + reward
      if terminated or truncated:
        break
    return small_grey((frames[-1], frames[-2] if len(frames) > 1 else frames[-1])), total, terminated, truncated, about


class Difference:
  """What has moved on Pong's field since the step before: [80, 80, 1] int8 of -1, 0 and 1; nothing at first.

  Args:
    environment: of coloured frames, which skips frames itself.
  """

  def __init__(self, environment):
    self.environment = environment
    self.__dict__ |= lent(environment)

  def reset(self, seed):
    frame, about = self.environment.reset(seed=seed)
    self.before = field(frame)
    return np.zeros_like(self.before), about

  def step(self, action):
    frame, *rest = self.environment.step(action)
    now = field(frame)
    moved, self.before = now - self.before, now
    return moved, *rest
