import jax
import numpy as np
from flax import linen as nn

from karpjax.models import recurrent
from tests.models.drawing import drawn


def test_a_reversed_sequence_with_the_directions_exchanged_reverses_the_features():
  """The head sees each time's outputs in place: exchanging directions and time permutes its inputs, and nothing else."""
  x = np.random.default_rng(0).normal(size=(3, 8, 1)).astype(np.float32)
  module = recurrent.GRUClassifier(4, widths=(5,))
  params = drawn(module, x)['params']
  turned = {'gru1': jax.tree.map(lambda a: a[::-1], params['gru1']), 'head': params['head']}
  kernel = np.asarray(params['head']['logits']['kernel']).reshape(8, 2, 5, 4)
  turned['head'] = {'logits': {**params['head']['logits'], 'kernel': kernel[::-1, ::-1].reshape(80, 4)}}
  apply = jax.jit(module.apply)
  np.testing.assert_allclose(apply({'params': turned}, x[:, ::-1]), apply({'params': params}, x), atol=1e-5)


def test_layers_stack():
  module = recurrent.GRUClassifier(3, widths=(4, 2), bidirectional=False)
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.ones((1, 6, 5), np.float32))
  params = nn.meta.unbox(shapes['params'])
  assert params['gru1']['input_kernel'].shape == (1, 5, 12)
  assert params['gru2']['input_kernel'].shape == (1, 4, 6)
  assert params['head']['logits']['kernel'].shape == (6 * 2, 3)
