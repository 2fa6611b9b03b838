"""The variational autoencoder: perceptrons for q(z | x) and p(x | z)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from karpjax.models.mlp import ACTIVATIONS, MLP
from karpjax.options import option


class VAE(nn.Module):
  """A Gaussian q(z | x), and a Bernoulli p(x | z) of each pixel (Kingma & Welling 2014, appendix C)."""

  shape: tuple[int, ...]  # of an image
  dtype: Any = jnp.float32
  latent: int = option(20, 'Dimensions of the code z.', low=1, high=2**20)
  widths: tuple[int, ...] = option((500,), 'Hidden units of the encoder, and in reverse of the decoder.', low=1)
  activation: str = option('tanh', 'The activation of the hidden layers.', choices=ACTIVATIONS)

  def setup(self):
    layers = {'activation': self.activation, 'dtype': self.dtype}
    self.encoder = MLP(2 * self.latent, widths=self.widths, **layers)
    self.decoder = MLP(math.prod(self.shape), widths=self.widths[::-1], **layers)

  def encode(self, x):
    """x [batch, *shape] in [0, 1] -> mean and log variance of q(z | x), each [batch, latent]."""
    return jnp.split(self.encoder(x), 2, -1)

  def decode(self, z, activation=jax.nn.sigmoid):
    """z [batch, latent] -> the probability of each pixel, [batch, *shape]."""
    return activation(self.decoder(z).reshape(-1, *self.shape))

  def __call__(self, x, noise):
    """x [batch, *shape], standard normal noise [batch, latent] -> z, mean, log variance, logits [batch, *shape]."""
    mean, log_variance = self.encode(x)
    z = mean + jnp.exp(log_variance / 2) * noise  # the reparameterisation, section 2.4
    return z, mean, log_variance, self.decode(z, lambda logits: logits)


def log_bernoulli(x, logits):
  """log p(x | z) in nats, [batch]: x in [0, 1] and logits, [batch, *shape]."""
  return (x * logits - jax.nn.softplus(logits)).reshape(len(x), -1).sum(-1)


def kl_divergence(mean, log_variance):
  """KL(q(z | x) ‖ N(0, I)) in nats, [batch] (appendix B)."""
  return (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1) / 2
