"""What an agent sees of an Atari game."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.rl import atari, environments, rollout


def test_small_grey_is_the_mean_of_the_brighter_pixels():
  one, other = np.zeros((2, 210, 160), np.uint8)
  one[:105], other[105:] = 200, 100
  small = atari.small_grey((one, other))
  assert small.shape == (84, 84, 1) and small.dtype == np.uint8
  assert (small[:42] == 200).all() and (small[42:] == 100).all()


def test_the_field_is_what_is_not_background():
  frame = np.zeros((210, 160, 3), np.uint8)
  frame[..., 0] = 144
  frame[35 + 2 * 7, 2 * 9, 0] = 236  # at an even place of the field
  frame[35 + 2 * 7 + 1, 2 * 9 + 1, 0] = 236  # between
  frame[10] = 236  # above it
  seen = atari.field(frame)
  assert seen.shape == (80, 80, 1) and seen.dtype == np.int8
  np.testing.assert_array_equal(np.argwhere(seen[..., 0]), [[7, 9]])


class Reel:
  """Frames whose brightness counts them; the game ends with the sixth."""

  action_space = observation_space = metadata = render = close = None

  def __init__(self, *channels):
    self.channels = channels

  def reset(self, seed):
    self.t = 0
    return np.zeros((210, 160, *self.channels), np.uint8), {}

  def step(self, action):
    self.t += 1
    return np.full((210, 160, *self.channels), self.t, np.uint8), 1.0, self.t == 6, False, {}


def test_an_action_lasts_some_frames():
  seen = atari.Grey(Reel(), 4)
  assert (seen.reset(seed=0)[0] == 0).all()
  frame, reward, terminated, *_ = seen.step(0)
  assert (frame == 4).all() and reward == 4 and not terminated
  frame, reward, terminated, *_ = seen.step(0)
  assert (frame == 6).all() and reward == 2 and terminated


def test_differences_are_of_one_step():
  seen = atari.Difference(Reel(3))
  assert (seen.reset(seed=0)[0] == 0).all()
  assert (seen.step(0)[0] == 1).all()  # from background 0 to something
  assert (seen.step(0)[0] == 0).all()


@pytest.mark.parametrize(
  'options, shape, dtype', [('', (84, 84, 4), 'uint8'), (',pixels=difference,actions=2+3', (80, 80, 1), 'int8')]
)
def test_pong_is_played(options, shape, dtype):
  pytest.importorskip('ale_py', reason='ale-py is not installed')
  environment = environments.make(f'gymnasium:ALE/Pong-v5{options},limit=30')
  assert environment.observation.shape == shape and environment.action.size == (2 if options else 6)
  keys = jax.random.split(jax.random.key(0), 1)
  play = jax.jit(
    lambda: rollout.rollout(
      environment, lambda o, n: n, rollout.start(environment, keys), keys, jnp.ones((30, 1), jnp.int32), 30
    )[1]
  )
  seen, once_more = play(), play()
  assert seen.observation.shape == (30, 1, *shape) and seen.observation.dtype == dtype
  np.testing.assert_array_equal(seen.observation, once_more.observation)
  assert (np.asarray(seen.observation[0]) == np.asarray(seen.observation[-1])).mean() < 1
  np.testing.assert_array_equal(seen.truncated[:, 0], np.arange(30) == 29)
