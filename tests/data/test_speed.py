"""The command that times data sets."""

import itertools

import numpy as np
import pytest

from karpjax.data import images, speed


def test_it_prints_a_rate_for_each_way(capsys):
  assert speed.main(['digits', '--batch_size=16', '--workers', '--seconds=0.01']) == 0
  title, rates = capsys.readouterr().out.strip().split(': ')
  assert title == 'digits, images a second'
  assert [rate.rsplit(' ', 1)[0] for rate in rates.split(', ')] == ['one thread', 'threads', 'on the device']
  assert all(float(rate.rsplit(' ', 1)[1].replace(',', '')) > 0 for rate in rates.split(', '))


def test_all_ways_yield_the_same_batches():
  streamed, whole = (images.load(speed.Config(resident_mb=n)).splits['train'] for n in (0, 2048))
  taken = [list(itertools.islice(way, 3)) for way in speed.ways(streamed, whole, 16, []).values()]
  for batch in zip(*taken):
    for other in batch[1:]:
      np.testing.assert_array_equal(other['image'], batch[0]['image'])


@pytest.mark.parametrize(
  'argv, said',
  [
    (['digit'], 'digits'),
    (['--batch_size=0'], 'digits has'),
    (['--seconds=0'], 'positive'),
    (['--batch_size=9999'], 'digits has'),
  ],
)
def test_bad_input_is_one_line(argv, said, capsys):
  assert speed.main(argv) == 2
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
