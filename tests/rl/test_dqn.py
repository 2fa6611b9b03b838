"""Q-learning on a corridor, whose values are known, with a table for a network; its losses in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from experiments import value_learning
from experiments.value_learning import Config
from karpjax.program import REPLAY, TrainState, example_keys
from karpjax.rl import distributional, replay, rollout
from karpjax.rl.environment import Box, Discrete, Environment, TimeStep, time_limit
from karpjax.train import transforms as transform

PLACES, DISCOUNT, WORLDS = 4, 0.8, 4
BATCH = {'index': np.arange(WORLDS, dtype=np.int32)}


def corridor(actions=2, limit=5):
  """Right (the last action) or left from a drawn place; 1 and the end beyond the last; cut after `limit` steps."""

  def reset(key):
    place = jax.random.randint(key, (), 0, PLACES)
    return place, jax.nn.one_hot(place, PLACES)

  def step(key, place, action):
    place = jnp.where(action == actions - 1, place + 1, jnp.maximum(place - 1, 0))
    over = place == PLACES
    return place, TimeStep(jax.nn.one_hot(place, PLACES), over * 1.0, over, jnp.zeros((), bool))

  return time_limit(Environment('corridor', reset, step, Box((PLACES,)), Discrete(actions), limit))


def exact(actions=2):
  """[places, actions] by value iteration; nothing of the limit, which only cuts."""
  values = np.zeros((PLACES + 1, actions))
  for _ in range(100):
    best = values.max(1)
    for place in range(PLACES):
      values[place, 0] = DISCOUNT * best[max(place - 1, 0)]
      values[place, actions - 1] = DISCOUNT * best[place + 1] + (place + 1 == PLACES)
  return values[:-1]


def configured(**changes):
  given = dict(
    batch_size=WORLDS, train_frequency=4, replay_batch=8 * WORLDS, learning_starts=32, target_every=32, discount=DISCOUNT,
    exploration_start=1.0, exploration_end=1.0, exploration_steps=1,
  )  # fmt: skip
  return Config(**given | changes)


def begin(config, optimiser, actions=2, capacity=50):
  """(state, step), with a table [places, actions(, atoms)] of zeros."""
  environment = corridor(actions)
  atoms = (config.atoms,) if config.atoms else ()
  table = lambda key: {'params': jnp.zeros((PLACES, actions, *atoms))}
  apply = lambda table, observation: jnp.tensordot(observation, table, 1)
  policy = value_learning.greedy(environment, table, apply, config)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(9), np.arange(WORLDS))
  state = TrainState.create(
    jax.random.key(1),
    table(None),
    optimiser,
    target=table(None)['params'],
    carried={'worlds': rollout.start(environment, keys)},
    buffers=replay.empty(environment, WORLDS, capacity, config.priority > 0),
  )
  return state, value_learning.train_step(policy, optimiser, config)


MUCH = dict(double=True, tau=0.3, updates=2, priority=0.6, microbatches=2)


@pytest.mark.parametrize(
  'changes, actions',
  [
    (MUCH | dict(atoms=6, lowest=0.0, highest=1.0), 2),
    pytest.param(dict(), 2, marks=pytest.mark.slow),
    pytest.param(MUCH | dict(loss='huber'), 2, marks=pytest.mark.slow),
    # of one policy only: several steps of others are no values of the best
    pytest.param(dict(n_step=3), 1, marks=pytest.mark.slow),
    pytest.param(dict(atoms=6, lowest=0.0, highest=1.0), 2, marks=pytest.mark.slow),
  ],
)
def test_the_values_of_a_corridor_are_learnt(changes, actions):
  config = configured(**changes)
  state, step = begin(config, optax.adam(0.05) if config.atoms else optax.sgd(1.0), actions)
  state = jax.jit(lambda s: jax.lax.fori_loop(0, 500, lambda i, s: step(s, BATCH)[0], s))(state)
  values = value_learning.values(config, jnp.asarray(state.params))
  np.testing.assert_allclose(values, exact(actions), atol=0.02)


def test_an_update_is_that_of_the_formula():
  """Double, prioritised, two steps, at the first update and with a target network of its own."""
  config = configured(
    double=True, priority=0.5, importance=0.4, importance_steps=320, n_step=2, learning_starts=16, target_every=1000
  )
  state, step = begin(config, optax.sgd(0.1))
  drawn = np.random.default_rng(0).normal(size=(2, PLACES, 2)).astype(np.float32)
  state = state.replace(params=jnp.asarray(drawn[0]), target=jnp.asarray(drawn[1]))
  after, metrics = jax.jit(step)(state, BATCH)
  rings = jax.device_get(after.buffers)
  priority = np.where(np.arange(50) < 4, 1.0, np.zeros((WORLDS, 50)))
  before = rings.replace(priority=priority, max_priority=np.ones(WORLDS))
  key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, 0), REPLAY), 0)
  draw = jax.jit(lambda rings, keys: replay.proportional(rings, 4, keys, 8, 2))
  places, importance = jax.device_get(draw(before, example_keys(key, BATCH)))
  weights = importance ** (0.4 + 0.6 * 16 / 320)
  weights /= weights.max()
  gradient, errors = np.zeros((PLACES, 2)), np.zeros((WORLDS, 50))
  for world in range(WORLDS):
    for place, weight in zip(places[world], weights[world]):
      total, worth = 0.0, 1.0
      for k in (place, place + 1):
        total, worth = total + worth * float(rings.reward[world, k]), worth * DISCOUNT
        if rings.terminated[world, k] | rings.truncated[world, k]:
          break
      following = rings.next_observation[world, k]
      if not rings.terminated[world, k]:
        total += worth * (following @ drawn[1])[(following @ drawn[0]).argmax()]
      here, action = rings.observation[world, place].argmax(), rings.action[world, place]
      error = drawn[0][here, action] - total
      gradient[here, action] += weight * error / (WORLDS * 8)
      errors[world, place] = error
  np.testing.assert_allclose(after.params, drawn[0] - 0.1 * gradient, rtol=1e-4, atol=1e-5)
  judged = (np.abs(errors) + replay.SMALLEST_PRIORITY) ** 0.5
  np.testing.assert_allclose(rings.priority, np.where(errors != 0, judged, priority), rtol=1e-3)
  np.testing.assert_array_equal(after.target, drawn[1])
  assert float(metrics['td_loss'][1]) == WORLDS * 8


def test_priorities_of_distributions_are_the_kl_from_targets_to_what_is_said_of_them():
  """Of the first update, from tables of their own: SciPy's, of the distributions that `project` makes."""
  config = configured(priority=1.0, atoms=3, lowest=0.0, highest=1.0, learning_starts=16, target_every=1000)
  state, step = begin(config, optax.sgd(0.1))
  tables = 2 * np.random.default_rng(0).normal(size=(2, PLACES, 2, 3)).astype(np.float32)
  after, metrics = jax.jit(step)(state.replace(params=jnp.asarray(tables[0]), target=jnp.asarray(tables[1])), BATCH)
  rings, (said, there) = jax.device_get(after.buffers), (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in tables)
  atoms, judged = np.array([0, 0.5, 1], np.float32), []
  for world, i in zip(*np.nonzero(rings.priority[:, :4] != 1)):
    here, action = rings.observation[world, i].argmax(), rings.action[world, i]
    following = there[rings.next_observation[world, i].argmax()]
    target = following[(following @ atoms).argmax()][None]
    discount = DISCOUNT * ~rings.terminated[world, i]
    target = distributional.project(target, rings.reward[world, i][None], np.float32(discount)[None], atoms)
    judged.append(stats.entropy(np.asarray(target, np.float64)[0], said[here, action]))
    np.testing.assert_allclose(rings.priority[world, i], judged[-1] + replay.SMALLEST_PRIORITY, rtol=1e-3, atol=1e-5)
  assert len(judged) > 8
  assert min(judged) <= metrics['td_error'][0] / metrics['td_error'][1] <= max(judged)


