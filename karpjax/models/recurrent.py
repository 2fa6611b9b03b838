"""Recurrent classifiers of sequences."""

import flax.linen as nn

from karpjax.layers import recurrence
from karpjax.models import mlp
from karpjax.options import option


class GRUClassifier(mlp.Classifier):
  """GRU layers over a sequence, then one dense layer that sees the outputs of all times; the state is float32.

  With widths=(6,), bidirectional, on 40x1: mnist1d's GRUBase, 5,134 params.
  """

  widths: tuple[int, ...] = option((6,), 'Units of each layer, for each direction.', low=1)
  bidirectional: bool = option(True, 'Whether the layers read the sequence both ways.')
  dropout: float = option(0.0, "The rate on the dense layer's input.", low=0, below=1)

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    """x: [batch, time, channels] -> logits [batch, classes] float32."""
    mlp.check_rank(x, 2)
    for i, units in enumerate(self.widths, start=1):
      layer = recurrence.Recurrent(units, 'gru', self.bidirectional, self.dtype, name=f'gru{i}')
      x, _ = layer(x)  # [batch, time, directions * units]
    return mlp.MLP(self.classes, self.dtype, (), input_dropout=self.dropout, name='head')(x, train=train)
