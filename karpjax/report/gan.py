"""What a GAN's run leaves beside its curves: samples over time, what they are near to and between, and a watch for collapse."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from karpjax.data import bundled
from karpjax.metrics import generation
from karpjax.report import animation, pictures, plots, writers

SIDE = 8  # samples in a row, and rows; of conditional ones a row for each class, at most ROWS
ROWS = 10
WATCHED = 500  # samples and real examples that the watch compares
POINTS = 2000  # of a scatter
STEPS = 10  # from one latent to another
SEARCHED = 10_000  # training examples among which the nearest are sought
DRAWN = 400  # samples of which each class shows its first
LAST, SURE = 5, 0.99  # rows of metrics that the watch looks at, and when a discriminator is always right


def draw(program, dataset, config, scorer, state, t: int, folder: Path, *, say: Callable[[str], None] = print) -> None:
  """A Program's `report`: samples of the same latents each time, at the end also what is looked at once.

  Args:
    program: its `predict` samples.
    dataset: that the run learns.
    config: of the run, resolved.
    scorer: see `karpjax.scorer`, or None.
    state: of one seed.
    t: the step.
    folder: the run's folder.
    say: is given the watch's warnings.
  """
  folder, spec = Path(folder), dataset.spec
  conditional, train = config.conditional != 'none', dataset.splits['train']
  predict = jax.jit(lambda batch: program.predict(state, batch, jax.random.key(0)))
  seen = f'step {t:,}' + (f' · first of {config.seeds} seeds' if config.seeds > 1 else '')

  def sample(labels, **latent) -> np.ndarray:
    """[n, *shape] on the scale of raw examples, of the latents number 0 to n - 1, or of those given."""
    batch = {'index': np.arange(len(labels), dtype=np.int32), 'label': np.asarray(labels, np.int32), **latent}
    return np.asarray(predict(batch))

  real = train.fetch(np.arange(min(WATCHED, train.size)))
  fake = sample(real['label'])
  if spec.name == 'gaussians25':
    points = train.fetch(np.arange(min(POINTS, train.size)))
    shown = scatter(points['image'], sample(points['label']), folder, seen)
  else:
    labels = np.arange(min(len(spec.classes), ROWS)).repeat(SIDE) if conditional else np.zeros(SIDE**2)
    shown = pictures.grid(sample(labels) / spec.maximum, SIDE, f'Samples · {seen}', folder, 'samples')
    if t == config.steps:
      once(spec, scorer, train, sample, config.latent, conditional, folder, seen)
  animation.over_time(shown, t, folder)

  found = watch(spec, scorer, real['image'], fake, conditional, writers.read_rows(folder))
  for line in found['warnings']:
    say(f'warning, {seen}: {line}')
  (folder / 'texts').mkdir(exist_ok=True)
  lines = [f'{seen}: {line}' for line in found['warnings'] or ['no sign of collapse']]
  writers.write_bytes(folder / 'texts' / 'collapse.txt', ('\n'.join(lines) + '\n').encode())
  about = {'source': scorer.source, 'step': scorer.step, 'data set': spec.name} if scorer else None
  writers.write_json(folder / 'report.json', {'step': t, 'scorer': about, **found})


# ---- pictures ----


def once(spec, scorer, train, sample: Callable, latent: int, conditional: bool, folder: Path, seen: str) -> None:
  """What is drawn at the end: between latents, the nearest training examples, and a row of samples for each class."""
  ends = np.random.default_rng(0).standard_normal((2, SIDE, latent)).astype(np.float32)
  path = slerp(ends[0], ends[1], np.linspace(0, 1, STEPS)).reshape(-1, latent)  # [SIDE · STEPS, latent]
  labels = np.arange(SIDE).repeat(STEPS) % len(spec.classes) if conditional else np.zeros(len(path))
  images = sample(labels, latent=path) / spec.maximum
  pictures.grid(images, STEPS, f'Between two latents · {seen}', folder, 'interpolation')

  few = sample(np.arange(SIDE) % len(spec.classes))
  known = train.fetch(np.arange(min(train.size, SEARCHED)))['image']
  order = neighbours(features(scorer, few), features(scorer, known), 3)  # [SIDE, 3]
  rows = [few, *(known[order[:, i]] for i in range(3))]
  where = "the scorer's features" if scorer else 'pixels'
  heading = f'Nearest of {len(known):,} training examples by {where} · {seen}'
  names = ('sample', 'nearest', 'second', 'third')
  pictures.grid(np.concatenate(rows) / spec.maximum, SIDE, heading, folder, 'nearest_training_examples', names)

  if conditional or (scorer and scorer.classes):
    labels = np.arange(DRAWN) % len(spec.classes)
    images = sample(labels)
    if not conditional:
      labels = np.asarray(scorer.apply(images)[1]).argmax(-1)
    pictures.class_grid(images / spec.maximum, labels, spec.classes, folder, 'samples_by_class')


@plots.styled
def scatter(real: np.ndarray, fake: np.ndarray, folder: Path, seen: str) -> Path:
  """plots/samples.png: real points [n, 2] and generated ones."""
  figure, axis = plots.new_figure(4.6, 4.8, margins=(0.4, 0.15, 0.35, 0.4))
  axis.scatter(*real.T, s=4, color=plots.ORANGE, alpha=0.35, linewidths=0, label='real')
  axis.scatter(*fake.T, s=4, color=plots.BLUE, alpha=0.5, linewidths=0, label='generated')
  axis.set(xlim=(-5.5, 5.5), ylim=(-5.5, 6), aspect='equal')
  axis.legend(loc='upper right', ncols=2, markerscale=3)
  axis.set_title(f'Samples · {seen}')
  return plots.save(figure, folder, 'samples')


def slerp(a: np.ndarray, b: np.ndarray, shares: np.ndarray) -> np.ndarray:
  """Between a and b, [n, d], on the great circle (White 2016, section 2.1; lengths change linearly): [n, len(shares), d]."""
  norms = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
  a, b = (x / norm for x, norm in zip((a, b), norms))
  angle = np.arccos(np.clip((a * b).sum(-1), -1, 1))[:, None, None]
  shares = shares[:, None]  # [shares, 1]
  on_circle = (np.sin((1 - shares) * angle) * a[:, None] + np.sin(shares * angle) * b[:, None]) / np.sin(angle)
  return (on_circle * ((1 - shares) * norms[0][:, None] + shares * norms[1][:, None])).astype(np.float32)


def features(scorer, examples: np.ndarray) -> np.ndarray:
  """[n, d] by which examples are compared: the scorer's, or the raw numbers themselves."""
  if scorer is None:
    return examples.reshape(len(examples), -1).astype(np.float32)
  return scorer.describe(examples)


