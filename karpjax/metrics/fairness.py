"""Decisions compared by group: rates with intervals, the differences that fairness is measured by, and calibration."""

import itertools
from typing import Any

import numpy as np

from karpjax.errors import UsageError

RATES = {  # -> of which rows it is a share
  'accuracy': 'n', 'FPR': 'negatives', 'FNR': 'positives', 'PPV': 'selected', 'selection rate': 'n',
}  # fmt: skip
Z = 1.959964  # of 95 %
BINS = 10


def wilson(share: float, n: int) -> list[float]:
  """[share, low, high]: Wilson's 95 % interval of a share of n rows (Wilson 1927); NaN of none."""
  if not n:
    return [float('nan')] * 3
  middle, width = share + Z**2 / (2 * n), Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
  return [float(share), *(float(min(max(x / (1 + Z**2 / n), 0), 1)) for x in (middle - width, middle + width))]


def by_group(labels: np.ndarray, selected: np.ndarray, groups: np.ndarray, least: int) -> dict[str, Any]:
  """Decisions of each group, and how the groups differ, by fairlearn.

  Args:
    labels, selected: [n] bool; which rows are positive, and which were taken for it.
    groups: [n] names.
    least: a group with fewer rows of either label is too small to judge, and does not count in the differences.

  Returns:
    {'groups': {name: {'n', 'positives', 'negatives', 'selected', 'small', rate of RATES: [share, low, high]}},
     'differences': {'demographic parity', 'equalised odds'}: largest differences between groups of selection rates, and of
     FPR or of true-positive rates (Hardt et al. 2016); None where fewer than two groups can be judged}.

  Raises:
    UsageError: without fairlearn.
  """
  try:
    from fairlearn import metrics
  except ImportError:
    raise UsageError('audit needs fairlearn: pip install -r requirements-fairness.txt') from None
  from sklearn.metrics import accuracy_score, precision_score

  truth, decided = labels.astype(int), selected.astype(int)
  counts = {
    'n': metrics.count,
    'positives': lambda true, taken: int(np.sum(true)),
    'negatives': lambda true, taken: int(np.sum(1 - np.asarray(true))),
    'selected': lambda true, taken: int(np.sum(taken)),
  }
  shares = {
    'accuracy': accuracy_score, 'FPR': metrics.false_positive_rate, 'FNR': metrics.false_negative_rate,
    'PPV': lambda true, taken: precision_score(true, taken, zero_division=0), 'selection rate': metrics.selection_rate,
  }  # fmt: skip
  frame = metrics.MetricFrame(metrics=counts | shares, y_true=truth, y_pred=decided, sensitive_features=groups)
  found = {}
  for name, row in frame.by_group.iterrows():
    own = {count: int(row[count]) for count in counts}
    own['small'] = min(own['positives'], own['negatives']) < least
    found[str(name)] = own | {rate: wilson(row[rate], own[of]) for rate, of in RATES.items()}
  judged = np.isin(groups, [name for name, own in found.items() if not own['small']])
  enough = len(np.unique(groups[judged])) > 1
  both = (truth[judged], decided[judged])
  measures = {
    'demographic parity': metrics.demographic_parity_difference, 'equalised odds': metrics.equalized_odds_difference
  }  # fmt: skip
  differences = {
    name: float(measure(*both, sensitive_features=groups[judged])) if enough else None
    for name, measure in measures.items()
  }
  return {'groups': found, 'differences': differences}


def distinct(values: np.ndarray, digits: int = 6) -> list[str]:
  """Different numbers as texts of as few digits, from `digits` on, as tell all of them apart."""
  written = ([f'{x:.{n}g}' for x in values] for n in itertools.count(digits))
  return next(texts for texts in written if len({*texts}) == len(values))


def calibration(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
  """{score: {group: {'n', 'positives': [share, low, high]}}}: how often each score is right, group by group.

  Args:
    scores: [n] names or numbers; of more than BINS different numbers there are bins with as many rows each.
  """
  values = np.unique(scores)
  if scores.dtype.kind == 'f' and len(values) > BINS:
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)))
    places = np.clip(np.searchsorted(edges, scores, 'right') - 1, 0, len(edges) - 2)
    names = [f'{low} to {high}' for low, high in itertools.pairwise(distinct(edges, 3))]
  else:
    places, names = (
      np.searchsorted(values, scores),
      distinct(values) if scores.dtype.kind == 'f' else [*map(str, values)],
    )
  table: dict[str, dict[str, Any]] = {}
  for place, name in enumerate(names):
    for group in np.unique(groups):
      own = labels[(places == place) & (groups == group)]
      table.setdefault(name, {})[str(group)] = {
        'n': len(own),
        'positives': wilson(own.mean() if len(own) else 0, len(own)),
      }
  return table