def test_learning_starts_where_it_says_and_the_target_network_follows_in_time():
  config = configured(learning_starts=48, target_every=64, exploration_end=0.2, exploration_steps=64, tau=0.25)
  state, step = begin(config, optax.sgd(0.5))
  step = jax.jit(step)
  for t in range(1, 9):  # 16 steps of environments in each
    previous, (state, metrics) = state, step(state, BATCH)
    learns, moved = t * 16 >= 48, not np.array_equal(previous.params, state.params)
    assert float(metrics['td_loss'][1]) == learns * WORLDS * 8
    assert moved == learns
    target = previous.target
    if t in (4, 8):
      target = target + 0.25 * (state.params - target)
      assert not np.array_equal(target, previous.target)
    np.testing.assert_allclose(state.target, target, rtol=1e-6)
    np.testing.assert_allclose(metrics['exploration'][0], max(0.2, 1 - 0.8 * (t - 1) * 16 / 64), rtol=1e-5)


def test_actions_are_drawn_as_often_as_epsilon_says():
  noise = jax.vmap(lambda key: value_learning.draw(key, 4, 0.3))(jax.random.split(jax.random.key(0), 8000))
  actions = value_learning.epsilon_greedy(jnp.zeros((8000, 4)).at[:, 2].set(1.0), noise)
  shares = np.bincount(actions, minlength=4) / 8000
  np.testing.assert_allclose(shares, [0.075, 0.075, 0.775, 0.075], atol=0.015)


