"""Policies with a memory: many steps at once are those steps one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.models.actor_critic import ActorCritic

BATCH, TIME = 3, 6


def sequences(fresh, **options):
  """Outputs and values of all steps at once, and of one after the other, where an episode's first has a blank memory."""
  shape = (5, 5, 2) if options.get('body') == 'cnn' else (4,)
  x = jax.random.normal(jax.random.key(1), (BATCH, TIME, *shape))
  model = ActorCritic(outputs=4, widths=(8,), memory_width=5, **options)
  blank = jax.tree.map(lambda s: jnp.zeros((BATCH, *s.shape)), model.blank())
  params = jax.jit(model.init)(jax.random.key(0), x[:, 0], blank)
  remembered = jax.tree.map(lambda s: jax.random.normal(jax.random.key(2), s.shape), blank)
  *together, last = jax.jit(model.apply)(params, x, remembered, fresh)
  alone, step = [], jax.jit(model.apply)
  for t in range(TIME):
    remembered = jax.tree.map(lambda s, t=t: np.where(fresh[:, t, None], 0, s), remembered)
    *made, remembered = step(params, x[:, t], remembered)
    alone.append(made)
  return together, [jnp.stack(parts, 1) for parts in zip(*alone)], last, remembered


@pytest.mark.parametrize(
  'options',
  [dict(memory='lstm'), dict(memory='gru', shared=True), dict(memory='lstm', body='cnn', continuous=True, shared=True)],
)
def test_a_rollout_across_an_episodes_end_is_its_parts(options):
  fresh = np.zeros((BATCH, TIME), bool)
  fresh[0, 3] = fresh[1, 0] = fresh[1, 5] = True
  together, alone, last, remembered = sequences(fresh, **options)
  assert [x.shape for x in together] == [(BATCH, TIME, 4), (BATCH, TIME)]
  for one, other in zip(together, alone):
    np.testing.assert_allclose(one, other, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, remembered)
  if options == dict(memory='lstm'):
    values, unbroken = together[1], sequences(np.zeros_like(fresh), **options)[0][1]
    changed = np.abs(values - unbroken) > 1e-4
    np.testing.assert_array_equal(changed, np.cumsum(fresh, 1) > 0)


def test_policy_and_value_remember_apart_unless_they_share_the_body():
  assert ActorCritic(2, memory='lstm', memory_width=3).blank().keys() == {'actor', 'critic'}
  blank = ActorCritic(2, memory='lstm', memory_width=3, shared=True).blank()
  assert jax.tree.map(jnp.shape, blank) == {'body': ((3,), (3,))}
