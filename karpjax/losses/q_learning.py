"""Losses of Q-learning, example by example: targets, errors, and distributions of returns over atoms."""

import jax
import jax.numpy as jnp


def of_actions(values, actions):
  """values [batch, actions, …], actions [batch] int -> [batch, …]: those of the actions."""
  index = actions.reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.take_along_axis(values, index, 1)[:, 0]


def target(rewards, discounts, next_values, actions):
  """r + γ Q(s', a) (Mnih et al. 2015, algorithm 1).

  Args:
    rewards: [batch].
    discounts: [batch], γ of what follows: 0 where the episode terminated there, not where it was only cut.
    next_values: [batch, actions], of the target network.
    actions: [batch], the best in s': by the same network's values, or for double Q-learning by the online network's
      (van Hasselt et al. 2016, eq. 4).
  """
  return rewards + discounts * of_actions(next_values, actions)


def squared(errors):
  """½ δ²."""
  return 0.5 * jnp.square(errors)


def huber(errors, limit: float = 1.0):
  """½ δ² within ± limit and linear beyond (Huber 1964): its derivative is δ, clipped, as in Mnih et al. 2015."""
  size = jnp.abs(errors)
  return jnp.where(size <= limit, 0.5 * jnp.square(errors), limit * (size - 0.5 * limit))


def expectation(logits, atoms):
  """The mean of a distribution over atoms [n]: logits […, n] -> […]."""
  return (jax.nn.softmax(logits) * atoms).sum(-1)


def project(chances, rewards, discounts, atoms):
  """The distribution of r + γ Z on the atoms of Z: what lies between two is shared by them (Bellemare et al. 2017, algorithm 1).

  Args:
    chances: [batch, n], of Z.
    rewards, discounts: [batch].
    atoms: [n], equally spaced, at least two; what falls outside is moved to the nearest end.

  Returns:
    [batch, n].
  """
  spacing = atoms[1] - atoms[0]
  moved = jnp.clip(rewards[:, None] + discounts[:, None] * atoms, atoms[0], atoms[-1])  # [batch, n]
  # each atom's share of a moved one falls linearly to 0 at its neighbours: the algorithm's l and u without its case of l = u
  shares = jnp.clip(1 - jnp.abs(moved[:, :, None] - atoms) / spacing, 0, 1)  # [batch, n moved, n]
  return jnp.einsum('bi,bij->bj', chances, shares)


def cross_entropy(logits, chances):
  """-Σ p log softmax(logits): [batch, n], [batch, n] -> [batch]."""
  return -(chances * jax.nn.log_softmax(logits)).sum(-1)
