"""Which axes of which parameters belong to the channels of one layer, and the smaller model without some of them.

No model says it: an axis belongs to an option whose value changes its size. Its channels are the inputs of a kernel: where
the rows of one are 0, and nothing else reads it, whatever makes it may change without a trace.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from karpjax import config as configs
from karpjax import options
from karpjax.data import batches
from karpjax.data.dataset import Dataset, listed
from karpjax.durations import Duration
from karpjax.errors import UsageError
from karpjax.lean import flags, pruning
from karpjax.lean.pruning import Channels
from karpjax.program import Program
from karpjax.train import checkpoint

EXAMPLES = 16  # of a trial
SAME = 1e-6  # of the largest output: what is no trace
ZERO = 8, 16  # numbers in place of one that is 0; even, as rotary positions want a head
CLOSE = 1e-4  # of the largest output: how much the smaller model may differ by rounding


def of_state(state) -> dict[str, Any]:
  """{'params/…' or 'batch_stats/…': array}."""
  tree = {'params': state.params, **state.collections}
  return dict(zip(checkpoint.names(tree), jax.tree.leaves(tree)))


def with_arrays(state, arrays: Mapping[str, Any]):
  """The state with these parameters and statistics."""
  tree = {'params': state.params, **state.collections}
  tree = jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in checkpoint.names(tree)])
  return state.replace(params=tree.pop('params'), collections=tree)


def exact(config):
  """The Config of the same model whose outputs differ by rounding to float32 alone; it learns from nobody."""
  return dataclasses.replace(config, dtype='float32', teacher='')


def trial(experiment, config, data: Dataset):
  """(the `exact` Program, a state whose parameters are drawn so that most units are active, a small batch).

  Raises:
    UsageError: for a program of several players, or that predicts nothing.
  """
  program = experiment.program(exact(config), data)
  state = jax.jit(program.init)(jax.random.key(0))
  if len(_pruned(state)) != 1 or not (program.example_losses or program.predict):
    raise UsageError('structured=True: for a program of one model with examples of its own')
  draw, arrays = np.random.default_rng(0), of_state(state)
  dtypes = {name: x.dtype for name, x in arrays.items()}
  for name, x in arrays.items():
    if x.ndim > 1 and name.startswith('params/'):
      arrays[name] = draw.normal(size=x.shape) * math.prod(x.shape[:-1]) ** -0.5
    elif name.startswith('params/'):  # no unit's input is far below 0
      arrays[name] = x + draw.uniform(0.5, 1, x.shape)
  numbers = np.arange(min(EXAMPLES, data.splits['train'].size))
  batch = {**batches.fetch(data.splits['train'], numbers), 'mask': np.ones(len(numbers), bool)}
  return program, with_arrays(state, {name: jnp.asarray(x, dtypes[name]) for name, x in arrays.items()}), batch


def channelled(experiment, config, data: Dataset, program: Program) -> Program:
  """The Program, whose optimiser knows the channels that it prunes.

  Raises:
    UsageError: where no smaller model could do without them.
  """
  tried, state, batch = trial(experiment, config, data)
  config = said(experiment, config, data)
  channels = find(experiment, config, data, tried, state, batch)
  draw = np.random.default_rng(1).uniform
  kept = [np.asarray(pruning.largest(draw(size=each.size), config.sparsity)) for each in channels]
  small = experiment.program(exact(smaller(config, channels, kept)), data)
  compare(tried, small, state, batch, channels, kept)
  static = pruning.Static(tuple(channels))
  known = lambda x: x._replace(channels=static) if _is_pruned(x) else x

  def init(key):
    state = program.init(key)
    return state.replace(opt_state=jax.tree.map(known, state.opt_state, is_leaf=_is_pruned))

  return dataclasses.replace(program, init=init)


def find(experiment, config, data: Dataset, program: Program, state, batch) -> list[Channels]:
  """The channels of all layers that an option of the model can make narrower; config: of `said`; program, state and batch: of `trial`.

  Raises:
    UsageError: where there are none, which says why.
  """
  if config.quantise != 'none':
    raise UsageError(f'quantise={config.quantise}: structured takes kernels that are not quantised')
  arrays, outputs, found, why = of_state(state), _outputs(program, state, batch), [], {}
  shapes, plain = {name: x.shape for name, x in arrays.items()}, outputs(arrays)
  letters = {f'params/{name}': x for name, x in zip(checkpoint.names(state.params), _pruned(state)[0].layers.value)}
  kind = lambda x: letters.get(x[0], '')[x[1] : x[1] + 1]  # i or o, of a kernel's axis
  for option, entry, size, axes in _resized(experiment, config, data, shapes):
    mark = lambda name, axis, unit, size=size: pruning.spread(jnp.arange(size) == unit, shapes[name], axis)
    own = []
    for reader in [x for x in axes if kind(x) == 'i']:
      without = lambda unit, reader=reader: {**arrays, reader[0]: arrays[reader[0]] * ~mark(*reader, unit)}
      active = (unit for unit in range(size) if _gap(plain, outputs(without(unit))) > SAME)
      unit = next(active, 0)
      cut_off = without(unit)
      silent = outputs(cut_off)
      changed = lambda arrays, x, unit=unit: outputs({**arrays, x[0]: arrays[x[0]] + mark(*x, unit)})
      unseen = lambda x: _gap(silent, changed(cut_off, x)) < SAME < _gap(plain, changed(arrays, x))
      made = [x for x in axes if x != reader and unseen(x)]
      makers = tuple(x for x in made if kind(x) == 'o')
      if not makers:
        break
      own.append(Channels(option, entry, size, makers, (*made, reader)))
    members = [x for each in own for x in each.members]
    if sorted(members) == sorted(axes):
      found += own
    elif any(kind(x) == 'o' for x in axes):  # no window
      why.setdefault(option, next((x[0] for x in axes if x not in members and kind(x)), axes[0][0]))
  if not found:
    shared = listed([f'{option} ({name}, …)' for option, name in why.items()])
    text = f': more than one layer reads what these say: {shared}' if why else ''
    raise UsageError(f'structured=True: no option of this model makes single layers narrower{text}')
  return found


def _is_pruned(x) -> bool:
  return isinstance(x, pruning.Pruned)


def _pruned(state) -> list[pruning.Pruned]:
  return [x for x in jax.tree.leaves(state.opt_state, is_leaf=_is_pruned) if _is_pruned(x)]


def _outputs(program: Program, state, batch):
  """A function of {name: array}: what the program makes of a batch with these."""
  function = program.example_losses or program.predict
  call = jax.jit(lambda arrays, batch: function(with_arrays(state, arrays), batch, jax.random.key(0)))
  return lambda arrays: [np.asarray(x, np.float64) for x in jax.tree.leaves(call(arrays, batch))]


def _gap(some, others) -> float:
  """The largest difference of outputs, as a part of the largest."""
  return max(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30) for x, y in zip(some, others))


def said(experiment, config, data: Dataset):
  """The Config with numbers for the zeros that stand for them: as another option shrinks, these do not."""
  now = _sizes(experiment, config, data)
  for option, entry, value, number in _numbers(config):
    trials = () if number else [{option: _with(value, entry, n)} for n in ZERO]
    one, more = (_sizes(experiment, config, data, **x) for x in trials or ({}, {}))
    per_unit = _moved(now, one, more)
    stands = {now[axis] * (ZERO[1] - ZERO[0]) / n for axis, n in per_unit.items()}
    if len(stands) == 1 and (size := stands.pop()) == int(size) > 0:
      change = {option: _with(value, entry, int(size))}
      config = dataclasses.replace(config, **change) if _sizes(experiment, config, data, **change) == now else config
  return config


def _sizes(experiment, config, data, **changes) -> dict[tuple[str, int], int]:
  """{(name, axis): its size} of the arrays; {} of a model, perhaps of the user's own, that these changes cannot be made to."""
  try:
    program = experiment.program(dataclasses.replace(exact(config), **changes), data)
    state = jax.eval_shape(program.init, jax.random.key(0))
  except Exception:
    return {}
  return {(name, axis): n for name, x in of_state(state).items() for axis, n in enumerate(x.shape)}


