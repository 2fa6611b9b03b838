"""brax's environments through our protocol."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.errors import UsageError
from karpjax.rl import environments, rollout


def test_an_inverted_pendulum_is_brax_s_own():
  envs = pytest.importorskip('brax.envs', reason='brax is not installed')
  theirs = envs.get_environment('inverted_pendulum', backend='positional')
  ours = environments.make('brax:inverted_pendulum')
  assert ours.observation.shape == (4,) and ours.action.shape == (1,) and ours.limit == 1000
  length, keys = 40, jax.random.split(jax.random.key(0), 1)
  actions = jnp.full((length, 1, 1), 2.0)  # clipped to 1, where the pole soon falls
  play = jax.jit(lambda keys: rollout.rollout(ours, lambda o, n: n, rollout.start(ours, keys), keys, actions, length))
  _, seen = play(keys)
  state, step = jax.jit(theirs.reset)(keys[0]), jax.jit(theirs.step)
  for t in range(length):
    np.testing.assert_allclose(seen.observation[t, 0], state.obs, rtol=1e-4, atol=1e-5)
    state = step(state, jnp.ones(1))
    np.testing.assert_allclose(seen.next_observation[t, 0], state.obs, rtol=1e-4, atol=1e-5)
    assert float(seen.reward[t, 0]) == 1 and bool(seen.terminated[t, 0]) == bool(state.done)
    if state.done:
      break
  assert t < length - 1 and (seen.observation[t + 1, 0] != seen.next_observation[t, 0]).any()


def test_an_unknown_name_is_offered_the_nearest():
  pytest.importorskip('brax.envs', reason='brax is not installed')
  with pytest.raises(UsageError, match='Did you mean reacher'):
    environments.make('brax:reachr')


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'brax', None)
  with pytest.raises(UsageError, match='pip install brax'):
    environments.make('brax:reacher')