def neighbours(points: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
  """[n, k] numbers of the k nearest of others [m, d] to each of points [n, d], the nearest first."""
  squares = np.square(others).sum(1) - 2 * points @ others.T  # less |point|², which is the same in a row
  return np.argsort(squares, axis=1, kind='stable')[:, :k]


# ---- collapse ----


def watch(spec, scorer, real: np.ndarray, fake: np.ndarray, conditional: bool, rows: Sequence[Mapping]) -> dict:
  """Signs that the generator makes too little of what there is, or that the discriminator has won.

  Args:
    spec: of the data.
    scorer: or None.
    real, fake: [n, *shape] examples on the raw scale.
    conditional: whether samples were asked for by class.
    rows: of metrics.jsonl; of several seeds, the first counts.

  Returns:
    {'warnings': lines, and the figures that were looked at}.
  """
  found, warnings = {}, []
  accuracies = [
    [np.ravel(row[f'train/discriminator_accuracy_on_{kind}'])[0] for kind in ('real', 'fake')]
    for row in rows
    if 'train/discriminator_accuracy_on_fake' in row
  ][-LAST:]
  if len(accuracies) == LAST and np.min(accuracies) > SURE:
    warnings.append(
      f'the discriminator was right in over {100 * SURE:.0f} % of both real and generated examples over the last {LAST} '
      'rows of metrics: it has won, and the generator learns little'
    )
  moments = {
    name: generation.moments(jnp.asarray(features(scorer, x)), jnp.ones(len(x), bool))
    for name, x in (('real', real), ('fake', fake))
  }
  found['diversity'] = {name: generation.diversity(jax.device_get(x)) for name, x in moments.items()}
  if found['diversity']['fake'] < found['diversity']['real'] / 3:
    warnings.append(
      f'the samples differ by {found["diversity"]["fake"]:.3g} from each other, real examples by '
      f'{found["diversity"]["real"]:.3g}: the generator makes few kinds'
    )
  covered = None
  if spec.name == 'gaussians25':
    counts = generation.modes(jnp.asarray(fake), bundled.GRID, bundled.GRID_STD, jnp.ones(len(fake), bool))
    covered, of, what = int((counts > 0).sum()), len(counts), 'modes'
  elif scorer and scorer.classes and not conditional:
    counts = np.bincount(np.asarray(scorer.apply(fake)[1]).argmax(-1), minlength=len(spec.classes))
    covered, of, what = int((counts > 0).sum()), len(counts), 'classes'
    found['class_shares'] = dict(zip(spec.classes, counts / len(fake)))
  if covered is not None:
    found['covered'] = {what: covered, 'of': of}
    if covered < of / 2:
      warnings.append(f'{covered} of {of} {what} are among {len(fake)} samples: the generator leaves out most')
  return {'warnings': warnings, **found}
