"""What embeddings are worth: neighbours of the same class, a linear probe, and whether they have collapsed."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.losses.contrastive import normalised
from karpjax.metrics.collect import collect
from karpjax.program import pair

NEIGHBOURS = 10


def spread_sums(embeddings, mask) -> dict[str, Any]:
  """Sums of embeddings [batch, units] at length 1, from which `spread` tells how they lie."""
  x = jnp.where(mask[:, None], normalised(embeddings), 0)
  return {'count': mask.sum(), 'sum': x.sum(0), 'products': x.T @ x}


def spread(sums: Mapping[str, Any]) -> dict[str, float]:
  """Of `spread_sums` (on the host): 0 and 1 where all embeddings are one, 'spread' near 1 where they fill all directions.

  Returns:
    'spread': the deviation of the units, as a multiple of 1 / sqrt(units).
    'effective_rank': exp of the entropy of the covariance's eigenvalues (Roy & Vetterli 2007).
  """
  count = float(sums['count'])
  mean = np.asarray(sums['sum'], np.float64) / count
  covariance = np.asarray(sums['products'], np.float64) / count - np.outer(mean, mean)
  values = np.maximum(np.linalg.eigvalsh(covariance), 0)
  shares = values[values > 0] / values.sum() if values.sum() > 1e-9 else np.ones(1)
  deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0)).mean()
  return {
    'spread': float(deviation * np.sqrt(len(mean))),
    'effective_rank': float(np.exp(-(shares * np.log(shares)).sum())),
  }


def by_neighbours(embeddings, bank, bank_labels, classes: int):
  """The class that most of the ten nearest of a bank have, by cosine; of equals the one with the lowest number.

  Args:
    embeddings: [batch, units].
    bank: [examples, units], and bank_labels [examples] int32.

  Returns:
    [batch] int32.
  """
  similar = normalised(embeddings) @ normalised(bank).T  # [batch, examples]
  _, nearest = jax.lax.top_k(similar, min(NEIGHBOURS, len(bank)))
  votes = jax.nn.one_hot(bank_labels[nearest], classes).sum(1)  # [batch, classes]
  return votes.argmax(-1)


def probe_sums(embeddings, labels, batch, bank, bank_labels, examples: int) -> dict[str, Any]:
  """What `probe` wants: the rows of all examples, and the bank once for each batch."""
  rows = {'embeddings': embeddings, 'labels': labels.astype(jnp.int32) + 1}
  bank = {'bank': bank, 'bank_labels': bank_labels.astype(jnp.float32), 'batches': jnp.ones(())}
  return {**collect(rows, batch['index'], batch['mask'], examples), **bank}


def probe(sums: Mapping[str, Any]) -> float:
  """The accuracy of a logistic regression that is fitted to the bank, standardised (on the host)."""
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  times = float(sums['batches'])
  bank, bank_labels = np.asarray(sums['bank']) / times, np.rint(np.asarray(sums['bank_labels']) / times).astype(int)
  labels = np.asarray(sums['labels']) - 1
  there = labels >= 0
  if not there.any() or not np.isfinite(bank).all():
    return float('nan')
  fitted = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-2, max_iter=1000)).fit(bank, bank_labels)
  return float(fitted.score(np.asarray(sums['embeddings'])[there], labels[there]))


def neighbours_right(embeddings, labels, mask, bank, bank_labels, classes: int):
  """(sum, count) of the examples whose neighbours are of their class."""
  return pair(by_neighbours(embeddings, bank, bank_labels, classes) == labels, mask)