def _moved(now, one, more) -> dict[tuple[str, int], int]:
  """{(name, axis): by how much it grows} from one model to the other, which are of the same arrays as now; else {}."""
  same = now.keys() == one.keys() == more.keys()
  return {axis: more[axis] - n for axis, n in one.items() if more[axis] != n} if same else {}


def _numbers(config):
  """Of each whole number that is no flag of all experiments: (option, entry, the option's value, number)."""
  common = {field.name for field in dataclasses.fields(configs.Train)}
  for field in [f for f in dataclasses.fields(config) if f.name not in common]:
    value = _value(config, field)
    for entry in range(len(value)) if isinstance(value, tuple) else (None,):
      number = value if entry is None else value[entry]
      if type(number) is int:
        yield field.name, entry, value, number


def _resized(experiment, config, data, shapes: Mapping[str, tuple]):
  """Of each number that sizes axes of arrays: (option, entry, how many units, [(name, axis)])."""
  now = {(name, axis): n for name, shape in shapes.items() for axis, n in enumerate(shape)}
  for option, entry, value, number in _numbers(config):
    more = _sizes(experiment, config, data, **{option: _with(value, entry, number + 1)}) if number else {}
    places = _moved(now, now, more)
    units = {now[axis] / n for axis, n in places.items()}
    if len(units) == 1 and (size := units.pop()) == int(size) > 1:
      yield option, entry, int(size), [*places]


