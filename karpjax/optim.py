"""A config's flags -> optax: learning-rate schedules, optimisers, clipping and weight decay.

A number of the config is Python's or, where a sweep runs many values in one program, a traced one: what is left out
because a number is 0 is left out only where Python knows it.
"""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from karpjax import axes, fine_tuning
from karpjax.durations import MOST_STEPS, Pace
from karpjax.errors import UsageError
from karpjax.lean import pruning, quantisation

SCHEDULES = {  # and the flags that each takes
  'constant': (),
  'linear': ('final_learning_rate',),
  'cosine': ('final_learning_rate',),
  'step': ('boundaries', 'decay'),
  'exponential': ('decay', 'decay_every'),
  'rsqrt': (),
}
# Schedules whose rates are the same whatever the number of steps: a finished run under one may be prolonged.
INDEPENDENT_OF_STEPS = frozenset({'constant', 'step', 'exponential', 'rsqrt'})

DECOUPLED = frozenset({'adamw', 'lion', 'muon'})
# The flags that may be traced.
TRACEABLE = (
  *('learning_rate', 'final_learning_rate', 'decay', 'weight_decay', 'clip'),
  *('momentum', 'beta1', 'beta2', 'epsilon'),
)


def is_known(value) -> bool:
  """Whether a number is Python's, so that Python may look at it, and no traced one."""
  return isinstance(value, int | float)


