"""Classification metrics against scikit-learn, plain loops and themselves cut differently."""

import jax
import numpy as np
import pytest
from sklearn import metrics as reference

from karpjax.metrics import classification


def example(seed=0, n=97, classes=7, temperature=1.0):
  """Random logits that favour the label; class 3 never occurs, class 5 is never predicted."""
  rng = np.random.default_rng(seed)
  labels = rng.choice([c for c in range(classes) if c != 3], n).astype(np.int32)
  logits = rng.normal(size=(n, classes)).astype(np.float32)
  logits[np.arange(n), labels] += 1
  logits[:, 5] -= 20
  return logits * np.float32(temperature), labels, rng.random(n).astype(np.float32)


def summed(logits, labels, losses, mask=None):
  mask = np.ones(len(labels), bool) if mask is None else mask
  return jax.device_get(jax.jit(classification.sums)(logits, labels, losses, mask))


def test_sums_do_not_depend_on_the_cut_or_the_padding():
  logits, labels, losses = example()
  whole = summed(logits, labels, losses)
  added = None
  for start in range(0, 97, 16):
    part = [x[start : start + 16] for x in (logits, labels, losses)]
    real = len(part[1])
    # padding that would be seen: NaN logits and losses, and a real class
    part = [
      np.concatenate([x, np.full((16 - real, *x.shape[1:]), 4 if x is part[1] else np.nan, x.dtype)]) for x in part
    ]
    new = summed(*part, np.arange(16) < real)
    added = new if added is None else jax.tree.map(np.add, added, new)
  assert added['correct'] == whole['correct'] and added['top5'] == whole['top5']
  np.testing.assert_array_equal(added['confusion'], whole['confusion'])
  np.testing.assert_array_equal(added['calibration'][:, [0, 2]], whole['calibration'][:, [0, 2]])
  np.testing.assert_allclose(added['calibration'][:, 1], whole['calibration'][:, 1], rtol=1e-6)
  np.testing.assert_allclose(added['loss'], whole['loss'], rtol=1e-6)
  assert whole['loss'][1] == 97


def test_summary_agrees_with_scikit_learn():
  logits, labels, losses = example()
  numbers = classification.summarise(summed(logits, labels, losses))
  predicted = logits.argmax(1)
  assert numbers['accuracy'] == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-12)
  assert numbers['error'] == pytest.approx(1 - numbers['accuracy'], abs=1e-12)
  assert numbers['top5_accuracy'] == pytest.approx(
    reference.top_k_accuracy_score(labels, logits, k=5, labels=range(7)), abs=1e-12
  )
  assert numbers['macro_f1'] == pytest.approx(
    reference.f1_score(labels, predicted, labels=range(7), average='macro', zero_division=0), abs=1e-12
  )
  assert numbers['loss'] == pytest.approx(losses.astype(float).mean(), rel=1e-6)


def test_top5_is_left_out_where_it_says_nothing():
  sums = summed(*example())
  assert 'top5_accuracy' in classification.summarise(sums)
  assert 'top5_accuracy' not in classification.summarise({**sums, 'confusion': sums['confusion'][:5, :5]})


def test_a_constant_guess_earns_no_more_than_its_share():
  labels = (np.arange(97) % 7).astype(np.int32)
  numbers = classification.summarise(summed(np.zeros((97, 7), np.float32), labels, np.zeros(97, np.float32)))
  assert numbers['accuracy'] == pytest.approx(14 / 97) and numbers['top5_accuracy'] == pytest.approx(70 / 97)
  assert numbers['ece'] == pytest.approx(14 / 97 - 1 / 7, abs=1e-6)  # its confidence is 1/7


@pytest.mark.parametrize('temperature', [0.3, 1.0, 4.0])
def test_calibration_error_is_that_of_a_plain_loop(temperature):
  logits, labels, losses = example(seed=1, temperature=temperature)
  probabilities = np.exp(logits.astype(float))
  probabilities /= probabilities.sum(1, keepdims=True)
  confidence, correct = probabilities.max(1), logits.argmax(1) == labels
  error = 0.0
  for m in range(1, 16):
    inside = [i for i in range(97) if (m - 1) / 15 < confidence[i] <= m / 15]
    if inside:
      gap = np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside])
      error += len(inside) / 97 * abs(gap)
  assert classification.summarise(summed(logits, labels, losses))['ece'] == pytest.approx(error, abs=1e-6)


def test_host_tally_equals_the_device_sums():
  logits, labels, losses = example(seed=2)
  device = summed(logits, labels, losses)
  confusion, calibration = classification.tally(labels, np.asarray(jax.nn.softmax(logits)))
  np.testing.assert_array_equal(confusion, device['confusion'])
  np.testing.assert_allclose(calibration, device['calibration'], rtol=1e-6)


def test_confusion_has_true_rows_and_predicted_columns():
  logits, labels, losses = example()
  expected = reference.confusion_matrix(labels, logits.argmax(1), labels=range(7))
  np.testing.assert_array_equal(summed(logits, labels, losses)['confusion'], expected)


@pytest.mark.filterwarnings('ignore')
def test_per_class_report_equals_scikit_learn_with_absent_classes_and_empty_ratios():
  logits, labels, _ = example()
  predicted = logits.argmax(1)
  assert 3 not in labels and 5 not in predicted and 5 in labels
  names = [f'class {i}' for i in range(7)]
  confusion = reference.confusion_matrix(labels, predicted, labels=range(7))
  ours = classification.per_class_report(confusion, names)
  theirs = reference.classification_report(
    labels, predicted, labels=range(7), target_names=names, output_dict=True, zero_division=0
  )
  theirs = {
    name: {k.replace('-score', ''): v for k, v in row.items()} for name, row in theirs.items() if name != 'accuracy'
  }
  for row in ours['classes']:
    assert {k: v for k, v in row.items() if k != 'class'} == pytest.approx(theirs[row['class']], abs=1e-12)
  assert ours['macro'] == pytest.approx(theirs['macro avg'], abs=1e-12)
  assert ours['weighted'] == pytest.approx(theirs['weighted avg'], abs=1e-12)
  micro = reference.precision_recall_fscore_support(labels, predicted, labels=range(7), average='micro')
  assert [ours['micro'][k] for k in ('precision', 'recall', 'f1')] == pytest.approx(micro[:3], abs=1e-12)
  assert [row['support'] for row in ours['classes']] == np.bincount(labels, minlength=7).tolist()


def test_no_example_gives_nan_and_no_warning(recwarn):
  numbers = classification.summarise(summed(*example(), np.zeros(97, bool)))
  assert np.isnan(numbers['loss']) and np.isnan(numbers['accuracy']) and np.isnan(numbers['ece'])
  assert not recwarn.list


def test_where_logits_are_nan_the_host_counts_what_the_device_does():
  logits, labels, losses = example(seed=3)
  logits = np.array(logits)
  logits[::4] = np.nan
  device = summed(logits, labels, losses)
  confusion, calibration = classification.tally(labels, np.asarray(jax.nn.softmax(logits)))
  np.testing.assert_array_equal(confusion, device['confusion'])
  np.testing.assert_allclose(calibration, device['calibration'], rtol=1e-6)
