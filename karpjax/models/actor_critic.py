"""Policies and values: observations [batch, *shape] -> outputs of a distribution [batch, size] and values [batch]; with
a memory, also of observations [batch, time, *shape] one after the other. And the distributions that the outputs mean.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax import axes
from karpjax.layers import convolution, initialisers, linear, recurrence
from karpjax.models.mlp import ACTIVATIONS
from karpjax.options import option

# channels, window and stride of a body's convolutions
BODIES = {'mlp': (), 'cnn': ((16, 3, 1),), 'nature': ((32, 8, 4), (64, 4, 2), (64, 3, 1))}

orthogonal = nn.initializers.orthogonal


class Network(nn.Module, kw_only=True):
  """The body of an agent's network, behind which its heads are.

  Attributes:
    dtype: of the body; outputs are float32.
  """

  dtype: Any = jnp.float32
  body: str = option('mlp', 'mlp; cnn for images; nature for those of Atari games.', choices=BODIES)
  widths: tuple[int, ...] = option((64, 64), 'Units of the hidden layers.', low=1)
  activation: str = option('relu', 'Activation of the hidden layers.', choices=ACTIVATIONS)

  def features(self, x, name: str, *, body=None, widths=None, kernel_init: Callable = initialisers.lecun_normal):
    """A body: x [batch, *shape] -> [batch, widths[-1]] float32.

    Args:
      x: observations; uint8 ones are brought to [0, 1].
      name: what its layers' names begin with.
      body: another than the network's: 'mlp', or 'cnn' for images: one 3×3 convolution of 16 channels, as MinAtar's
        networks (Young & Tian 2019), before the dense layers; 'nature' for frames of 84×84: three of 32, 64 and 64
        channels (Mnih et al. 2015, methods).
      widths: other units of the dense layers.
      kernel_init: of all layers.
    """
    act, options = ACTIVATIONS[self.activation], dict(dtype=self.dtype, kernel_init=axes.declare(kernel_init, None))
    h = x.astype(self.dtype) / 255 if x.dtype == jnp.uint8 else x.astype(self.dtype)
    for layer, (channels, window, stride) in enumerate(BODIES[body or self.body]):
      convolve = convolution.Conv(
        channels, (window, window), strides=stride, padding='VALID', name=f'{name}_conv{layer or ""}', **options
      )
      h = act(convolve(h))
    h = h.reshape(h.shape[0], -1)
    for layer, width in enumerate(self.widths if widths is None else widths, start=1):
      h = act(linear.Dense(width, name=f'{name}{layer}', **options)(h))
    return h.astype(jnp.float32)


# ---- what outputs mean ----


class Distribution(NamedTuple):
  """A distribution over actions, given a policy's outputs […, size], as a record of pure functions.

  Its draws are split in two, noise that depends on nothing and a map of outputs and noise to an action, so that a
  rollout draws all of its noise at once.

  Attributes:
    noise: (key, shape) -> [*shape, …], what `sample` takes.
    sample: (outputs, noise) -> action; with noise 0 the likeliest.
    log_prob: (outputs, action) -> […].
    entropy: outputs -> […].
  """

  noise: Callable
  sample: Callable
  log_prob: Callable
  entropy: Callable


def _flat(draw: Callable, size: int) -> Callable:
  """(key, shape) -> [*shape, size], drawn in a row: XLA compiles that faster."""
  return lambda key, shape=(): draw(key, (math.prod(shape) * size,)).reshape(*shape, size)


def categorical(size: int) -> Distribution:
  """Over 0 … size - 1, by logits […, size]; drawn by the Gumbel-max trick."""

  def log_prob(logits, action):
    log_probs = jax.nn.log_softmax(logits)
    # a sum with zeros instead of a gather, whose derivative would be a scatter
    return jnp.where(jnp.arange(size) == action[..., None], log_probs, 0).sum(-1)

  def entropy(logits):
    log_probs = jax.nn.log_softmax(logits)
    return -(jnp.exp(log_probs) * log_probs).sum(-1)

  return Distribution(
    noise=_flat(jax.random.gumbel, size),
    sample=lambda logits, noise: (logits + noise).argmax(-1).astype(jnp.int32),
    log_prob=log_prob,
    entropy=entropy,
  )


def gaussian(size: int) -> Distribution:
  """Over [size] numbers, each on its own; outputs […, 2 · size] are the means, then the logs of the deviations."""
  parts = lambda outputs: (outputs[..., :size], outputs[..., size:])

  def sample(outputs, noise):
    mean, log_std = parts(outputs)
    return mean + jnp.exp(log_std) * noise

  def log_prob(outputs, action):
    mean, log_std = parts(outputs)
    return -(0.5 * jnp.square((action - mean) * jnp.exp(-log_std)) + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

  return Distribution(
    noise=_flat(jax.random.normal, size),
    sample=sample,
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


# ---- networks ----


class ActorCritic(Network):
  """Two networks of the same shape, or two heads on one body, initialised as Andrychowicz et al. 2021 and PPO's first
  code: orthogonal kernels, gain √2 in the body, 0.01 of the policy's outputs, 1 of the value.

  Attributes:
    actions: how many there are, or if `continuous` how many numbers one has.
    continuous: whether outputs are means and logs of deviations, which depend on nothing, instead of logits.
  """

  actions: int
  continuous: bool = False
  shared: bool = option(False, 'One body for policy and value.')
  log_std: float = option(0.0, "The first log of a continuous policy's deviation.")
  memory: str = option(
    'none',
    'A recurrent layer behind each body; minibatches then are of whole environments.',
    choices=('none', *recurrence.CELLS),
  )
  memory_width: int = option(64, "Units of the memory's layer.", low=1)

  @property
  def distribution(self) -> Distribution:
    """What the outputs mean."""
    return gaussian(self.actions) if self.continuous else categorical(self.actions)

  def initial_memory(self) -> dict[str, recurrence.State]:
    """What is remembered of nothing: {body: zeros, each [memory_width]}."""
    state = recurrence.Recurrent(self.memory_width, self.memory, parent=None).initial(1)
    return {name: jax.tree.map(lambda x: x[0], state) for name in (('body',) if self.shared else ('actor', 'critic'))}

  @nn.compact
  def __call__(self, x, memory=None, is_first=None):
    """Outputs and values.

    Args:
      x: [batch, *shape], or where `is_first` is given [batch, time, *shape].
      memory: before this step, or the first of them: as `initial_memory`, [batch, …]; of a policy with a memory.
      is_first: [batch, time] bool, True where an episode begins, with the initial memory.

    Returns:
      outputs [batch, size] float32, values [batch] float32, or [batch, time, size] and [batch, time]; with a memory
      also what is remembered after the last time.
    """
    lead, after = x.shape[: 1 if is_first is None else 2], {}

    def body(name):
      h = self.features(x.reshape(-1, *x.shape[len(lead) :]), name, kernel_init=orthogonal(math.sqrt(2)))
      if self.memory == 'none':
        return h
      h = h.reshape(x.shape[0], -1, h.shape[-1])  # [batch, time, widths[-1]], of one time where there is no axis of it
      layer = recurrence.Recurrent(self.memory_width, self.memory, dtype=self.dtype, name=f'{name}_memory')
      h, after[name] = layer(h, memory[name], fresh=is_first)  # [batch, time, memory_width]
      return h.reshape(*lead, -1).astype(jnp.float32)

    actor = body('body' if self.shared else 'actor')
    critic = actor if self.shared else body('critic')
    outputs = linear.Head(self.actions, kernel_init=orthogonal(0.01), name='policy')(actor)
    if self.continuous:
      log_std = self.param('log_std', nn.initializers.constant(self.log_std), (self.actions,))
      outputs = jnp.concatenate([outputs, jnp.broadcast_to(log_std, outputs.shape)], -1)  # […, 2 * actions]
    values = linear.Head(1, kernel_init=orthogonal(1.0), name='value')(critic)[..., 0]
    return (outputs, values) if self.memory == 'none' else (outputs, values, after)


MODELS = {'actor_critic': functools.partial(ActorCritic, activation='tanh')}
