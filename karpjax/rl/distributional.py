"""Distributions of returns over fixed atoms (C51, Bellemare et al. 2017)."""

import jax
import jax.numpy as jnp


def mean(logits, atoms):
  """[…, n] logits -> […] float32: the means of the distributions over the atoms [n]."""
  return (jax.nn.softmax(logits) * atoms).sum(-1)


def project(probabilities, rewards, discounts, atoms):
  """The distribution of r + γ Z on the atoms of Z: what lies between two is shared by them (Bellemare et al. 2017,
  algorithm 1).

  Args:
    probabilities: [batch, n], of Z.
    rewards, discounts: [batch].
    atoms: [n], equally spaced, at least two; what falls outside is moved to the nearest end.
  """
  spacing = atoms[1] - atoms[0]
  moved = jnp.clip(rewards[:, None] + discounts[:, None] * atoms, atoms[0], atoms[-1])  # [batch, n]
  # each atom's part of a moved one falls linearly to 0 at its neighbours: the algorithm's l and u without its case of l = u
  parts = jnp.clip(1 - jnp.abs(moved[:, :, None] - atoms) / spacing, 0, 1)  # [batch, n moved, n]
  return jnp.einsum('bi,bij->bj', probabilities, parts)
