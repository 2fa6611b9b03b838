"""Frozen feature extractors for FID and perceptual losses: runs of image_classification, Inception, VGG-19.

Features for FID are the inputs of a classifier's last dense layer, or Inception's. Those of a perceptual loss are of
the last convolution, before its activation (Ledig et al. 2017, section 2.2.1, take them behind it; Wang et al. 2018,
"ESRGAN", section 3.2, say why before).
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from karpjax import paths, verbs
from karpjax.data import fingerprint
from karpjax.data.dataset import Spec, Split
from karpjax.errors import UsageError, first_line
from karpjax.layers.convolution import Conv, convolution, max_pool
from karpjax.models import inception
from karpjax.train import checkpoint, run_dir, weights

INCEPTION = 'inception:'  # before the file of its weights
# The convolutions of Simonyan & Zisserman 2015, configuration E, as torchvision counts them with activations and poolings; a
# pooling is where a number is left out.
VGG19 = 0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights are for


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A frozen network in whose features samples are compared with real examples.

  Attributes:
    source: the workdir of a classifier's run, or the file of Inception's weights.
    step: of the run's checkpoint; None: of Inception.
    classes: how many; 0: it tells none apart.
    size: d, numbers in a feature.
    apply: raw images [batch, *shape] -> (features [batch, d], logits [batch, classes], or None where there are no
      classes).
    batch: images in one call of `describe`.
  """

  source: str
  step: int | None
  classes: int
  size: int
  apply: Callable
  batch: int = 500

  def __str__(self) -> str:
    return f'{self.source}, {"Inception" if self.step is None else f"step {self.step}"}, {self.size} features'

  @functools.cached_property
  def _compiled(self) -> Callable:
    return jax.jit(lambda images: self.apply(images)[0])

  def features(self, split: Split, numbers: np.ndarray) -> np.ndarray:
    """[n, d] float32: of the examples `numbers` [n] of a split."""
    rows = []
    for start in range(0, len(numbers), self.batch):
      few = numbers[start : start + self.batch]
      filled = np.resize(few, self.batch)  # by themselves again: one program for all sizes
      rows.append(np.asarray(self._compiled(split.fetch(filled)['image']))[: len(few)])
    return np.concatenate(rows)

  def describe(self, images: np.ndarray) -> np.ndarray:
    """Raw images [n, *shape] -> features [n, d] float32."""
    return self.features(Split.of(image=images), np.arange(len(images)))


def load(source: str, spec: Spec) -> Scorer:
  """The classifier of a run, by its best checkpoint, or Inception; nothing is compiled.

  Args:
    source: WORKDIR of a run of image_classification, or inception:FILE.safetensors.
    spec: of the data that are scored.

  Raises:
    UsageError: where there is no such run or file, or it does not fit the data.
  """
  if source.startswith(INCEPTION):
    path = source.removeprefix(INCEPTION)
    if len(spec.shape) != 3 or spec.shape[-1] not in (1, 3):
      shape = '×'.join(map(str, spec.shape))
      raise UsageError(f'scorer={source} sees images, grey or in colour, not {shape} numbers')
    variables = inception.from_published(weights.read_safetensors(path, f'scorer={INCEPTION}'), f'scorer={source}')
    apply = lambda images: (inception.features(variables, images / spec.maximum), None)
    return Scorer(path, None, 0, inception.FEATURES, apply, batch=inception.PIECE)
  run = opened('scorer', source, 'image_classification')
  for name in ('name', 'shape', 'maximum'):
    there, here = getattr(run.spec, name), getattr(spec, name)
    if there != here and not (name == 'name' and paths.expand(there) == here):  # older runs have it with a ~
      raise UsageError(
        f'scorer={source} was trained on another {name}, {there}, not {here}; type '
        f'python launch.py image_classification --dataset={spec.name}, and give its workdir'
      )
  layers = _layers(run, nn.Dense, 'dense layer, whose inputs')

  def apply(images):
    (inputs, _), logits = layers(images)
    return inputs.astype(jnp.float32), logits

  features, logits = jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
  return Scorer(source, run.step, logits.shape[-1], features.shape[-1], apply)


