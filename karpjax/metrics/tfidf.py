"""What counting words does already: the linear baselines of text classification, by scikit-learn."""

from collections.abc import Mapping, Sequence

import numpy as np

from karpjax.data import tokenisers

MODELS = ('linear SVM', 'logistic regression')


def baselines(
  texts: Sequence[str], labels: np.ndarray, others: Mapping[str, tuple[Sequence[str], np.ndarray]]
) -> dict[str, dict[str, float]]:
  """Linear models on TF-IDF of words and pairs of words, fitted to train and measured on other splits.

  Nothing is chosen: logarithmic counts (1 + log tf), lower case, and scikit-learn's own strength of regularisation.

  Args:
    texts: of train.
    labels: [n] int, of train.
    others: {split: (texts, labels)} to measure.

  Returns:
    {model: {'SPLIT/accuracy': share, 'SPLIT/macro_f1': mean over the classes}}.
  """
  from sklearn import feature_extraction, linear_model, metrics, svm

  vectoriser = feature_extraction.text.TfidfVectorizer(
    token_pattern=tokenisers.WORDS.pattern, ngram_range=(1, 2), sublinear_tf=True
  )
  inputs = vectoriser.fit_transform(texts)
  numbers = {}
  for name, model in zip(MODELS, (svm.LinearSVC(random_state=0), linear_model.LogisticRegression(max_iter=1000))):
    model.fit(inputs, labels)
    numbers[name] = {}
    for split, (words, truth) in others.items():
      predicted = model.predict(vectoriser.transform(words))
      f1 = metrics.f1_score(truth, predicted, average='macro', labels=np.unique(labels), zero_division=0)
      numbers[name] |= {f'{split}/accuracy': float((predicted == truth).mean()), f'{split}/macro_f1': float(f1)}
  return numbers
