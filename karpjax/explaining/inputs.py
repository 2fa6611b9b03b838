"""A run, asked why: how an image or a row of a table becomes an input that `karpjax.explaining.attribution` can differentiate.

An input is [*places, channels] float32: the pixels of an image in [0, 1], the columns of a row in deviations from their
mean, or, of `karpjax.explaining.texts`, the vectors of tokens.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config as configs
from karpjax.data.dataset import Dataset
from karpjax.errors import UsageError, nearest
from karpjax.explaining import attribution


@dataclasses.dataclass(frozen=True)
class Options:
  method: str = configs.flag('integrated', 'How; docs/explain.md says which to take.', choices=attribution.METHODS)
  target: str = configs.flag('', 'The class that is explained. Default: the likeliest of each input.')
  steps: int = configs.flag(
    64, 'Points of integrated gradients, noisy copies of smoothgrad, orders of shapley.', low=1, high=10_000
  )
  noise: float = configs.flag(0.15, "Smoothgrad's noise, as a fraction of an input's range.", above=0, high=10)
  curves: bool = configs.flag(True, 'Deletion and insertion curves, for which the model is asked some 600 times.')
  randomise: bool = configs.flag(
    False, 'Whether attributions change as layers are drawn anew, from the top (Adebayo et al. 2018).'
  )
  seed: int = configs.seed_flag('The seed of noise, orders and layers drawn anew.')
  output: str = configs.flag('', 'The folder for what is drawn. Default: WORKDIR/explain.', path=True)


@dataclasses.dataclass(frozen=True)
class ImageOptions(Options):
  patch: int = configs.flag(
    0, 'Pixels on a side of the squares that occlusion and shapley take away; 0: an eighth of the image.', low=0
  )


class Asked:
  """A run, asked about one kind of examples, of which it is a subclass. All but the making is pure.

  An example is a row of each of the arrays that are asked about, by their names.
  """

  def __init__(self, run, arrays: Mapping[str, Any], chosen: Options):
    self.run, self.spec, self.arrays, self.chosen = run, run.spec, arrays, chosen
    # what is computed anew in the backward pass cannot be looked at
    plain = {'remat': 'none'} if getattr(run.config, 'remat', None) else {}
    self.program = run.experiment.program(dataclasses.replace(run.config, **plain), Dataset(self.spec, {}))

  # ---- what a kind of examples decides ----

  def embed(self, state, example):
    """The input of an example, [*places, channels]."""
    raise NotImplementedError

  def outputs(self, state, example, x):
    """Of an example that has this input: the logits of classes, [..., classes], or the number, [1]."""
    raise NotImplementedError

  def groups(self, example) -> tuple[Any, int]:
    """Those of `attribution.Options`, and their count."""
    raise NotImplementedError

  def baseline(self, x):
    """An input that says nothing."""
    return jnp.zeros_like(x)

  def seen(self, example):
    """That of `attribution.Options`."""
    return None

  def weights(self, example):
    """How much each output counts, [...]."""
    return jnp.ones(())

  def likeliest(self, state, example, outputs):
    """The classes that are predicted, [...]."""
    return outputs.argmax(-1)

  def number(self, target: str) -> int:
    """That of a class; a UsageError where there is none such."""
    if target not in self.spec.classes:
      raise UsageError(f'target={target}: unknown.{nearest(target, self.spec.classes)}')
    return self.spec.classes.index(target)

  def named(self, example, target) -> dict[str, Any]:
    """What the classes are called, [...]; {} of numbers."""
    return {'class': self.spec.classes[target]}

  # ---- what is done with it ----

  def score(self, example, outputs, target):
    """The sum of the logits of `target` [...], or the number; both by `weights`."""
    return (self.weights(example) * jnp.take_along_axis(outputs, target[..., None], -1)[..., 0]).sum()

  def chance(self, example, outputs, target):
    """The mean probability of `target` [...]; the number itself."""
    return self.score(example, jax.nn.softmax(outputs), target) / self.weights(example).sum()

  def begin(self, state, example):
    """The input, its baseline, the outputs of both, and the classes that are predicted."""
    x = self.embed(state, example)
    baseline = self.baseline(x)
    outputs = self.outputs(state, example, x)
    return x, baseline, outputs, self.outputs(state, example, baseline), self.likeliest(state, example, outputs)

  def options(self, example) -> attribution.Options:
    return attribution.Options(*self.groups(example), self.chosen.steps, self.chosen.noise, self.seen(example))

  def attribute(self, state, example, x, baseline, target, key):
    """[*places]."""
    score = lambda x: self.score(example, self.outputs(state, example, x), target)
    return attribution.METHODS[self.chosen.method](score, x, baseline, key, self.options(example))

  def curves(self, state, example, x, baseline, target, values, key):
    """`attribution.curves` of `chance`."""
    measure = lambda x: self.chance(example, self.outputs(state, example, x), target)
    return attribution.curves(measure, x, baseline, values, key, self.options(example))

  def check(self) -> None:
    """Raises UsageError for a class that there is not, or what the model cannot be asked; nothing is compiled."""
    if self.chosen.target:
      self.number(self.chosen.target)

    def traced(state, example):
      x, baseline, _, _, target = self.begin(state, example)
      return self.chosen.method in attribution.INSIDE and self.attribute(state, example, x, baseline, target, key)

    key, example = jax.random.key(0), {name: array[0] for name, array in self.arrays.items()}
    self.groups(example)
    jax.eval_shape(traced, jax.eval_shape(self.run.program.init, key), example)

  def findings(self, state) -> Iterator[dict[str, Any]]:
    """Of each its 'example', what is explained ('named', 'chance'), 'score', 'baseline' (its score) and 'values' [*places];
    where they are asked for, 'curves' and 'randomised', {layer: rank correlation}.
    """
    key = jax.random.key(self.chosen.seed)
    begin, attribute, curves = jax.jit(self.begin), jax.jit(self.attribute), jax.jit(self.curves)
    for row in zip(*self.arrays.values()):
      example = dict(zip(self.arrays, row))
      x, baseline, outputs, at_baseline, target = begin(state, example)
      target = jnp.full_like(target, self.number(self.chosen.target)) if self.chosen.target else target
      values = attribute(state, example, x, baseline, target, key)
      found = {'example': example, 'values': np.asarray(values), 'named': self.named(example, np.asarray(target))}
      found['chance'] = float(self.chance(example, outputs, target))
      found |= {
        name: float(self.score(example, of, target)) for name, of in (('score', outputs), ('baseline', at_baseline))
      }
      if self.chosen.curves:
        found['curves'] = np.asarray(curves(state, example, x, baseline, target, values, key))
      if self.chosen.randomise:
        found['randomised'], params = {}, state.eval_params
        fresh = jax.jit(attribution.drawn_anew)(params, key)
        layers = attribution.layers(lambda x, example=example: self.outputs(state, example, x), x, params)
        for layer, places in reversed(layers.items()):
          anew = lambda path, old, new, places=places: new if path in places else old
          params = jax.tree_util.tree_map_with_path(anew, params, fresh)
          changed = _with_params(state, params)
          again = attribute(changed, example, *begin(changed, example)[:2], target, key)
          found['randomised'][layer] = attribution.rank_correlation(values, again)
      yield found


def _with_params(state, params):
  return state.replace(params=params) if state.ema is None else state.replace(ema=params)


class Images(Asked):
  """Pixels in [0, 1]; the baseline is their mean over train."""

  def embed(self, state, example):
    return example['image'].astype(jnp.float32) / self.spec.maximum

  def outputs(self, state, example, x):
    batch = {'image': (x * self.spec.maximum)[None]}
    return self.program.predict(state, batch, jax.random.key(0))[0].astype(jnp.float32)

  def baseline(self, x):
    return jnp.broadcast_to(jnp.asarray(self.spec.mean, jnp.float32), x.shape)

  def groups(self, example):
    height, width = self.spec.shape[:2]
    side = self.chosen.patch or max(1, min(height, width) // 8)
    if side > min(height, width):
      raise UsageError(f'patch={side}: the images have {height}×{width} pixels')
    across = -(-width // side)
    groups = (np.arange(height) // side)[:, None] * across + np.arange(width) // side
    return jnp.asarray(groups), int(groups.max()) + 1


class Tables(Asked):
  """Columns in deviations from train's mean, which is the baseline; a column of words is a feature for each, one group."""

  def __init__(self, run, arrays, chosen):
    super().__init__(run, arrays, chosen)
    self.mean, std = np.array(self.spec.mean, np.float32), np.array(self.spec.std, np.float32)
    self.std = np.where(std > 0, std, 1)

  def embed(self, state, example):
    return ((example['features'] - self.mean) / self.std)[:, None]

  def outputs(self, state, example, x):
    batch = {'features': (self.mean + self.std * x[:, 0])[None]}
    return self.program.predict(state, batch, jax.random.key(0))[0].astype(jnp.float32)

  def groups(self, example):
    return jnp.asarray(columns(self.spec)), len(self.spec.columns)

  def number(self, target):
    if not self.spec.classes:
      raise UsageError(f'target={target}: {self.run.folder} predicts numbers, and has no classes')
    return super().number(target)

  def named(self, example, target):
    return super().named(example, target) if self.spec.classes else {}

  def chance(self, example, outputs, target):
    return super().chance(example, outputs, target) if self.spec.classes else self.score(example, outputs, target)


def columns(spec) -> np.ndarray:
  """[features]: the number of the column of a table that each is of."""
  return np.array([i for i, words in enumerate(spec.columns.values()) for _ in words or ('',)])
