"""What the players of every GAN share: how they are told of classes, their norms, and what a discriminator ends with.

A class is told to a generator of perceptrons by an embedding beside the latent, to a DCGAN's by one behind the norm of what the
latent became, to an SNGAN's by a gain and a bias of its own in every batch norm, or without norms beside the latent. In the
discriminator `conditional` is
  'embedding': the embedding beside the input: as more numbers, or of an image as more channels (Mirza & Osindero 2014);
  'projection': the inner product of an embedding and the last features, added to the score (Miyato & Koyama 2018, eq. 3);
  'auxiliary': class logits of its own (AC-GAN: Odena et al. 2017, section 3);
  'none': labels are not looked at.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import linear
from karpjax.layers.normalisation import BatchNorm

CONDITIONALS = ('none', 'embedding', 'projection', 'auxiliary')
EMBEDDING = 32  # numbers that stand for a class

leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)  # Radford et al. 2016, section 4


class LayerNorm(nn.Module):
  """Ba et al. 2016 over all that an example has, gain and bias per channel: what WGAN-GP has in the place of batch norm."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    norm = nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)), feature_axes=-1, dtype=self.dtype, name='norm')
    return norm(x)


NORMS = {'none': None, 'batch': BatchNorm, 'layer': LayerNorm}


def embedded(labels, classes: int, numbers: int = EMBEDDING):
  """[batch] -> [batch, numbers], as large as latents and what is normalised are."""
  return nn.Embed(classes, numbers, embedding_init=nn.initializers.normal(1.0), name='class')(labels)


def with_class(z, labels, module):
  """What a generator begins with: the latent, beside it the class."""
  if module.conditional != 'none':
    z = jnp.concatenate([z, embedded(labels, module.classes)], -1)  # [batch, latent + EMBEDDING]
  return z.astype(module.dtype)


def seen(x, labels, module):
  """What a discriminator begins with: the example, with 'embedding' the class beside it."""
  if module.conditional == 'embedding':
    places = embedded(labels, module.classes).reshape(-1, *(1,) * (x.ndim - 2), EMBEDDING)  # [batch, 1, …, EMBEDDING]
    x = jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], EMBEDDING))], -1)
  return x.astype(module.dtype)


def layer(made, x, module, train: bool):
  """A discriminator's layer, with `spectral_norm` divided by its kernel's largest singular value (Miyato et al. 2018)."""
  if module.spectral_norm:
    return nn.SpectralNorm(made, name=f'spectral_{made.name}')(x, update_stats=train)
  return made(x)


def judged(features, labels, module, train: bool, kernel_init):
  """features [batch, n] -> scores [batch], and class logits [batch, classes] or None; float32."""
  features = features.astype(jnp.float32)
  dense = functools.partial(linear.Dense, kernel_init=kernel_init)
  scores, logits = layer(dense(1, name='score'), features, module, train)[:, 0], None
  if module.conditional == 'projection':
    embedding = nn.Embed(module.classes, features.shape[-1], embedding_init=kernel_init, name='projection')
    scores += (layer(embedding, labels, module, train) * features).sum(-1)
  if module.conditional == 'auxiliary':
    logits = layer(dense(module.classes, name='classes'), features, module, train)
  return scores, logits
