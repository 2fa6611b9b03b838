"""gymnax's environments through our protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.errors import UsageError
from karpjax.rl import environments, rollout


def test_breakout_is_gymnax_s_own():
  gymnax = pytest.importorskip('gymnax', reason='gymnax is not installed')
  theirs, params = gymnax.make('Breakout-MinAtar')
  ours = environments.make('gymnax:Breakout-MinAtar')
  assert ours.observation.shape == (10, 10, 4) and ours.action.size == 3 and ours.limit == 1000
  length, keys = 60, jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(2))
  act = lambda observation, noise: noise
  actions = jax.random.randint(jax.random.key(1), (length, 2), 0, 3)
  _, seen = jax.jit(lambda keys: rollout.rollout(ours, act, rollout.start(ours, keys), keys, actions, length))(keys)
  observation, state = theirs.reset_env(keys[0], params)
  drawn = jax.random.split(keys[0], 2 * length)
  step = jax.jit(theirs.step_env)
  for t in range(length):
    np.testing.assert_array_equal(seen.observation[t, 0], observation)
    observation, state, reward, terminated, _ = step(drawn[t], state, actions[t, 0], params)
    np.testing.assert_array_equal(seen.next_observation[t, 0], observation)
    assert float(seen.reward[t, 0]) == float(reward) and bool(seen.terminated[t, 0]) == bool(terminated)
    if terminated:
      observation, state = theirs.reset_env(drawn[length + t], params)
  assert seen.terminated[:, 0].any()


def test_frames_show_each_channel_s_colour():
  pytest.importorskip('gymnax', reason='gymnax is not installed')
  ours = environments.make('gymnax:Breakout-MinAtar')
  state, observation = ours.reset(jax.random.key(0))
  (frame,) = ours.render(jax.tree.map(lambda x: np.asarray(x)[None], state))
  assert frame.shape == (200, 200, 3)
  empty = (np.asarray(observation) == 0).all(-1)
  np.testing.assert_array_equal((frame[::20, ::20] == 244).all(-1), empty)


def test_an_unknown_name_is_offered_the_nearest():
  pytest.importorskip('gymnax', reason='gymnax is not installed')
  with pytest.raises(UsageError, match='Did you mean Breakout-MinAtar'):
    environments.make('gymnax:Breakout-MinAtari')


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'gymnax', None)
  with pytest.raises(UsageError, match='pip install gymnax'):
    environments.make('gymnax:Breakout-MinAtar')
