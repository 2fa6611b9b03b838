"""Attention against its definition; it has no derivatives but those of what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.layers import attention

BATCH, TIME, PLACES, HEADS, SIZE = 2, 5, 7, 4, 8


def ours(query, key, value, **options):
  return attention.attend(query, attention.stored(key, value), **options)


def arrays(kv_heads, dtype=jnp.float32):
  """Query, key, value, and how much each number of the output counts."""
  rng = np.random.default_rng(0)
  shapes = (TIME, HEADS), (PLACES, kv_heads), (PLACES, kv_heads), (TIME, HEADS)
  return [jnp.asarray(rng.normal(size=(BATCH, *shape, SIZE)), dtype) for shape in shapes]


def mask(kind):
  rng = np.random.default_rng(1)
  match kind:
    case 'none':
      return None
    case 'places':
      return rng.random((BATCH, 1, 1, PLACES)) < 0.5
    case 'heads':
      return rng.random((BATCH, HEADS, TIME, PLACES)) < 0.5
    case 'one sees none':
      return np.broadcast_to(np.array([False, True])[:, None, None, None], (BATCH, 1, TIME, PLACES))


def derivatives(attend, query, key, value, counts):
  loss = lambda *args: (attend(*args).astype(jnp.float32) * counts).sum()
  return jax.jit(lambda *args: (attend(*args), jax.grad(loss, (0, 1, 2))(*args)))(query, key, value)


@pytest.mark.parametrize(  # of grouped queries, masks and causality each with each
  'kv_heads, causal, kind',
  [
    (4, False, 'none'), (2, True, 'none'), (1, False, 'places'), (4, True, 'places'), (2, False, 'heads'), (1, True, 'heads'),
    (4, False, 'one sees none'), (2, True, 'one sees none'),
  ],
)  # fmt: skip
def test_equals_its_definition(kv_heads, causal, kind):
  query, key, value, _ = arrays(kv_heads)
  key, value = (np.repeat(x, HEADS // kv_heads, 2) for x in (key, value))
  seen = np.tri(TIME, PLACES, dtype=bool) if causal else np.ones((TIME, PLACES), bool)
  seen = seen if mask(kind) is None else seen & mask(kind)
  scores = np.where(seen, np.einsum('btnh,bsnh->bnts', query, key) / np.sqrt(SIZE), -1e30)  # as all where none is seen
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  expected = np.einsum('bnts,bsnh->btnh', weights / weights.sum(-1, keepdims=True), value)
  found = jax.jit(lambda *args: ours(*args, mask=mask(kind), causal=causal))(*arrays(kv_heads)[:3])
  np.testing.assert_allclose(found, expected, atol=5e-6)


def test_another_implementation_has_the_same_arguments():
  query, key, value, _ = arrays(2)
  options = dict(mask=mask('heads'), causal=True)
  one, other = (
    jax.jit(lambda *args: ours(*args, **options, implementation=name))(query, key, value) for name in (None, 'xla')
  )
  np.testing.assert_allclose(one, other, atol=5e-6)


def test_bfloat16_is_float32_to_its_rounding():
  args = arrays(2, jnp.bfloat16)
  rounded = derivatives(lambda *a: ours(*a, causal=True), *args)
  exact = derivatives(lambda *a: ours(*a, causal=True), *(a.astype(jnp.float32) for a in args))
  assert {x.dtype for x in jax.tree.leaves(rounded)} == {jnp.dtype(jnp.bfloat16)}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05), rounded, exact)


def test_large_scores_are_no_infinities():
  query, key, value, counts = arrays(4)
  values, gradients = derivatives(ours, 1e3 * query, 1e3 * key, value, counts)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((values, gradients)))
  best = jnp.einsum('bthd,bshd->bhts', query, key).argmax(-1)  # [batch, heads, time]
  expected = jnp.take_along_axis(value.swapaxes(1, 2), best[..., None], 2).swapaxes(1, 2)
  np.testing.assert_allclose(values, expected, atol=1e-6)
