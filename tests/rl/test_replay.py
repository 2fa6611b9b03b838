"""Replay against lists and plain loops."""

import jax
import numpy as np
import pytest

from karpjax.rl import environments, replay
from karpjax.rl.rollout import Transition

ENVIRONMENTS, CAPACITY = 3, 7
# compiled, since one operation after the other takes longer
write, update_priorities, gather = (
  jax.jit(replay.write),
  jax.jit(replay.update_priorities),
  jax.jit(replay.gather, static_argnums=2),
)
uniform, proportional = (jax.jit(f, static_argnums=3) for f in (replay.uniform, replay.proportional))
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), np.arange(ENVIRONMENTS))


def history(steps, seed=0):
  """Random transitions [steps, environments, …] whose first observation's number is t, the next one's t + 1."""
  drawn = np.random.default_rng(seed)
  t = np.broadcast_to(np.arange(steps, dtype=np.float32)[:, None, None], (steps, ENVIRONMENTS, 4))
  terminated = drawn.random((steps, ENVIRONMENTS)) < 0.2
  truncated = ~terminated & (drawn.random((steps, ENVIRONMENTS)) < 0.2)
  reward = drawn.normal(size=(steps, ENVIRONMENTS)).astype(np.float32)
  action = drawn.integers(0, 2, (steps, ENVIRONMENTS)).astype(np.int32)
  zeros = np.zeros((steps, ENVIRONMENTS), np.float32)
  return Transition(t, action, reward, terminated, truncated, t + 1, zeros, zeros.astype(np.int32))


def filled(steps, prioritised=False, at_once=3):
  """(rings that were given a history in rollouts of `at_once` steps, the history)."""
  seen = history(steps)
  rings = replay.empty(environments.make('cartpole'), ENVIRONMENTS, CAPACITY, prioritised)
  for t in range(0, steps, at_once):
    rings = write(rings, np.int32(t), jax.tree.map(lambda x: x[t : t + at_once], seen))
  return rings, seen


@pytest.mark.parametrize('steps', [6, 18])  # before the rings are full, and after they went round
def test_a_ring_holds_the_last_transitions_in_order(steps):
  rings, seen = filled(steps)
  for t in range(max(0, steps - CAPACITY), steps):
    for name in ('observation', 'action', 'reward', 'terminated', 'truncated', 'next_observation'):
      np.testing.assert_array_equal(getattr(rings, name)[:, t % CAPACITY], getattr(seen, name)[t], err_msg=name)


@pytest.mark.parametrize('n_step', [1, 4])
def test_n_step_transitions_are_those_of_a_loop(n_step):
  steps, discount = 18, 0.9
  rings, seen = filled(steps)
  starts = range(steps - CAPACITY, steps - n_step + 1)
  indices = np.broadcast_to([t % CAPACITY for t in starts], (ENVIRONMENTS, len(starts)))
  batch = jax.tree.map(lambda x: x.reshape(ENVIRONMENTS, -1, *x.shape[1:]), gather(rings, indices, n_step, discount))
  ends = set()
  for world in range(ENVIRONMENTS):
    for i, t in enumerate(starts):
      total, worth = 0.0, 1.0
      for k in range(t, t + n_step):
        total, worth = total + worth * seen.reward[k, world], worth * discount
        if seen.terminated[k, world] or seen.truncated[k, world]:
          break
      if seen.terminated[k, world]:
        worth = 0.0
      ends.add('terminated' if seen.terminated[k, world] else 'truncated' if seen.truncated[k, world] else 'going on')
      np.testing.assert_allclose(batch['reward'][world, i], total, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(batch['discount'][world, i], worth, rtol=1e-6)
      np.testing.assert_array_equal(batch['next_observation'][world, i], seen.next_observation[k, world])
      np.testing.assert_array_equal(batch['observation'][world, i], seen.observation[t, world])
      assert batch['action'][world, i] == seen.action[t, world]
  assert ends == {'terminated', 'truncated', 'going on'}


def drawn(kind, rings, steps, keys, count, n_step=1):
  return np.asarray(
    {'uniform': uniform, 'proportional': proportional}[kind](rings, np.int32(steps), keys, count, n_step)[0]
  )


@pytest.mark.parametrize('kind', ['uniform', 'proportional'])
@pytest.mark.parametrize('steps, n_step', [(6, 1), (6, 3), (18, 1), (18, 3), (3, 3)])
def test_draws_are_of_all_that_begin_n_steps_and_of_no_other(kind, steps, n_step):
  rings, _ = filled(steps, kind == 'proportional')
  indices = drawn(kind, rings, steps, KEYS, 200, n_step)
  expected = {t % CAPACITY for t in range(max(0, steps - CAPACITY), steps - n_step + 1)}
  for ring in indices:
    assert set(ring.tolist()) == expected


@pytest.mark.parametrize('kind', ['uniform', 'proportional'])
def test_a_ring_s_draws_do_not_depend_on_how_many_there_are(kind):
  rings, _ = filled(18, True)
  one = jax.tree.map(lambda x: x[1:2], rings)
  many, alone = drawn(kind, rings, 18, KEYS, 200), drawn(kind, one, 18, KEYS[1:2], 200)
  np.testing.assert_array_equal(many[1], alone[0])
  assert not np.array_equal(many[0], many[1])


def test_draws_are_in_proportion_to_errors_to_the_power_of_alpha():
  alpha, count, steps = 0.7, 1000, 18
  rings, _ = filled(steps, prioritised=True)
  errors = np.random.default_rng(1).uniform(0.1, 3, (ENVIRONMENTS, CAPACITY)).astype(np.float32)
  everywhere = np.broadcast_to(np.arange(CAPACITY), (ENVIRONMENTS, CAPACITY))
  rings = update_priorities(rings, everywhere, -errors, alpha)  # only their sizes count
  n_step = 2
  probabilities = (errors + replay.SMALLEST_PRIORITY) ** alpha
  probabilities[:, (steps - 1) % CAPACITY] = 0  # the last written begins no two steps
  probabilities /= probabilities.sum(1, keepdims=True)
  indices, importance = proportional(rings, np.int32(steps), KEYS, count, n_step)
  for world in range(ENVIRONMENTS):
    often = np.bincount(indices[world], minlength=CAPACITY)
    assert (np.abs(often - count * probabilities[world]) < 2).all()  # one draw from each equal part: hardly any noise
    expected = 1 / ((CAPACITY - 1) * probabilities[world][indices[world]])
    np.testing.assert_allclose(importance[world], expected, rtol=1e-4)


def test_new_transitions_get_the_largest_priority_of_their_ring():
  rings, seen = filled(3, prioritised=True)
  assert np.asarray(rings.priority).tolist() == [[1.0] * 3 + [0.0] * 4] * ENVIRONMENTS
  indices, errors = np.array([[0, 2]] * ENVIRONMENTS), np.array([[4.0, 0.25], [0.5, 0.25], [-9.0, 1.0]])
  rings = write(update_priorities(rings, indices, errors, 0.5), np.int32(3), seen)
  expected = [[2, 1, 0.5, 2, 2, 2, 0], [0.5**0.5, 1, 0.5, 1, 1, 1, 0], [3, 1, 1, 3, 3, 3, 0]]
  np.testing.assert_allclose(rings.priority, expected, rtol=1e-4)
