"""What a policy's outputs mean: distributions over actions, as records of pure functions.

Their draws are split in two, noise that depends on nothing and a map of outputs and noise to an action, so that a rollout
draws all of its noise at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from karpjax.rl.environment import Box, Discrete


class Distribution(NamedTuple):
  """Over actions, given a policy's outputs […, size].

  Attributes:
    size: how many outputs an action needs.
    noise: (key, shape) -> [*shape, …], what `sample` takes.
    sample: (outputs, noise) -> action.
    mode: outputs -> the likeliest action.
    log_prob: (outputs, action) -> […].
    entropy: outputs -> […].
  """

  size: int
  noise: Callable
  sample: Callable
  mode: Callable
  log_prob: Callable
  entropy: Callable


def _flat(draw: Callable, size: int) -> Callable:
  """(key, shape) -> [*shape, size], drawn in a row: XLA compiles that faster."""
  return lambda key, shape=(): draw(key, (math.prod(shape) * size,)).reshape(*shape, size)


def categorical(size: int) -> Distribution:
  """Over 0 … size - 1, by logits […, size]; drawn by the Gumbel-max trick."""

  def log_prob(logits, action):
    chances = jax.nn.log_softmax(logits)
    # a sum with zeros instead of a gather, whose derivative would be a scatter
    return jnp.where(jnp.arange(size) == action[..., None], chances, 0).sum(-1)

  def entropy(logits):
    chances = jax.nn.log_softmax(logits)
    return -(jnp.exp(chances) * chances).sum(-1)

  return Distribution(
    size,
    noise=_flat(jax.random.gumbel, size),
    sample=lambda logits, noise: (logits + noise).argmax(-1).astype(jnp.int32),
    mode=lambda logits: logits.argmax(-1).astype(jnp.int32),
    log_prob=log_prob,
    entropy=entropy,
  )


def gaussian(shape: tuple[int, ...]) -> Distribution:
  """Over arrays of one axis, each number on its own; outputs […, 2 · size] are the means, then the logs of the deviations."""
  (size,) = shape
  parts = lambda outputs: (outputs[..., :size], outputs[..., size:])

  def sample(outputs, noise):
    mean, log_std = parts(outputs)
    return mean + jnp.exp(log_std) * noise

  def log_prob(outputs, action):
    mean, log_std = parts(outputs)
    return -(0.5 * jnp.square((action - mean) * jnp.exp(-log_std)) + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

  return Distribution(
    2 * size,
    noise=_flat(jax.random.normal, size),
    sample=sample,
    mode=lambda outputs: parts(outputs)[0],
    log_prob=log_prob,
    entropy=lambda outputs: (parts(outputs)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1),
  )


def squashed_sample(outputs, noise):
  """A Gaussian's draw through tanh (Haarnoja et al. 2018b, appendix C): (actions […, size] within ±1, log_prob […]).

  Args:
    outputs: […, 2 · size], the means before the tanh and the logs of the deviations, which are kept from -20 to 2.
    noise: […, size], standard normal.
  """
  mean, log_std = jnp.split(outputs, 2, -1)
  log_std = jnp.clip(log_std, -20, 2)
  raw = mean + jnp.exp(log_std) * noise
  log_prob = -(0.5 * jnp.square(noise) + log_std + 0.5 * math.log(2 * math.pi))
  # log(1 - tanh² u), which would be log 0 for large u
  slope = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
  return jnp.tanh(raw), (log_prob - slope).sum(-1)


def squashed_mode(outputs):
  """tanh of the means: […, 2 · size] -> […, size]."""
  return jnp.tanh(jnp.split(outputs, 2, -1)[0])


def of(action: Discrete | Box) -> Distribution:
  """The usual one over the actions of an environment."""
  return categorical(action.size) if isinstance(action, Discrete) else gaussian(action.shape)