def lent(source: str) -> dict[str, int]:
  """For `Program.lent`: by what the weights of a scorer, as `load` and `perceptual` take it, are known again; {} of none."""
  path = source.removeprefix(INCEPTION)
  if not source:
    return {}
  if path.endswith('.safetensors'):
    checksum = zlib.crc32(Path(paths.expand(path)).read_bytes())
  else:
    checksum = fingerprint.checksum(checkpoint.to_arrays(verbs.Run(path).state.variables()))
  return {f'the weights of scorer={source}': checksum}


def opened(flag: str, workdir: str, experiment: str) -> verbs.Run:
  """A finished run of an experiment, by its best checkpoint; a UsageError, naming the flag, where the workdir holds none."""
  try:
    run = verbs.Run(workdir)
    if (there := run.stored['experiment']) != experiment:
      raise UsageError(f'it holds a run of {there}')
    if not run_dir.summary(run.folder, run.config.steps):
      raise UsageError(
        f'its training has not come to its end; python launch.py {experiment} --workdir={workdir} goes on'
      )
  except UsageError as error:
    raise UsageError(f'{flag}={workdir}: {error}; give the workdir of a run of {experiment}') from None
  return run


def _layers(run: verbs.Run, kind: type, what: str) -> Callable:
  """raw images [batch, *shape] -> ((input, output) of the last layer of a kind, logits [batch, classes])."""
  program, state = run.program, run.state  # loaded outside of what is traced

  def apply(images):
    layers = []

    def intercept(call, inputs, options, context):
      outputs = call(*inputs, **options)
      if isinstance(context.module, kind) and context.method_name == '__call__':
        layers.append((inputs[0], outputs))
      return outputs

    with nn.intercept_methods(intercept):
      logits = program.predict(state, {'image': images}, jax.random.key(0))
    if not layers:
      raise UsageError(f'scorer={run.folder}: its model has no {what} would be the features')
    return layers[-1], logits

  return apply


# ---- perceptual losses ----


def perceptual(source: str, shape: tuple[int, int, int]) -> Callable:
  """Images [batch, *shape] in [0, 1] -> features [batch, height', width', d].

  Args:
    source: WORKDIR of a run of image_classification, whose best checkpoint is taken; or FILE.safetensors with the
      weights of torchvision's vgg19 under its names, 'features.0.weight' and so on.
    shape: of an image, (height, width, channels).

  Raises:
    UsageError: where there is neither, or the net does not take such images.
  """
  if source.endswith('.safetensors'):
    features = vgg19(source)
  else:
    run = opened('scorer', source, 'image_classification')
    known, maximum = run.spec.shape[-1], run.spec.maximum
    if known != shape[-1]:
      raise UsageError(f'scorer={source} sees {known} channels, and the net makes {shape[-1]}: colour=y makes 1, rgb 3')
    layers = _layers(run, Conv, 'convolution, whose outputs')
    features = lambda images: layers(images * maximum)[0][1].astype(jnp.float32)
  try:
    jax.eval_shape(features, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  except UsageError:
    raise
  except (TypeError, ValueError, flax.errors.ScopeParamShapeError) as error:
    size = '×'.join(map(str, shape))
    raise UsageError(f'scorer={source} does not take images of {size}: {first_line(error)}') from None
  return features


def vgg19(path: str) -> Callable:
  """Images [batch, height, width, 1 or 3] in [0, 1] -> features [batch, height // 16, width // 16, 512]: VGG-19's
  conv5_4.

  Raises:
    UsageError: where the file cannot be read or lacks a layer.
  """
  arrays, layers = weights.read_safetensors(path, 'scorer='), []
  for before, number in itertools.pairwise((-2, *VGG19)):
    names = [f'features.{number}.{name}' for name in ('weight', 'bias')]
    if missing := [name for name in names if name not in arrays]:
      raise UsageError(f"scorer={path} lacks {missing[0]}; torchvision's vgg19 has it")
    kernel, bias = (arrays[name] for name in names)
    layers.append((number - before == 3, kernel.transpose(2, 3, 1, 0), bias))  # [out, in, 3, 3] -> [3, 3, in, out]

  def features(images):
    x = (images - np.array(MEAN, np.float32)) / np.array(STD, np.float32)  # grey becomes RGB
    for i, (pooled, kernel, bias) in enumerate(layers):
      x = nn.relu(x) if i else x
      x = convolution(max_pool(x) if pooled else x, jnp.asarray(kernel, jnp.float32)) + bias
    return x

  return features
