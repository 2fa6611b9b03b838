"""Decoding against enumeration, against NumPy, and against itself in other batches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import generate, options, search
from karpjax.models import language

UNITS, END = 5, 3


def network(vocabulary, seed=0, end_bias=0.0):
  """A small random network whose state remembers all tokens; (step, state [units] -> log probabilities in NumPy)."""
  rng = np.random.default_rng(seed)
  recurrent, embedding, output = (
    rng.normal(size=shape).astype(np.float32) * 1.5
    for shape in ((UNITS, UNITS), (vocabulary, UNITS), (UNITS, vocabulary))
  )
  bias = np.zeros(vocabulary, np.float32)
  bias[0], bias[END] = -30, end_bias  # padding is never said

  def step(tokens, state):
    h = jnp.tanh(state['h'] @ recurrent + jnp.asarray(embedding)[tokens])
    return h @ output + bias, {'h': h, 'length': state['length'] + 1}

  def plain(token, h):
    h = np.tanh(h @ recurrent + embedding[token])
    logits = (h @ output + bias).astype(np.float64)
    return logits - np.log(np.exp(logits).sum()), h

  return step, plain


def beginnings(size, seed=1):
  h = np.random.default_rng(seed).normal(size=(size, UNITS)).astype(np.float32)
  return {'h': jnp.asarray(h), 'length': jnp.zeros(size, jnp.int32)}, jnp.full(size, 2, jnp.int32)


def searched(step, state, first, **options):
  """(tokens, scores) of a beam, in NumPy."""
  found = jax.jit(lambda state, first: search.beam_search(step, state, first, **options))(state, first)
  return tuple(map(np.asarray, found))


def every_sequence(plain, h, vocabulary, steps, alpha, end=END):
  """All sequences that end or are `steps` long, with their scores, the best first."""
  found = {}
  for tokens in itertools.product(range(vocabulary), repeat=steps):
    cut = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    if cut in found:
      continue
    total, last, state = 0.0, 2, h
    for token in cut:
      log_probs, state = plain(last, state)
      total, last = total + log_probs[token], token
    found[cut] = total / ((5 + len(cut)) / 6) ** alpha
  return sorted(found.items(), key=lambda item: -item[1])


def padded(sequences, steps):
  return np.array([list(s) + [0] * (steps - len(s)) for s in sequences])


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize('vocabulary, beam, steps, alpha', [(4, 64, 4, 1.5), slow(7, 7, 2, 0.0), slow(5, 25, 3, 0.6)])
def test_the_best_of_a_beam_that_holds_all_prefixes_is_the_best_of_all(vocabulary, beam, steps, alpha):
  step, plain = network(vocabulary)
  state, first = beginnings(3)
  tokens, scores = searched(step, state, first, beam=beam, steps=steps, end=END, length_penalty=alpha)
  for b in range(3):
    best, score = every_sequence(plain, np.asarray(state['h'][b]), vocabulary, steps, alpha)[0]
    np.testing.assert_allclose(scores[b, 0], score, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tokens[b, 0], padded([best], steps)[0])


def test_without_an_end_the_whole_beam_is_the_best_of_all_in_order():
  step, plain = network(5)
  state, first = beginnings(2)
  tokens, scores = searched(step, state, first, beam=25, steps=3, end=None)
  for b in range(2):
    best = every_sequence(plain, np.asarray(state['h'][b]), 5, 3, 0.0, end=99)[:25]
    likely = [i for i, (_, s) in enumerate(best) if s > -12]  # beyond lie ties of what is never said
    assert len(likely) > 10
    np.testing.assert_allclose(scores[b, likely], [best[i][1] for i in likely], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tokens[b, likely], [best[i][0] for i in likely])


@pytest.mark.parametrize('end, alpha', [(END, 1.0), slow(None, 0.0)])
def test_a_beam_of_one_is_greedy(end, alpha):
  step, plain = network(9, end_bias=1.0)
  state, first = beginnings(20)
  ours = np.asarray(jax.jit(lambda state: search.greedy(step, state, first, steps=12, end=end))(state))
  tokens, _ = searched(step, state, first, beam=1, steps=12, end=end, length_penalty=alpha)
  np.testing.assert_array_equal(tokens[:, 0], ours)
  for b in range(20):  # and greedy is a plain loop
    last, h, said = 2, np.asarray(state['h'][b]), []
    while len(said) < 12 and (end is None or end not in said):
      log_probs, h = plain(last, h)
      said.append(last := int(log_probs.argmax()))
    np.testing.assert_array_equal(ours[b], said + [0] * (12 - len(said)))


def test_scores_are_those_of_the_sequences_and_fall_and_a_batch_gives_what_its_members_give_alone():
  step, plain = network(9, end_bias=1.0)
  state, first = beginnings(6)
  find = jax.jit(lambda *start: search.beam_search(step, *start, beam=4, steps=12, end=END, length_penalty=0.7))
  tokens, scores = map(np.asarray, find(state, first))
  assert (np.diff(scores, axis=1) <= 0).all()
  for b, k in itertools.product(range(6), range(4)):
    said = [int(t) for t in tokens[b, k] if t]
    total, last, h = 0.0, 2, np.asarray(state['h'][b])
    for token in said:
      log_probs, h = plain(last, h)
      total, last = total + log_probs[token], token
    np.testing.assert_allclose(scores[b, k], total / ((5 + len(said)) / 6) ** 0.7, rtol=1e-4)
    assert END not in said[:-1]
  for b in range(6):
    alone, score = map(np.asarray, find(*jax.tree.map(lambda x: np.asarray(x)[b : b + 1], (state, first))))
    np.testing.assert_array_equal(tokens[b], alone[0])
    np.testing.assert_allclose(scores[b], score[0], rtol=1e-5)


def test_filtered_against_numpy():
  logits = np.random.default_rng(0).normal(size=(50, 11)).astype(np.float32) * 3
  for temperature, top_k, top_p in ((0.5, 0, 1.0), (2.0, 4, 0.9), (2.0, 1, 0.3), (0.5, 99, 0.0)):
    filtered = jax.jit(lambda x, rules=(temperature, top_k, top_p): generate.filter_logits(x, *rules))
    ours = np.asarray(filtered(logits))
    for row, result in zip(logits, ours):
      order = np.argsort(-row)[: top_k or None]
      p = np.exp(row[order] / temperature)
      p /= p.sum()
      kept = [order[i] for i in range(len(order)) if i == 0 or p[:i].sum() < top_p]
      assert set(np.flatnonzero(np.isfinite(result))) == set(kept if top_p < 1 else order)
      np.testing.assert_allclose(result[kept], row[kept] / temperature, rtol=1e-6)


def test_of_equal_logits_top_k_keeps_the_first():
  kept = np.isfinite(jax.jit(lambda x: generate.filter_logits(x, top_k=2))(np.zeros((2, 5), np.float32)))
  np.testing.assert_array_equal(kept, [[True, True, False, False, False]] * 2)


def test_draws_have_the_filtered_distribution():
  logits, rules, draws = (
    np.array([[2.0, 1.0, 0.5, 0.0, -1.0]], np.float32),
    {'temperature': 1.5, 'top_k': 4, 'top_p': 0.9},
    40_000,
  )
  expected = np.asarray(jax.jit(lambda x: jax.nn.softmax(generate.filter_logits(x, **rules)))(logits))[0]
  choose = jax.jit(lambda x, key: generate.next_tokens(x, jax.random.split(key, draws), **rules))
  shares = np.bincount(choose(np.repeat(logits, draws, 0), jax.random.key(0)), minlength=5) / draws
  np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / draws))
  assert (shares[expected == 0] == 0).all() and (expected == 0).sum() == 1


def test_temperature_0_is_the_largest_logit():
  logits = np.random.default_rng(1).normal(size=(30, 8))
  np.testing.assert_array_equal(generate.next_tokens(logits, None, 0), logits.argmax(-1))


# ---- streams ----


def model_of(name, **chosen):
  model = options.build(language.MODELS, name, chosen, vocabulary=11, context=16)
  variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 16), jnp.int32)))
  # logits that differ: an untrained model's are nearly alike
  variables['params'] = jax.tree.map(lambda x: 4 * x, variables['params'])
  return model, variables


def take(stream, count):
  parts = []
  while sum(part.shape[1] for part in parts) < count:
    parts.append(next(stream))
  return np.concatenate(parts, 1)[:, :count]


@pytest.mark.parametrize(
  'name, options, length',
  [
    slow('gpt', dict(layers=2, heads=2, width=16), 3),
    slow('gpt', dict(layers=2, heads=4, kv_heads=2, width=16), 10),
    slow('lstm', dict(units=(8,)), 3),
    ('mlp', {}, 3),
  ],
)
def test_greedy_tokens_are_those_of_the_whole_text_read_anew(name, options, length):
  """For a gpt with a context of 16 that is read anew from its half when it is full; a prompt of 10 is more than a half."""
  model, variables = model_of(name, **options)
  prompt = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3][:length]], np.int32)
  keys = jax.random.split(jax.random.key(0), 1)
  got = take(generate.stream(model, variables, prompt, keys, temperature=0, chunk=4), 40)[0]
  said, begun = list(prompt[0]), 0
  # all in one shape: what is behind a token changes nothing before it
  read = np.zeros((1, 16 if name == 'gpt' else 40 + length), np.int32)
  apply = jax.jit(model.apply)
  for t in range(40):
    if name == 'gpt' and t % 4 == 0 and len(said) - begun + 4 > 16:
      begun = len(said) - 8
    count = len(said) - begun
    read[0, :count] = said[begun:]
    said.append(int(apply(variables, read)[0, count - 1].argmax()))
  assert got.tolist() == said[length:]


def test_each_text_draws_by_its_own_key_and_nothing_is_compiled_anew_while_it_goes_on():
  model, variables = model_of('gpt', layers=1, heads=2, width=8)
  prompt, keys = np.array([[1], [1], [2]], np.int32), jax.random.split(jax.random.key(1), 3)
  one, other = (
    take(generate.stream(model, variables, prompt[order], keys[order], top_k=9), 40)
    for order in (np.array([0, 1, 2]), np.array([2, 0, 1]))
  )
  np.testing.assert_array_equal(one[[2, 0, 1]], other)
  assert (one[0] != one[1]).any()
  assert [each._cache_size() for each in generate._compiled(model, 4, top_k=9)] == [1, 1]


def test_texts_end_where_they_end():
  model, variables = model_of('bigram')
  variables['params']['logits'] = 50 * jnp.eye(11, k=1)  # each token is followed by the next one
  rows = generate.texts(
    model, variables, np.array([[0], [6]], np.int32), jax.random.split(jax.random.key(0), 2), steps=50, end=9
  )
  assert [row.tolist() for row in rows] == [list(range(1, 9)), [7, 8]]
