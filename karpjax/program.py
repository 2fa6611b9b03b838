"""The vocabulary: an experiment is a `Program`, and what it trains is a `TrainState`."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from karpjax.errors import UsageError

FROZEN = 'frozen'  # in a batch: what all its examples have, `Program.frozen`
# each [batch, ...]; always 'index' int32; in evaluation, and with order=poisson, also 'mask' bool: both [batch]
Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count), scalars; divided once, when printed

# The purposes a step's key is folded with, so that no two draws of a step share a key.
INITIALISE, AUGMENT, DROPOUT, EVALUATE, LATENT, ROLLOUT, SHUFFLE, REPLAY, PERTURB, PLAYERS, NOISE = range(11)


@struct.dataclass
class TrainState:
  """All that a step changes. Replicated over devices, but for `carried` and `buffers`, whose leading axis is split over them.

  With several players (a GAN, an actor and its critics) params, collections and opt_state are dicts by the player's name.
  """

  step: jax.Array  # [] int32: updates made; never mapped over seeds
  params: Any  # pytree of float32
  collections: Any  # Linen's mutable collections, such as {'batch_stats': ...}; {} where there are none
  opt_state: Any  # optax
  ema: Any  # bias-corrected running average of params, or of those of some players, or None
  key: jax.Array  # [] PRNG key: the first one, for ever; step t draws from fold_in(key, t)
  nonfinite_step: jax.Array  # [] int32: the first step that met NaN or infinity; -1 while there was none
  target: Any = struct.field(default_factory=dict)  # params of target networks; {} if none
  moments: Any = struct.field(default_factory=dict)  # running moments, as of observations; {} if none
  carried: Any = struct.field(default_factory=dict)  # per example: environments, recurrent state; {} if none
  buffers: Any = struct.field(default_factory=dict)  # per example, and kept even by a step that is not finite: replay
  hyper: Any = struct.field(default_factory=dict)  # {name: []}: what a vmapped sweep sets per member; {} otherwise
  ema_collections: Any = struct.field(default_factory=dict)  # the average of the collections that belong to `ema`

  @classmethod
  def create(cls, key, variables, optimiser, *, ema=False, **others) -> 'TrainState':
    """The state before the first step.

    Args:
      key: the run's first key.
      variables: Linen's: 'params' and perhaps other collections, boxed or not; or {player: variables}.
      optimiser: an optax GradientTransformation; or {player: optimiser}.
      ema: whether running averages are kept, of params and collections; or the players of which they are.
      others: target, moments, carried, buffers.
    """
    boxed, variables = variables, nn.meta.unbox(variables)
    rest = lambda v: {name: x for name, x in v.items() if name != 'params'}
    if isinstance(optimiser, Mapping):
      params = {name: v['params'] for name, v in variables.items()}
      collections = {name: rest(v) for name, v in variables.items()}
      opt_state = {name: optimiser[name].init(boxed[name]['params']) for name in optimiser}
    else:
      params, collections = variables['params'], rest(variables)
      opt_state = optimiser.init(boxed['params'])  # which may look at what the boxes say
    averages = lambda tree: jax.tree.map(jnp.copy, {n: tree[n] for n in (ema if isinstance(ema, tuple) else tree)})
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      collections=collections,
      opt_state=nn.meta.unbox(opt_state),
      ema=averages(params) if ema else None,
      ema_collections=averages(collections) if ema else {},
      key=key,
      nonfinite_step=jnp.full((), -1, jnp.int32),
      **others,
    )

  @property
  def eval_params(self):
    """The averaged params where the run keeps them, else the params."""
    return self.params if self.ema is None else self.ema

  def variables(self, player: str | None = None) -> dict[str, Any]:
    """What a Linen module's `apply` takes in evaluation: of the one model, or of one player."""
    own = (lambda tree: tree) if player is None else (lambda tree: tree[player])
    averaged = self.ema is not None and (player is None or player in self.ema)
    params, rest = (self.ema, self.ema_collections) if averaged else (self.params, self.collections)
    return {'params': own(params), **own(rest)}


