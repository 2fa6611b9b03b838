"""Flags -> optax: learning-rate schedules, optimisers, clipping and weight decay."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from karpjax import errors, hyperparameters

# Schedules whose rates are the same whatever the number of steps: a finished run under one may be prolonged.
INDEPENDENT_OF_STEPS = frozenset({'constant', 'step', 'exponential', 'rsqrt'})
SCHEDULES = ('constant', 'linear', 'cosine', 'step', 'exponential', 'rsqrt')

# Each optimiser, and what it takes, with the value where none is given.
OPTIMISERS = {
  'sgd': {},
  'momentum': {'momentum': 0.9},
  'nesterov': {'momentum': 0.9},
  'adam': {'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-8},
  'adamw': {'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-8},
  'rmsprop': {'beta2': 0.9, 'eps': 1e-8},
  'adagrad': {'eps': 1e-10},
  'adadelta': {'beta2': 0.95, 'eps': 1e-6},
  'lion': {'beta1': 0.9, 'beta2': 0.99},
  'muon': {'momentum': 0.95, 'beta1': 0.9, 'beta2': 0.999, 'eps': 1e-8},
}
DECOUPLED = frozenset({'adamw', 'lion', 'muon'})


def schedule(
  name: str,
  learning_rate: float,
  steps: int,
  *,
  warmup: int = 0,
  final: float = 0.0,
  boundaries: Sequence[int] = (),
  factor: float = 0.1,
  decay_rate: float = 0.96,
  decay_every: int = 1000,
) -> Callable:
  """The learning rate as a function of the number t of updates made so far.

  Warm-up is linear and never zero: learning_rate * (t + 1) / (warmup + 1) while t < warmup. After it, with
  u = t - warmup and n = steps - warmup:

    constant     learning_rate
    linear       from learning_rate at u = 0 to `final` at u = n, and `final` from then on
    cosine       final + (learning_rate - final) * (1 + cos(pi u / n)) / 2 (Loshchilov & Hutter 2017, eq. 5)
    step         learning_rate * factor ** k after k of the `boundaries`, which count t, not u
    exponential  learning_rate * decay_rate ** (u / decay_every)
    rsqrt        learning_rate * sqrt((warmup + 1) / (t + 1)) (Vaswani et al. 2017, eq. 3, scaled to its peak)

  Returns:
    [] int -> [] float32; the constant one without warm-up returns a Python float, by which `build` knows it, unless
    `learning_rate` is traced. That, `final`, `factor` and `decay_rate` may be.

  Raises:
    errors.UsageError: an unknown name, a rate that is negative or not finite, warm-up longer than the run,
      boundaries that do not increase.
  """
  errors.choose('schedule', name, dict.fromkeys(SCHEDULES))
  _check('learning_rate', learning_rate)
  _check('final', final)
  _check('factor', factor)
  _check('decay_rate', decay_rate)
  if decay_every < 1:
    raise errors.UsageError(f'--decay_every={decay_every} must be at least one step.')
  if warmup < 0 or warmup > steps:
    raise errors.UsageError(f'--warmup={warmup} must lie between 0 and the {steps} steps of the run; shorten it.')
  boundaries = tuple(boundaries)
  if any(b <= a for a, b in zip((0, *boundaries), boundaries)):
    given = ','.join(map(str, boundaries))
    raise errors.UsageError(f'--boundaries={given} must be positive and increase from each to the next.')
  if name == 'step' and not boundaries:
    raise errors.UsageError('--schedule=step needs --boundaries, such as 32000,48000; or give --schedule=constant.')

  if hyperparameters.is_known(learning_rate):
    learning_rate = float(learning_rate)
  if name == 'constant' and not warmup:
    return lambda t: learning_rate

  def after_warmup(t):
    progress = jnp.clip((t - warmup) / max(steps - warmup, 1), 0, 1)
    match name:
      case 'constant':
        return learning_rate
      case 'linear':
        return learning_rate + (final - learning_rate) * progress
      case 'cosine':
        return final + (learning_rate - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
      case 'step':
        passed = sum((t >= b).astype(jnp.float32) for b in boundaries)
        return learning_rate * jnp.power(jnp.asarray(factor, jnp.float32), passed)
      case 'exponential':
        return learning_rate * jnp.power(jnp.asarray(decay_rate, jnp.float32), jnp.maximum(t - warmup, 0) / decay_every)
      case 'rsqrt':
        return learning_rate * jnp.sqrt((warmup + 1) / (jnp.maximum(t, warmup) + 1))

  def rate(t):
    t = jnp.asarray(t, jnp.float32)
    return after_warmup(t) * jnp.minimum((t + 1) / (warmup + 1), 1)

  return rate


def build(
  name: str,
  rate: Callable,
  *,
  momentum: float | None = None,
  beta1: float | None = None,
  beta2: float | None = None,
  eps: float | None = None,
  weight_decay: float = 0.0,
  decay_all: bool = False,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """The optimiser: clipping by global norm first, then decay and the update rule, then the learning rate.

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
              decays serve (Liu et al. 2025). Kernels of rank > 2 are matrices [window * in, out]. AdamW, with
              beta1, beta2 and eps, takes the rest: biases, norms, embeddings, last layer (see `is_matrix`)

  Weight decay spares what `is_decayed` spares, unless `decay_all`. It is decoupled (multiplied by the rate and subtracted beside
  the update) for adamw, lion and muon; for all others it is coupled: L2, added to the gradient before
  momentum and moments, as in He et al. 2015.

  Args:
    name: one of OPTIMISERS.
    rate: as `schedule` returns it.
    momentum, beta1, beta2, eps: None is the optimiser's own value, in OPTIMISERS.
    weight_decay: 0 is none.
    decay_all: biases and norms too, as PyTorch's optimisers do unless told otherwise.
    clip: the greatest global norm of the gradients; 0 does not clip.
      All of these numbers may be traced; then the optimiser has every part, whatever their values.

  Raises:
    errors.UsageError: an unknown name, a value the optimiser does not take, a value out of range.
  """
  takes = errors.choose('optimiser', name, OPTIMISERS)
  given = {'momentum': momentum, 'beta1': beta1, 'beta2': beta2, 'eps': eps}
  given = {key: value for key, value in given.items() if value is not None}
  for key, value in given.items():
    if key not in takes:
      others = ', '.join(n for n, t in OPTIMISERS.items() if key in t)
      raise errors.UsageError(f'--optimiser={name} takes no --{key}={value}; these do: {others}.')
    _check(key, value)
    if key != 'eps' and hyperparameters.is_known(value) and value >= 1:
      raise errors.UsageError(f'--{key}={value} must be at least 0 and less than 1.')
  _check('weight_decay', weight_decay)
  _check('clip', clip)

  decay = [optax.add_decayed_weights(weight_decay, mask=None if decay_all else is_decayed)]
  if hyperparameters.is_zero(weight_decay):
    decay = []
  constant = rate(0)
  scale = optax.scale(-constant) if isinstance(constant, float) else optax.scale_by_learning_rate(rate)
  return optax.chain(
    *([] if hyperparameters.is_zero(clip) else [optax.clip_by_global_norm(_limit(clip))]),
    *([] if name in DECOUPLED else decay),
    *_rule(name, **takes | given),
    *(decay if name in DECOUPLED else []),
    scale,
  )


def configured(config) -> optax.GradientTransformation:
  """The optimiser and schedule that a resolved `config.Train` names."""
  rate = schedule(
    config.schedule,
    config.learning_rate,
    config.steps,
    warmup=config.warmup,
    final=config.final_learning_rate,
    boundaries=config.boundaries,
    factor=config.decay,
    decay_rate=config.decay,
    decay_every=config.decay_every,
  )
  return build(
    config.optimiser,
    rate,
    momentum=config.momentum,
    beta1=config.beta1,
    beta2=config.beta2,
    eps=config.epsilon,
    weight_decay=config.weight_decay,
    decay_all=config.decay_all,
    clip=config.clip,
  )


def limit_norms(limit: float, layer: str = 'logits') -> optax.GradientTransformation:
  """To be chained behind an optimiser: rescales each unit's weights to norm `limit` wherever an update leaves them longer.

  Hinton et al. 2012, and Kim 2014 for the last layer of his TextCNN.

  Args:
    limit: the greatest L2 norm of a column of the layer's kernel [in, out]; may be traced.
    layer: its name, as in params['logits']['kernel'].

  Raises:
    errors.UsageError: for a limit that is not positive.
  """
  if hyperparameters.is_known(limit) and not (math.isfinite(limit) and limit > 0):
    raise errors.UsageError(f'a norm is limited to {limit}; it must be a positive number.')

  def update(updates, state, params):
    def one(path, change, p):
      if _names(path)[-2:] != [layer, 'kernel']:
        return change
      new = p + change
      norm = jnp.linalg.norm(new, axis=0)
      return new * jnp.minimum(1, limit / jnp.maximum(norm, 1e-12)) - p

    return jax.tree.map_with_path(one, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def limit_weights(limit: float) -> optax.GradientTransformation:
  """To be chained behind an optimiser: every weight is cut to ± `limit` (the critic's: Arjovsky et al. 2017, algorithm 1).

  Raises:
    errors.UsageError: for a limit that is not positive.
  """
  if hyperparameters.is_known(limit) and not (math.isfinite(limit) and limit > 0):
    raise errors.UsageError(f'weights are limited to ± {limit}; it must be a positive number.')

  def update(updates, state, params):
    return jax.tree.map(lambda u, p: jnp.clip(p + u, -limit, limit) - p, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def is_decayed(params):
  """Which params weight decay takes: all but biases and norms' scales, by name, and whatever has rank < 2."""
  return jax.tree.map_with_path(lambda path, p: p.ndim > 1 and not _names(path)[-1].endswith(('bias', 'scale')), params)


def is_matrix(params):
  """Which params Muon takes: those of `is_decayed`, less embeddings and last layers, by name."""

  def hidden(path, decayed):
    layer = _names(path)[-2:][0]
    return decayed and layer not in ('logits', 'out') and 'embed' not in layer

  return jax.tree.map_with_path(hidden, is_decayed(params))


def _rule(name, momentum=None, beta1=None, beta2=None, eps=None) -> list[optax.GradientTransformation]:
  match name:
    case 'sgd':
      return []
    case 'momentum' | 'nesterov':
      return [optax.trace(momentum, nesterov=name == 'nesterov')]
    case 'adam' | 'adamw':
      return [optax.scale_by_adam(beta1, beta2, eps)]
    case 'rmsprop':
      return [optax.scale_by_rms(beta2, eps, eps_in_sqrt=False)]
    case 'adagrad':
      return [optax.scale_by_rss(0.0, eps)]
    case 'adadelta':
      return [optax.scale_by_adadelta(beta2, eps)]
    case 'lion':
      return [optax.scale_by_lion(beta1, beta2)]
    case 'muon':
      matrices = optax.chain(
        optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_dimension_numbers),
        optax.stateless_with_tree_map(lambda u, _: 0.2 * math.sqrt(max(u.shape[-1], u.size // u.shape[-1])) * u),
      )
      rest = optax.scale_by_adam(beta1, beta2, eps)
      return [optax.partition({True: matrices, False: rest}, is_matrix)]


def _dimension_numbers(params):
  """Every kernel [..., in, out] as the matrix [... * in, out]."""
  return jax.tree.map(lambda p: optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), (p.ndim - 1,)), params)


def _names(path) -> list[str]:
  return [str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', '')))).lower() for key in path]


def _limit(clip):
  """The norm to clip to: a traced 0 is no limit."""
  return clip if hyperparameters.is_known(clip) else jnp.where(clip > 0, clip, jnp.inf)


def _check(flag: str, value: float):
  if hyperparameters.is_known(value) and not (math.isfinite(value) and value >= 0):
    raise errors.UsageError(f'--{flag}={value} must be a finite number, zero or greater.')
