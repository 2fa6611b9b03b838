"""What a classification run leaves: the right mistakes, the right gradient, and it says which seed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from karpjax.data import splitting
from karpjax.data.dataset import Split
from karpjax.report import classification, pictures
from karpjax.train.predict import predict_split


def linear():
  """A linear classifier's logits of 2×2 images with two channels, 503 of them (not a multiple of a batch)."""
  rng = np.random.default_rng(0)
  arrays = {
    'image': rng.integers(0, 256, (503, 2, 2, 2)).astype(np.uint8),
    'label': rng.integers(0, 3, 503).astype(np.int32),
  }
  kernel = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)

  def predict(kernel, batch, key):
    return batch['image'].astype(jnp.float32).reshape(len(batch['image']), -1) / 255 @ kernel

  return Split.of(**arrays), predict, kernel


def test_the_report_is_of_every_example_once(tmp_path, monkeypatch):
  split, predict, kernel = linear()
  arrays, shown = split.arrays, {}
  for name in ('mistakes', 'saliency', 'filters'):
    original = getattr(pictures, name)
    monkeypatch.setattr(
      pictures, name, lambda *a, name=name, original=original: (shown.update({name: a}), original(*a))
    )
  classification.write(
    tmp_path,
    classes=('a', 'b', 'c'),
    labels=arrays['label'],
    probabilities=np.asarray(jax.nn.softmax(predict_split(predict, kernel, split))),
    images=lambda numbers: split.fetch(numbers)['image'] / 255,
    kernel=classification.first_kernel({'dense': {'kernel': kernel, 'bias': jnp.zeros(3)}}, (2, 2, 2)),
    saliency=lambda numbers: classification.saliency(predict, kernel, split.fetch(numbers)),
    heading='test split, step 40',
    seeds=5,
  )

  kernel = np.asarray(kernel)
  logits = arrays['image'].reshape(503, -1) / 255 @ kernel
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels, predicted = arrays['label'], logits.argmax(1)
  report = json.loads((tmp_path / 'report.json').read_text())
  assert [row['support'] for row in report['classes']] == np.bincount(labels).tolist()
  assert report['micro']['recall'] == pytest.approx((labels == predicted).mean())
  assert report['heading'] == 'test split, step 40' and report['shown'] == 'first of 5 seeds'
  text = (tmp_path / 'report.txt').read_text()
  assert text.startswith('test split, step 40 · first of 5 seeds\n') and 'weighted average' in text

  # the worst mistakes: by a plain sort of all wrong ones
  wrong = sorted((probabilities[i, labels[i]], i) for i in range(503) if predicted[i] != labels[i])[:20]
  worst = [i for _, i in wrong]
  images, true, guessed, chance = shown['mistakes'][:4]
  np.testing.assert_allclose(images, arrays['image'][worst] / 255, rtol=1e-6)
  assert list(true) == ['abc'[labels[i]] for i in worst] and list(guessed) == ['abc'[predicted[i]] for i in worst]
  np.testing.assert_allclose(chance, probabilities[worst].max(1), rtol=1e-5)

  # a linear model's gradient is its weights, whatever the image
  maps = shown['saliency'][1]
  expected = np.abs(kernel.T.reshape(3, 2, 2, 2)).max(-1)[predicted[splitting.sample(len(labels), 8)]] / 255
  np.testing.assert_allclose(maps, expected, rtol=1e-5)
  np.testing.assert_array_equal(shown['filters'][0], kernel.reshape(2, 2, 2, 3))
  assert {path.stem for path in (tmp_path / 'plots').iterdir()} == {
    'confusion_matrix', 'reliability_diagram', 'worst_mistakes', 'first_layer_filters', 'saliency'
  }  # fmt: skip


def test_a_perfect_classifier_has_no_mistakes_and_an_earlier_reports_go(tmp_path):
  earlier = tmp_path / 'plots' / 'worst_mistakes.png'
  earlier.parent.mkdir()
  earlier.write_bytes(b'')
  images = lambda indices: np.zeros((len(indices), 4, 4, 1))
  probabilities = np.array([[0.6, 0.4], [0.4, 0.6]])
  classification.write(
    tmp_path, classes=['a', 'b'], labels=np.array([0, 1]), images=images, probabilities=probabilities
  )
  assert not earlier.exists() and json.loads((tmp_path / 'report.json').read_text())['macro']['f1'] == 1


def test_the_first_kernel_is_that_which_meets_the_image():
  find = classification.first_kernel
  deep = {'b': {'kernel': np.zeros((3, 3, 16, 32))}, 'c': {'kernel': np.zeros((3, 3, 3, 16))}}
  assert find(deep, (32, 32, 3)).shape == (3, 3, 3, 16)
  assert find({'dense': {'kernel': np.arange(40 * 5.0).reshape(40, 5)}}, (40, 1)).shape == (40, 1, 5)
  assert find({'gru': {'kernel': np.zeros((1, 30))}}, (40, 1)) is None
  assert find(None, (8, 8, 1)) is None
