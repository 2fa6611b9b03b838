"""Entities counted by hand, and sums that do not depend on how the examples are cut."""

import jax
import numpy as np
import pytest

from karpjax.metrics import tagging

CLASSES = ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')
O, BL, IL, BP, IP = range(5)
TARGETS = np.array([[BP, IP, O, BL, -1], [O, O, -1, -1, -1], [BL, BL, IL, O, BP]], np.int32)
# Example 0: the person is right, the place is taken for a person. Example 1: a place where none is.
# Example 2: the first place is right, the second too short, the person begins with I-, which seqeval lets begin it.
PREDICTED = np.array([[BP, IP, O, BP, BL], [O, BL, O, O, O], [BL, BL, O, O, IP]], np.int32)
LOSSES = np.array([1.0, 2.0, 6.0], np.float32)


@jax.jit
def sums(*arrays):
  return tagging.sums(*arrays, examples=4)


def summed(order):
  """Of batches of two, the last filled up."""
  added = []
  for rows in np.array([*order, 0]).reshape(2, 2):
    real = np.array([True, len(added) < 1])
    losses = np.where(real, LOSSES[rows], np.nan)
    whose = np.ones(2, bool), rows.astype(np.int32), real
    added.append(jax.device_get(sums(PREDICTED[rows], TARGETS[rows], losses, *whose)))
  return jax.tree.map(lambda a, b: a + b, *added)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
def test_against_entities_counted_by_hand(order):
  numbers = tagging.summarise(summed(order), CLASSES)
  # words: 4 + 2 + 5; wrong are example 0's fourth, example 1's second, example 2's third and fifth
  expected = {'loss': 9 / 11, 'accuracy': 7 / 11, 'error': 4 / 11}
  # true: PER and LOC; none; LOC, LOC and PER. Predicted: PER and PER; LOC; LOC, LOC and PER. Right: PER; LOC and PER.
  expected |= {'precision': 3 / 6, 'recall': 3 / 5, 'f1': 6 / 11}
  assert numbers.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(numbers[name], value, rtol=1e-6, err_msg=name)


def test_the_report_by_type():
  named = lambda tags: tagging.named(tags, TARGETS, np.ones(3, bool), CLASSES)
  report = tagging.entity_report(named(TARGETS), named(PREDICTED))
  place, person = report['classes']
  assert place == {'class': 'LOC', 'precision': 1 / 3, 'recall': 1 / 3, 'f1': 1 / 3, 'support': 3}
  assert (person['class'], person['precision'], person['recall'], person['support']) == ('PER', 2 / 3, 1.0, 2)
  np.testing.assert_allclose(person['f1'], 0.8)
  np.testing.assert_allclose([report['micro']['f1'], report['macro']['f1']], [6 / 11, (1 / 3 + 0.8) / 2])
  assert report['weighted']['support'] == 5 and isinstance(person['support'], int)


def test_named_leaves_padding_out():
  assert tagging.named(PREDICTED, TARGETS, np.ones(3, bool), CLASSES)[1] == ['O', 'B-LOC']


@pytest.mark.parametrize('length', [2, 3])
def test_pieces_of_a_sentence_are_scored_as_the_sentence(length):
  """An entity that is cut is one entity, as seqeval says of the whole sentences."""
  from seqeval.metrics import f1_score, precision_score

  whole = [tagging.named(tags, TARGETS, np.ones(3, bool), CLASSES) for tags in (TARGETS, PREDICTED)]
  pieces = [(s, i) for s in range(3) for i in range(0, (TARGETS[s] >= 0).sum(), length)]
  padded = np.pad(np.stack([TARGETS, PREDICTED]), ((0, 0), (0, 0), (0, length)), constant_values=-1)
  targets, predicted = (np.stack([rows[s, i : i + length] for s, i in pieces]) for rows in padded)
  begins, index, mask = np.array([i == 0 for _, i in pieces]), np.arange(len(pieces)), np.ones(len(pieces), bool)
  found = tagging.sums(predicted, targets, np.zeros(len(pieces)), begins, index, mask, examples=len(pieces) + 2)
  numbers = tagging.summarise(jax.device_get(found), CLASSES)
  np.testing.assert_allclose(numbers['f1'], f1_score(*whole), rtol=1e-6)
  np.testing.assert_allclose(numbers['precision'], precision_score(*whole), rtol=1e-6)
  np.testing.assert_allclose(numbers['accuracy'], 7 / 11, rtol=1e-6)


def test_tags_that_mark_no_chunks_have_no_entities():
  numbers = tagging.summarise(summed((0, 1, 2)), ('DT', 'NN', 'VB', 'PRP', 'CC'))
  assert set(numbers) == {'loss', 'accuracy', 'error'}
