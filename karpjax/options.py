"""An option is said once: a dataclass field with its default, help, range and group, whether of a Config or of a model.

`check` refuses values out of range. A model's options are fields of its Linen module; `model_flags` makes flags of them.
"""

import copy
import dataclasses
import importlib
import inspect
import re
import traceback
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from flax import linen as nn

from karpjax import paths
from karpjax.errors import UsageError, check_text, choose, first_line, nearest


def option(
  default, help='', *, group='Model', choices=None, low=None, high=None, above=None, below=None, least=0,
  may_change=False, own=False, path=False, means='', by_model=None,
):  # fmt: skip
  """A dataclass field that is an option.

  Args:
    default: its value where none is given; the field's annotation is its type.
    help: one or two sentences for `--help`.
    group: the heading under which `--help` shows it.
    choices: the values it may take, or None for any.
    low, high: the smallest and the largest value; of a tuple, of each of its numbers.
    above, below: bounds that are not reached.
    own: whether it may also be a model of the user's own, package.module:Class.
    path: whether it is a path, or has one behind a colon or a comma: see `paths.expand`.
    least: how many values at the least, of a tuple.
    means, by_model: what a default of None stands for, as `--help` says it; and {model: it}.
    may_change: whether a run may go on in its workdir with another value (logging, paths, layout).
  """
  bounds = {'low': low, 'high': high, 'above': above, 'below': below}
  metadata = {'help': help, 'group': group, 'choices': tuple(choices) if choices else None, 'may_change': may_change}
  metadata |= {'own': own, 'path': path, 'means': means, 'least': least, 'of_models': None, 'by_model': by_model or {}}
  return dataclasses.field(default=default, metadata={**metadata, **bounds})


BOUNDS = {
  'low': (lambda x, bound: x >= bound, 'at least {}'),
  'high': (lambda x, bound: x <= bound, 'at most {}'),
  'above': (lambda x, bound: x > bound, 'more than {}'),
  'below': (lambda x, bound: x < bound, 'less than {}'),
}
DEEPEST = 4096  # layers of a model, each of which is traced
# What a number is where its option says nothing else: an int32, or of float32.
LARGEST = {int: {'low': -(2**31), 'high': 2**31 - 1}, float: {'low': -3.4e38, 'high': 3.4e38}}


def check(instance) -> None:
  """Refuses values of a dataclass that lie outside their fields' ranges or choices; traced numbers pass.

  Raises:
    UsageError: naming the field, its value, and what is allowed.
  """
  for field in dataclasses.fields(instance):
    value, meta = getattr(instance, field.name), field.metadata
    own = {name: meta[name] for name in BOUNDS if meta.get(name) is not None}
    if isinstance(value, tuple) and len(value) < meta.get('least', 0):
      raise UsageError(f'{field.name}={text(value)}: at least {meta["least"]} value is needed')
    for x in value if isinstance(value, tuple) else (value,):
      if meta.get('choices') and x is not None and x not in meta['choices'] and not (meta.get('own') and is_own(x)):
        raise UsageError(f'{field.name}={x}: unknown.{nearest(str(x), map(str, meta["choices"]))}')
      if isinstance(x, str) and not meta.get('path'):
        check_text(f'{field.name}=', x)
      if isinstance(x, bool) or not isinstance(x, int | float):
        continue
      largest = LARGEST[int if isinstance(x, int) else float]
      for bounds in (own, {name: bound for name, bound in largest.items() if name not in own}):
        if not all(BOUNDS[name][0](x, bound) for name, bound in bounds.items()):
          allowed = ' and '.join(BOUNDS[name][1].format(bound) for name, bound in bounds.items())
          raise UsageError(f'{field.name}={text(value)}: {allowed} is needed')


def expand_paths(instance) -> None:
  """`paths.expand` for all paths of a dataclass that has just been made, frozen or not."""
  for field in dataclasses.fields(instance):
    value = getattr(instance, field.name)
    if field.metadata.get('path') and isinstance(value, str):
      object.__setattr__(instance, field.name, paths.expand(value))


def text(value) -> str:
  """A value as it is typed behind a flag."""
  return ','.join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def as_flags(values: Mapping[str, Any]) -> list[str]:
  """{option: value} as they are typed."""
  return [f'--{name}={text(value)}' for name, value in values.items()]


PLAIN = bool, int, float, str


def element(annotation):
  """(the plain type of a field, whether it takes several values): int | tuple[int, ...] -> (int, True)."""
  union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  members = typing.get_args(annotation) if union else (annotation,)
  several = [typing.get_args(m)[0] for m in members if typing.get_origin(m) is tuple]
  plain = several or [m for m in members if m is not type(None)]
  return plain[0], bool(several)


