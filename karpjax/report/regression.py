"""What a regression leaves: predictions against truth, and the coefficients in the columns' own units."""

from pathlib import Path

import jax
import numpy as np

from karpjax.report import plots, writers


def coefficients(params, spec) -> dict:
  """{'coefficients': [columns], 'intercept'} of a linear model on standardised columns, in the columns' own units.

  Args:
    params: with one dense layer, 'logits': kernel [columns, 1] and bias [1].
    spec: of the table.
  """
  slope = np.asarray(params['logits']['kernel'], np.float64)[:, 0] / np.asarray(spec.std)
  return {
    'coefficients': slope,
    'intercept': float(params['logits']['bias'][0] - slope @ np.asarray(spec.mean)),
  }


def draw(program, dataset, state, t: int, folder: Path) -> None:
  """A Program's `report`: plots of the test split; of a linear model report.json with its coefficients.

  Args:
    program: its `predict` gives outputs [batch, 1], or logits [batch, classes].
    dataset: with 'features' and 'target'.
    state: of one seed.
    t: the step, unused: the newest report replaces the one before.
    folder: the run's folder.
  """
  split, spec = dataset.splits['test'], dataset.spec
  outputs = np.asarray(jax.jit(program.predict)(state, split.arrays, jax.random.key(0)))
  target = split.arrays['target']
  if spec.classes:
    counts = np.zeros((len(spec.classes),) * 2, np.int64)
    np.add.at(counts, (target, outputs.argmax(1)), 1)
    plots.confusion(counts, spec.classes, folder)
    return
  if list(state.params) == ['logits']:
    writers.write_json(folder / 'report.json', coefficients(state.params, spec))
  predictions(target, outputs[:, 0], folder, split.arrays['features'][:, 0] if spec.shape == (1,) else None)


@plots.styled
def predictions(targets, outputs, folder: Path, column=None) -> Path:
  """plots/predictions.png: predictions against targets, [n] each; over a single column, [n], where there is one."""
  figure, axis = plots.new_figure(5.2, 4.6)
  if column is None:
    ends = [min(targets.min(), outputs.min()), max(targets.max(), outputs.max())]
    axis.plot(ends, ends, color=plots.PURPLE, linewidth=1.2, label='equal')
    axis.scatter(targets, outputs, s=14, alpha=0.7)
    axis.set(xlabel='target', ylabel='prediction')
  else:
    order = np.argsort(column)
    axis.scatter(column, targets, s=18, alpha=0.7, label='test examples')
    axis.plot(column[order], outputs[order], color=plots.PURPLE, label='fitted')
    axis.set(xlabel='column', ylabel='target')
  axis.legend(frameon=False)
  axis.set_title('Predictions on the test split')
  return plots.save(figure, folder, 'predictions')
