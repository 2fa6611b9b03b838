"""Batches cut to the shortest of a few lengths: less work, the same results, one program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from karpjax import collectives, config
from karpjax.data import bucketing as buckets
from karpjax.program import TrainState, pair
from karpjax.train import transforms as transform
from karpjax.train.step import train_step


@pytest.mark.parametrize('count', [1, 2, 3, 4, 9])
def test_edges_need_the_fewest_places_of_all_choices(count):
  lengths = np.random.default_rng(count).integers(2, 12, 60)
  values = np.unique(lengths)

  def places(edges):
    return sum(min(e for e in edges if e >= n) for n in lengths)

  ours = buckets.edges(lengths, count)
  every = (
    (*some, values[-1]) for k in range(count) for some in itertools.combinations(values[:-1], min(k, len(values) - 1))
  )
  assert len(ours) <= count and ours[-1] == values[-1] and list(ours) == sorted(set(ours))
  assert places(ours) == min(map(places, every))


LENGTHS = (4, 7, 12)


def rows(longest, size=4):
  x = np.zeros((size, 12), np.float32)
  x[0, :longest] = 1
  x[1:, :2] = 1
  return {'x': jnp.asarray(x), 'index': jnp.arange(size)}


def test_the_shortest_length_that_holds_the_batch_is_taken():
  run = jax.jit(buckets.bucketed(lambda state, batch: state + batch['x'].shape[1], LENGTHS, {'x': 0}))
  for longest, length in ((1, 4), (4, 4), (5, 7), (7, 7), (8, 12), (12, 12)):
    assert run(0, rows(max(longest, 2))) == length
  assert run._cache_size() == 1


def test_seeds_under_vmap_share_the_length_that_holds_all_and_compute_no_other():
  seen = []

  def count(state, batch):
    jax.debug.callback(lambda _, n=batch['x'].shape[1]: seen.append(n), state)
    return batch['x'].sum()

  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), rows(3), rows(6))
  out = jax.jit(jax.vmap(buckets.bucketed(count, LENGTHS, {'x': 0})))(jnp.zeros(2), both)
  jax.effects_barrier()
  np.testing.assert_array_equal(out, [3 + 6, 6 + 6])
  assert set(seen) == {7}


def test_replicas_take_one_length_and_agree():
  def total(state, batch):
    return collectives.total(batch['x'].sum() + 100 * batch['x'].shape[1])

  each = jax.tree.map(lambda *x: jnp.stack(x), *[rows(n) for n in (2, 3, 6, 2)])
  out = jax.pmap(buckets.bucketed(total, LENGTHS, {'x': 0}), axis_name=collectives.REPLICAS, devices=jax.devices()[:4])(
    jnp.zeros(4), each
  )
  np.testing.assert_array_equal(out, [8 + 9 + 12 + 8 + 4 * 700] * 4)


def test_a_training_step_is_the_same_as_on_the_whole_length():
  optimiser = optax.adam(1e-2)

  def loss(params, collections, batch, key):
    real = batch['x'] != 0
    return {'loss': pair(jnp.square(batch['x'] * params - 3).sum(1, where=real))}, collections

  step = train_step(loss, optimiser, config.Train())
  state = TrainState.create(jax.random.key(0), {'params': jnp.array(0.5)}, optimiser)
  whole, cut_down = jax.jit(step), jax.jit(buckets.bucketed(step, LENGTHS, {'x': 0}))
  a = b = state
  for longest in (3, 9, 6, 12):
    (a, metrics), (b, others) = whole(a, rows(longest)), cut_down(b, rows(longest))
    assert jax.tree.all(
      jax.tree.map(lambda x, y: np.allclose(x, y, rtol=1e-6), (a.params, metrics), (b.params, others))
    )
  assert transform.all_finite(b.params)


def test_without_lengths_nothing_is_cut():
  step = lambda state, batch: (state, batch)
  for lengths in ((), (5,)):
    assert buckets.bucketed(step, lengths, {'x': 0}) is step
