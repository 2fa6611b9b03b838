import jax.numpy as jnp
import numpy as np

from karpjax.metrics import language


def test_only_scored_tokens_of_real_examples_count():
  targets = jnp.array([[2, 1, -1], [0, -1, -1], [1, 1, 1]])
  logits = 9.0 * (jnp.arange(3) == jnp.array([[2, 0, 0], [0, 1, 2], [1, 1, 1]])[..., None])
  losses = jnp.array([[1.0, 2.0, jnp.nan], [4.5, 7.0, 7.0], [9.0, 9.0, 9.0]])
  numbers = language.summarise(
    language.sums(losses, targets, jnp.array([True, True, False]), right=logits.argmax(-1) == targets)
  )
  assert numbers.keys() == {'loss', 'perplexity', 'accuracy', 'error'}
  np.testing.assert_allclose([numbers['loss'], numbers['accuracy']], [2.5, 2 / 3])
  np.testing.assert_allclose(numbers['perplexity'], np.exp(2.5))


def test_nothing_left_out_is_not_a_number():
  numbers = language.summarise(
    language.sums(jnp.zeros((1, 2)), jnp.full((1, 2), -1), jnp.array([True]), right=jnp.zeros((1, 2)))
  )
  assert np.isnan(numbers['loss']) and np.isnan(numbers['accuracy'])
