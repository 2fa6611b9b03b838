import jax.numpy as jnp
import numpy as np

from karpjax.metrics import masking


def test_only_scored_tokens_of_real_examples_count():
  targets = jnp.array([[2, 1, -1], [0, -1, -1], [1, 1, 1]])
  logits = 9.0 * (jnp.arange(3) == jnp.array([[2, 0, 0], [0, 1, 2], [1, 1, 1]])[..., None])
  losses = jnp.array([[1.0, 2.0, jnp.nan], [4.5, 7.0, 7.0], [9.0, 9.0, 9.0]])
  numbers = masking.summarise(masking.sums(logits, losses, targets, jnp.array([True, True, False])))
  assert numbers.keys() == {'loss', 'perplexity', 'accuracy', 'error'}
  np.testing.assert_allclose([numbers['loss'], numbers['accuracy']], [2.5, 2 / 3])
  np.testing.assert_allclose(numbers['perplexity'], np.exp(2.5))


def test_nothing_left_out_is_not_a_number():
  numbers = masking.summarise(
    masking.sums(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)), jnp.full((1, 2), -1), jnp.array([True]))
  )
  assert np.isnan(numbers['loss']) and np.isnan(numbers['accuracy'])
