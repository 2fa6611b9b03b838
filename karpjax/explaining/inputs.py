"""A run, asked why: how an image, a text or a row of a table becomes an input that `karpjax.explaining.attribution` can differentiate.

An input is [*places, channels] float32: the pixels of an image in [0, 1], the vectors of a text's tokens, the columns of
a row in deviations from their mean.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config as configs
from karpjax.data import tokenisers
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

  Attributes:
    given: the name of an example's array in a batch.
  """

  given = ''

  def __init__(self, run, arrays: Mapping[str, Any], chosen: Options):
    self.run, self.spec, self.arrays, self.chosen = run, run.spec, arrays, chosen
    # what is computed anew in the backward pass cannot be looked at
    plain = {'remat': 'none'} if getattr(run.config, 'remat', None) else {}
    self.program = run.experiment.program(dataclasses.replace(run.config, **plain), Dataset(self.spec_of_program(), {}))

  def spec_of_program(self):
    return self.spec

  def embed(self, params, example):
    """The input of an example, [*places, channels]."""
    raise NotImplementedError

  def ask(self, params, example, x):
    """Params, and the batch of one example that has this input, for the program's `predict`."""
    raise NotImplementedError

  def baseline(self, x):
    """An input that says nothing."""
    return jnp.zeros_like(x)

  def groups(self, example) -> tuple[Any, int]:
    """Those of `attribution.Options`, and their count."""
    raise NotImplementedError

  def outputs(self, state, example, x):
    """[classes], or the number [1]."""
    params, batch = self.ask(state.eval_params, example, x)
    return self.program.predict(_with_params(state, params), batch, jax.random.key(0))[0].astype(jnp.float32)

  def begin(self, state, example):
    """The input, its baseline, and the outputs of both."""
    x = self.embed(state.eval_params, example)
    baseline = self.baseline(x)
    return x, baseline, self.outputs(state, example, x), self.outputs(state, example, baseline)

  def options(self, example) -> attribution.Options:
    return attribution.Options(*self.groups(example), self.chosen.steps, self.chosen.noise)

  def attribute(self, state, example, x, baseline, target, key):
    """[*places]."""
    score = lambda x: self.outputs(state, example, x)[target]
    return attribution.METHODS[self.chosen.method](score, x, baseline, key, self.options(example))

  def curves(self, state, example, x, baseline, target, values, key):
    """`attribution.curves` of the class's probability, or of the number."""
    chance = jax.nn.softmax if self.spec.classes else lambda outputs: outputs
    measure = lambda x: chance(self.outputs(state, example, x))[target]
    return attribution.curves(measure, x, baseline, values, key, self.options(example))

  def check(self) -> None:
    """Raises UsageError for a class that there is not, or a method that the model cannot have; nothing is compiled."""
    target, classes, key = self.chosen.target, self.spec.classes, jax.random.key(0)
    if target and target not in classes:
      why = nearest(target, classes) if classes else f' {self.run.folder} predicts numbers, and has no classes'
      raise UsageError(f'target={target}: unknown.{why}')

    def traced(state, example):
      x, baseline, *_ = self.begin(state, example)
      return self.attribute(state, example, x, baseline, 0, key)

    example = self.arrays[self.given][0]
    self.groups(example)
    if self.chosen.method in attribution.INSIDE:
      jax.eval_shape(traced, jax.eval_shape(self.run.program.init, key), example)

  def findings(self, state) -> Iterator[dict[str, Any]]:
    """Of each its 'example', 'target', 'outputs' [classes], 'score', 'baseline' (its score) and 'values' [*places]; where
    they are asked for, 'curves' and 'randomised', {layer: rank correlation}.
    """
    key, names = jax.random.key(self.chosen.seed), self.spec.classes
    begin, attribute, curves = jax.jit(self.begin), jax.jit(self.attribute), jax.jit(self.curves)
    for example in self.arrays[self.given]:
      x, baseline, outputs, at_baseline = begin(state, example)
      target = names.index(self.chosen.target) if self.chosen.target else int(outputs.argmax())
      values = attribute(state, example, x, baseline, target, key)
      found = {'example': example, 'target': target, 'outputs': np.asarray(outputs), 'values': np.asarray(values)}
      found |= {'score': float(outputs[target]), 'baseline': float(at_baseline[target])}
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

  given = 'image'

  def embed(self, params, example):
    return example.astype(jnp.float32) / self.spec.maximum

  def ask(self, params, example, x):
    return params, {'image': (x * self.spec.maximum)[None]}

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


class Texts(Asked):
  """The vectors of tokens, before positions; the baseline is 0 (Sundararajan et al. 2017).

  A text of n tokens is that of a vocabulary of its own, of n + 1, whose token i is what stands at place i - 1: so a
  model of whatever kind is differentiated by its table of vectors.
  """

  given = 'tokens'

  def spec_of_program(self):
    own = tokenisers.Tokeniser('words', ('',) * (self.arrays['tokens'].shape[1] + 1))
    return dataclasses.replace(self.spec, tokenisers={**self.spec.tokenisers, 'text': own})

  def _table(self, params) -> tuple:
    """(path, array [vocabulary, size]) of the vectors."""
    named = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == 'embedding']
    found = [(path, x) for path, x in named if x.shape[0] == self.spec.tokenisers['text'].size]
    if len(found) != 1:
      raise UsageError(f"explain: the model has {len(found)} tables 'embedding' of all tokens; one is differentiated")
    return found[0]

  def embed(self, params, example):
    return self._table(params)[1][example]

  def ask(self, params, example, x):
    place, table = self._table(params)
    own = jnp.concatenate([table[:1], x])
    changed = jax.tree_util.tree_map_with_path(lambda path, value: own if path == place else value, params)
    return changed, {'tokens': jnp.where(example > 0, 1 + jnp.arange(len(example)), 0)[None]}

  def groups(self, example):
    return jnp.where(example > 0, jnp.arange(len(example)), -1), len(example)


class Tables(Asked):
  """Columns in deviations from train's mean, which is the baseline; a column of words is a feature for each, one group."""

  given = 'features'

  def __init__(self, run, arrays, chosen):
    super().__init__(run, arrays, chosen)
    self.mean, std = np.array(self.spec.mean, np.float32), np.array(self.spec.std, np.float32)
    self.std = np.where(std > 0, std, 1)

  def embed(self, params, example):
    return ((example - self.mean) / self.std)[:, None]

  def ask(self, params, example, x):
    return params, {'features': (self.mean + self.std * x[:, 0])[None]}

  def groups(self, example):
    return jnp.asarray(columns(self.spec)), len(self.spec.columns)


def columns(spec) -> np.ndarray:
  """[features]: the number of the column of a table that each is of."""
  return np.array([i for i, words in enumerate(spec.columns.values()) for _ in words or ('',)])
