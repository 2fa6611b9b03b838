"""The order of examples is arithmetic on (seed, step)."""

import dataclasses
import multiprocessing
import weakref

import numpy as np
import pytest

from karpjax.data import batches
from karpjax.data.dataset import Split
from karpjax.errors import UsageError


def test_an_epoch_visits_every_example_once_and_steps_need_no_history():
  size, batch_size = 103, 10
  all_at_once = batches.indices(5, 0, 31, batch_size=batch_size, size=size).reshape(-1)
  for epoch in range(3):
    assert sorted(all_at_once[epoch * size : (epoch + 1) * size]) == list(range(min(size, 310 - epoch * size)))[:size]
  for t in (0, 10, 17, 30):
    one = batches.indices(5, t, 1, batch_size=batch_size, size=size)[0]
    np.testing.assert_array_equal(one, all_at_once[t * batch_size : (t + 1) * batch_size])


def test_epochs_and_seeds_differ_and_orders_are_what_they_say():
  args = dict(batch_size=50, size=50)
  a, b = batches.indices(0, 0, 2, **args)
  assert not np.array_equal(a, b)
  assert not np.array_equal(a, batches.indices(1, 0, 1, **args)[0])
  once = batches.indices(0, 0, 2, **args, order='shuffle')
  np.testing.assert_array_equal(once[0], once[1])
  np.testing.assert_array_equal(once[0], a)
  np.testing.assert_array_equal(
    batches.indices(0, 1, 2, batch_size=30, size=50, order='stored')[0], [*range(30, 50), *range(10)]
  )


def test_orders_of_epochs_long_past_are_not_kept():
  first = weakref.ref(batches.permutation(3, 0, 1000))
  for epoch in range(1, 8):
    batches.permutation(3, epoch, 1000)
  assert first() is None


def test_exact_evaluation_counts_every_example_once():
  calls = list(batches.exact(23, 10))
  assert [len(numbers) for numbers, _ in calls] == [10, 10, 10]
  assert [n for numbers, mask in calls for n in numbers[mask]] == list(range(23))


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stream_gives_the_batches_of_its_steps_in_order(workers):
  split = Split.of(image=np.arange(40, dtype=np.uint8).reshape(20, 2))
  numbers = lambda t: batches.indices(0, t, 1, batch_size=4, size=20)[0]
  for t, batch in zip(range(3, 9), batches.stream(split, numbers, 3, 9, workers=workers)):
    np.testing.assert_array_equal(batch['index'], numbers(t))
    np.testing.assert_array_equal(batch['image'], split.arrays['image'][numbers(t)])


def test_fetch_keeps_the_shape_of_the_numbers():
  split = Split.of(image=np.arange(40, dtype=np.uint8).reshape(20, 2))
  batch = batches.fetch(split, np.array([[1, 2, 3], [4, 5, 6]]))
  assert batch['image'].shape == (2, 3, 2) and batch['image'][1, 2, 0] == 12


@pytest.mark.parametrize('size, batch_size', [(103, 10), (100, 10), (64, 64), (65, 64), (9, 4), (50, 1)])
def test_bucketed_epochs_visit_every_example_once_where_batches_straddle_them_too(size, batch_size):
  lengths = np.random.default_rng(0).integers(3, 40, size)
  order = batches.by_length(lengths, batch_size)
  steps = -(-4 * size // batch_size)
  numbers = batches.indices(5, 0, steps, batch_size=batch_size, size=size, order=order)
  flat = numbers.reshape(-1)
  for epoch in range(4):
    assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))
  anew = batches.by_length(lengths.copy(), batch_size)
  for t in range(0, steps, 7):  # a resume needs no history
    one = batches.indices(5, t, 1, batch_size=batch_size, size=size, order=anew)
    np.testing.assert_array_equal(one[0], numbers[t])


def test_bucketed_batches_are_of_similar_lengths_in_another_order_each_epoch():
  size, batch_size, epochs = 2010, 32, 6
  lengths = np.random.default_rng(1).integers(100, 1100, size)
  order = batches.by_length(lengths, batch_size)
  steps = epochs * size // batch_size
  numbers = batches.indices(0, 0, steps, batch_size=batch_size, size=size, order=order)
  spread = np.ptp(lengths[numbers], axis=1)  # a batch holds 1.6 % of all lengths, and a tenth around them
  assert spread.max() < 150
  straddles = [t for t in range(steps) if (t * batch_size) // size != (t * batch_size + batch_size - 1) // size]
  assert len(straddles) == 5 and spread[straddles].max() < 150
  assert np.ptp(lengths[numbers[straddles]].mean(1)) > 100  # at other lengths each time
  means = lengths[numbers].mean(1)
  assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # batches are shuffled
  first, second = order(0, 0), order(0, 1)
  assert not np.array_equal(first, second) and not np.array_equal(first, order(1, 0))
  whole = [frozenset(row) for row in first[: size // batch_size * batch_size].reshape(-1, batch_size)]
  assert not set(whole) & {frozenset(row) for row in second[6:-20].reshape(-1, batch_size)}  # nor of the same members


def test_lengths_go_with_the_examples_that_are_selected():
  split = Split.of(tokens=np.arange(12).reshape(6, 2))
  split = dataclasses.replace(split, lengths=np.arange(6) * 10)
  np.testing.assert_array_equal(split.select(np.array([4, 1])).lengths, [40, 10])


def broken(indices):
  if 5 in indices:
    raise UsageError('example 5 is broken')
  return {'x': indices}


@pytest.mark.slow
def test_processes_that_decode_end_where_an_example_cannot_be_read():
  """Those that are left until the interpreter ends fill its last lines with tracebacks."""
  stream = batches.stream(Split(40, None, broken), lambda t: np.arange(2 * t, 2 * t + 2), 0, 20, workers=2)
  with pytest.raises(UsageError, match='example 5 is broken'):
    list(stream)
  assert not multiprocessing.active_children()
