"""What a run that makes images of images leaves: inputs, outputs and targets that it was not trained on, side by side."""

from pathlib import Path

import jax
import numpy as np

from karpjax.report import animation, pictures

SHOWN = 8


def draw(program, dataset, state, t: int, folder: Path, *, seeds: int = 1) -> None:
  """A Program's `report`: plots/translations.png, and translations_over_time.gif.

  Args:
    program: its `predict` gives images [batch, height, width, channels] in [0, 1].
    dataset: of 'input' and 'target'; shown are examples spread over its validation split (else test, else train).
    state: of one seed.
    t: the step.
    folder: the run's folder.
    seeds: how many the run has; `state` is that of the first.
  """
  name = next(name for name in ('validation', 'test', 'train') if name in dataset.splits)
  split = dataset.splits[name]
  numbers = np.unique(np.linspace(0, split.size - 1, SHOWN).astype(np.int32))
  batch = {**split.fetch(numbers), 'index': numbers}
  output = np.asarray(jax.jit(program.predict)(state, batch, jax.random.key(t)))
  note = f' · {name} split, step {t}' + (f' · first of {seeds} seeds' if seeds > 1 else '')
  columns = {'input': batch['input'] / 255, 'output': output, 'target': batch['target'] / 255}
  animation.over_time(pictures.beside(columns, folder, 'translations', note), t, folder)
