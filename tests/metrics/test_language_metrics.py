import jax
import numpy as np
import pytest

from karpjax.metrics import language


def numbers(losses, targets, mask, right, characters=(0, 0, 0)):
  return language.summarise(jax.jit(language.sums)(*map(np.array, (losses, targets, mask, characters, right))))


def test_only_scored_tokens_of_real_examples_count():
  losses = [[1.0, 2.0, np.nan], [4.5, 7.0, 7.0], [9.0, 9.0, 9.0]]
  right = [[True, False, False], [True, True, True], [True, True, True]]
  found = numbers(losses, [[2, 1, -1], [0, -1, -1], [1, 1, 1]], [True, True, False], right)
  assert found.keys() == {'loss', 'perplexity', 'accuracy', 'error'}
  np.testing.assert_allclose([found['loss'], found['accuracy']], [2.5, 2 / 3])
  np.testing.assert_allclose(found['perplexity'], np.exp(2.5))
  spelt = numbers(losses, [[2, 1, -1], [0, -1, -1], [1, 1, 1]], [True, True, False], right, (1, 2, 4))
  np.testing.assert_allclose(spelt['bits_per_character'], 7.5 / (4 + 2 + 1) / np.log(2), rtol=1e-6)
  sums = language.sums(np.array([[1.0, 2.0]]), np.array([[2, 1]]), np.array([True]), of_bytes=np.array([0, 1, 5]))
  assert language.summarise(sums)['bits_per_byte'] == pytest.approx(3 / 6 / np.log(2))


def test_nothing_left_out_is_not_a_number():
  found = numbers(np.zeros((3, 3)), np.full((3, 3), -1), [True] * 3, np.zeros((3, 3), bool))
  assert np.isnan(found['loss']) and np.isnan(found['accuracy'])