@dataclasses.dataclass(frozen=True)
class Population:
  """The members of one vmapped run, where they are not --seeds consecutive seeds.

  Attributes:
    seeds: one per member: of its keys and of its data order.
    hyper: {name: one number per member}, which become the states' `hyper`.
  """

  seeds: Sequence[int]
  hyper: Mapping[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Input:
  """An array of a batch: the shape of an example, in which a name, such as 'height', is any size; and the dtype."""

  shape: tuple[int | str, ...]
  dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class Program:
  """An experiment, as pure functions. Whatever one wants to do with it is a transformation of these.

  Attributes:
    init: key -> state.
    step: (state, batch) -> (state, metrics).
    evaluate: (state, batch, key) -> sums: any pytree, added up leaf by leaf over batches, replicas and hosts.
    summarise: sums (NumPy, on the host) -> {name: number}; by default of sums and counts, as `evaluate` gives metrics.
    predict: (state, batch, key) -> outputs [batch, ...], or None.
    logits: (state, batch, key) -> those of classes, [batch, ..., classes], where `predict` gives none; or None.
    example_losses: (state, batch, key) -> [batch] float32 in evaluation mode, or None; of sequences [batch, time], where
      what is not scored, by a negative batch['targets'], counts nothing.
    causal: whether those of sequences depend on no later one of batch['tokens'].
    uninformed_loss: the loss of the best guess that looks at no input, as by the frequencies of classes or tokens (see
      `data.frequencies`), or None. A run whose training loss stays there says so.
    untrained_loss: that of outputs which know not even those, as log C for C classes; None: the same.
    loss_floor: whether the loss of a batch has a floor well above 0, which no training reaches, as an ELBO's.
    report: (state, t, folder) -> lines for the reader, or None: samples, grids, episodes; the one hook with effects, called
      every `report_every` steps and at the end, when its lines are printed below the final numbers. Before the last step
      it reads no test split: see `Dataset.reported`.
    population: whom --seeds=N stands for in a sweep.
    axes: () -> a tree like params of PartitionSpecs of names in `mesh.RULES`; see `partitioning`.
    rename_weights: {name: array} of a published model -> under our names, as `weights.read` takes it.
    collecting: steps at the beginning that only gather what is learnt from later, and change no parameter.
    settled: the first step whose weights may be the best.
    frozen: arrays that a step reads and never changes, such as a teacher's weights: what is compiled has them as an argument,
      whole on every device and one for all seeds, and steps as batch['frozen']; without that they are constants.
    lent: {what it is: its checksum}, of what is learnt from beside the data, such as a teacher: a run that goes on finds it
      as it was.
    exports: {name: ((state, batch, key) -> outputs [batch, ...], {entry of the batch: Input, or a tree of them})}: what
      is of use without karpjax, for `launch.py export`; entries are raw, as in training.
    unread: () -> names of flags that were given and that the program has not read; see `config.unread`.
    notes: () -> lines for start-up to print.
    checks: {what has to be so: (state, batch) -> (whether it is, a figure)} of a state that has learnt a little, for
      `launch.py check`.
    of_step: (t) -> {name: number} of the training after t steps that depend on t alone; logged with its metrics.
  """

  init: Callable[[jax.Array], Any]
  step: Callable[[Any, Batch], tuple[Any, Metrics]]
  evaluate: Callable[[Any, Batch, jax.Array], Any]
  summarise: Callable[[Any], dict[str, float]] = lambda sums: divide(sums)
  predict: Callable[[Any, Batch, jax.Array], Any] | None = None
  logits: Callable[[Any, Batch, jax.Array], Any] | None = None
  example_losses: Callable[[Any, Batch, jax.Array], jax.Array] | None = None
  causal: bool = False
  uninformed_loss: float | None = None
  untrained_loss: float | None = None
  loss_floor: bool = False
  report: Callable[[Any, int, Path], Iterable[str] | None] | None = None
  population: Population | None = None
  axes: Callable[[], Any] | None = None
  rename_weights: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
  collecting: int = 0
  settled: int = 0
  frozen: Any = dataclasses.field(default_factory=dict)
  lent: Mapping[str, int] = dataclasses.field(default_factory=dict)
  exports: Mapping[str, tuple[Callable, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
  unread: Callable[[], Sequence[str]] = tuple
  notes: Callable[[], Sequence[str]] = tuple
  checks: Mapping[str, Callable[[Any, Batch], tuple[bool, str]]] = dataclasses.field(default_factory=dict)
  of_step: Callable[[int], Mapping[str, float]] = lambda t: {}


def partitioning(model, *inputs, **options) -> Callable[[], Any]:
  """For `Program.axes`: the names that a Linen module's parameters give to their axes (`nn.with_partitioning`).

  Inputs and options are those of its call; only their shapes matter.
  """

  def axes():
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **options))
    return nn.get_partition_spec(shapes)['params']

  return axes


def apply(model, params, collections, *inputs, **options):
  """(a Linen module's outputs, its collections after them) in training; options are those of its call, and `rngs`."""
  return model.apply({'params': params, **collections}, *inputs, mutable=list(collections), **options)


def pair(values: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """(sum, count) of one value per example, [batch] -> two float32 scalars; masked examples count nothing.

  Raises:
    UsageError: for a single number, such as a mean, which would count as one example.
  """
  if not jnp.ndim(values):
    raise UsageError('a metric is one value for each example, [batch], not their mean: pair() sums and counts them')
  values = values.astype(jnp.float32)
  if mask is None:
    return values.sum(), jnp.asarray(values.size, jnp.float32)
  mask = mask.astype(jnp.float32)
  return jnp.where(mask > 0, values, 0).sum(), mask.sum()


def divide(totals: Metrics) -> dict[str, Any]:
  """{name: sum / count}, each a number, or one per seed; NaN where nothing was counted."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return {n: (np.asarray(s, np.float64) / np.asarray(c, np.float64)).tolist() for n, (s, c) in totals.items()}


def evaluated_names(program: Program, sums) -> list[str] | None:
  """What an evaluation gives numbers of, from the shapes of its sums; None where `summarise` can make nothing of ones."""
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), sums)
  with contextlib.suppress(Exception), warnings.catch_warnings(), np.errstate(all='ignore'):
    warnings.simplefilter('ignore')
    return list(program.summarise(ones))
  return None


def first_key(key: jax.Array, purpose: int = INITIALISE) -> jax.Array:
  """A key by which a run begins, from its own: no step draws from it."""
  return jax.random.fold_in(jax.random.fold_in(key, 0), purpose)


def step_key(state, purpose: int) -> jax.Array:
  """The key of one purpose at the state's step: the same before and after a resume, alone or vmapped."""
  return jax.random.fold_in(jax.random.fold_in(state.key, state.step), purpose)


def dropout_key(key: jax.Array, batch: Batch) -> jax.Array:
  """The key of a step's dropout masks: from the first example's number, so that replicas and microbatches draw different ones."""
  return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), batch['index'][0])


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
  """One key per example, [batch], from the examples' own numbers: however a batch is cut, an example draws the same."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
