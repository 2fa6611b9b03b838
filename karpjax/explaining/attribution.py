"""Why a model says what it says: what each place of an input does to a score, and tests of such attributions. All pure.

An input is one example, [*places, channels] float32; a score is a function of it, of shape []. A method is a function
(score, input, baseline, key, options) -> attributions [*places], of METHODS. The baseline is an input that says nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from karpjax.errors import UsageError
from karpjax.layers.attention import MultiHeadAttention
from karpjax.layers.convolution import Conv, FeatureMaps

PIECE = 64  # inputs in one call of the model
POINTS = 32  # of a curve, at the most
ORDERS = 8  # random orders that a curve is compared with
INSIDE = 'gradcam', 'rollout'  # which look for layers that not every model has
MAGNITUDES = 'saliency', 'smoothgrad', 'rollout'  # whose attributions say how much, and not which way
COMPLETE = 'integrated', 'shapley'  # whose attributions sum to score(input) - score(baseline)


class Options(NamedTuple):
  """What methods are told.

  Attributes:
    groups: [*places] int32, from 0: places that occlusion and Shapley sampling take away together; −1: padding.
    count: how many groups.
    steps: points of a path, noisy copies, or orders.
    noise: its deviation, as a fraction of the input's range.
    seen: [*places], of tokens: how much of each of them the model's last layer sees, 1 together; None: of all alike.
  """

  groups: Any
  count: int
  steps: int = 64
  noise: float = 0.15
  seen: Any = None


# ---- by gradients ----


def saliency(score, x, baseline, key, options: Options):
  """|∂ score / ∂ x|, its maximum over channels (Simonyan et al. 2014)."""
  return jnp.abs(jax.grad(score)(x)).max(-1)


def smoothgrad(score, x, baseline, key, options: Options):
  """`saliency`, of the gradient's mean over noisy copies (Smilkov et al. 2017)."""
  deviation = options.noise * (x.max() - x.min())
  noisy = lambda key: jax.grad(score)(x + deviation * jax.random.normal(key, x.shape))
  return jnp.abs(_mapped(noisy, jax.random.split(key, options.steps)).mean(0)).max(-1)


def integrated(score, x, baseline, key, options: Options):
  """(x - baseline) times the mean gradient on the way between them, by midpoints (Sundararajan et al. 2017)."""
  along = lambda part: jax.grad(score)(baseline + part * (x - baseline))
  gradients = _mapped(along, (jnp.arange(options.steps) + 0.5) / options.steps)
  return ((x - baseline) * gradients.mean(0)).sum(-1)


def gradcam(score, x, baseline, key, options: Options):
  """The last convolution's maps, weighed by their mean gradients, rectified, and resized (Selvaraju et al. 2017).

  Raises:
    UsageError: where there is none, or its maps have other axes than the input.
  """
  _, seen = jax.eval_shape(lambda x: _watched(score, x, (FeatureMaps, Conv, nn.Conv)), x)
  if not seen or len(seen[-1].shape) != x.ndim + 1 or len(seen[-1]) > 1:
    raise UsageError(f'method=gradcam: the model has no convolution over the {x.ndim - 1} axes of its input')
  last = len(seen) - 1

  def shifted(shift):
    change = lambda i, y: y + shift if i == last else y
    value, maps = _watched(score, x, (FeatureMaps, Conv, nn.Conv), change)
    return value, maps[last]

  gradient, maps = jax.grad(shifted, has_aux=True)(jnp.zeros(seen[-1].shape, seen[-1].dtype))
  weights = gradient.astype(jnp.float32)[0].mean(range(x.ndim - 1))  # [channels]
  return jax.image.resize(nn.relu(maps[0].astype(jnp.float32) @ weights), x.shape[:-1], 'linear')


def _watched(score, x, kinds: tuple[type, ...], change: Callable = lambda i, y: y):
  """(score, the outputs of the modules of these kinds in their order), where `change` makes of output i what goes on."""
  found = []

  def intercept(call, inputs, options, context):
    y = call(*inputs, **options)
    if isinstance(context.module, kinds) and context.method_name == '__call__':
      found.append(y := change(len(found), y))
    return y

  with nn.intercept_methods(intercept):
    return score(x), found


# ---- by taking away ----


def occlusion(score, x, baseline, key, options: Options):
  """How far the score falls where a group of places is as the baseline (Zeiler & Fergus 2014, section 4.2)."""
  without = lambda group: score(jnp.where((options.groups == group)[..., None], baseline, x))
  return _shared(score(x) - _mapped(without, jnp.arange(options.count)), options)


def shapley(score, x, baseline, key, options: Options):
  """Shapley values of the groups: what each adds to those before it, over random orders (Castro et al. 2009)."""

  def added(key):
    order = jax.random.permutation(key, options.count)
    rank = jnp.where(options.groups >= 0, jnp.argsort(order)[options.groups], -1)  # [*places]; padding stays
    scores = _mapped(lambda n: score(jnp.where((rank < n)[..., None], x, baseline)), jnp.arange(options.count + 1))
    return jnp.zeros(options.count).at[order].set(jnp.diff(scores))

  return _shared(jax.lax.map(added, jax.random.split(key, options.steps)).mean(0), options)


def _mapped(function, xs):
  return jax.lax.map(function, xs, batch_size=PIECE)


