"""Features by which what a generator makes is scored: of our own classifiers, which are runs of image_classification, or Inception's."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from karpjax import config, errors, predict
from karpjax.data import bundled
from karpjax.data.dataset import Dataset, Spec, Split
from karpjax.metrics import generation
from karpjax.models import inception
from karpjax.program import pair
from karpjax.train import weights

INCEPTION = 'inception:'  # before the file of its weights


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A frozen network.

  Attributes:
    source: the workdir of a classifier's run, or the file of Inception's weights.
    step: of the run's checkpoint; None: of Inception.
    classes: how many; 0: it tells none apart.
    size: d, numbers in a feature.
    apply: raw images [batch, *shape] -> (features [batch, d], which its last dense layer sees, logits [batch, classes], or None
      where there are no classes).
    batch: images that it describes at once.
  """

  source: str
  step: int | None
  classes: int
  size: int
  apply: Callable
  batch: int = 500

  def __str__(self) -> str:
    what = 'Inception' if self.step is None else f'step {self.step}'
    return f'{self.source}, {what}, {self.size} features'

  @functools.cached_property
  def _compiled(self) -> Callable:
    return jax.jit(lambda images: self.apply(images)[0])

  def describe(self, images: np.ndarray) -> np.ndarray:
    """Raw images [n, *shape] -> features [n, d] float32."""
    rows = []
    for start in range(0, len(images), self.batch):
      part = images[start : start + self.batch]
      filled = np.resize(part, (self.batch, *part.shape[1:]))  # by itself again: one program for all sizes
      rows.append(np.asarray(self._compiled(filled))[: len(part)])
    return np.concatenate(rows)

  def features(self, split: Split, count: int) -> np.ndarray:
    """[count, d] float32: of a split's first examples."""
    fetch = lambda start: split.fetch(np.arange(start, min(start + self.batch, count)))['image']
    return np.concatenate([self.describe(fetch(start)) for start in range(0, count, self.batch)])


def classifier(workdir: str) -> tuple[Callable, Any, Spec]:
  """The inside of a frozen classifier, by its best checkpoint.

  Args:
    workdir: of a run of image_classification.

  Returns:
    (raw images [batch, *shape], kind of layer) -> ([(input, output) of each such layer], logits [batch, classes]); the state;
    what the run knows of its data.

  Raises:
    UsageError: where there is no such run.
  """
  stored = config.saved(workdir)
  if stored is None or stored['experiment'] != 'image_classification':
    what = 'no run' if stored is None else f'a run of {stored["experiment"]}'
    raise errors.UsageError(f'--scorer={workdir} holds {what}; give the workdir of a run of image_classification')
  program, state, spec, *_ = predict.load_run(workdir)

  def inside(images, kind):
    seen = []

    def look(call, inputs, options, context):
      outputs = call(*inputs, **options)
      if isinstance(context.module, kind) and context.method_name == '__call__':
        seen.append((inputs[0], outputs))
      return outputs

    with nn.intercept_methods(look):
      logits = program.predict(state, {'image': images}, jax.random.key(0))
    return seen, logits

  return inside, state, spec


def load(source: str, spec: Spec) -> Scorer:
  """The classifier of a run, by its best checkpoint, or Inception; nothing is compiled.

  Args:
    source: WORKDIR of a run of image_classification, or inception:FILE.safetensors.
    spec: of the data that is to be scored.

  Raises:
    UsageError: where there is no such run or file, or it does not fit the data.
  """
  load = _inception if source.startswith(INCEPTION) else _classifier
  return load(source.removeprefix(INCEPTION), spec)


def _inception(path: str, spec: Spec) -> Scorer:
  flag = f'--scorer={INCEPTION}'
  if len(spec.shape) != 3 or spec.shape[-1] not in (1, 3):
    raise errors.UsageError(
      f'{flag}{path} sees images, grey or in colour, not {"×".join(map(str, spec.shape))} numbers'
    )
  variables = inception.from_published(weights.read_safetensors(path, flag), flag + path)
  apply = lambda images: (inception.features(variables, images / spec.maximum), None)
  return Scorer(path, None, 0, inception.FEATURES, apply, batch=inception.PIECE)


