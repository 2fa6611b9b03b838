"""Networks of off-policy methods: values of actions, or of states and actions, and the actor that these teach."""

import jax.numpy as jnp
from flax import linen as nn

from karpjax.errors import UsageError
from karpjax.layers import initialisers, linear
from karpjax.models.actor_critic import Network, orthogonal
from karpjax.options import option


class QNetwork(Network):
  """A body as a policy's, and a head without activation, initialised as LeCun et al. 1998, which keeps the first values
  small.

  Attributes:
    actions: how many there are.
  """

  actions: int
  atoms: int = option(0, "Atoms of each action's distribution of returns (C51: 51); 0: only its mean is learnt.", low=0)
  dueling: bool = option(False, 'Streams of state value and advantages, each as wide as the last of the widths.')

  @nn.compact
  def __call__(self, x):
    """x: [batch, *shape] -> [batch, actions] float32, or [batch, actions, atoms] float32 logits (Bellemare et al.
    2017).

    Raises:
      UsageError: for no width for the streams.
    """
    if self.dueling and not self.widths:
      raise UsageError('widths is empty, and the streams of dueling need at least one')
    size = max(self.atoms, 1)

    def head(h, name, count):  # [batch, width] -> [batch, count, size]
      return linear.Head(count * size, kernel_init=initialisers.lecun_normal, name=name)(h).reshape(-1, count, size)

    if self.dueling:  # Wang et al. 2016, eq. 9
      h = self.features(x, 'body', widths=self.widths[:-1])
      stream = lambda name: self.features(h, name, body='mlp', widths=self.widths[-1:])
      value, advantage = head(stream('state'), 'value', 1), head(stream('choice'), 'advantage', self.actions)
      outputs = value + advantage - advantage.mean(1, keepdims=True)
    else:
      outputs = head(self.features(x, 'body'), 'values', self.actions)
    return outputs if self.atoms else outputs[..., 0]


class Actor(Network):
  """A body, and a head whose first outputs are near 0, so that the first actions are near the middle (as Lillicrap et
  al. 2016).

  Attributes:
    outputs: how many numbers an action is made of.
  """

  outputs: int

  @nn.compact
  def __call__(self, x):
    """x: [batch, *shape] -> [batch, outputs] float32."""
    return linear.Head(self.outputs, kernel_init=orthogonal(0.01), name='policy')(self.features(x, 'body'))


class Critic(Network):
  """Q(s, a): the action joins before the first dense layer."""

  @nn.compact
  def __call__(self, x, action):
    """x: [batch, *shape], action: [batch, size] -> [batch] float32."""
    h = self.features(x, 'body', widths=())  # [batch, numbers]
    h = self.features(jnp.concatenate([h, action], -1), 'critic', body='mlp')
    return linear.Head(1, kernel_init=initialisers.lecun_normal, name='value')(h)[:, 0]


def critics(count: int, actor: Actor) -> nn.Module:
  """So many Critics like an actor, each with params of its own: [batch, *shape], [batch, size] -> [count, batch]."""
  stacked = nn.vmap(
    Critic,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=None,
    axis_size=count,
    metadata_params={nn.PARTITION_NAME: None},
  )
  return stacked(body=actor.body, widths=actor.widths, activation=actor.activation, dtype=actor.dtype)
