import numpy as np
import pytest

from karpjax.data.dataset import Split
from karpjax.metrics import tfidf


def split(pairs):
  return Split.of(text=np.array([t for t, _ in pairs], object), label=np.array([n for _, n in pairs], np.int32))


def test_words_and_pairs_of_words_decide_and_scores_are_of_the_other_splits():
  train = [('not good', 0), ('good', 1), ('not bad', 1), ('bad', 0)] * 10
  splits = {'train': split(train), 'test': split([('not bad', 1), ('BAD', 0), ('not good', 0), ('good', 0)])}
  numbers = tfidf.baselines(splits)
  assert set(numbers) == set(tfidf.MODELS)
  for row in numbers.values():
    # three of four; class 0: precision 1, recall 2/3; class 1: precision 1/2, recall 1
    assert row == {'test/accuracy': 0.75, 'test/macro_f1': pytest.approx((0.8 + 2 / 3) / 2)}


@pytest.mark.slow
def test_the_svm_on_trec_is_as_published(shared_data):
  """90.6 % is named for TF-IDF and a linear SVM on TREC."""
  from experiments.text_classification import Config
  from karpjax.data import labelled_text

  numbers = tfidf.baselines(labelled_text.read(Config(dataset='trec', data_dir=str(shared_data))).splits)
  assert 0.90 < numbers['linear SVM']['test/accuracy'] < 0.92
