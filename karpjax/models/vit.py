"""The Vision Transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words")."""

import flax.linen as nn
import jax.numpy as jnp

from karpjax.errors import UsageError
from karpjax.layers import initialisers, linear
from karpjax.layers.transformer import ACTIVATIONS, Block
from karpjax.models.mlp import Classifier, check_rank, dimensions
from karpjax.options import DEEPEST, option, shared


def patches(x, size: int):
  """[batch, height, width, channels] -> [batch, patches, size² · channels], row by row from the upper left one."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channels)
  return x.swapaxes(2, 3).reshape(batch, height * width // size**2, -1)


class ViT(Classifier):
  """Patches as tokens, their positions, pre-norm blocks, a norm, and one dense layer that begins at 0 (eq. 1 to 4).

  ViT-B/16 is patch=16, width=768, depth=12, heads=12: 86,567,656 params of 224x224x3 pixels and 1000 classes.
  """

  patch: int = option(4, 'Pixels on each side of a patch.', low=1)
  width: int = option(64, 'Units of each token.', low=1)
  depth: int = option(6, 'Blocks of attention and an MLP.', low=1, high=DEEPEST)
  heads: int = option(4, 'The heads of the attention.', low=1)
  hidden: int = option(0, "Units of each block's MLP; 0: four times the width.", low=0)
  head_dim: int = option(0, 'Units of each head; 0: width / heads.', low=0)
  head: str = option('token', 'What the last layer sees: a class token, or all averaged.', choices=('token', 'average'))
  activation: str = option('gelu', "The MLPs'; published weights of PyTorch are of gelu_exact.", choices=ACTIVATIONS)
  dropout: float = option(0.0, 'The rate of dropout of the embeddings and of what each block adds.', low=0, below=1)
  attention_dropout: float = option(0.0, 'The rate of dropout of the weights of the attention.', low=0, below=1)
  hidden_dropout: float = option(0.0, "The rate of dropout of the units of a block's MLP.", low=0, below=1)

  @nn.compact
  def __call__(self, x, *, train: bool = False, seen=None):
    """x: [batch, height, width, channels] -> logits [batch, classes] float32.

    Args:
      seen: [batch, patches] int32, the numbers of the only patches that are looked at, row by row from the upper left one; then
        all tokens come out, [batch, (1 +) patches, width] float32.
    """
    check_rank(x, 3)
    batch, height, width, _ = x.shape
    if height % self.patch or width % self.patch:
      raise UsageError(f'patch={self.patch} does not divide an image of {dimensions(x.shape[1:])}')
    x = patches(x.astype(self.dtype), self.patch)
    x = linear.Dense(self.width, dtype=self.dtype, kernel_init=initialisers.lecun_normal, name='patches')(x)
    token = self.head == 'token' and self.param('token', nn.initializers.zeros_init(), (self.width,)).astype(self.dtype)
    first = 0 if token is False else 1
    positions = self.param('positions', initialisers.normal(0.02), (first + x.shape[1], self.width)).astype(self.dtype)
    x = x + positions[first:]
    if seen is not None:
      x = jnp.take_along_axis(x, seen[..., None], 1)
    if first:
      x = jnp.concatenate([jnp.broadcast_to(token + positions[0], (batch, 1, self.width)), x], axis=1)
    x = linear.Dropout(self.dropout)(x, train=train)
    kinds = shared(Block, self, causal=False, epsilon=1e-6, std=0, out_std=0)  # std=0: Xavier's draw
    for i in range(1, self.depth + 1):
      x = Block(**kinds, name=f'block{i}')(x, train)
    x = nn.LayerNorm(epsilon=1e-6, name='norm')(x.astype(jnp.float32))
    if seen is not None:
      return x
    x = x[:, 0] if self.head == 'token' else x.mean(1)  # [batch, width]
    return linear.Head(self.classes, kernel_init=nn.initializers.zeros_init(), name='logits')(x)
