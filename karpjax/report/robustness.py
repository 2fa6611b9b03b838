"""What a run leaves that was attacked: accuracy over the distance, whether the attack can be believed, and pictures."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.adversary import Adversary
from karpjax.data import batches, splitting
from karpjax.report import pictures, plots, writers

EXAMPLES, SHOWN = 256, 4
MULTIPLES = 0.25, 0.5, 1, 1.5, 2  # of the distance
SANE = 'an attack without bounds succeeds', 'several steps are no weaker than one', 'an attack makes no example better'
SLACK = 0.02  # by which few examples may differ from what must be


def accuracies(adversary: Adversary, logits: Callable, batch, epsilons: Sequence[float], steps: int = 0) -> list[float]:
  """How many of a batch are right under the attack of evaluation, at each distance.

  Args:
    logits: raw images -> logits.
    batch: with 'image' raw, 'label' and 'index'.
    steps: of the attack; 0: its own.
  """
  attack = dataclasses.replace(adversary.evaluation, steps=steps or adversary.evaluation.steps)

  @jax.jit
  def at(epsilon, step, batch):
    own = dataclasses.replace(attack, epsilon=epsilon, step=step)
    return (logits(adversary.attacked(own, batch, logits)).argmax(-1) == batch['label']).mean()

  scale = (1.25 if attack.steps == 1 else 2.5 / attack.steps) if steps else attack.step / attack.epsilon
  return [float(at(epsilon, scale * epsilon, batch)) for epsilon in epsilons]


def sanity(adversary: Adversary, logits: Callable, batch) -> dict[str, tuple[bool, str]]:
  """{what has to be so: (whether it is, a figure)}, after Carlini et al. 2019, "On Evaluating Adversarial Robustness"."""
  own, far = adversary.evaluation.epsilon, 1.0
  clean = float((logits(batch['image']).argmax(-1) == batch['label']).mean())
  [single], [several, unbounded] = (
    accuracies(adversary, logits, batch, [own], 1), accuracies(adversary, logits, batch, [own, far]),
  )  # fmt: skip
  chance = np.bincount(np.asarray(batch['label'])).max() / len(batch['label'])
  found = (
    (unbounded <= min(chance, 0.1) + SLACK, f'accuracy {unbounded:.1%} where pixels may become any'),
    (several <= single + SLACK, f'accuracy {several:.1%} against {single:.1%} at {own:g}'),
    (several <= clean + SLACK, f'accuracy {several:.1%} of {clean:.1%}'),
  )
  return dict(zip(SANE, found))


def checks(adversary: Adversary, logits: Callable) -> dict[str, Callable]:
  """`sanity` as a Program's checks; logits: (state, raw images) -> logits. {} where nothing attacks."""
  one = lambda name: lambda state, batch: sanity(adversary, lambda x: logits(state, x), batch)[name]
  return {name: one(name) for name in SANE} if adversary.evaluation else {}


def write(
  folder: Path, adversary: Adversary, logits: Callable, split, classes: Sequence[str], note: str = ''
) -> list[str]:
  """plots/robustness.png, plots/adversarial_examples.png and robustness.json, of EXAMPLES of a split; lines for a reader."""
  batch = jax.tree.map(jnp.asarray, batches.fetch(split, splitting.sample(split.size, EXAMPLES)))
  attack = adversary.evaluation
  epsilons = [e for multiple in MULTIPLES if (e := multiple * attack.epsilon) < 1] + [1.0]
  clean = float((logits(batch['image']).argmax(-1) == batch['label']).mean())
  found = dict(zip([0.0, *epsilons], [clean, *accuracies(adversary, logits, batch, epsilons)]))
  checks = sanity(adversary, logits, batch)
  writers.write_json(Path(folder) / 'robustness.json', {
    'attack': dataclasses.asdict(attack), 'examples': len(batch['label']),
    'accuracies': [{'epsilon': e, 'accuracy': a} for e, a in found.items()],
    'checks': {name: {'passes': passes, 'figure': figure} for name, (passes, figure) in checks.items()},
  })  # fmt: skip
  with plots.drawing(folder, 'robustness', 5.2, 3.4) as (_, axis):
    near = [epsilon for epsilon in found if epsilon <= 2 * attack.epsilon]
    axis.plot(near, [found[epsilon] for epsilon in near], marker='o', markersize=3, color=plots.BLUE)
    axis.axvline(attack.epsilon, color=plots.FAINT, linestyle='--', linewidth=1)
    axis.set(ylim=(-0.02, 1.02), xlabel=f'distance ({attack.norm}), pixels are 0 … 1', ylabel='accuracy')
    axis.set_title(f'Accuracy under attack · PGD, {attack.steps} × {attack.restarts} steps{note}')
  _examples(folder, adversary, logits, {name: x[:SHOWN] for name, x in batch.items()}, classes, note)
  word = {True: 'yes', False: 'NO: gradients may be masked, and true accuracy lower'}
  return [f'{name}: {word[passes]} ({figure})' for name, (passes, figure) in checks.items()]


def _examples(folder, adversary, logits, batch, classes, note) -> None:
  changed = adversary.attacked(adversary.evaluation, batch, logits)
  before, after = (np.asarray(logits(x).argmax(-1)) for x in (batch['image'], changed))
  clean, changed = (np.asarray(x, np.float32) / adversary.maximum for x in (batch['image'], changed))
  cells, captions = [], []
  for i, label in enumerate(np.asarray(batch['label'])):
    say = lambda guess, label=label: (plots.short(classes[guess]), plots.INK if guess == label else plots.VERMILION)
    cells += [clean[i], 0.5 + 5 * (changed[i] - clean[i]), changed[i]]
    captions += [
      [say(before[i]), (f'true {plots.short(classes[label])}', plots.INK)],
      [('the change, × 5', plots.FAINT)],
      [say(after[i])],
    ]
  pictures.grid(cells, 6, 'Adversarial examples' + note, folder, 'adversarial_examples', captions=captions, width=1.2)
