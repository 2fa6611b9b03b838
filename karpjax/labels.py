"""What the labels of examples are, and what follows from it: loss, metrics, report. One class each, or any number of tags."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.data import frequencies
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError
from karpjax.losses import classification, multi_label
from karpjax.metrics import classification as class_metrics
from karpjax.metrics import collect, roc
from karpjax.metrics import multi_label as tag_metrics
from karpjax.program import Program, pair
from karpjax.report import classification as class_report
from karpjax.report import multi_label as tag_report
from karpjax.report import roc as roc_report
from karpjax.report import tables


def kind(spec) -> type['Classes']:
  """`Tags` where an example may be of several classes, else `Classes`."""
  return Tags if spec.multi_label else Classes


class Classes:
  """An example is of one class: labels are [batch] int32.

  Args:
    config: with loss, label_smoothing, class_weights and auc; of `Tags` with tag_loss and class_weights.
    data: whose train split tells frequencies, where it is in memory.
  """

  probabilities = staticmethod(jax.nn.softmax)  # of logits

  def __init__(self, config, data: Dataset):
    self.config, self.data, self.count = config, data, len(data.spec.classes)
    self._set_up()

  def _set_up(self) -> None:
    self.squared, self.examples = self.config.loss == 'squared_error', collect.evaluated(self.config, self.data.splits)
    self.smoothing, self.weights = (0.0, None) if self.squared else (self.config.label_smoothing, self._weights())
    plain = not self.squared and self.weights is None
    self.uninformed = frequencies.uninformed(self.data, 'label', self.count, self.smoothing) if plain else {}

  def _weights(self):
    if self.config.class_weights == 'none':
      return None
    counts = np.bincount(self._found(), minlength=self.count)
    return (counts.sum() / (self.count * np.maximum(counts, 1))).astype(np.float32)

  def _found(self) -> np.ndarray:
    """The labels of train; a UsageError where they are not in memory, unless there is no train split at all."""
    found = frequencies.targets(self.data, 'label')
    if 'train' in self.data.splits and not len(found):
      flag = f'class_weights={self.config.class_weights}'
      raise UsageError(f'{flag}: train is streamed, and its frequencies are not known; raise resident_mb')
    return found

  def targets(self, labels):
    """[batch, classes] float32, which examples can be mixed by."""
    return jax.nn.one_hot(labels, self.count)

  def loss(self, logits, targets):
    """[batch] float32 of logits [batch, classes] and labels or `targets`."""
    if self.squared:
      return classification.squared_error_to_targets(logits, targets)
    losses = classification.cross_entropy(logits, targets, label_smoothing=self.smoothing)
    if self.weights is None:
      return losses
    return losses * (jnp.asarray(self.weights)[targets] if targets.ndim == 1 else targets @ self.weights)

  def wrong(self, logits, labels):
    """(sum, count) of the share that is wrong."""
    return pair(logits.argmax(-1) != labels)

  def evaluate(self, logits, batch):
    """Sums of a batch, of which `summarise` makes numbers."""
    sums = class_metrics.sums(logits, batch['label'], self.loss(logits, batch['label']), batch['mask'])
    return sums | ({'scores': roc.sums(logits, batch, self.examples)} if self.config.auc else {})

  def summarise(self, sums):
    return class_metrics.summarise(sums) | (roc.summarise(sums['scores']) if 'scores' in sums else {})

  def report(self, folder, splits, probabilities, **shown) -> list[str]:
    """What a report leaves, and lines for the reader; `shown` goes to `report.classification.write`.

    Args:
      splits: {name: Split}: the one shown last.
      probabilities: Split -> [size, classes].
    """
    *_, last = splits
    own = splits if self.config.auc else {last: splits[last]}
    found, classes = {name: (s.column('label'), probabilities(s)) for name, s in own.items()}, self.data.spec.classes
    class_report.write(folder, classes=classes, **dict(zip(('labels', 'probabilities'), found[last])), **shown)
    if not self.config.auc:
      return []
    return roc_report.write(folder, found, classes, shown['heading'], tables.first_of(self.config.seeds))

  def begin(self, program: Program) -> Program:
    """The Program, its last layer knowing how frequent labels are where that is of use."""
    return program


class Tags(Classes):
  """An example has any number of tags: labels are [batch, tags] int8 of 1, 0, or -1 where one is not known."""

  probabilities = staticmethod(jax.nn.sigmoid)

  def _set_up(self) -> None:
    found = frequencies.targets(self.data, 'label').reshape(-1, self.count)
    self.examples = collect.evaluated(self.config, self.data.splits)
    self.own, self.weights = multi_label.LOSSES[self.config.tag_loss], self._weights()
    present, known = (found == 1).sum(0), np.maximum((found >= 0).sum(0), 1)
    self.odds = (present + 0.5) / (known + 1)  # never 0 or 1
    self.uninformed = {}
    if self.config.tag_loss == 'binary' and self.weights is None and len(found):
      p = present / known
      entropy = -sum(np.where(q > 0, q * np.log(np.maximum(q, 1e-300)), 0).mean() for q in (p, 1 - p))
      self.uninformed = {'untrained_loss': math.log(2), 'uninformed_loss': float(entropy)}
    self.unknown = bool((found < 0).any())

  def _weights(self):
    if self.config.class_weights == 'none':
      return None
    found = self._found().reshape(-1, self.count)
    return ((found == 0).sum(0) / np.maximum((found == 1).sum(0), 1)).astype(np.float32)

  def targets(self, labels):
    if self.unknown:
      raise UsageError('mixup and cutmix mix labels, and some of these are not known')
    return labels.astype(jnp.float32)

  def loss(self, logits, targets):
    return multi_label.mean_over_known(self.own, logits, targets, 1.0 if self.weights is None else self.weights)

  def wrong(self, logits, labels):
    return pair((logits > 0) != (labels == 1), labels >= 0)

  def evaluate(self, logits, batch):
    losses = self.loss(logits, batch['label'])
    return tag_metrics.sums(logits, batch['label'], losses, batch, self.examples)

  def summarise(self, sums):
    return tag_metrics.summarise(sums)

  def report(self, folder, splits, probabilities, **shown) -> list[str]:
    found = {name: (split.column('label'), probabilities(split)) for name, split in splits.items()}
    tag_report.write(folder, tags=self.data.spec.classes, found=found, **shown)
    return []

  def begin(self, program):
    prior = np.log(self.odds / (1 - self.odds))

    def known(path, x):
      last = jax.tree_util.keystr(path, simple=True, separator='/').endswith('logits/bias') and x.shape == prior.shape
      return jnp.asarray(prior, x.dtype) if last else x

    def init(key):
      state = program.init(key)
      both = (tree and jax.tree.map_with_path(known, tree) for tree in (state.params, state.ema))
      return state.replace(**dict(zip(('params', 'ema'), both)))

    return dataclasses.replace(program, init=init)
