"""Decoding against enumeration, against NumPy, and against itself in other batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax import decoding

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


def search(step, state, first, **options):
  """(tokens, scores) of a beam, in NumPy."""
  found = jax.jit(lambda state, first: decoding.beam_search(step, state, first, **options))(state, first)
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


@pytest.mark.parametrize('alpha', [0.0, pytest.param(0.6, marks=pytest.mark.slow), 1.5])
@pytest.mark.parametrize(
  'vocabulary, beam, steps', [(7, 7, 2), pytest.param(5, 25, 3, marks=pytest.mark.slow), (4, 64, 4)]
)
def test_a_beam_that_holds_all_prefixes_is_exhaustive(alpha, vocabulary, beam, steps):
  step, plain = network(vocabulary)
  state, first = beginnings(3)
  tokens, scores = search(step, state, first, beam=beam, steps=steps, end=END, length_penalty=alpha, early_stop=False)
  for b in range(3):
    best = every_sequence(plain, np.asarray(state['h'][b]), vocabulary, steps, alpha)[:beam]
    np.testing.assert_allclose(scores[b, : len(best)], [s for _, s in best], rtol=1e-5, atol=1e-5)
    likely = [i for i, (_, s) in enumerate(best) if s > -12]  # beyond lie ties of what is never said
    np.testing.assert_array_equal(np.asarray(tokens)[b, likely], padded([t for t, _ in best], steps)[likely])
    assert np.isneginf(np.asarray(scores[b, len(best) :])).all()


def test_without_an_end_the_beam_is_exhaustive_too():
  step, plain = network(5)
  state, first = beginnings(2)
  tokens, scores = search(step, state, first, beam=25, steps=3, end=None)
  for b in range(2):
    best = every_sequence(plain, np.asarray(state['h'][b]), 5, 3, 0.0, end=99)
    np.testing.assert_array_equal(tokens[b, 0], best[0][0])
    np.testing.assert_allclose(scores[b, 0], best[0][1], rtol=1e-5)


@pytest.mark.parametrize('alpha', [0.0, 1.0])
@pytest.mark.parametrize('end', [END, None])
def test_a_beam_of_one_is_greedy(alpha, end):
  step, plain = network(9, end_bias=1.0)
  state, first = beginnings(20)
  ours = np.asarray(jax.jit(lambda state: decoding.greedy(step, state, first, steps=12, end=end))(state))
  tokens, _ = search(step, state, first, beam=1, steps=12, end=end, length_penalty=alpha)
  np.testing.assert_array_equal(tokens[:, 0], ours)
  for b in range(20):  # and greedy is a plain loop
    last, h, said = 2, np.asarray(state['h'][b]), []
    while len(said) < 12 and (end is None or end not in said):
      log_probs, h = plain(last, h)
      said.append(last := int(log_probs.argmax()))
    np.testing.assert_array_equal(ours[b], said + [0] * (12 - len(said)))


def test_scores_are_those_of_the_sequences_and_fall():
  step, plain = network(9, end_bias=1.0)
  state, first = beginnings(6)
  tokens, scores = search(step, state, first, beam=4, steps=10, end=END, length_penalty=0.7)
  assert (np.diff(scores, axis=1) <= 0).all()
  for b, k in itertools.product(range(6), range(4)):
    said = [int(t) for t in tokens[b, k] if t]
    total, last, h = 0.0, 2, np.asarray(state['h'][b])
    for token in said:
      log_probs, h = plain(last, h)
      total, last = total + log_probs[token], token
    np.testing.assert_allclose(scores[b, k], total / ((5 + len(said)) / 6) ** 0.7, rtol=1e-4)
    assert END not in said[:-1]


@pytest.mark.parametrize('early_stop', [False, True])
def test_a_batch_gives_what_its_members_give_alone(early_stop):
  step, _ = network(9, end_bias=1.0)
  state, first = beginnings(12)
  find = jax.jit(
    lambda state, first: decoding.beam_search(
      step, state, first, beam=3, steps=15, end=END, length_penalty=0.6, early_stop=early_stop
    )
  )
  tokens, scores = map(np.asarray, find(state, first))
  for b in range(12):
    alone, score = map(np.asarray, find(jax.tree.map(lambda x: np.asarray(x)[b : b + 1], state), np.asarray(first)[:1]))
    np.testing.assert_array_equal(tokens[b], alone[0])
    np.testing.assert_allclose(scores[b], score[0], rtol=1e-5)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.0])
@pytest.mark.slow
def test_early_stop_changes_no_best_sequence(alpha):
  calls = []
  for seed in range(3):
    step, _ = network(12, seed, end_bias=2.0)
    state, first = beginnings(16, seed)

    def counted(tokens, state):
      jax.debug.callback(lambda: calls.append(early))
      return step(tokens, state)

    results = []
    for early in (False, True):
      results.append(
        decoding.beam_search(counted, state, first, beam=4, steps=30, end=END, length_penalty=alpha, early_stop=early)
      )
      jax.effects_barrier()
    np.testing.assert_array_equal(results[0][0][:, 0], results[1][0][:, 0])
    np.testing.assert_array_equal(results[0][1][:, 0], results[1][1][:, 0])
  assert calls.count(True) < calls.count(False)  # and it saves steps


def test_filtered_against_numpy():
  logits = np.random.default_rng(0).normal(size=(50, 11)).astype(np.float32) * 3
  for temperature, top_k, top_p in itertools.product((0.5, 1.0, 2.0), (0, 1, 4, 11, 99), (0.0, 0.3, 0.9, 1.0)):
    ours = np.asarray(decoding.filtered(jnp.asarray(logits), temperature, top_k, top_p))
    for row, result in zip(logits, ours):
      order = np.argsort(-row)[: top_k or None]
      p = np.exp(row[order] / temperature)
      p /= p.sum()
      kept = [order[i] for i in range(len(order)) if i == 0 or p[:i].sum() < top_p]
      assert set(np.flatnonzero(np.isfinite(result))) == set(kept if top_p < 1 else order)
      np.testing.assert_allclose(result[kept], row[kept] / temperature, rtol=1e-6)


def test_of_equal_logits_top_k_keeps_the_first():
  np.testing.assert_array_equal(
    np.isfinite(decoding.filtered(jnp.zeros((2, 5)), top_k=2)), [[True, True, False, False, False]] * 2
  )


@pytest.mark.parametrize('temperature, top_k, top_p', [(1.0, 0, 1.0), (0.7, 3, 1.0), (1.5, 0, 0.8)])
def test_draws_have_the_filtered_distribution(temperature, top_k, top_p):
  logits = jnp.asarray([[2.0, 1.0, 0.5, 0.0, -1.0]])
  expected = np.asarray(jax.nn.softmax(decoding.filtered(logits, temperature, top_k, top_p)))[0]
  draws = 40_000
  choose = jax.jit(lambda logits, key: decoding.choose(logits, key, temperature, top_k, top_p))
  tokens = choose(np.repeat(logits, draws, 0), jax.random.key(0))
  shares = np.bincount(tokens, minlength=5) / draws
  np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / draws))
  assert (shares[expected == 0] == 0).all()


def test_temperature_0_is_the_largest_logit():
  logits = jax.random.normal(jax.random.key(1), (30, 8))
  np.testing.assert_array_equal(decoding.choose(logits, jax.random.key(0), 0), logits.argmax(-1))


def test_what_follows_the_end_is_0_and_draws_do_not_repeat():
  step, _ = network(9, end_bias=1.0)
  state, first = beginnings(40)
  draw = jax.jit(lambda key, state, first: decoding.sample(step, state, first, key, steps=20, end=END))
  tokens = np.asarray(draw(jax.random.key(0), state, first))
  for row in tokens:
    said = list(row)
    if END in said:
      assert not any(said[said.index(END) + 1 :])
  assert (tokens == END).any(1).sum() > 10 and len({tuple(row) for row in tokens}) > 20
  assert not np.array_equal(tokens, draw(jax.random.key(1), state, first))


def test_a_key_per_row_draws_the_same_in_any_batch():
  step, _ = network(9, end_bias=1.0)
  state, first = beginnings(6)
  keys = jax.random.split(jax.random.key(3), 6)
  draw = jax.jit(lambda keys, state, first: decoding.sample(step, state, first, keys, steps=9, end=END, top_p=0.9))
  whole = draw(keys, state, first)
  part = draw(keys[2:5], *jax.tree.map(lambda x: np.asarray(x)[2:5], (state, first)))
  np.testing.assert_array_equal(whole[2:5], part)


def test_the_shares_of_whole_sequences_are_the_models():
  step, plain = network(5)
  state, first = beginnings(1)
  size = 30_000
  many = decoding.repeat(state, size)
  draw = jax.jit(lambda state, first: decoding.sample(step, state, first, jax.random.key(0), steps=2, end=END))
  tokens = draw(many, np.repeat(first, size))
  for said, score in every_sequence(plain, np.asarray(state['h'][0]), 5, 2, 0.0):
    share = (np.asarray(tokens) == padded([said], 2)).all(1).mean()
    np.testing.assert_allclose(share, np.exp(score), atol=4 * np.sqrt(0.25 / size))
