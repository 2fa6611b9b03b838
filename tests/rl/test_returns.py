"""Returns and advantages against plain loops, and one case each worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.rl import returns


def drawn(time=40, width=3, seed=0):
  generator = np.random.default_rng(seed)
  terminated = generator.random((time, width)) < 0.1
  truncated = (generator.random((time, width)) < 0.1) & ~terminated
  rewards, values, next_values = generator.normal(size=(3, time, width)).astype(np.float32)
  # where an episode goes on, the next state's value is that of the state that follows
  going_on = ~(terminated | truncated)[:-1]
  next_values[:-1] = np.where(going_on, values[1:], next_values[:-1])
  return rewards, values, next_values, terminated, truncated


def test_discounted_by_hand():
  # two episodes: rewards 1, 2 | 3, 4 and what follows is worth 10; γ = ½
  got = returns.discounted(jnp.array([1.0, 2, 3, 4]), jnp.array([False, True, False, False]), jnp.array(10.0), 0.5)
  np.testing.assert_allclose(got, [2, 2, 7.5, 9])  # 3 + ½ · 9; 4 + ½ · 10


def test_advantages_by_hand():
  # γ = ½, λ = ½. Step 1 is truncated: its end is worth 8. Step 2 terminates: its end is worth nothing.
  got = returns.advantages(
    rewards=jnp.array([1.0, 1, 1]), values=jnp.array([2.0, 4, 6]), next_values=jnp.array([4.0, 8, 100]),
    terminated=jnp.array([False, False, True]), truncated=jnp.array([False, True, False]), discount=0.5, decay=0.5,
  )  # fmt: skip
  # errors: 1 + 2 - 2 = 1; 1 + 4 - 4 = 1; 1 - 6 = -5; only step 0 is followed by a step of its episode
  np.testing.assert_allclose(got, [1.25, 1, -5])


@pytest.mark.parametrize('decay', [0.0, 0.9, 1.0])
def test_advantages_are_those_of_a_plain_loop(decay):
  rewards, values, next_values, terminated, truncated = drawn()
  got = returns.advantages(
    *map(jnp.asarray, (rewards, values, next_values, terminated, truncated)), discount=0.97, decay=decay
  )
  for column in range(rewards.shape[1]):
    for t in range(len(rewards)):
      total, weight = 0.0, 1.0
      for l in range(t, len(rewards)):
        beyond = 0.0 if terminated[l, column] else next_values[l, column]
        total += weight * (rewards[l, column] + 0.97 * beyond - values[l, column])
        weight *= 0.97 * decay
        if terminated[l, column] or truncated[l, column]:
          break
      np.testing.assert_allclose(got[t, column], total, rtol=2e-4, atol=2e-5)


def test_with_a_decay_of_one_they_are_discounted_returns_less_values():
  rewards, values, next_values, terminated, _ = drawn()
  never = np.zeros_like(terminated)
  next_values[:-1] = np.where(terminated[:-1], next_values[:-1], values[1:])
  got = returns.advantages(
    *map(jnp.asarray, (rewards, values, next_values, terminated, never)), discount=0.9, decay=1.0
  )
  whole = returns.discounted(*map(jnp.asarray, (rewards, terminated, next_values[-1])), 0.9)
  np.testing.assert_allclose(got + values, whole, rtol=1e-4, atol=1e-5)


def test_v_trace_by_hand():
  # one step: ratio e^0.5 is cut to 1, so target = r + γ V'; advantage the same less V
  targets, advantages = returns.v_trace(
    jnp.array([0.5]), jnp.array([1.0]), jnp.array([3.0]), jnp.array([4.0]), jnp.array([False]), jnp.array([False]),
    discount=0.5,
  )  # fmt: skip
  np.testing.assert_allclose(targets, [3.0])
  np.testing.assert_allclose(advantages, [0.0])
  # a ratio of ½: target = V + ½ (1 + 2 - 3.5) = 3.25
  targets, advantages = returns.v_trace(
    jnp.log(jnp.array([0.5])), jnp.array([1.0]), jnp.array([3.5]), jnp.array([4.0]), jnp.array([False]),
    jnp.array([False]), discount=0.5,
  )  # fmt: skip
  np.testing.assert_allclose(targets, [3.25], rtol=1e-6)
  np.testing.assert_allclose(advantages, [-0.25], rtol=1e-6)


def test_v_trace_is_that_of_a_plain_loop():
  rewards, values, next_values, terminated, truncated = drawn(seed=1)
  log_ratios = np.random.default_rng(2).normal(size=rewards.shape).astype(np.float32)
  got, advantages = returns.v_trace(
    *map(jnp.asarray, (log_ratios, rewards, values, next_values, terminated, truncated)), discount=0.95, decay=0.8
  )
  weights = np.minimum(np.exp(log_ratios), 1)
  for column in range(rewards.shape[1]):
    for t in range(len(rewards)):
      target, trace = values[t, column], 1.0
      for l in range(t, len(rewards)):
        beyond = 0.0 if terminated[l, column] else next_values[l, column]
        target += trace * weights[l, column] * (rewards[l, column] + 0.95 * beyond - values[l, column])
        trace *= 0.95 * 0.8 * weights[l, column]
        if terminated[l, column] or truncated[l, column]:
          break
      np.testing.assert_allclose(got[t, column], target, rtol=1e-3, atol=1e-4)
      over = terminated[t, column] or truncated[t, column] or t == len(rewards) - 1
      beyond = 0.0 if terminated[t, column] else next_values[t, column] if over else got[t + 1, column]
      expected = weights[t, column] * (rewards[t, column] + 0.95 * beyond - values[t, column])
      np.testing.assert_allclose(advantages[t, column], expected, rtol=1e-3, atol=1e-4)


def test_on_policy_v_trace_without_cuts_is_td_lambda():
  rewards, values, next_values, terminated, truncated = map(jnp.asarray, drawn(seed=3))
  targets, _ = returns.v_trace(
    jnp.zeros_like(rewards), rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.7
  )
  above = returns.advantages(rewards, values, next_values, terminated, truncated, discount=0.9, decay=0.7)
  np.testing.assert_allclose(targets, values + above, rtol=1e-4, atol=1e-5)


def test_explained_variance():
  targets = jnp.array([1.0, 2, 3, 4])
  assert float(returns.explained_variance(targets, targets)) == 1
  assert float(returns.explained_variance(jnp.full(4, 7.0), targets)) == 0
  assert float(returns.explained_variance(targets, jnp.zeros(4))) == 0  # no variance to explain