def _classifier(workdir: str, spec: Spec) -> Scorer:
  inside, state, known = classifier(workdir)
  for name, there, here in (
    ('data set', known.name, spec.name),
    ('shape', known.shape, spec.shape),
    ('scale', known.maximum, spec.maximum),
  ):
    if there != here:
      raise errors.UsageError(
        f'--scorer={workdir} was trained on another {name}, {there}, not {here}; type '
        f'python launch.py image_classification --dataset={spec.name}, and give its workdir'
      )

  def apply(images):
    seen, logits = inside(images, nn.Dense)
    if not seen:
      raise errors.UsageError(f'--scorer={workdir}: its model has no dense layer, whose inputs would be the features')
    return seen[-1][0].astype(jnp.float32), logits

  features, logits = jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
  return Scorer(str(Path(workdir)), int(state.step), logits.shape[-1], features.shape[-1], apply)


def scoring(settings, dataset: Dataset, say: Callable[[str], None]) -> dict:
  """The scorer that --scorer names, or None, and what it needs of the data; says what real examples come to by FID.

  Args:
    settings: a resolved config with `scorer`.
    dataset: which is to be generated.
    say: is given each line for the reader.

  Returns:
    {'scorer', 'train': [n, d] features of the first train examples, 'largest': n, size of the largest split evaluated}.

  Raises:
    UsageError: as `load`'s.
  """
  splits = dict.fromkeys((*settings.eval_splits, *settings.final_splits))
  sizes = {name: dataset.splits[name].size for name in splits if name in dataset.splits}
  largest = max(sizes.values(), default=0)
  if not settings.scorer:
    if len(dataset.spec.shape) == 3:
      say(
        'FID, KID, precision and recall need --scorer, a classifier of the same data: python launch.py image_classification '
        f'--dataset={settings.dataset} --workdir=runs/scorer, then this command with --scorer=runs/scorer'
      )
    return {'scorer': None, 'train': None, 'largest': largest}
  scorer, train = load(settings.scorer, dataset.spec), dataset.splits['train']
  features = scorer.features(train, min(largest, train.size))
  say(f'scorer: {scorer}; distances are on its own scale')
  for name, size in sizes.items():
    real = scorer.features(dataset.splits[name], size)
    floor = float(generation.in_float64(generation.frechet_distance, real, features[:size]))
    say(f'FID of {min(size, train.size):,} train examples against the {name} split, the floor: {floor:.4f}')
  return {'scorer': scorer, 'train': features, 'largest': largest}


def sums(scorer: Scorer | None, spec: Spec, fake, batch, largest: int, conditional: bool) -> dict:
  """What `generation.summarise` takes, of one batch; traced.

  Args:
    scorer: or None: then raw numbers, on the scale of [0, 1], are the features.
    spec: of the data.
    fake: [batch, *shape] generated, on the raw scale.
    batch: of real examples.
    largest: size of the largest split; 0: of train.
    conditional: whether `fake` were made of the batch's labels.
  """
  mask = batch['mask']
  describe = scorer.apply if scorer else lambda x: (x.reshape(len(x), -1) / spec.maximum, None)
  found = {'real': describe(batch['image']), 'fake': describe(fake)}
  made = {name: generation.moments(features, mask) for name, (features, _) in found.items()}
  if spec.name == 'gaussians25':
    made['modes'] = generation.modes(fake, bundled.GRID, bundled.GRID_STD, mask)
  if scorer:
    size = largest or spec.examples
    made |= {f'{name}_rows': generation.rows(x, batch['index'], mask, size) for name, (x, _) in found.items()}
  if scorer and scorer.classes:
    guessed = found['fake'][1].argmax(-1)
    made['shares'] = generation.shares(guessed, scorer.classes, mask)
    if conditional:
      made['hits'] = pair(guessed == batch['label'], mask)[0]
  return made
