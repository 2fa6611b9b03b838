"""Classifiers of texts: their size, a plain forward pass, and that neither padding nor another text changes an answer."""

import functools
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import errors
from karpjax import options as model_options
from karpjax.data.text import TextSpec
from karpjax.data.tokenisers import Tokeniser
from karpjax.models import text
from tests.models.drawing import drawn

SMALL = {
  'textcnn': dict(embedding=6, windows=(2, 3), channels=4),
  'bilstm': dict(embedding=6, units=(5, 3)),
  'transformer': dict(layers=2, heads=2, width=8),
  'transformer pre_norm': dict(layers=1, heads=2, width=8, positions='rotary', pre_norm=True),
}
every = pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow) if n.endswith('pre_norm') else n for n in SMALL]
)


def spec(vocabulary=20, length=9, classes=3, **others):
  symbols = tuple(map(str, range(vocabulary)))
  return TextSpec(
    'none', 100, {'text': Tokeniser('words', symbols, 4)}, {'text': length}, tuple('abc'[:classes]), **others
  )


def tokens(length=9):
  """Texts of 9, 1, 4 and 7 words, padded to `length`."""
  words = np.random.default_rng(0).integers(4, 20, (4, 9))
  return np.pad(np.where(np.arange(9) < np.array([[9], [1], [4], [7]]), words, 0), ((0, 0), (0, length - 9))).astype(
    np.int32
  )


def build(name, spec, dtype='float32', **options):
  chosen = {**dict.fromkeys(model_options.of_model(text.Transformer)), **options}
  return text.build(types.SimpleNamespace(model=name, dtype=dtype, model_options=lambda: chosen), spec)


@functools.cache
def made(name, dtype='float32', length=12):
  model = build(name.split()[0], spec(length=length), dtype, **SMALL[name])
  return model, drawn(model, tokens(length))['params']


def count(name, vocabulary, classes, **options):
  model = build(name, spec(vocabulary, classes=classes), **options)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())['params']
  return sum(x.size for x in jax.tree.leaves(shapes))


def test_parameter_counts():
  # Kim 2014, section 3.1: 300 numbers a word, windows of 3, 4 and 5 with 100 feature maps each
  maps = sum(100 * (300 * width + 1) for width in (3, 4, 5))
  assert count('textcnn', 9592, 3) == 300 * 9592 + maps + 3 * 301
  lstm = lambda inputs, units: 2 * 4 * units * (inputs + units + 1)  # one bias where PyTorch adds two
  assert count('bilstm', 50, 2, embedding=10, units=(7, 5)) == 500 + lstm(10, 7) + lstm(14, 5) + 11 * 2
  width = 8
  block = 4 * width**2 + 4 * width + 2 * 4 * width**2 + 5 * width + 4 * width  # attention, MLP, two norms
  encoder = (50 + 9) * width + 2 * width + 2 * block
  assert count('transformer', 50, 3, layers=2, heads=2, width=width) == encoder + 3 * (width + 1)


def test_textcnn_against_a_plain_forward():
  model, params = made('textcnn')
  logits = jax.jit(model.apply)({'params': params}, tokens())
  params = jax.tree.map(np.asarray, params)
  for row, ours in zip(tokens(), logits):
    words = params['embedding'][row[row != 0]]
    features = []
    for width in (2, 3):
      kernel, bias = (params['features'][f'window{width}'][name] for name in ('kernel', 'bias'))
      beside = np.zeros((width - 1, words.shape[1]))
      wide = np.concatenate([beside, words, beside])
      found = [(wide[t : t + width, :, None] * kernel).sum((0, 1)) + bias for t in range(len(wide) - width + 1)]
      features.append(np.maximum(found, 0).max(0))
    expected = np.concatenate(features) @ params['logits']['kernel'] + params['logits']['bias']
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@every
def test_the_order_of_words_counts_and_neither_padding_nor_other_texts_do(name):
  model, params = made(name)
  apply = jax.jit(model.apply)
  logits = apply({'params': params}, tokens(9))
  np.testing.assert_allclose(apply({'params': params}, tokens(12)), logits, rtol=1e-4, atol=1e-4)
  turned = tokens(9)
  turned[0] = turned[0, ::-1]
  other = apply({'params': params}, turned)
  assert np.abs(other[0] - logits[0]).max() > 1e-3
  np.testing.assert_allclose(other[1:], logits[1:], rtol=1e-5)


@every
def test_units_are_dropped_in_training_alone(name):
  model, params = made(name)
  with pytest.raises(flax.errors.InvalidRngError):  # for which a key is needed; an evaluation has none
    jax.eval_shape(lambda: model.apply({'params': params}, tokens(), train=True))
  keys = {'dropout': jax.random.key(0)}
  jax.eval_shape(lambda: model.apply({'params': params}, tokens(), train=True, rngs=keys))


@every
def test_bfloat16_computes_in_it_and_keeps_params_and_logits_in_float32(name):
  model, params = made(name, 'bfloat16')
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  computed = jax.make_jaxpr(model.apply)({'params': params}, tokens())
  assert computed.out_avals[0].dtype == jnp.float32 and 'bf16' in str(computed)


@pytest.mark.parametrize(
  'name, options, says',
  [
    ('textcn', {}, 'Did you mean textcnn'),
    ('textcnn', {'units': (3,)}, 'model textcnn has no units=3'),
    ('bilstm', {'dropout': 1.0}, 'dropout=1.0: at least 0 and less than 1'),
    ('textcnn', {'windows': (3, 0)}, 'windows=3,0: at least 1'),
    ('transformer', {'width': 10, 'heads': 4}, 'width=10 does not divide'),
  ],
)
def test_options_that_make_no_sense_are_refused(name, options, says):
  with pytest.raises(errors.UsageError, match=says):
    build(name, spec(), **options)


def test_a_pretrained_encoder_decides_the_model_and_its_sizes():
  before = spec(length=30)
  defaults = dict.fromkeys(('heads', 'hidden', 'positions', 'pre_norm', 'activation'))
  flags = defaults | {'layers': 1, 'width': 8, 'dropout': 0.3}  # of a run from before there was head_dim
  sizes = text.pretrained(before, flags)
  assert sizes == {
    'context': 30, 'layers': 1, 'heads': 4, 'width': 8, 'hidden': 0, 'positions': 'learned', 'pre_norm': False,
    'activation': 'gelu',
  }  # fmt: skip
  assert text.pretrained(before, flags | {'head_dim': 6}) == sizes | {'head_dim': 6}
  model = build('textcnn', spec(pretrained=sizes), dropout=0.3)
  assert isinstance(model, text.Transformer) and (model.layers, model.heads, model.width) == (1, 4, 8)
  assert model.context == 30 and model.dropout == 0.3
  with pytest.raises(errors.UsageError, match='width=16: that of the pretrained encoder is 8'):
    build('transformer', spec(pretrained=sizes), width=16)
  assert build('textcnn', spec(pretrained={**sizes, 'context': 5, 'positions': 'rotary'})).context == 9
  with pytest.raises(errors.UsageError, match='9 tokens are more than the 5 positions'):
    build('textcnn', spec(pretrained={**sizes, 'context': 5}))
