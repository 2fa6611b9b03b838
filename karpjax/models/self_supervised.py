"""What learns from pictures without labels: a trunk, and what is put on top of it while it learns.

A trunk is any classifier without its last layer: [batch, *shape] -> features [batch, units] float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from karpjax.layers import initialisers, linear
from karpjax.layers.normalisation import BatchNorm
from karpjax.layers.transformer import Block
from karpjax.models.vit import patches


class Projection(nn.Module):
  """Dense layers, each but the last with batch norm, if wanted, and relu.

  Attributes:
    widths: of the layers; with none, what comes in goes out.
    norm: whether there is batch norm.
    initialiser: of `mlp.INITIALISERS`.
  """

  widths: tuple[int, ...]
  norm: bool
  initialiser: str = 'own'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """x: [batch, units] -> [batch, the last width] float32."""
    for layer, width in enumerate(self.widths, 1):
      last = layer == len(self.widths)
      begin = initialisers.of_torch(x.shape[-1], self.initialiser)
      x = linear.Dense(width, last or not self.norm, dtype=self.dtype, name=f'layer{layer}', **begin)(x)
      if not last:
        x = nn.relu(BatchNorm(dtype=self.dtype, name=f'norm{layer}')(x, train=train) if self.norm else x)
    return x.astype(jnp.float32)


class Embedder(nn.Module):
  """A trunk and a projection; and what a method has beside: BYOL's predictor, or a head that tells turns by quarters.

  Attributes:
    trunk: a classifier of 0 classes.
    projection: widths of `Projection`.
    norm: its batch norm.
    predictor: widths of BYOL's predictor; () for none.
    turns: whether there is a head for four rotations.
  """

  trunk: nn.Module
  projection: tuple[int, ...]
  norm: bool
  predictor: tuple[int, ...] = ()
  turns: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, *shape] -> {'features': [batch, units], 'projection', perhaps 'prediction' and 'turns' [batch, 4]}."""
    features = self.trunk(x, train=train).astype(jnp.float32)
    if self.turns:
      return {'features': features, 'projection': features, 'turns': linear.Dense(4, name='turns')(features)}
    kinds = self.norm, getattr(self.trunk, 'initialiser', 'own'), self.dtype
    found = Projection(self.projection, *kinds, name='projection')(features, train=train)
    out = {'features': features, 'projection': found}
    if self.predictor:
      out['prediction'] = Projection(self.predictor, *kinds, name='predictor')(found, train=train)
    return out


class MaskedAutoencoder(nn.Module):
  """A Vision Transformer sees few patches of an image, and a small one makes the others of what it gives (He et al. 2022).

  Attributes:
    trunk: the encoder, a `ViT` of 0 classes.
    shape: of an image.
    decoder: width of the small one, and its depth.
  """

  trunk: nn.Module
  shape: tuple[int, ...]
  decoder: tuple[int, int] = (64, 1)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, seen=None, *, train: bool = False):
    """x: [batch, height, width, channels] -> {'features': [batch, width], 'projection': the same}; with seen [batch, n] int32,
    numbers of patches, {'patches': [batch, patches, patch² · channels] float32}.
    """
    if seen is None:
      features = self.trunk(x, train=train)
      return {'features': features, 'projection': features}
    encoded, (width, depth) = self.trunk(x, train=train, seen=seen), self.decoder
    places = self.shape[0] * self.shape[1] // self.trunk.patch**2
    shown = linear.Dense(width, dtype=self.dtype, name='shown')(encoded[:, -seen.shape[1] :])  # without the class token
    hidden = self.param('hidden', initialisers.normal(0.02), (width,)).astype(self.dtype)
    whole = jnp.broadcast_to(hidden, (len(x), places, width))
    whole = jax.vmap(lambda row, at, tokens: row.at[at].set(tokens))(whole, seen, shown)
    y = whole + self.param('places', initialisers.normal(0.02), (places, width)).astype(self.dtype)
    for i in range(1, depth + 1):
      y = Block(width, max(1, width // 32), causal=False, std=0, out_std=0, dtype=self.dtype, name=f'decoder{i}')(
        y, train
      )
    y = nn.LayerNorm(name='decoder_norm')(y.astype(jnp.float32))
    return {'patches': linear.Dense(self.trunk.patch**2 * self.shape[2], name='pixels')(y)}


def masked_loss(predicted, x, size: int, seen):
  """The mean squared error of patches that were not seen, each of them standardised by its own pixels (He et al. 2022, section 4.1).

  Args:
    predicted: [batch, patches, size² · channels].
    x: [batch, height, width, channels].
    seen: [batch, n] int32.

  Returns:
    [batch] float32.
  """
  target = patches(x.astype(jnp.float32), size)
  target = (target - target.mean(-1, keepdims=True)) / jnp.sqrt(target.var(-1, keepdims=True) + 1e-6)
  error = jnp.square(predicted - target).mean(-1)  # [batch, patches]
  hidden = jax.vmap(lambda at: jnp.ones(error.shape[1]).at[at].set(0))(seen)
  return (error * hidden).sum(-1) / hidden.sum(-1)
