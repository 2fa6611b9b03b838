"""BERT's size, guesses at chosen places, and padding."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors, options
from karpjax.layers.attention import MultiHeadAttention
from karpjax.layers.transformer import Block
from karpjax.models import language as models
from karpjax.models import text
from karpjax.models.seq2seq import Seq2SeqTransformer
from karpjax.models.transformer import Encoder, MaskedLanguageModel
from karpjax.models.vit import ViT

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


# ---- dropout ----


def test_dropped_attention_weights_are_0_or_scaled_in_each_head():
  attends = MultiHeadAttention(8, 4, dropout=0.25, kernel_std=1.0)
  x = np.random.default_rng(0).normal(size=(64, 1, 8)).astype(np.float32)
  params = nn.meta.unbox(attends.init(jax.random.key(0), x))
  params['params']['out'] = np.eye(8, dtype=np.float32).reshape(4, 2, 8)  # what is read is what comes out
  whole, dropped = (
    attends.apply(params, x, train=train, rngs={'dropout': jax.random.key(1)}).reshape(64, 4, 2)
    for train in (False, True)
  )  # one place, so that each weight is 1
  kept = np.abs(dropped).sum(-1) > 0  # [example, head]
  np.testing.assert_allclose(dropped, np.where(kept[..., None], whole / 0.75, 0), rtol=1e-5)
  assert abs(kept.mean() - 0.75) < 0.1 and not (kept.all(1) | ~kept.any(1)).all()  # heads draw their own


def test_dropped_units_of_an_mlp_are_0_or_scaled():
  block = Block(6, 2, hidden=1, hidden_dropout=0.25, bias=False, activation='relu', std=1.0, out_std=1.0)
  x = np.random.default_rng(0).normal(size=(64, 3, 6)).astype(np.float32)
  params = nn.meta.unbox(block.init(jax.random.key(0), x, False))
  params['params']['attention']['out'] *= 0  # the block adds its MLP alone
  whole, dropped = (block.apply(params, x, train, rngs={'dropout': jax.random.key(1)}) - x for train in (False, True))
  active, kept = (np.abs(y).max(-1) > 1e-4 for y in (whole, dropped))
  np.testing.assert_allclose(dropped, np.where(kept[..., None], whole / 0.75, 0), atol=1e-5)
  assert abs(kept.sum() / active.sum() - 0.75) < 0.1


@pytest.mark.parametrize('rate', ['dropout', 'attention_dropout', 'hidden_dropout'])
def test_each_rate_of_a_model_reaches_its_blocks(rate):
  tokens, sizes = jnp.ones((1, 12), jnp.int32), dict(vocabulary=50, context=12, layers=1, width=16)
  translates = Seq2SeqTransformer(source_vocabulary=50, source_context=12, dropout=0.0, **sizes)
  classifies = text.Transformer(classes=3, dropout=0.0, **sizes)
  for model, *inputs in (
    *((models.GPT(**sizes), tokens), (Encoder(**SMALL), tokens), (classifies, tokens)),
    *((translates, tokens, tokens), (ViT(3, depth=1), jnp.ones((1, 8, 8, 1)))),
  ):
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    trained = lambda model: jax.eval_shape(functools.partial(model.apply, train=True), params, *inputs)
    trained(model)  # where nothing is dropped, no key is asked for
    with pytest.raises(flax.errors.InvalidRngError, match='dropout'):
      trained(model.clone(**{rate: 0.5}))


def test_another_attention_than_ours_drops_no_weights():
  with pytest.raises(errors.UsageError, match='implementation=cudnn takes no attention_dropout=0.1'):
    options.build(
      models.MODELS,
      'gpt',
      {'implementation': 'cudnn', 'attention_dropout': 0.1},
      jnp.ones((1, 4), jnp.int32),
      vocabulary=9,
      context=4,
    )
