"""Recurrent classifiers of sequences."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from karpjax.layers import recurrence
from karpjax.models import mlp


class GRUClassifier(nn.Module):
  """GRU layers over a sequence, then one dense layer that sees the outputs of all times.

  With widths=(6,), bidirectional, on 40x1: mnist1d's GRUBase, 5,134 params.

  Attributes:
    classes: outputs.
    dtype: of the matmuls; the state and the logits are float32.
    widths: units of each layer, for each direction.
    bidirectional: whether the layers read the sequence both ways.
    dropout: rate on the dense layer's input.
  """

  classes: int
  dtype: Any = jnp.float32
  widths: tuple[int, ...] = (6,)
  bidirectional: bool = True
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, time, channels] -> logits [batch, classes] float32."""
    mlp.check(widths=self.widths, dropout=self.dropout)
    for i, units in enumerate(self.widths, start=1):
      x, _ = recurrence.Recurrent(units, 'gru', self.bidirectional, self.dtype, name=f'gru{i}')(
        x
      )  # [batch, time, directions * units]
    return mlp.MLP(self.classes, self.dtype, (), input_dropout=self.dropout, name='head')(x, train=train)
