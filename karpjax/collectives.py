"""Collectives over the replicas of a step: the identity on one device.

No experiment writes a collective of its own; under a mesh XLA's partitioner finds them.
"""

import jax

REPLICAS = 'data'  # the axis of a mesh over which `train.placement` maps a step

_alone = jax.make_user_context(False)


def alone():
  """Where an example is traced by itself, as private training does: it shares its batch with none."""
  return _alone(True)


def replicas() -> int:
  """How many replicas share this trace's batch: 1 outside the mapped axis, and `alone`."""
  if _alone.value:
    return 1
  try:
    return jax.lax.axis_size(REPLICAS)
  except NameError:
    return 1


def total(tree):
  """Sum over replicas, leaf by leaf; the identity on one device."""
  return jax.lax.psum(tree, REPLICAS) if replicas() > 1 else tree


def mean(tree):
  """Mean over replicas, leaf by leaf; the identity on one device."""
  return jax.lax.pmean(tree, REPLICAS) if replicas() > 1 else tree


def largest(tree):
  """Maximum over replicas, leaf by leaf; the identity on one device."""
  return jax.lax.pmax(tree, REPLICAS) if replicas() > 1 else tree


def gather(tree):
  """[batch of one replica, ...] -> [whole batch, ...], leaf by leaf; the identity on one device."""
  return jax.lax.all_gather(tree, REPLICAS, tiled=True) if replicas() > 1 else tree


def offset(batch_size: int):
  """Where this replica's rows begin in the whole batch: 0 on one device."""
  return jax.lax.axis_index(REPLICAS) * batch_size if replicas() > 1 else 0
