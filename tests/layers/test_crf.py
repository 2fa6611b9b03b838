"""The chain's sums and maxima against the enumeration of all tag sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.layers import crf

TAGS, LENGTHS = 3, (5, 1, 3, 4)


@pytest.fixture(scope='module')
def problem():
  """(chain, emissions [4, 5, 3], tags [4, 5], mask [4, 5]), with rubbish behind the sequences' ends."""
  rng = np.random.default_rng(0)
  chain = crf.Chain(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3,), (3, 3), (3,))))
  mask = np.arange(5) < np.array(LENGTHS)[:, None]
  emissions = np.where(mask[..., None], 2 * rng.normal(size=(4, 5, TAGS)), 1e3).astype(np.float32)
  tags = np.where(mask, rng.integers(0, TAGS, (4, 5)), -1).astype(np.int32)
  return chain, emissions, tags, mask


def plain_score(chain, emissions, tags):
  """The definition, in float64: emissions [n, tags], tags of length n."""
  start, transition, end = (np.asarray(x, np.float64) for x in (chain.start, chain.transition, chain.end))
  steps = sum(transition[a, b] for a, b in itertools.pairwise(tags))
  return start[tags[0]] + sum(float(emissions[t, y]) for t, y in enumerate(tags)) + steps + end[tags[-1]]


def enumerated(chain, emissions, length):
  """{tags: score} of all sequences of that length."""
  return {y: plain_score(chain, emissions, y) for y in itertools.product(range(TAGS), repeat=length)}


def test_the_score_is_its_definition(problem):
  chain, emissions, tags, mask = problem
  expected = [plain_score(chain, e, y[:n]) for e, y, n in zip(emissions, tags, LENGTHS)]
  np.testing.assert_allclose(jax.jit(crf.score)(chain, emissions, tags, mask), expected, rtol=1e-5)


def test_probabilities_of_all_sequences_add_up_to_one(problem):
  chain, emissions, _, _ = problem
  tags = np.array(list(itertools.product(range(TAGS), repeat=4)), np.int32)
  repeated = np.repeat(emissions[:1, :4], len(tags), 0)
  log_probs = jax.jit(crf.log_likelihood)(chain, repeated, tags, np.ones(tags.shape, bool))
  np.testing.assert_allclose(np.exp(np.asarray(log_probs, np.float64)).sum(), 1, rtol=1e-5)


def test_viterbi_finds_the_best_of_all_sequences(problem):
  chain, emissions, _, mask = problem
  tags, scores = jax.jit(crf.viterbi)(chain, emissions, mask)
  for e, n, found, value in zip(emissions, LENGTHS, tags, scores):
    every = enumerated(chain, e, n)
    best = max(every, key=every.get)
    assert tuple(found[:n].tolist()) == best
    np.testing.assert_allclose(value, every[best], rtol=1e-5)
    assert (found[n:] == -1).all()


def test_gradients_of_the_partition_function_are_marginals(problem):
  """d log Z / d emissions[t, y] is p(y_t = y), d log Z / d transition[a, b] the expected number of such steps."""
  chain, emissions, _, mask = problem
  total = lambda chain, emissions: crf.log_partition(chain, emissions, mask).sum()
  by_chain, by_emission = jax.jit(jax.grad(total, (0, 1)))(chain, emissions)
  steps = np.zeros((TAGS, TAGS))
  for i, n in enumerate(LENGTHS):
    every = enumerated(chain, emissions[i], n)
    probabilities = np.exp(np.array(list(every.values())) - np.logaddexp.reduce(list(every.values())))
    marginals = np.zeros((5, TAGS))
    for tags, p in zip(every, probabilities):
      marginals[range(n), tags] += p
      for a, b in itertools.pairwise(tags):
        steps[a, b] += p
    np.testing.assert_allclose(by_emission[i], marginals, atol=1e-5)
  np.testing.assert_allclose(by_chain.transition, steps, atol=1e-4)


def test_padding_changes_nothing(problem):
  chain, emissions, tags, mask = problem
  more = lambda x, value: np.pad(x, [(0, 0), (0, 6)] + [(0, 0)] * (x.ndim - 2), constant_values=value)
  padded = more(emissions, 7.0), more(tags, -1), more(mask, False)
  likelihood = jax.jit(crf.log_likelihood)
  np.testing.assert_array_equal(likelihood(chain, emissions, tags, mask), likelihood(chain, *padded))
  short, score = jax.jit(crf.viterbi)(chain, emissions, mask)
  long, same = jax.jit(crf.viterbi)(chain, padded[0], padded[2])
  np.testing.assert_array_equal(long[:, :5], short)
  np.testing.assert_array_equal(long[:, 5:], -1)
  np.testing.assert_array_equal(score, same)
  alone = likelihood(chain, emissions[2:3, :3], tags[2:3, :3], mask[2:3, :3])  # cut to its length: the same
  np.testing.assert_allclose(alone[0], likelihood(chain, emissions, tags, mask)[2], rtol=1e-5)


def test_zero_scores_are_uniform():
  params = crf.ChainScores(4).init(jax.random.key(0))
  chain = crf.ChainScores(4).apply(params)
  mask = np.array([[True] * 6, [True] * 2 + [False] * 4])
  log_probs = jax.jit(crf.log_likelihood)(chain, np.zeros((2, 6, 4), np.float32), np.ones((2, 6), np.int32), mask)
  np.testing.assert_allclose(log_probs, -np.log(4) * np.array([6, 2]), rtol=1e-6)
  assert sum(x.size for x in jax.tree.leaves(params)) == 4 + 16 + 4


def test_large_scores_stay_finite():
  chain = crf.Chain(*(jnp.full(shape, 500.0) for shape in ((2,), (2, 2), (2,))))
  emissions = jnp.asarray([[[1e4, -1e4]] * 50])
  mask, tags = np.ones((1, 50), bool), np.zeros((1, 50), np.int32)
  value, gradient = jax.jit(jax.value_and_grad(lambda e: crf.log_likelihood(chain, e, tags, mask).sum()))(emissions)
  np.testing.assert_allclose(value, 0, atol=1e-3)
  assert np.isfinite(gradient).all()


def test_a_row_that_is_all_padding_is_finite():
  chain = crf.ChainScores(3).apply(crf.ChainScores(3).init(jax.random.key(0)))
  mask = np.zeros((1, 4), bool)
  emissions = np.ones((1, 4, 3), np.float32)
  value, gradient = jax.jit(jax.value_and_grad(lambda e: crf.log_partition(chain, e, mask).sum()))(emissions)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  assert (jax.jit(crf.viterbi)(chain, emissions, mask)[0] == -1).all()