def _value(config, field: dataclasses.Field):
  """What a flag stands for: of a model's, where it is not given, the model's own default; None where it has none."""
  given, model, by_model = getattr(config, field.name), getattr(config, 'model', ''), field.metadata.get('by_model', {})
  if given is None and options.is_own(model):
    return getattr(options.of_model(options.own_model(model), own=True).get(field.name), 'default', None)
  return by_model.get(model or next(iter(by_model))) if given is None and by_model else given


def _with(value, entry: int | None, number: int):
  return number if entry is None else (*value[:entry], number, *value[entry + 1 :])


# ---- the smaller model ----


def smaller(config, channels: Sequence[Channels], kept: Sequence[np.ndarray]):
  """The Config of the model of which these units, [size] bool, are left; it prunes nothing."""
  fields, changes = {field.name: field for field in dataclasses.fields(config)}, {}
  for each, units in zip(channels, kept):
    before = changes.get(each.option, _value(config, fields[each.option]))
    changes[each.option] = _with(before, each.entry, int(units.sum()))
  pruning_flags = [field for field in dataclasses.fields(flags.Flags) if field.metadata['group'] == 'Pruning']
  plain = {f.name: int(f.default) if f.type is Duration else f.default for f in pruning_flags}  # in steps
  return dataclasses.replace(config, **changes, **plain)


def cut(arrays: Mapping[str, Any], channels: Sequence[Channels], kept: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of which these units are left; some may not be given."""
  arrays = {name: np.asarray(x) for name, x in arrays.items()}
  for each, units in zip(channels, kept):
    for name, axis in [x for x in each.members if x[0] in arrays]:
      places = np.tile(units, arrays[name].shape[axis] // each.size)
      arrays[name] = np.compress(places, arrays[name], axis)
  return arrays


def _members(arrays: Mapping[str, Any], channels: Sequence[Channels], kept: Sequence[np.ndarray]):
  """(name, where these units of a parameter are, bool of its shape)."""
  for each, units in zip(channels, kept):
    for name, axis in [x for x in each.members if x[0].startswith('params/')]:
      yield name, pruning.spread(units, arrays[name].shape, axis)


def refuse_rest(arrays: Mapping[str, Any], channels: Sequence[Channels], kept: Sequence[np.ndarray]) -> None:
  """Raises UsageError where what belongs to units that are not kept is not 0."""
  for name, left in _members(arrays, channels, kept):
    if np.where(left, 0, arrays[name]).any():
      raise UsageError(f'structured=True: {name} is not 0 where its channels are pruned')


def compare(program: Program, small: Program, state, batch, channels, kept) -> None:
  """Raises UsageError where `exact` Programs, with these units 0 or without them, make other outputs of what is of `trial`.

  Its parameters are drawn: the losses of trained ones may be as small as the rounding of their logits.
  """
  arrays = of_state(state)
  for name, left in _members(arrays, channels, kept):
    arrays[name] *= left
  small_state = with_arrays(jax.jit(small.init)(jax.random.key(0)), cut(arrays, channels, kept))
  pairs = (program, with_arrays(state, arrays)), (small, small_state)
  gap = _gap(*(_outputs(program, state, batch)(of_state(state)) for program, state in pairs))
  if not gap < CLOSE:
    raise UsageError(f'structured=True: without its channels the model gives other outputs, by {gap:.1%}')
