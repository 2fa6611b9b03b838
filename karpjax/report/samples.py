"""What a GAN's run leaves: samples, what lies between latents, the nearest training examples, and signs of collapse."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.data import splitting
from karpjax.data.dataset import Dataset, Spec
from karpjax.metrics import distribution
from karpjax.report import pictures, plots, tables, writers

SIDE, CLASSES, STEPS = 8, 10, 10  # samples in a row, and rows; rows of classes; from one latent to another
COMPARED = 500  # samples and real examples in which signs of collapse are looked for
POINTS = 2000  # of a scatter plot
SEARCHED = 10_000  # training examples among which the nearest are sought
SORTED = 400  # samples of which each class shows its first
LAST, SURE = 5, 0.99  # rows of metrics that show collapse, and when a discriminator is always right


def report(config, data: Dataset, scorer, modes, predict, state, t: int, folder) -> None:
  """Samples of the same latents each time, and signs of collapse; at the end also what is looked at once."""
  spec, train, conditional = data.spec, data.splits['train'], config.conditional != 'none'
  call = jax.jit(lambda batch: predict(state, batch, jax.random.key(0)))
  at = f'step {t:,}{tables.first_of(config.seeds)}'

  def sample(labels, **latent) -> np.ndarray:
    """[n, *shape], raw, of the latents number 0 to n - 1, or of those given."""
    labels = np.asarray(labels, np.int32)
    return np.asarray(call({'index': np.arange(len(labels), dtype=np.int32), 'label': labels, **latent}))

  def grid(images, columns, heading, name, row_names=()):
    pictures.grid(images / spec.maximum, columns, f'{heading} · {at}', folder, name, row_names=row_names)

  if len(spec.shape) == 1:
    points = train.fetch(splitting.sample(train.size, POINTS))
    limit = 1.3 * np.abs(points['image']).max()  # the same in all frames
    both, kinds = np.concatenate([points['image'], sample(points['label'])]), np.arange(2).repeat(len(points['label']))
    plots.scatter(both, kinds, ('real', 'generated'), f'Samples · {at}', folder, 'samples', limit=limit)
  else:
    labels = np.arange(min(len(spec.classes), CLASSES)).repeat(SIDE) if conditional else np.zeros(SIDE**2)
    grid(sample(labels), SIDE, 'Samples', 'samples')
    if t == config.steps:
      draw_once(config, spec, scorer, train, sample, grid, folder)
  pictures.over_time(folder, 'samples', t)

  real = train.fetch(splitting.sample(train.size, COMPARED))
  classes, fake = () if conditional else spec.classes, sample(real['label'])
  signs = collapse(writers.read_rows(folder), scorer, real['image'], fake, classes=classes, modes=modes)
  for line in signs['warnings']:
    print(f'warning, {at}: {line}')
  lines = [f'{at}: {line}\n' for line in signs['warnings'] or ['no sign of collapse']]
  writers.write_bytes(folder / 'texts' / 'collapse.txt', ''.join(lines).encode())
  about = {'source': scorer.source, 'step': scorer.step, 'data set': spec.name} if scorer else None
  writers.write_json(folder / 'report.json', {'step': t, 'scorer': about, **signs})


def draw_once(config, spec: Spec, scorer, train, sample, grid, folder) -> None:
  """Images between latents, beside the nearest training examples, and by class."""
  conditional, count = config.conditional != 'none', len(spec.classes)
  ends = np.random.default_rng(0).standard_normal((2, SIDE, config.latent)).astype(np.float32)
  path = slerp(*ends, np.linspace(0, 1, STEPS)).reshape(-1, config.latent)  # [SIDE · STEPS, latent]
  labels = np.arange(SIDE).repeat(STEPS) % count if conditional else np.zeros(len(path))
  grid(sample(labels, latent=path), STEPS, 'Between two latents', 'interpolation')

  few = sample(np.arange(SIDE) % count)
  known = train.fetch(splitting.sample(train.size, SEARCHED))['image']
  nearest = neighbours(*(distribution.describe(scorer, x) for x in (few, known)), 3)  # [SIDE, 3]
  heading = f'Nearest of {len(known):,} training examples by ' + ("the scorer's features" if scorer else 'pixels')
  names = ('sample', 'nearest', 'second', 'third')
  grid(np.concatenate([few, *known[nearest.T]]), SIDE, heading, 'nearest_training_examples', names)

  if conditional or (scorer and scorer.classes):
    labels = np.arange(SORTED) % count
    of_classes = sample(labels)
    labels = labels if conditional else np.asarray(scorer.apply(of_classes)[1]).argmax(-1)
    pictures.class_grid(of_classes / spec.maximum, labels, spec.classes, folder, 'samples_by_class')


def collapse(
  history: Sequence[Mapping], scorer, real, fake, *, classes: Sequence[str] = (), modes=None
) -> dict[str, Any]:
  """Signs that a generator makes too little of what there is, or that the discriminator has won.

  Args:
    history: rows of metrics.jsonl; of several seeds, the first counts.
    scorer: or None.
    real, fake: raw examples and as many samples, [n, …].
    classes: names of those among which a scorer divides samples that were not asked for by class.
    modes: (means, standard deviation) of the modes, where they are known.

  Returns:
    {'warnings': lines, and the figures that they are of}.
  """
  warnings, names = [], [f'train/discriminator_accuracy_on_{kind}' for kind in ('real', 'fake')]
  accuracies = [[np.ravel(row[name])[0] for name in names] for row in history if names[1] in row][-LAST:]
  if len(accuracies) == LAST and np.min(accuracies) > SURE:
    warnings.append(
      f'the discriminator was right in over {100 * SURE:.0f} % of both real and generated examples over the last {LAST} '
      'rows of metrics: it has won, and the generator learns little'
    )
  spread = {}
  for name, x in (('real', real), ('fake', fake)):
    spread[name] = distribution.diversity_of(distribution.describe(scorer, x))
  signs = {'warnings': warnings, 'diversity': spread}
  if not np.isfinite(spread['fake']):
    return signs | {'warnings': [*warnings, 'samples hold NaN or infinity: nothing else can be said of them']}
  if spread['fake'] < spread['real'] / 3:
    warnings.append(
      f'the samples differ by {spread["fake"]:.3g} from each other, real examples by {spread["real"]:.3g}: the generator '
      'makes few kinds'
    )
  if modes:
    kinds, everything = 'modes', jnp.ones(len(fake), bool)
    counts = np.asarray(distribution.covered_modes(jnp.asarray(fake), *modes, everything))
  elif scorer and scorer.classes and classes:
    kinds, counts = 'classes', np.bincount(np.asarray(scorer.apply(fake)[1]).argmax(-1), minlength=len(classes))
    signs['class_shares'] = dict(zip(classes, counts / len(fake)))
  else:
    return signs
  covered = int((counts > 0).sum())
  if covered < len(counts) / 2:
    warnings.append(f'{covered} of {len(counts)} {kinds} are among {len(fake)} samples: the generator leaves out most')
  return signs | {'covered': {kinds: covered, 'of': len(counts)}}


def slerp(a: np.ndarray, b: np.ndarray, fractions: np.ndarray) -> np.ndarray:
  """Between a and b, [n, d], on the great circle (White 2016, section 2.1; lengths change linearly): [n, fractions, d].

  Where a and b lie on one line, as in one dimension, on that.
  """
  a, b, t = a[:, None], b[:, None], fractions[:, None]
  long, other = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
  unit, end = a / long, b / other
  angle = np.arccos(np.clip((unit * end).sum(-1, keepdims=True), -1, 1))
  with np.errstate(invalid='ignore', divide='ignore'):
    on_circle = (np.sin((1 - t) * angle) * unit + np.sin(t * angle) * end) / np.sin(angle)
  turned = on_circle * ((1 - t) * long + t * other)
  return np.where(np.sin(angle) > 1e-6, turned, (1 - t) * a + t * b).astype(np.float32)


def neighbours(points: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
  """[n, k] numbers of the k nearest of others [m, d] to each of points [n, d], the nearest first."""
  squares = np.stack([np.square(others - point).sum(1) for point in points])  # not of products, which cancel far from 0
  return np.argsort(squares, axis=1, kind='stable')[:, :k]