def schedule(config, pace: Pace = Pace()) -> Callable[[jax.Array], jax.Array]:
  """The learning rate as a function of the number t of updates that the optimiser has made so far.

  Durations of the config are in steps of the run, and those below in the optimiser's own updates, by its pace. Warm-up
  is linear and never zero: learning_rate * (t + 1) / (warmup + 1) while t < warmup. After it, with u = t - warmup and n
  = steps - warmup:

    constant     learning_rate
    linear       from learning_rate at u = 0 to final_learning_rate at u = n, where it stays
    cosine       final + (learning_rate - final) * (1 + cos(pi u / n)) / 2 (Loshchilov & Hutter 2017, eq. 5)
    step         learning_rate * decay ** k after k of the boundaries, which count t, not u
    exponential  learning_rate * decay ** (u / decay_every)
    rsqrt        learning_rate * sqrt((warmup + 1) / (t + 1)) (Vaswani et al. 2017, eq. 3, scaled to its peak)

  Args:
    config: a resolved `config.Train`.
    pace: of the optimiser; warm-up begins with its first update.

  Returns:
    [] int -> [] float32; the constant one without warm-up gives the learning rate as it is.

  Raises:
    UsageError: warm-up longer than the run, boundaries that do not increase, or that are missing.
  """
  peak, final, learning = config.learning_rate, config.final_learning_rate, config.steps - pace.first
  if config.warmup > learning:
    text = f'{learning} steps of the run' + (' that learn' if pace.first else '')
    raise UsageError(f'warmup={config.warmup} must lie between 0 and the {text}; shorten it.')
  if config.decay_every < 1:
    raise UsageError(f'decay_every={config.decay_every} must be at least one step.')
  if any(b <= a for a, b in zip((0, *config.boundaries), config.boundaries)):
    given = ','.join(map(str, config.boundaries))
    raise UsageError(f'boundaries={given} must be positive and increase from each to the next.')
  if config.schedule == 'step' and not config.boundaries:
    raise UsageError('schedule=step needs boundaries=32000,48000 or the like; or give schedule=constant.')
  if config.schedule == 'constant' and not config.warmup:
    return lambda t: peak
  steps, warmup = pace.made(config.steps), int(config.warmup * pace.per_step)
  boundaries, decay_every = tuple(map(pace.made, config.boundaries)), float(config.decay_every * pace.per_step)

  def after_warmup(t):
    progress = jnp.clip((t - warmup) / max(steps - warmup, 1), 0, 1)
    decayed = lambda times: peak * jnp.power(jnp.asarray(config.decay, jnp.float32), times)
    match config.schedule:
      case 'constant':
        return peak
      case 'linear':
        return peak + (final - peak) * progress
      case 'cosine':
        return final + (peak - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
      case 'step':
        return decayed(sum((t >= b).astype(jnp.float32) for b in boundaries))
      case 'exponential':
        return decayed(jnp.maximum(t - warmup, 0) / decay_every)
      case 'rsqrt':
        return peak * jnp.sqrt((warmup + 1) / (jnp.maximum(t, warmup) + 1))

  def rate(t):
    t = jnp.asarray(t, jnp.float32)
    return after_warmup(t) * jnp.minimum((t + 1) / (warmup + 1), 1)

  return rate


def configured(config, pace: Pace = Pace()) -> optax.GradientTransformation:
  """The optimiser of a config: clipping by global norm, then of each number, decay and update rule, then the learning
  rate; around them pruning and quantisation, if asked (see `pruning.pruned`, `quantisation.quantised`).

    sgd       params - rate * gradient
    momentum  v = momentum * v + gradient, params - rate * v (Polyak 1964; Sutskever et al. 2013)
    nesterov  the same v, params - rate * (gradient + momentum * v) (Sutskever et al. 2013)
    adam      Kingma & Ba 2015, algorithm 1
    adamw     Loshchilov & Hutter 2019, algorithm 2; the decay is multiplied by the rate
    rmsprop   Tieleman & Hinton 2012: beta2 is its decay; no momentum
    adagrad   Duchi et al. 2011: the accumulator begins at zero
    adadelta  Zeiler 2012: beta2 is its rho
    lion      Chen et al. 2023, algorithm 2
    muon      Jordan et al. 2024, updates scaled by 0.2 * sqrt(max(fan_in, fan_out)) so that AdamW's rates and
              decays serve (Liu et al. 2025). Along which axes a parameter is a matrix is said where it is made (see
              `axes.matrices`): kernels are [window * in, out]. AdamW, with beta1, beta2 and epsilon, takes the rest:
              biases, norms, embeddings, last layers

  Weight decay spares what `is_decayed` spares, unless decay_all. It is decoupled (multiplied by the rate and subtracted
  beside the update) for adamw, lion and muon; for all others it is coupled: L2, added to the gradient before momentum
  and moments, as in He et al. 2015.

  Args:
    config: a resolved `config.Train`; its numbers of `TRACEABLE` may be traced, and then every part of the optimiser is
      there, whatever their values.
    pace: when it makes its updates, where that is not one in each step.

  Raises:
    UsageError: for a value that the optimiser does not take, and as `schedule` does.
  """
  if (made := pace.made(config.steps)) > MOST_STEPS:
    raise UsageError(f'steps={config.steps}: their {made} updates are more than the {MOST_STEPS} that can be counted')
  name, rate = config.optimiser, schedule(config, pace)
  decay = optax.add_decayed_weights(config.weight_decay, mask=None if config.decay_all else is_decayed)
  decays = [] if is_known(config.weight_decay) and config.weight_decay == 0 else [decay]
  limit = config.clip if is_known(config.clip) else jnp.where(config.clip > 0, config.clip, jnp.inf)
  constant = rate(0)
  optimiser = optax.chain(
    *([] if is_known(limit) and limit == 0 else [optax.clip_by_global_norm(limit)]),
    *([optax.clip(config.clip_values)] if config.clip_values else []),
    *([] if name in DECOUPLED else decays),
    *_rule(config),
    *(decays if name in DECOUPLED else []),
    optax.scale(-constant) if is_known(constant) else optax.scale_by_learning_rate(rate),
  )
  if fine_tuning.asked(config):
    if config.freeze and (config.mask_from or config.sparsity or config.quantise != 'none'):
      raise UsageError(f'freeze={",".join(config.freeze)}: pruning and quantisation change weights that would stay')
    optimiser = fine_tuning.tuned(optimiser, config)
  optimiser = pruning.pruned(optimiser, config, pace) if config.mask_from or config.sparsity else optimiser
  return optimiser if config.quantise == 'none' else quantisation.quantised(optimiser, config)


def skipped(opt_state):
  """An optimiser's state after an update that was not made: its schedule goes on, its moments stay."""
  scheduled = lambda x: isinstance(x, optax.ScaleByScheduleState)
  go_on = lambda x: x._replace(count=optax.safe_increment(x.count)) if scheduled(x) else x
  return jax.tree.map(go_on, opt_state, is_leaf=scheduled)


@struct.dataclass
class MuonState:
  """Of a tree of params.

  Attributes:
    inner: optax's.
    matrices: which of them are matrices, as `axes.matrices` tells of params that are boxed.
  """

  inner: optax.OptState
  matrices: tuple[str, ...] = struct.field(pytree_node=False)


def _muon(momentum=0.95, beta1=0.9, beta2=0.999, epsilon=1e-8):
  def rule(matrices):
    like = lambda tree, values: jax.tree.unflatten(jax.tree.structure(tree), values)
    places = lambda matrix, letter: tuple(i for i, x in enumerate(matrix) if x == letter)
    numbers = [optax.contrib.MuonDimensionNumbers(places(m, 'i'), places(m, 'o')) for m in matrices if m]

    def scaled(updates, _):
      sizes = lambda u: (math.prod(u.shape[i] for i in at) for at in next(each))
      each = iter(numbers)  # in the order of the leaves
      return jax.tree.map(lambda u: 0.2 * math.sqrt(max(sizes(u))) * u, updates)

    orthogonal = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=lambda some: like(some, numbers))
    rules = {True: optax.chain(orthogonal, optax.stateless(scaled)), False: optax.scale_by_adam(beta1, beta2, epsilon)}
    return optax.partition(rules, lambda params: like(params, [bool(m) for m in matrices]))

  def init(params):
    matrices = axes.matrices(params)
    return MuonState(rule(matrices).init(nn.meta.unbox(params)), matrices)

  def update(updates, state, params=None):
    updates, inner = rule(state.matrices).update(updates, state.inner, params)
    return updates, state.replace(inner=inner)

  return [optax.GradientTransformation(init, update)]


