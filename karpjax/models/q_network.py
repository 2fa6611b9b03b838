"""Values of actions: observations [batch, *shape] -> [batch, actions], or a distribution over atoms of each."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from karpjax import errors
from karpjax.layers import initialisers, linear
from karpjax.models.actor_critic import BODIES, features
from karpjax.models.mlp import ACTIVATIONS, check


class QNetwork(nn.Module):
  """A body as a policy's, and a head without activation, initialised as LeCun et al. 1998, which keeps the first values small.

  Attributes:
    actions: how many there are.
    atoms: of the distribution of each action's return (Bellemare et al. 2017), as logits; 0: values.
    dueling: two streams, of the state's value and of the actions' advantages (Wang et al. 2016, eq. 9); the last of the
      widths is that of each stream.
    body: 'mlp', or 'cnn' for images; see `actor_critic.features`.
    widths: units of the dense layers.
    activation: 'tanh', 'relu' or 'gelu'.
    dtype: of the body; outputs are float32.
  """

  actions: int
  atoms: int = 0
  dueling: bool = False
  body: str = 'mlp'
  widths: tuple[int, ...] = (120, 84)
  activation: str = 'relu'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x: [batch, *shape] -> [batch, actions] float32, or [batch, actions, atoms] float32 logits.

    Raises:
      UsageError: for an unknown body or activation, a width under 1, or no width for the streams.
    """
    activation = errors.choose('activation', self.activation, ACTIVATIONS)
    errors.choose('body', self.body, dict.fromkeys(BODIES))
    check(widths=self.widths)
    if self.dueling and not self.widths:
      raise errors.UsageError('--dueling: --widths is empty, and the streams need at least one width')
    init = initialisers.lecun_normal
    options = dict(activation=activation, kernel_init=init, dtype=self.dtype)
    size = max(self.atoms, 1)

    def head(h, name, count):  # [batch, width] -> [batch, count, size]
      return linear.Dense(count * size, kernel_init=init, name=name)(h).reshape(-1, count, size)

    if self.dueling:
      h = features(x, 'body', body=self.body, widths=self.widths[:-1], **options)
      stream = lambda name: features(h, name, body='mlp', widths=self.widths[-1:], **options)
      value, advantage = head(stream('state'), 'value', 1), head(stream('choice'), 'advantage', self.actions)
      outputs = value + advantage - advantage.mean(1, keepdims=True)
    else:
      h = features(x, 'body', body=self.body, widths=self.widths, **options)
      outputs = head(h, 'values', self.actions)
    return outputs if self.atoms else outputs[..., 0]
