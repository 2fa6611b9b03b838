"""Networks of off-policy actor-critic methods: observations -> numbers that an action is made of; with actions -> values."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from karpjax import errors
from karpjax.layers import initialisers, linear
from karpjax.models.actor_critic import BODIES, features, orthogonal
from karpjax.models.mlp import ACTIVATIONS, check


def _options(module: 'Actor | Critic') -> dict[str, Any]:
  """For `features`; raises UsageError for an unknown body or activation, or a width under 1."""
  activation = errors.choose('activation', module.activation, ACTIVATIONS)
  errors.choose('body', module.body, dict.fromkeys(BODIES))
  check(widths=module.widths)
  return dict(activation=activation, kernel_init=initialisers.lecun_normal, dtype=module.dtype)


class Actor(nn.Module):
  """A body, and a head whose first outputs are near 0, so that the first actions are near the middle (as Lillicrap et al. 2016).

  Attributes:
    outputs: how many numbers an action is made of.
    body: 'mlp', or 'cnn' for images; see `actor_critic.features`.
    widths: units of the dense layers.
    activation: 'tanh', 'relu' or 'gelu'.
    dtype: of the body; outputs are float32.
  """

  outputs: int
  body: str = 'mlp'
  widths: tuple[int, ...] = (256, 256)
  activation: str = 'relu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x: [batch, *shape] -> [batch, outputs] float32.

    Raises:
      UsageError: for an unknown body or activation, or a width under 1.
    """
    h = features(x, 'body', body=self.body, widths=self.widths, **_options(self))
    return linear.Dense(self.outputs, kernel_init=orthogonal(0.01), name='policy')(h)


class Critic(nn.Module):
  """Q(s, a): the action joins before the first dense layer. Attributes as an Actor's."""

  body: str = 'mlp'
  widths: tuple[int, ...] = (256, 256)
  activation: str = 'relu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, action):
    """x: [batch, *shape], action: [batch, size] -> [batch] float32."""
    options = _options(self)
    seen = features(x, 'body', body=self.body, widths=(), **options)  # [batch, numbers]
    h = features(jnp.concatenate([seen, action], -1), 'critic', body='mlp', widths=self.widths, **options)
    return linear.Dense(1, kernel_init=initialisers.lecun_normal, name='value')(h)[:, 0]


def critics(count: int, **options) -> nn.Module:
  """So many Critics, each with params of its own, as one module: [batch, *shape], [batch, size] -> [count, batch]."""
  stacked = nn.vmap(
    Critic,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=None,
    axis_size=count,
    metadata_params={nn.PARTITION_NAME: None},
  )
  return stacked(**options)