# ---- models ----


def shared(constructor: Callable, instance, **others) -> dict[str, Any]:
  """What a module takes of an instance's fields that have the same names, and `others`: options are passed whole."""
  names = {field.name for field in dataclasses.fields(constructor)} - {'parent', 'name', *others}
  return {name: getattr(instance, name) for name in names if hasattr(instance, name)} | others


def of_model(constructor: Callable, own: bool = False) -> dict[str, dataclasses.Field]:
  """The options of a Linen module, or of a partial of one: its fields made by `option`; of one's own see `_own_fields`."""
  fields = dataclasses.fields(getattr(constructor, 'func', constructor))
  return _own_fields(constructor) if own else {f.name: f for f in fields if 'group' in f.metadata}


# ---- models of the user's own ----


def is_own(name: object) -> bool:
  """Whether a model's name is that of a user's: 'package.module:Class'."""
  return isinstance(name, str) and re.fullmatch(r'[\w.]+:\w+', name) is not None


def imported(module: str, whose: str = ''):
  """A module of the user's own; raises UsageError, beginning with `whose`, where it does not import."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition('.')[0]
    where = '; it has to lie where you type the command, or in PYTHONPATH' if missing else ''
    raise UsageError(f'{whose}{module} does not import: {error}{where}') from None
  except Exception as error:
    where = traceback.extract_tb(error.__traceback__)[-1]
    line = '' if isinstance(error, SyntaxError) else f' ({where.filename}, line {where.lineno})'
    raise UsageError(f'{whose}{module} does not import: {type(error).__name__}: {first_line(error)}{line}') from None


def own_model(name: str) -> Callable:
  """The Linen module of 'package.module:Class'.

  Raises:
    UsageError: where the module does not import, has no such class, or the class is no Linen module.
  """
  module, _, cls = name.partition(':')
  found = imported(module, f'model={name}: ')
  if not hasattr(found, cls):
    raise UsageError(f'model={name}: {module} has no {cls}')
  if not (isinstance(getattr(found, cls), type) and issubclass(getattr(found, cls), nn.Module)):
    raise UsageError(f'model={name}: {cls} is no flax.linen.Module')
  return getattr(found, cls)


def _own_fields(cls: type) -> dict[str, dataclasses.Field]:
  """The fields that have a default and are a bool, a number, a text, or several of these, their annotations as `element` reads them."""
  try:
    annotations = typing.get_type_hints(cls)
  except (NameError, TypeError):  # texts that stand for nothing
    annotations = {}
  found = {}
  for field in dataclasses.fields(cls):
    plain, several = element(annotations.get(field.name, field.type))
    if plain not in PLAIN and isinstance(field.default, (*PLAIN, tuple)):  # `tuple` or `Any`: the default says more
      several = isinstance(field.default, tuple)
      plain = type(next(iter(field.default), '') if several else field.default)
    if plain in PLAIN and field.default is not dataclasses.MISSING and field.name not in ('parent', 'name'):
      found[field.name] = copy.copy(field)
      found[field.name].type = tuple[plain, ...] if several else plain
  return found


def with_model(config_class: type, name: object) -> type:
  """The Config's class, and, where the model is one's own, a flag more for each of its fields.

  Raises:
    UsageError: where a field has the name of a flag that means something else.
  """
  known = {field.name: field for field in dataclasses.fields(config_class)}
  if not is_own(name) or 'model' not in known:
    return config_class
  fields = []
  for field in of_model(own_model(name), own=True).values():
    plain, several = element(field.type)
    if field.name not in known:
      about = {'choices': field.metadata.get('choices'), 'means': text(field.default)}
      made = option(None, field.metadata.get('help', ''), **about)
      fields.append((field.name, (tuple[plain, ...] if several else plain) | None, made))
    elif (flag := known[field.name]).metadata.get('group') != 'Model' or element(flag.type)[0] is not plain:
      raise UsageError(f'model={name}: its field {field.name} has the name of a flag; call it otherwise')
  return dataclasses.make_dataclass(
    config_class.__name__, fields, bases=(config_class,), frozen=True, namespace={'__module__': config_class.__module__}
  )


def model_flags(models: Mapping[str, Callable], usual: str = '', own: bool = False) -> type:
  """A dataclass to inherit from: a flag for each option of any of the models; None is the model's own default.

  Args:
    models: {name: Linen module or a partial of one}.
    usual: which is the default of a flag `model`; '': there is no such flag.
    own: whether that flag takes a model of the user's own too.
  """
  found: dict[str, dict[str, dataclasses.Field]] = {}
  for name, constructor in models.items():
    for field in of_model(constructor).values():
      found.setdefault(field.name, {})[name] = field
  help = "The model; its options are below, each by default the model's own."
  fields = [('model', str, option(usual, help, group='Experiment', choices=models, own=own))] if usual else []
  for name, by_model in found.items():
    kinds = [element(field.type) for field in by_model.values()]
    plain = kinds[0][0]
    annotation = (tuple[plain, ...] if any(several for _, several in kinds) else plain) | None
    every = [field.metadata['choices'] for field in by_model.values()]
    choices = dict.fromkeys(c for each in every for c in each) if all(every) else None
    # which others may leave it to
    first = next(filter(None, (field.metadata['help'] for field in by_model.values())), '')
    helps = _by_text({model: field.metadata['help'] or first for model, field in by_model.items()}, models, '.')
    own_default = lambda model, field: getattr(models[model], 'keywords', {}).get(field.name, field.default)
    values = {model: own_default(model, field) for model, field in by_model.items()}
    texts = {model: text(x) for model, x in values.items() if text(x) not in ('', 'None')}
    about = {'choices': choices, 'means': '; '.join(_by_text(texts, by_model)), 'by_model': values}
    fields.append((name, annotation, option(None, ' '.join(helps), **about)))
  return dataclasses.make_dataclass('ModelFlags', fields, frozen=True)


def _by_text(texts: Mapping[str, str], models: Collection[str], end: str = '') -> list[str]:
  """{model: text} -> each text once, behind it the models that it is of where these are not all."""
  groups: dict[str, list[str]] = {}
  for model, said in texts.items():
    groups.setdefault(said.removesuffix('.') if end else said, []).append(model)
  return [said + (f' ({", ".join(of)})' if len(of) < len(models) else '') + end for said, of in groups.items()]


def _check_own(name: str, cls: type, given: Mapping[str, Any], inputs: tuple, call: Mapping[str, Any]) -> None:
  """Refuses a model of the user's own with a field that nobody gives, or with another call than the experiment's."""
  none = dataclasses.MISSING
  for field in dataclasses.fields(cls):
    if field.init and field.name not in given and field.default is none and field.default_factory is none:
      raise UsageError(f'model={name}: its field {field.name} has no default, and the data do not decide it')
  try:
    inspect.signature(cls.__call__).bind(None, *inputs, **call)
  except TypeError as error:
    wanted = ', '.join([*['an input'] * len(inputs), *(f'{key}=' for key in call)])
    raise UsageError(f'model={name}: it is called with {wanted}: {error}') from None


def build(models: Mapping[str, Callable], name: str, chosen, *inputs, call: Mapping[str, Any] | None = None, **decided):
  """The model called `name`, its options checked, and traced once (not compiled) for its errors.

  Args:
    models: {name: Linen module or a partial of one}.
    name: which.
    chosen: a Config whose flags of the group Model are the options, or {option: value}; None is the model's own default, and
      a flag of several values may stand for one.
    inputs: of the model's call, arrays or ShapeDtypeStructs; () does not trace it.
    call: keyword arguments of that call.
    decided: the fields that are no options: what the data decide. Those that the model has not are left out.

  Raises:
    UsageError: for an unknown model, an option that it has not, or a value that makes no sense.
  """
  constructor = own_model(name) if is_own(name) else choose('model', name, models)
  fields, taken = {key: field for key, field in of_model(constructor, is_own(name)).items() if key not in decided}, {}
  if not isinstance(chosen, Mapping):  # whose flags may be those of other models beside these
    known = {key for model in models.values() for key in of_model(model)} | fields.keys()
    chosen = {key: value for key, value in chosen.model_options().items() if key in known}
  for key, value in chosen.items():
    if value is None:
      continue
    if key not in fields:
      raise UsageError(f'model {name} has no {key}={text(value)}. Its options: {", ".join(sorted(fields)) or "none"}')
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    several = element(fields[key].type)[1]
    if not several and len(values) != 1:
      raise UsageError(f'{key}={text(values)}: model {name} takes one value')
    taken[key] = values if several else values[0]
  has = {field.name: field for field in dataclasses.fields(getattr(constructor, 'func', constructor))}
  given = {key: x for key, x in decided.items() if key in has} | taken
  if is_own(name):
    _check_own(name, constructor, given, inputs, call or {})
  model = constructor(**given)
  check(model)
  if inputs and not any(isinstance(x, jax.Array) for x in jax.tree.leaves(taken)):  # a sweep's, within a step
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x, **(call or {})), *shapes)
  return model
