"""BERT's size, guesses at chosen places, and padding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors, options
from karpjax.models.transformer import Encoder, MaskedLanguageModel

SMALL = dict(vocabulary=50, context=12, layers=1, heads=2, width=16, dropout=0.0)


@pytest.fixture(scope='module')
def built():
  model = MaskedLanguageModel(Encoder(**SMALL))
  tokens = np.random.default_rng(0).integers(1, 50, (4, 12)).astype(np.int32)
  return jax.jit(model.apply), nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), tokens)), tokens


def test_bert_base_has_its_number_of_params():
  model = MaskedLanguageModel(Encoder(30_522, 512, layers=12, heads=12, width=768))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 8), jnp.int32)))
  segments = 2 * 768
  assert sum(x.size for x in jax.tree.leaves(shapes)) + segments == 109_514_298


def test_guesses_at_some_places_are_those_at_all(built):
  apply, params, tokens = built
  places = np.array([[3, 1], [0, 11], [5, 5], [2, 7]])
  every, some = apply(params, tokens), apply(params, tokens, places)
  assert every.shape == (4, 12, 50)
  np.testing.assert_allclose(some, np.take_along_axis(np.asarray(every), places[..., None], 1), atol=1e-6)


def test_padding_changes_nothing_and_every_word_sees_every_other(built):
  apply, params, tokens = built
  short = tokens[:, :8]
  alone, padded = apply(params, short), apply(params, np.pad(short, [(0, 0), (0, 4)]))
  np.testing.assert_allclose(padded[:, :8], alone, atol=1e-5)
  for place in (0, 11):
    other = tokens.copy()
    other[:, place] = tokens[:, place] % 49 + 1
    assert (np.abs(apply(params, other) - apply(params, tokens)).max(-1) > 1e-7).all()


def test_the_first_guess_knows_nothing(built):
  apply, params, tokens = built
  loss = -jax.nn.log_softmax(apply(params, tokens)).mean()
  assert abs(loss - math.log(50)) < 0.02


def test_the_encoder_is_called_so(built):
  _, params, _ = built
  assert set(params['params']) == {'encoder', 'transform', 'norm', 'bias'}
  assert params['params']['encoder']['tokens']['embedding'].shape == (50, 16)


@pytest.mark.parametrize(
  'changes, said', [(dict(heads=3), 'does not divide'), (dict(layers=0), 'layers=0: at least 1')]
)
def test_bad_sizes(changes, said):
  with pytest.raises(errors.UsageError, match=said):
    options.build({'encoder': Encoder}, 'encoder', changes, jnp.ones((1, 4), jnp.int32), vocabulary=50, context=12)
