"""Blocks whose activations are computed anew in the backward pass instead of kept (Chen et al. 2016)."""

import flax.linen as nn
import jax

from karpjax import errors

KINDS = {'none': None, 'full': None, 'dots': jax.checkpoint_policies.dots_saveable}


def remat(block: type[nn.Module], how: str) -> type[nn.Module]:
  """The block with the same params and outputs: 'none' keeps everything, 'full' nothing, 'dots' matrix products.

  Its call takes (x, train), train a Python bool.

  Raises:
    UsageError: for another kind.
  """
  errors.choose('remat', how, KINDS)
  return block if how == 'none' else nn.remat(block, policy=KINDS[how], static_argnums=(2,))