def _shared(values, options: Options):
  """Values of groups [count] -> [*places]: those of a group share its value equally."""
  sizes = jnp.zeros(options.count).at[options.groups].add(options.groups >= 0)
  return jnp.where(options.groups >= 0, (values / jnp.maximum(sizes, 1))[options.groups], 0)


# ---- by attention ----


def rollout(score, x, baseline, key, options: Options):
  """How much of each token reaches what the last layer sees: attention and residuals through all blocks, heads averaged
  (Abnar & Zuidema 2020).

  The last layer sees a token before all others, where there is one, else what `options.seen` says.

  Raises:
    UsageError: where there is no attention, or its tokens do not lie over the input.
  """
  maps = _attention(score, x)
  if not maps:
    raise UsageError('method=rollout: the model has no attention')
  places, size = x.shape[:-1], maps[0].shape[-1]
  extra = next((n for n in (0, 1) if (grid := _grid(places, size - n))), None)
  if extra is None or any(each.shape != maps[0].shape for each in maps):
    raise UsageError(f'method=rollout: attention among {size} tokens does not lie over {"×".join(map(str, places))}')
  flow = jnp.eye(size)
  for weights in maps:
    flow = (weights[0].mean(0) + jnp.eye(size)) / 2 @ flow
  seen = jnp.full(size, 1 / size) if options.seen is None else options.seen
  reached = flow[0, 1:] if extra else seen @ flow
  return jnp.kron(reached.reshape(grid), jnp.ones([n // m for n, m in zip(places, grid)]))


def _grid(places, tokens: int) -> tuple[int, ...] | None:
  """The shape in which so many tokens, each a square of the places, lie over them; None where they do not."""
  side = round((np.prod(places) / max(tokens, 1)) ** (1 / len(places)))
  grid = tuple(n // side for n in places) if side else ()
  fits = side and not any(n % side for n in places) and np.prod(grid) == tokens
  return grid if fits else None


def _attention(score, x) -> list:
  """The weights of each attention of a sequence to itself, in their order: [1, heads, time, time] float32."""
  found = []

  def intercept(call, inputs, options, context):
    own = isinstance(context.module, MultiHeadAttention) and context.method_name == '__call__'
    if not own or options.get('store') is not None or context.module.is_mutable_collection('intermediates'):
      return call(*inputs, **options)
    module, variables = context.module.unbind()
    y, sown = module.apply(variables, *inputs, mutable='intermediates', **options)
    found.append(sown['intermediates']['attention'][0])
    return y

  with nn.intercept_methods(intercept):
    score(x)
  return found


METHODS: Mapping[str, Callable] = {
  method.__name__: method for method in (saliency, smoothgrad, integrated, gradcam, occlusion, shapley, rollout)
}

# ---- tests of attributions ----


def curves(measure, x, baseline, attributions, key, options: Options):
  """Deletion and insertion (Petsiuk et al. 2018): what is measured where the places with the largest
  attributions become the baseline's, one after the other, and where they alone are the input's.

  Returns:
    [2, 2, points + 1]: of deletion and of insertion, by the attributions and by ORDERS random orders, their mean.
  """
  real = options.groups >= 0
  points = min(POINTS, real.size)
  counts = jnp.ceil(jnp.arange(points + 1) * real.sum() / points)

  def course(values, key):  # equal ones in random order
    ties = jax.random.uniform(key, real.shape)
    order = jnp.lexsort((ties.ravel(), -jnp.where(real, values, -jnp.inf).ravel()))
    rank = jnp.argsort(order).reshape(real.shape)

    def both(count):
      taken = (rank < count)[..., None]
      return measure(jnp.where(taken, baseline, x)), measure(jnp.where(taken, x, baseline))

    return jnp.stack(_mapped(both, counts))  # [2, points + 1]

  key, *keys = jax.random.split(key, ORDERS + 1)
  by_chance = jax.lax.map(lambda key: course(jnp.zeros(real.shape), key), jnp.stack(keys)).mean(0)
  return jnp.stack([course(attributions, key), by_chance], 1)


def area(curve):
  """Under a curve […, points] over [0, 1], by trapezoids."""
  return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


def layers(score, x, params) -> dict[str, list]:
  """{module: the paths of its arrays in `params`}, from the first that the score calls to the last, which the top is."""
  called: dict[tuple[str, ...], None] = {}

  def intercept(call, inputs, options, context):
    called.setdefault(context.module.path)
    return call(*inputs, **options)

  with nn.intercept_methods(intercept):
    jax.eval_shape(score, x)
  found = {path: [] for path in called}
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(key.key for key in path)
    found[max((known for known in called if names[: len(known)] == known), key=len)].append(path)
  return {'/'.join(path) or 'model': paths for path, paths in found.items() if paths}


def drawn_anew(params, key):
  """Params of the same shapes, as normal draws with each array's own mean and deviation (Adebayo et al. 2018).

  Not by the initialisers, as a last layer may begin at 0, which attributes nothing.
  """
  leaves, structure = jax.tree.flatten(params)
  draw = lambda x, key: x.mean() + x.std() * jax.random.normal(key, x.shape, x.dtype)
  return structure.unflatten(map(draw, leaves, jax.random.split(key, len(leaves))))


def rank_correlation(a, b) -> float:
  """Spearman's, of arrays of one shape; NaN where one of them is the same everywhere."""
  from scipy import stats

  a, b = np.ravel(a), np.ravel(b)
  return float(stats.spearmanr(a, b)[0]) if np.ptp(a) and np.ptp(b) else float('nan')
