"""What the players of every GAN share: how they see classes, norms, and what a discriminator begins and ends with.

A generator of perceptrons has an embedding of the class beside the latent, a DCGAN's one behind its first norm, an SNGAN's a gain
and a bias for each class in every batch norm, or without norms an embedding beside the latent. A discriminator has, with
  embedding: an embedding beside the input: as more numbers, or as more channels (Mirza & Osindero 2014);
  projection: the inner product of an embedding and the last features, added to the score (Miyato & Koyama 2018, eq. 3);
  auxiliary: class logits of its own (AC-GAN: Odena et al. 2017, section 3);
  none: labels are not looked at.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import initialisers, linear
from karpjax.layers.normalisation import BatchNorm
from karpjax.options import option

CONDITIONALS = 'none', 'embedding', 'projection', 'auxiliary'
EMBEDDING = 32  # numbers of a class's embedding
HALF = ((1, 1), (1, 1))  # padding by which a window of 4 and a stride of 2 halve an image of even size exactly
dcgan_init = initialisers.normal(0.02)  # Radford et al. 2016, section 4
leaky_relu = functools.partial(nn.leaky_relu, negative_slope=0.2)  # there too


class LayerNorm(nn.Module):
  """Ba et al. 2016 over all of an example, gain and bias per channel: WGAN-GP's in the place of batch norm."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    norm = nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)), feature_axes=-1, dtype=self.dtype, name='norm')
    return norm(x)


NORMS = {'batch': BatchNorm, 'layer': LayerNorm}


class Player(nn.Module):
  """The fields that the data and the experiment decide.

  Attributes:
    shape: of an example.
    classes: how many, where `conditional` is not 'none'.
    conditional: one of CONDITIONALS.
    dtype: of the computation; outputs are float32.
  """

  shape: tuple[int, ...]
  classes: int
  conditional: str = 'none'
  dtype: Any = jnp.float32


def normalised(player: Player, kind: str, name: str, x, train: bool, **labels):
  """x by the norm of a kind; 'none' leaves it."""
  if kind == 'none':
    return x
  options = {'classes': player.classes} if labels else {}
  return NORMS[kind](dtype=player.dtype, name=name, **options)(x, train=train, **labels)


def embedded(player: Player, labels, numbers: int = EMBEDDING):
  """[batch] -> [batch, numbers], as large as latents and normalised features are."""
  return nn.Embed(player.classes, numbers, embedding_init=nn.initializers.normal(1.0), name='class')(labels)


def latent_and_class(generator: Player, z, labels):
  """The latent, and beside it the class's embedding."""
  if generator.conditional != 'none':
    z = jnp.concatenate([z, embedded(generator, labels)], -1)  # [batch, latent + EMBEDDING]
  return z.astype(generator.dtype)


class Discriminator(Player):
  """The fields of every discriminator.

  Attributes:
    mirrored: its widths where none are chosen.
  """

  mirrored: tuple[int, ...] = ()
  discriminator_widths: tuple[int, ...] | None = option(
    None, "Units or channels of the discriminator's layers; by default the generator's in reverse.", low=1
  )

  @property
  def units(self) -> tuple[int, ...]:
    return self.mirrored if self.discriminator_widths is None else self.discriminator_widths


def example_and_class(discriminator: Player, x, labels):
  """The example, with 'embedding' the class beside it."""
  if discriminator.conditional == 'embedding':
    # [batch, 1, …, EMBEDDING]
    places = embedded(discriminator, labels).reshape(-1, *(1,) * (x.ndim - 2), EMBEDDING)
    x = jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], EMBEDDING))], -1)
  return x.astype(discriminator.dtype)


def apply_layer(discriminator: Player, layer: nn.Module, x, train: bool):
  """A layer's output; with `spectral_norm` its kernel is divided by the largest singular value (Miyato et al. 2018)."""
  if discriminator.spectral_norm:
    return nn.SpectralNorm(layer, name=f'spectral_{layer.name}')(x, update_stats=train)
  return layer(x)


def scores_and_classes(discriminator: Player, features, labels, train: bool, kernel_init=initialisers.lecun_normal):
  """Features [batch, n] -> scores [batch], and class logits [batch, classes] or None; float32."""
  features, logits = features.astype(jnp.float32), None
  dense = functools.partial(linear.Dense, kernel_init=kernel_init)
  scores = apply_layer(discriminator, dense(1, name='score'), features, train)[:, 0]
  if discriminator.conditional == 'projection':
    embedding = nn.Embed(discriminator.classes, features.shape[-1], embedding_init=kernel_init, name='projection')
    scores += (apply_layer(discriminator, embedding, labels, train) * features).sum(-1)
  if discriminator.conditional == 'auxiliary':
    logits = apply_layer(discriminator, dense(discriminator.classes, name='classes'), features, train)
  return scores, logits
