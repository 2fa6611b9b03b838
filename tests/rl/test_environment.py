"""What wraps environments, on one that only counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.errors import UsageError
from karpjax.rl import environment as protocol
from karpjax.rl import environments, rollout
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, WithMemory


def counter(over=5):
  """Observes how many steps it has made; action a is rewarded by a; over after `over` steps."""

  def step(key, state, action):
    reached = TimeStep(
      jnp.full(1, state + 1, jnp.float32),
      jnp.asarray(action, jnp.float32).sum(),
      state + 1 >= over,
      jnp.zeros((), bool),
    )
    return state + 1, reached

  reset = lambda key: (jnp.zeros((), jnp.int32), jnp.zeros(1))
  return Environment('counter', reset, step, Box((1,), 0.0, 9.0), Discrete(3), over)


def play(environment, actions):
  state, observation = environment.reset(jax.random.key(0))
  steps = []
  for action in actions:
    state, reached = environment.step(jax.random.key(0), state, action)
    steps.append(reached)
  return observation, steps


def test_a_time_limit_truncates_and_what_is_final_is_not_truncated():
  limited = protocol.time_limit(protocol.dataclasses.replace(counter(), limit=3))
  _, steps = play(limited, [0] * 3)
  assert [bool(s.truncated) for s in steps] == [False, False, True] and not any(s.terminated for s in steps)
  _, steps = play(protocol.time_limit(counter(3)), [0] * 3)
  assert bool(steps[-1].terminated) and not bool(steps[-1].truncated)


def test_actions_within_one_are_stretched_to_the_bounds():
  scaled = protocol.scale_action(protocol.dataclasses.replace(counter(), action=Box((1,), -1.0, 3.0)))
  _, steps = play(scaled, [jnp.array([x]) for x in (-1.0, 0.0, 0.5, 7.0)])
  assert [float(s.reward) for s in steps] == [-1, 1, 2, 3]
  assert scaled.action == Box((1,), -1.0, 1.0)


@pytest.mark.parametrize(
  'action, message',
  [(Discrete(2), 'its actions are discrete'), (Box((1,)), 'no finite bounds'), (Box((2, 2), 0, 1), 'several axes')],
)
def test_other_actions_cannot_be_stretched(action, message):
  with pytest.raises(UsageError, match=message):
    protocol.scale_action(protocol.dataclasses.replace(counter(), action=action))


def test_frames_are_stacked_the_last_at_the_end():
  stacked = protocol.frame_stack(counter(), 3)
  first, steps = play(stacked, [0] * 4)
  np.testing.assert_array_equal(first, [0, 0, 0])
  np.testing.assert_array_equal([s.observation for s in steps], [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]])
  assert stacked.observation.shape == (3,) and stacked.observation.high.tolist() == [9, 9, 9]


def test_a_world_holds_what_a_policy_remembers_until_the_episodes_end():
  """A policy that counts its steps: of episodes of five in a rollout of twelve, and in the one that goes on from there."""
  world = protocol.add_memory(counter(), {'count': np.int32(0)})

  def act(observation, noise):
    return WithMemory(jnp.zeros(2, jnp.int32), {'count': observation.memory['count'] + 1})

  keys = jax.random.split(jax.random.key(0), 2)
  play = jax.jit(lambda worlds: rollout.rollout(world, act, worlds, keys, jnp.zeros((12, 2)), 12))
  worlds, seen = play(rollout.start(world, keys))
  count = np.arange(12) % 5
  for one in range(2):
    np.testing.assert_array_equal(seen.observation.memory['count'][:, one], count)
    np.testing.assert_array_equal(seen.next_observation.memory['count'][:, one], count + 1)
    np.testing.assert_array_equal(seen.observation.value[:, one, 0], count)
  np.testing.assert_array_equal(play(worlds)[1].observation.memory['count'][:, 0], (np.arange(12) + 2) % 5)
  ends = rollout.episodes(rollout.Policy(world, lambda state, *seen: act(*seen)), None, keys)
  np.testing.assert_array_equal(ends.observation.memory['count'], [5, 5])


def test_resets_that_are_made_ahead_serve_once():
  """One for as many steps as the shortest episode has, here three."""
  reset = lambda key: (jnp.zeros((), jnp.int32), jax.random.uniform(key, (1,)))
  drawn = protocol.dataclasses.replace(counter(3), reset=reset, shortest=3)
  keys = jax.random.split(jax.random.key(0), 2)
  play = lambda keys: rollout.rollout(drawn, lambda _, a: a, rollout.start(drawn, keys), keys, jnp.zeros((30, 2)), 30)[
    1
  ]
  seen = jax.jit(play)(keys)
  assert len(np.unique(seen.observation[::3])) == 20 and (seen.done.sum(0) == 10).all()


def test_velocities_are_hidden():
  hidden, whole, key = environments.make('cartpole_positions'), environments.make('cartpole'), jax.random.key(1)
  (state, seen), (same, full) = hidden.reset(key), whole.reset(key)
  np.testing.assert_array_equal(seen, full[np.array([0, 2])])
  _, reached = hidden.step(key, state, 1)
  _, expected = whole.step(key, same, 1)
  np.testing.assert_array_equal(reached.observation, expected.observation[np.array([0, 2])])
  assert hidden.name == 'cartpole_positions' and hidden.observation.shape == (2,) and hidden.limit == 500
  np.testing.assert_allclose(hidden.observation.high, [4.8, 24 * np.pi / 180], rtol=1e-6)


@pytest.mark.parametrize(
  'name, threshold',
  [('cartpole', 475), ('acrobot', -100), ('mountain_car', -110), ('mountain_car_continuous', 90), ('pendulum', None)],
)
def test_an_episode_succeeds_at_the_return_of_the_registry(name, threshold):
  outcomes, state = environments.make(name).outcomes, protocol.Timed(None, 0)
  if threshold is None:
    assert outcomes(state, 0.0) == {}
  else:
    assert [outcomes(state, x) for x in (threshold - 0.01, threshold)] == [{'success': False}, {'success': True}]


@pytest.mark.parametrize('wrap', [protocol.time_limit, lambda world: protocol.frame_stack(world, 2)])
def test_wrappers_hand_on_how_an_episode_went(wrap):
  outcomes = lambda state, total: {'steps': state, 'success': total >= 3}
  wrapped = wrap(protocol.dataclasses.replace(counter(), outcomes=outcomes))
  state, _ = wrapped.reset(jax.random.key(0))
  for _ in range(3):
    state, _ = wrapped.step(jax.random.key(0), state, 1)
  assert {name: int(x) for name, x in wrapped.outcomes(state, jnp.float32(3)).items()} == {'steps': 3, 'success': 1}


def test_an_unknown_environment_is_offered_the_nearest():
  with pytest.raises(UsageError, match='Did you mean cartpole'):
    environments.make('cart_pole')
