"""Policies with a memory: many steps at once are those steps one after the other; distributions against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from karpjax.models.actor_critic import ActorCritic, categorical, gaussian

BATCH, TIME = 3, 6


def sequences(is_first, **options):
  """Outputs and values of all steps at once, and of one after the other, where an episode's first has the initial memory."""
  shape = (5, 5, 2) if options.get('body') == 'cnn' else (4,)
  x = jax.random.normal(jax.random.key(1), (BATCH, TIME, *shape))
  model = ActorCritic(actions=2 if options.get('continuous') else 4, widths=(8,), memory_width=5, **options)
  initial = jax.tree.map(lambda s: jnp.zeros((BATCH, *s.shape)), model.initial_memory())
  params = jax.jit(model.init)(jax.random.key(0), x[:, 0], initial)
  memory = jax.tree.map(lambda s: jax.random.normal(jax.random.key(2), s.shape), initial)
  *together, last = jax.jit(model.apply)(params, x, memory, is_first)
  alone, step = [], jax.jit(model.apply)
  for t in range(TIME):
    memory = jax.tree.map(lambda s, t=t: np.where(is_first[:, t, None], 0, s), memory)
    *made, memory = step(params, x[:, t], memory)
    alone.append(made)
  return together, [jnp.stack(parts, 1) for parts in zip(*alone)], last, memory


@pytest.mark.parametrize(
  'options',
  [dict(memory='lstm'), dict(memory='gru', body='cnn', continuous=True, shared=True)],
)
def test_a_rollout_across_an_episodes_end_is_its_parts(options):
  is_first = np.zeros((BATCH, TIME), bool)
  is_first[0, 3] = is_first[1, 0] = is_first[1, 5] = True
  together, alone, last, memory = sequences(is_first, **options)
  assert [x.shape for x in together] == [(BATCH, TIME, 4), (BATCH, TIME)]
  for one, other in zip(together, alone):
    np.testing.assert_allclose(one, other, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, memory)
  if options == dict(memory='lstm'):
    values, unbroken = together[1], sequences(np.zeros_like(is_first), **options)[0][1]
    changed = np.abs(values - unbroken) > 1e-4
    np.testing.assert_array_equal(changed, np.cumsum(is_first, 1) > 0)


def test_policy_and_value_remember_apart_unless_they_share_the_body():
  assert ActorCritic(2, memory='lstm', memory_width=3).initial_memory().keys() == {'actor', 'critic'}
  initial = ActorCritic(2, memory='lstm', memory_width=3, shared=True).initial_memory()
  assert jax.tree.map(jnp.shape, initial) == {'body': ((3,), (3,))}


def test_categorical():
  logits = jnp.array([0.3, -1.0, 1.2])
  policy, chances = categorical(3), np.exp(logits) / np.exp(logits).sum()
  drawn = policy.sample(logits, policy.noise(jax.random.key(0), (20_000,)))
  np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, chances, atol=0.01)
  np.testing.assert_allclose(policy.log_prob(logits, jnp.arange(3)), np.log(chances), rtol=1e-5)
  np.testing.assert_allclose(policy.entropy(logits), stats.entropy(chances), rtol=1e-5)
  assert int(policy.sample(logits, 0.0)) == 2


def test_gaussian():
  policy = gaussian(2)
  outputs = jnp.array([0.5, -1.0, 0.2, -0.7])
  mean, deviation = np.array([0.5, -1.0]), np.exp([0.2, -0.7])
  drawn = np.asarray(policy.sample(outputs, policy.noise(jax.random.key(0), (20_000,))))
  np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
  np.testing.assert_allclose(drawn.std(0), deviation, atol=0.03)
  np.testing.assert_allclose(
    policy.log_prob(outputs, drawn[:5]), stats.norm(mean, deviation).logpdf(drawn[:5]).sum(-1), rtol=1e-4
  )
  np.testing.assert_allclose(policy.entropy(outputs), stats.norm(mean, deviation).entropy().sum(), rtol=1e-5)
  np.testing.assert_allclose(policy.sample(outputs, 0.0), mean)
