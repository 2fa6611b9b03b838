"""What counting words does already: the linear baselines of text classification, by scikit-learn."""

from collections.abc import Mapping

from karpjax.data import tokenisers
from karpjax.data.dataset import Split

MODELS = ('linear SVM', 'logistic regression')


def baselines(splits: Mapping[str, Split]) -> dict[str, dict[str, float]]:
  """Linear models on TF-IDF of words and pairs of words, fitted to train and measured on the other splits.

  Nothing is chosen: logarithmic counts (1 + log tf), lower case, and scikit-learn's own strength of regularisation.

  Args:
    splits: 'train' and others, of 'text' [n] (strings) and 'label' [n] int32.

  Returns:
    {model: {'SPLIT/accuracy': share, 'SPLIT/macro_f1': mean over the classes}}.
  """
  from sklearn import feature_extraction, linear_model, metrics, svm

  vectoriser = feature_extraction.text.TfidfVectorizer(
    token_pattern=tokenisers.WORDS.pattern, ngram_range=(1, 2), sublinear_tf=True
  )
  words, labels = ({name: split.arrays[key] for name, split in splits.items()} for key in ('text', 'label'))
  inputs = {'train': vectoriser.fit_transform(words.pop('train'))}
  inputs |= {split: vectoriser.transform(each) for split, each in words.items()}
  numbers = {}
  for name, model in zip(MODELS, (svm.LinearSVC(random_state=0), linear_model.LogisticRegression(max_iter=1000))):
    model.fit(inputs['train'], labels['train'])
    numbers[name] = {}
    for split in words:
      predicted, truth = model.predict(inputs[split]), labels[split]
      f1 = metrics.f1_score(truth, predicted, average='macro', labels=model.classes_, zero_division=0)
      numbers[name] |= {f'{split}/accuracy': float((predicted == truth).mean()), f'{split}/macro_f1': float(f1)}
  return numbers
