"""The order of examples is arithmetic on (seed, step)."""

import numpy as np
import pytest

from karpjax.data import batches
from karpjax.data.dataset import Split


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


def test_exact_evaluation_counts_every_example_once():
  calls = list(batches.exact(23, 10))
  assert [len(numbers) for numbers, _ in calls] == [10, 10, 10]
  assert [n for numbers, mask in calls for n in numbers[mask]] == list(range(23))


@pytest.mark.parametrize('workers', [0])
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
