"""Losses of DDPG, TD3 and SAC, example by example; the values of several critics are [critics, batch]."""

import jax.numpy as jnp


def target(rewards, discounts, next_values, next_log_probs=0.0, temperature=0.0):
  """r + γ (min_i Q_i(s', a') - α log π(a'|s')): Lillicrap et al. 2016 with one critic and α = 0, Fujimoto et al. 2018,
  algorithm 1, with two, Haarnoja et al. 2018b, eqs. 2 and 3, with α.

  Args:
    rewards: [batch].
    discounts: [batch], γ of what follows: 0 where the episode terminated there, not where it was only cut.
    next_values: [critics, batch], of the target networks.
    next_log_probs: [batch].
    temperature: α.
  """
  return rewards + discounts * (next_values.min(0) - temperature * next_log_probs)


def smoothed(actions, noise, deviation, limit):
  """Actions [batch, size] within ±1 with clipped noise, clipped again (Fujimoto et al. 2018, eq. 14).

  Args:
    actions: of the target policy.
    noise: of their shape, standard normal.
    deviation: σ̃ of the noise.
    limit: c, the most that it moves an action.
  """
  return jnp.clip(actions + jnp.clip(deviation * noise, -limit, limit), -1, 1)


def critics(values, targets):
  """Σ_i ½ (Q_i - y)²: [critics, batch], [batch] -> [batch]."""
  return 0.5 * jnp.square(values - targets).sum(0)


def deterministic_policy(values):
  """-Q_1(s, μ(s)) (Lillicrap et al. 2016, eq. 6; of the first critic alone: Fujimoto et al. 2018): [critics, batch] -> [batch]."""
  return -values[0]


def soft_policy(values, log_probs, temperature):
  """α log π(a|s) - min_i Q_i(s, a) (Haarnoja et al. 2018b, eq. 9): [critics, batch], [batch] -> [batch]."""
  return temperature * log_probs - values.min(0)


def temperature(log_temperature, log_probs, entropy):
  """-α (log π(a|s) + H̄) (Haarnoja et al. 2018b, eq. 18): α grows where the policy's entropy is under H̄.

  Args:
    log_temperature: [], log α.
    log_probs: [batch], of actions of the policy.
    entropy: H̄.
  """
  return -jnp.exp(log_temperature) * (log_probs + entropy)