def test_a_step_that_is_not_kept_leaves_the_params_and_takes_no_copy_of_the_replay():
  state, step = begin(configured(learning_starts=0), optax.sgd(0.1), capacity=50_000)
  zeros = lambda x: jnp.zeros(x.shape, x.dtype)
  totals = jax.tree.map(zeros, dict(jax.eval_shape(step, state, BATCH)[1]))
  carry = transform.Carry(state.replace(target=jnp.full_like(state.params, jnp.nan)), totals)
  compiled = jax.jit(transform.guarded(step), donate_argnums=0).lower(carry, BATCH).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < state.buffers.terminated.nbytes  # the smallest of its arrays
  after = compiled(carry, BATCH).state
  assert int(after.nonfinite_step) == 0 and not np.asarray(after.params).any()
  assert np.asarray(after.buffers.observation[:, :4]).any(-1).all()


def test_huber_s_gradient_is_the_clipped_error():
  errors, huber = jnp.array([-3.0, -1.0, -0.5, 0.0, 0.2, 4.0]), value_learning.LOSSES['huber']
  np.testing.assert_allclose(huber(errors), [2.5, 0.5, 0.125, 0, 0.02, 3.5], rtol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda x: huber(x).sum())(errors), jnp.clip(errors, -1, 1), rtol=1e-6)


def test_the_projection_is_that_of_the_paper_s_loop():
  drawn, size, low, high = np.random.default_rng(0), 11, -3.0, 7.0
  atoms = np.linspace(low, high, size)
  probabilities = drawn.dirichlet(np.ones(size), 40)
  rewards, discounts = drawn.normal(0, 4, 40), drawn.choice([0.0, 0.5, 0.99, 1.0], 40)
  rewards[:10] = np.round(rewards[:10])  # some fall on an atom exactly, where the loop's two neighbours are one
  spacing, expected = (high - low) / (size - 1), np.zeros((40, size))
  for row in range(40):
    for j in range(size):
      b = (np.clip(rewards[row] + discounts[row] * atoms[j], low, high) - low) / spacing
      below, above = int(np.floor(b)), int(np.ceil(b))
      if below == above:
        expected[row, below] += probabilities[row, j]
      else:
        expected[row, below] += probabilities[row, j] * (above - b)
        expected[row, above] += probabilities[row, j] * (b - below)
  given = [jnp.asarray(x, jnp.float32) for x in (probabilities, rewards, discounts, atoms)]
  projected = distributional.project(*given)
  np.testing.assert_allclose(projected, expected, atol=1e-5)
  np.testing.assert_allclose(projected.sum(1), 1, rtol=1e-5)


def test_an_action_s_values_are_taken_with_all_their_atoms():
  values = jnp.arange(24.0).reshape(2, 3, 4)
  np.testing.assert_array_equal(value_learning.of_actions(values, jnp.array([2, 0])), [values[0, 2], values[1, 0]])
  np.testing.assert_array_equal(value_learning.of_actions(values[..., 0], jnp.array([2, 0])), [8, 12])
