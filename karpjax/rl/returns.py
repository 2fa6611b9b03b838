"""Returns and advantages from what a rollout saw; all arrays [time, …], one scan from the last step to the first.

Two values belong to a step: V(s_t), and V of the state that it led to, before any reset. So an episode that was cut by a
time limit has a value beyond its end (`next_values`), one that terminated has none, and no advantage crosses an end.
"""

import jax
import jax.numpy as jnp


def _backwards(body, last, *arrays):
  return jax.lax.scan(body, last, arrays, reverse=True)[1]


def discounted(rewards, ends, last, discount):
  """Sums of discounted rewards to the end of each episode: G_t = r_t + γ G_{t+1}.

  Args:
    rewards: [time, …].
    ends: [time, …] bool: whether step t was its episode's last; nothing beyond counts.
    last: […]: the value of what follows the last step, where its episode goes on.
    discount: γ.

  Returns:
    [time, …].
  """

  def body(future, x):
    reward, end = x
    total = reward + discount * jnp.where(end, 0, future)
    return total, total

  return _backwards(body, last, rewards, ends)


def advantages(rewards, values, next_values, terminated, truncated, *, discount, decay):
  """Generalised advantage estimates (Schulman et al. 2016, eqs. 11 and 16): Σ (γλ)^l δ_{t+l} within the episode.

  Args:
    rewards, values: [time, …].
    next_values: [time, …]: of the states the steps led to, before any reset.
    terminated, truncated: [time, …] bool.
    discount: γ.
    decay: λ; 0 is one step's error, 1 the whole return less the value.

  Returns:
    [time, …]; with `values` added, the λ-returns (TD(λ)).
  """
  errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
  going_on = ~(terminated | truncated)
  return _backwards(_decayed, jnp.zeros_like(errors[0]), errors, discount * decay * going_on)


def _decayed(future, x):
  error, weight = x
  total = error + weight * future
  return total, total


def v_trace(log_ratios, rewards, values, next_values, terminated, truncated, *, discount, decay=1.0, largest=1.0):
  """V-trace targets and advantages of off-policy steps (Espeholt et al. 2018, eqs. 1 and 4), ρ̄ = c̄ = `largest`.

  Args:
    log_ratios: [time, …]: log π(a|s) - log μ(a|s) of the steps' actions.
    rewards, values, next_values, terminated, truncated, discount: as `advantages`'.
    decay: λ of remark 2.
    largest: where importance weights are cut.

  Returns:
    (targets, advantages), each [time, …].
  """
  weights = jnp.minimum(jnp.exp(log_ratios), largest)
  discounts, going_on = discount * ~terminated, ~(terminated | truncated)
  errors = weights * (rewards + discounts * next_values - values)
  above = _backwards(_decayed, jnp.zeros_like(errors[0]), errors, discount * decay * weights * going_on)
  targets = values + above
  following = jnp.concatenate([targets[1:], next_values[-1:]])
  following = jnp.where(going_on, following, next_values)  # of an episode that was cut, the value of its end
  return targets, weights * (rewards + discounts * following - values)


def explained_variance(values, targets):
  """1 - Var(targets - values) / Var(targets), [] float32: 1 is perfect, 0 no better than a constant."""
  variance = targets.var()
  return jnp.where(variance > 0, 1 - (targets - values).var() / jnp.maximum(variance, 1e-12), 0)
