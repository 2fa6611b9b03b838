"""The tagger's parts against plain loops, and what comes behind a sentence's end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import errors, options
from karpjax.layers import crf
from karpjax.models import tagging
from tests.models.drawing import drawn

SIZES = dict(words=20, alphabet=9, tags=5, embedding=7, character_embedding=4, filters=6, units=(8,), dropout=0.0)


def sentences(seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, 20, (3, 6)).astype(np.int32)
  characters = rng.integers(1, 9, (3, 6, 5)).astype(np.uint8)
  characters *= np.arange(5) < rng.integers(1, 6, (3, 6, 1))
  behind = np.arange(6) >= np.array([[6], [4], [1]])
  return np.where(behind, 0, tokens), np.where(behind[..., None], 0, characters)


def test_the_number_of_params():
  model = tagging.Tagger(words=1018, alphabet=67, tags=9, chain=True)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 4), int), jnp.ones((1, 4, 6), int)))
  embeddings, spelling = 1018 * 100 + 67 * 30, 3 * 30 * 30 + 30
  lstm, head = 2 * 4 * 100 * (130 + 100 + 1), 200 * 9 + 9
  chain = 9 + 81 + 9
  assert sum(x.size for x in jax.tree.leaves(shapes)) == embeddings + spelling + lstm + head + chain


def test_spelling_against_a_plain_loop():
  module = tagging.Spelling(9, 4, 6, 3)
  characters = np.array([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
  params = drawn(module, characters, train=False)['params']
  found = jax.jit(functools.partial(module.apply, train=False))({'params': params}, characters)
  table, kernel, bias = (
    np.asarray(x) for x in (params['table'], params['filters']['kernel'], params['filters']['bias'])
  )
  for word, row in zip(characters, found):
    letters = [table[c] for c in word if c]
    padded = [np.zeros(4), *letters, np.zeros(4)]
    places = [sum(padded[i + k] @ kernel[k] for k in range(3)) + bias for i in range(len(letters))]
    np.testing.assert_allclose(row, np.max(places, 0) if places else np.zeros(6), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('chain', [False, True])
def test_what_is_behind_a_sentence_or_a_word_changes_nothing(chain):
  model = tagging.Tagger(**SIZES, chain=chain)
  tokens, characters = sentences()
  params, apply = drawn(model, tokens, characters), jax.jit(model.apply)
  emissions, links = apply(params, tokens, characters)
  assert emissions.shape == (3, 6, 5) and emissions.dtype == jnp.float32 and (links is not None) == chain
  longer = np.pad(tokens, [(0, 0), (0, 3)]), np.pad(characters, [(0, 0), (0, 3), (0, 2)])
  again, _ = apply(params, *longer)
  real = tokens > 0
  np.testing.assert_allclose(again[:, :6][real], emissions[real], atol=1e-6)
  alone, _ = apply(params, tokens[1:2, :4], characters[1:2, :4])
  np.testing.assert_allclose(alone[0], emissions[1, :4], atol=1e-6)
  targets = np.where(real, 1, -1)
  likelihoods = [
    tagging.log_likelihood(e, links, y)
    for e, y in ((emissions, targets), (again, np.pad(targets, [(0, 0), (0, 3)], constant_values=-1)))
  ]
  np.testing.assert_allclose(*likelihoods, rtol=1e-5)


def test_a_tag_is_told_by_the_words_on_both_sides_and_by_their_letters():
  model = tagging.Tagger(**SIZES)
  tokens, characters = sentences()
  params, apply = drawn(model, tokens, characters), jax.jit(model.apply)
  before = apply(params, tokens, characters)[0][0]
  for place in (0, 5):
    changed = tokens.copy()
    changed[0, place] = tokens[0, place] % 19 + 1
    assert (np.abs(apply(params, changed, characters)[0][0] - before).max(-1) > 1e-6).all()
  changed = characters.copy()
  changed[0, 2, 0] = characters[0, 2, 0] % 8 + 1
  assert (np.abs(apply(params, tokens, changed)[0][0] - before).max(-1) > 1e-7).all()


def test_tags_on_their_own_are_a_chain_of_zeros():
  emissions = np.random.default_rng(2).normal(size=(3, 6, 5)).astype(np.float32)
  mask = sentences()[0] > 0
  targets = np.where(mask, 3, -1)
  targets[1] = -1  # an example that is masked has no loss
  zeros = crf.Chain(jnp.zeros(5), jnp.zeros((5, 5)), jnp.zeros(5))
  both = jax.jit(
    lambda chain: (tagging.log_likelihood(emissions, chain, targets), tagging.decode(emissions, chain, mask))
  )
  (on_their_own, tags), (chained, path) = both(None), both(zeros)
  np.testing.assert_allclose(on_their_own, chained, rtol=1e-5)
  assert on_their_own[1] == chained[1] == 0
  np.testing.assert_array_equal(tags, path)
  assert (tags[~mask] == -1).all()


def test_without_filters_there_is_no_spelling():
  model = tagging.Tagger(**SIZES | dict(filters=0))
  params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *sentences()))['params']
  assert 'spelling' not in params and params['lstm']['layer1']['input_kernel'].shape == (2, 7, 32)


def test_bfloat16_keeps_params_and_scores_float32():
  model = tagging.Tagger(**SIZES, dtype=jnp.bfloat16)
  params = jax.eval_shape(model.init, jax.random.key(0), *sentences())
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
  assert jax.eval_shape(model.apply, params, *sentences())[0].dtype == jnp.float32


@pytest.mark.parametrize('option, value', [('units', (0,)), ('dropout', 1.0), ('window', 0), ('embedding', 0)])
def test_bad_sizes(option, value):
  with pytest.raises(errors.UsageError, match=f'{option}='):
    decided = {name: SIZES[name] for name in ('words', 'alphabet', 'tags')}
    options.build(tagging.MODELS, 'bilstm', {option: value}, *sentences(), **decided)