# The rule of each optimiser: its parameters are the flags that it takes, with their values where none is given.
OPTIMISERS = {
  'sgd': lambda: [],
  'momentum': lambda momentum=0.9: [optax.trace(momentum)],
  'nesterov': lambda momentum=0.9: [optax.trace(momentum, nesterov=True)],
  'adam': lambda beta1=0.9, beta2=0.999, epsilon=1e-8: [optax.scale_by_adam(beta1, beta2, epsilon)],
  'adamw': lambda beta1=0.9, beta2=0.999, epsilon=1e-8: [optax.scale_by_adam(beta1, beta2, epsilon)],
  'rmsprop': lambda beta2=0.9, epsilon=1e-8: [optax.scale_by_rms(beta2, epsilon, eps_in_sqrt=False)],
  'adagrad': lambda epsilon=1e-10: [optax.scale_by_rss(0.0, epsilon)],
  'adadelta': lambda beta2=0.95, epsilon=1e-6: [optax.scale_by_adadelta(beta2, epsilon)],
  'lion': lambda beta1=0.9, beta2=0.99: [optax.scale_by_lion(beta1, beta2)],
  'muon': _muon,
}


def _rule(config) -> list[optax.GradientTransformation]:
  """The rule of a config's optimiser; raises UsageError for a flag that it does not take."""
  takes = {name: inspect.signature(rule).parameters for name, rule in OPTIMISERS.items()}
  given = {key: getattr(config, key) for key in ('momentum', 'beta1', 'beta2', 'epsilon')}
  given = {key: value for key, value in given.items() if value is not None}
  for key, value in given.items():
    if key not in takes[config.optimiser]:
      others = ', '.join(name for name in takes if key in takes[name])
      raise UsageError(f'optimiser={config.optimiser} takes no {key}={value}; these do: {others}.')
  return OPTIMISERS[config.optimiser](**given)


def is_decayed(params):
  """Which params weight decay takes: all but biases and norms' scales, by name, and whatever has rank < 2."""
  return jax.tree.map_with_path(lambda path, p: p.ndim > 1 and not _names(path)[-1].endswith(('bias', 'scale')), params)


def _names(path) -> list[str]:
  return [str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', '')))).lower() for key in path]


def limit_norms(limit: float) -> optax.GradientTransformation:
  """To be chained behind an optimiser: limits the norm of each unit's weights in the layer 'logits'.

  Hinton et al. 2012, and Kim 2014 for the last layer of his TextCNN.

  Args:
    limit: the greatest L2 norm of a column of the layer's kernel [in, out]; positive.
  """

  def limited(path, update, p):
    if _names(path)[-2:] != ['logits', 'kernel']:
      return update
    new = p + update
    return new * jnp.minimum(1, limit / jnp.maximum(jnp.linalg.norm(new, axis=0), 1e-12)) - p

  return optax.stateless(lambda updates, params: jax.tree.map_with_path(limited, updates, params))


def limit_weights(limit: float) -> optax.GradientTransformation:
  """To be chained behind an optimiser: cuts every weight to ± `limit` (a critic's: Arjovsky et al. 2017,
  algorithm 1).
  """
  return optax.stateless_with_tree_map(lambda update, p: jnp.clip(p + update, -limit, limit) - p)
