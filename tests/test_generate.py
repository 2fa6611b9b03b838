"""Decoding against enumeration, against NumPy, and against itself in other batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from karpjax import generate, options
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


def search(step, state, first, **options):
  """(tokens, scores) of a beam, in NumPy."""
  found = jax.jit(lambda state, first: generate.beam_search(step, state, first, **options))(state, first)
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
  ours = np.asarray(jax.jit(lambda state: generate.greedy(step, state, first, steps=12, end=end))(state))
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
    lambda state, first: generate.beam_search(
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
        generate.beam_search(counted, state, first, beam=4, steps=30, end=END, length_penalty=alpha, early_stop=early)
      )
      jax.effects_barrier()
    np.testing.assert_array_equal(results[0][0][:, 0], results[1][0][:, 0])
    np.testing.assert_array_equal(results[0][1][:, 0], results[1][1][:, 0])
  assert calls.count(True) < calls.count(False)  # and it saves steps


def test_filtered_against_numpy():
  logits = np.random.default_rng(0).normal(size=(50, 11)).astype(np.float32) * 3
  for temperature, top_k, top_p in itertools.product((0.5, 1.0, 2.0), (0, 1, 4, 11, 99), (0.0, 0.3, 0.9, 1.0)):
    ours = np.asarray(generate.filter_logits(jnp.asarray(logits), temperature, top_k, top_p))
    for row, result in zip(logits, ours):
      order = np.argsort(-row)[: top_k or None]
      p = np.exp(row[order] / temperature)
      p /= p.sum()
      kept = [order[i] for i in range(len(order)) if i == 0 or p[:i].sum() < top_p]
      assert set(np.flatnonzero(np.isfinite(result))) == set(kept if top_p < 1 else order)
      np.testing.assert_allclose(result[kept], row[kept] / temperature, rtol=1e-6)


def test_of_equal_logits_top_k_keeps_the_first():
  np.testing.assert_array_equal(
    np.isfinite(generate.filter_logits(jnp.zeros((2, 5)), top_k=2)), [[True, True, False, False, False]] * 2
  )


@pytest.mark.parametrize('temperature, top_k, top_p', [(1.0, 0, 1.0), (0.7, 3, 1.0), (1.5, 0, 0.8)])
def test_draws_have_the_filtered_distribution(temperature, top_k, top_p):
  logits = jnp.asarray([[2.0, 1.0, 0.5, 0.0, -1.0]])
  expected = np.asarray(jax.nn.softmax(generate.filter_logits(logits, temperature, top_k, top_p)))[0]
  draws = 40_000
  choose = jax.jit(lambda logits, key: generate.next_tokens(logits, key, temperature, top_k, top_p))
  tokens = choose(np.repeat(logits, draws, 0), jax.random.key(0))
  shares = np.bincount(tokens, minlength=5) / draws
  np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / draws))
  assert (shares[expected == 0] == 0).all()


def test_temperature_0_is_the_largest_logit():
  logits = jax.random.normal(jax.random.key(1), (30, 8))
  np.testing.assert_array_equal(generate.next_tokens(logits, jax.random.key(0), 0), logits.argmax(-1))


def test_what_follows_the_end_is_0_and_draws_do_not_repeat():
  step, _ = network(9, end_bias=1.0)
  state, first = beginnings(40)
  draw = jax.jit(lambda key, state, first: generate.sample(step, state, first, key, steps=20, end=END))
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
  draw = jax.jit(lambda keys, state, first: generate.sample(step, state, first, keys, steps=9, end=END, top_p=0.9))
  whole = draw(keys, state, first)
  part = draw(keys[2:5], *jax.tree.map(lambda x: np.asarray(x)[2:5], (state, first)))
  np.testing.assert_array_equal(whole[2:5], part)


def test_the_shares_of_whole_sequences_are_the_models():
  step, plain = network(5)
  state, first = beginnings(1)
  size = 30_000
  many = generate.repeat(state, size)
  draw = jax.jit(lambda state, first: generate.sample(step, state, first, jax.random.key(0), steps=2, end=END))
  tokens = draw(many, np.repeat(first, size))
  for said, score in every_sequence(plain, np.asarray(state['h'][0]), 5, 2, 0.0):
    share = (np.asarray(tokens) == padded([said], 2)).all(1).mean()
    np.testing.assert_allclose(share, np.exp(score), atol=4 * np.sqrt(0.25 / size))


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
    pytest.param('gpt', dict(layers=2, heads=2, width=16), 3, marks=pytest.mark.slow),
    pytest.param('gpt', dict(layers=2, heads=4, kv_heads=2, width=16), 10, marks=pytest.mark.slow),
    pytest.param('lstm', dict(units=(8,)), 3, marks=pytest.mark.slow),
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


def test_each_text_draws_by_its_own_key():
  model, variables = model_of('lstm', units=(8,))
  keys = jax.random.split(jax.random.key(1), 3)
  prompt = np.array([[1], [1], [2]], np.int32)
  together = take(generate.stream(model, variables, prompt, keys), 20)
  for i in range(3):
    alone = take(generate.stream(model, variables, prompt[i : i + 1], keys[i : i + 1]), 20)
    np.testing.assert_array_equal(alone[0], together[i])
  assert (together[0] != together[1]).any()


def test_nothing_is_compiled_anew_while_a_text_goes_on():
  model, variables = model_of('gpt', layers=1, heads=2, width=8)
  stream = generate.stream(model, variables, np.array([[1]], np.int32), jax.random.split(jax.random.key(0), 1), top_k=3)
  take(stream, 40)
  begin, extend = generate._compiled(model, 1, 4, top_k=3)
  assert begin._cache_size() == extend._cache_size() == 1


def test_texts_end_where_they_end():
  model, variables = model_of('bigram')
  variables['params']['logits'] = 50 * jnp.eye(11, k=1)  # each token is followed by the next one
  rows = generate.texts(
    model, variables, np.array([[0], [6]], np.int32), jax.random.split(jax.random.key(0), 2), steps=50, end=9
  )
  assert [row.tolist() for row in rows] == [list(range(1, 9)), [7, 8]]
