"""Losses of guesses, against SciPy's entropies and the least loss that any constant output reaches."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from karpjax.data import frequencies
from karpjax.data.dataset import Dataset, Split
from karpjax.losses import classification

LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 3], np.int32)  # of four classes, one of which has no example


def of(**arrays):
  return Dataset(None, {'train': Split.of(**arrays)})


def test_frequencies_of_classes_are_a_better_guess_than_even_odds():
  found = frequencies.uninformed(of(label=LABELS), 'label', 4)
  assert found['untrained_loss'] == math.log(4)
  assert found['uninformed_loss'] == pytest.approx(stats.entropy([3, 2, 5]), rel=1e-12)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_no_constant_output_has_a_smaller_loss(smoothing):
  def loss(logits):
    rows = np.broadcast_to(logits.astype(np.float32), (len(LABELS), 4))
    return float(classification.cross_entropy(rows, LABELS, label_smoothing=smoothing).mean())

  least = optimize.minimize(loss, np.zeros(4), method='Powell', bounds=[(-12, 12)] * 4).fun
  assert frequencies.uninformed(of(label=LABELS), 'label', 4, smoothing)['uninformed_loss'] == pytest.approx(
    least, abs=1e-3
  )


def test_what_is_not_scored_does_not_count():
  targets = np.array([[5, 6, 6, -1], [0, 2, 6, 6]], np.int32)
  assert frequencies.uninformed(of(targets=targets), 'targets', 7, first=5)['uninformed_loss'] == pytest.approx(
    stats.entropy([1, 4])
  )


def test_targets_that_are_made_when_they_are_fetched_are_counted_too():
  gather = lambda arrays, numbers: {'targets': np.asarray(arrays['tokens'])[numbers[:, None] + np.arange(2)]}
  split = Split.lazy(9, {'tokens': LABELS}, gather)
  pairs = np.stack([LABELS[:-1], LABELS[1:]])
  found = frequencies.uninformed(Dataset(None, {'train': split}), 'targets', 4)
  assert found['uninformed_loss'] == pytest.approx(stats.entropy(np.bincount(pairs.ravel())))


def test_numbers_are_guessed_by_their_mean_and_pixels_by_their_own():
  y = np.array([1.0, 2.0, 6.0], np.float32)
  assert frequencies.uninformed_mean(of(target=y), 'target') == {
    'untrained_loss': 41 / 3,
    'uninformed_loss': pytest.approx(np.var([1, 2, 6])),
  }
  images = np.array([[[0, 255], [51, 0]], [[0, 255], [153, 0]]], np.uint8)[..., None]
  found = frequencies.uninformed_bits(of(image=images), 255)
  assert found == {
    'untrained_loss': pytest.approx(4 * math.log(2)),
    'uninformed_loss': pytest.approx(stats.entropy([0.4, 0.6])),
  }


@pytest.mark.parametrize('splits', [{}, {'train': Split(10, None, None)}])
def test_without_targets_at_hand_it_is_log_c(splits):
  """A trained run is asked without its data; a streamed set would have to be decoded."""
  data = Dataset(None, splits)
  assert frequencies.uninformed(data, 'label', 4)['uninformed_loss'] == pytest.approx(math.log(4))
  assert frequencies.uninformed_mean(data, 'label') == frequencies.uninformed_bits(data, 255) == {}


def test_targets_that_are_made_are_made_few_at_a_time():
  asked = []
  gather = lambda arrays, numbers: asked.append(len(numbers)) or {'targets': arrays['text'][numbers]}
  data = Dataset(None, {'train': Split.lazy(900, {'text': np.arange(900)}, gather)})
  assert sorted(frequencies.targets(data, 'targets')) == [*range(900)] and max(asked) <= 250


def test_of_targets_that_are_long_fewer_are_counted(monkeypatch):
  monkeypatch.setattr(frequencies, 'VALUES', 40)
  gather = lambda arrays, numbers: {'targets': np.zeros((len(numbers), 10), np.int32)}
  assert frequencies.targets(Dataset(None, {'train': Split.lazy(900, {'text': LABELS}, gather)}), 'targets').shape == (
    4,
    10,
  )
