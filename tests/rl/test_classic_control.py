"""Our classic control, step by step against gymnasium's."""

import jax
import numpy as np
import pytest

from karpjax.rl import classic_control, environments
from karpjax.rl.environment import Box

THEIRS = {
  'cartpole': 'CartPole-v1',
  'acrobot': 'Acrobot-v1',
  'pendulum': 'Pendulum-v1',
  'mountain_car': 'MountainCar-v0',
  'mountain_car_continuous': 'MountainCarContinuous-v0',
}


@pytest.mark.parametrize('name', THEIRS)
def test_random_transitions_to_the_time_limit_and_beyond(name):
  gymnasium = pytest.importorskip('gymnasium', reason='gymnasium is not installed')
  theirs, ours = gymnasium.make(THEIRS[name]), environments.make(name)
  assert ours.limit == theirs.spec.max_episode_steps
  np.testing.assert_allclose(
    np.broadcast_to(ours.observation.high, ours.observation.shape), theirs.observation_space.high
  )
  step, generator = jax.jit(ours.step), np.random.default_rng(0)
  theirs.reset(seed=0)
  state, _ = ours.reset(jax.random.key(0))
  length, ends = 0, 0
  for _ in range(max(300, ours.limit + 1)):
    world = theirs.unwrapped
    before = np.array(world.state, np.float32)
    state = state.replace(inner=before, t=np.int32(length))
    if isinstance(ours.action, Box):
      action = generator.uniform(1.3 * ours.action.low, 1.3 * ours.action.high, ours.action.shape).astype(np.float32)
    else:
      action = int(generator.integers(ours.action.size))
    world.state = before.astype(np.float64) if name != 'acrobot' else before  # the same state, to the bit
    observation, reward, terminated, truncated, _ = theirs.step(action)
    _, reached = step(jax.random.key(1), state, action)
    np.testing.assert_allclose(reached.observation, observation, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(reached.reward, reward, rtol=1e-4, atol=1e-4)
    assert bool(reached.terminated) == terminated
    assert bool(reached.truncated) == (truncated and not terminated)
    length += 1
    if terminated or truncated:
      theirs.reset(seed=length)
      length, ends = 0, ends + 1
  assert ends >= 1


def test_cartpole_by_hand():
  # upright and at rest, pushed to the right by 10 N: (10) / 1.1 of linear, and the pole falls to the left
  state, reached = classic_control.cartpole().step(None, _at_rest(np.zeros(4, np.float32)), 1)
  pushed = 10 / 1.1
  angular = -pushed / (0.5 * (4 / 3 - 0.1 / 1.1))
  np.testing.assert_allclose(state.inner, [0, 0.02 * (pushed - 0.05 * angular / 1.1), 0, 0.02 * angular], rtol=1e-5)
  assert float(reached.reward) == 1 and not reached.terminated


def _at_rest(state):
  from karpjax.rl.environment import Timed

  return Timed(state, np.int32(0))


@pytest.mark.parametrize('name', THEIRS)
def test_frames_show_what_moves(name):
  ours = environments.make(name)
  state, _ = ours.reset(jax.random.key(0))
  states, step = [state], jax.jit(ours.step)
  for t in range(20):
    action = np.ones(ours.action.shape, np.float32) if isinstance(ours.action, Box) else 0
    state, _ = step(jax.random.key(t), state, action)
    states.append(state)
  frames = ours.render(jax.tree.map(lambda *x: np.stack(x), *jax.device_get(states)))
  assert frames.dtype == np.uint8 and frames.shape[0] == 21 and frames.shape[-1] == 3
  assert (frames[0] != frames[-1]).any()
