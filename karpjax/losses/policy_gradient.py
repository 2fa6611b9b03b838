"""Losses of policy gradient methods, step by step; each [batch]."""

import jax.numpy as jnp


def score_function(log_probs, advantages):
  """-A log π(a|s) (Williams 1992; Mnih et al. 2016): its gradient is the policy gradient where π acted."""
  return -advantages * log_probs


def clipped_objective(log_probs, old_log_probs, advantages, clip: float):
  """The negative of PPO's objective (Schulman et al. 2017, eq. 7): min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), ρ = π / π_old."""
  ratio = jnp.exp(log_probs - old_log_probs)
  return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def squared_error(values, targets):
  """½ (V - target)²."""
  return 0.5 * jnp.square(values - targets)


def clipped_squared_error(values, old_values, targets, clip: float):
  """½ max((V - target)², (V_clipped - target)²), V_clipped within ε of the value that acted (as PPO's first code has it)."""
  near = old_values + jnp.clip(values - old_values, -clip, clip)
  return 0.5 * jnp.maximum(jnp.square(values - targets), jnp.square(near - targets))


def divergence(log_probs, old_log_probs):
  """An estimate of KL(π_old ‖ π) from actions of π_old, never negative: (ρ - 1) - log ρ (Schulman 2020)."""
  log_ratio = log_probs - old_log_probs
  return jnp.exp(log_ratio) - 1 - log_ratio
