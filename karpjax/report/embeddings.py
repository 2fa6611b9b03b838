"""What a run that embeds leaves: how its features lie, whose neighbours are whose, and the views that it learns from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from karpjax.data import splitting
from karpjax.losses.contrastive import normalised
from karpjax.report import pictures, plots
from karpjax.train.predict import predict_split

SHOWN, QUERIES, NEAREST = 2000, 4, 5


def write(folder: Path, predict: Callable, state, split, spec, note: str, views: Sequence[np.ndarray]) -> None:
  """plots/features.png, plots/neighbours.png and plots/views.png, of examples of a split.

  Args:
    predict: as a Program's: features [batch, units].
    views: raw examples [n, *shape], and views of them, as many as there are.
  """
  numbers = splitting.sample(split.size, SHOWN)
  few = split.select(numbers)
  features, arrays = predict_split(predict, state, few), few.fetch(np.arange(few.size))
  centred = features - features.mean(0)
  _, _, axes = np.linalg.svd(centred, full_matrices=False)
  labels = arrays['label'] if len(spec.classes) > 1 else None
  points = centred @ axes[:2].T if len(axes) > 1 else np.repeat(centred, 2, 1)
  plots.scatter(
    points, labels, spec.classes if labels is not None else (), f'Features, two main axes{note}', folder, 'features'
  )

  shown = lambda x: np.asarray(x, np.float32) / spec.maximum
  unit = np.asarray(normalised(features))
  nearest = np.argsort(-(unit[:QUERIES] @ unit.T), 1, kind='stable')[:, : NEAREST + 1]  # itself first
  cells = [shown(arrays['image'][i]) for row in nearest for i in row]
  names = [[(plots.short(spec.classes[labels[i]]), plots.INK if labels[i] == labels[row[0]] else plots.VERMILION)]
           for row in nearest for i in row] if labels is not None else None  # fmt: skip
  pictures.grid(
    cells, NEAREST + 1, f'Examples and their nearest{note}', folder, 'neighbours', captions=names, width=1.1
  )
  cells = [shown(each[i]) for i in range(len(views[0])) for each in views]
  pictures.grid(cells, len(views), 'Examples and views of them', folder, 'views', width=1.1)
