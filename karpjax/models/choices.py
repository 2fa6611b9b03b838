"""What a user may choose of a model: the fields of its Linen module that nothing else decides."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from karpjax import errors

_LINEN = ('parent', 'name')


def _fields(constructor, decided) -> dict[str, dataclasses.Field]:
  fields = dataclasses.fields(getattr(constructor, 'func', constructor))
  return {field.name: field for field in fields if field.name not in (*_LINEN, *decided)}


def defaults(constructor: Callable, decided: Iterable[str]) -> dict[str, Any]:
  """The options of a module, or of a partial of one, with their defaults; `decided` are none."""
  fixed = constructor.keywords if isinstance(constructor, functools.partial) else {}
  return {name: fixed.get(name, field.default) for name, field in _fields(constructor, decided).items()}


def checked(name: str, constructor: Callable, options: Mapping[str, Any], decided: Iterable[str]) -> dict[str, Any]:
  """What the user chose, as the module takes it.

  Args:
    name: of the model, for errors.
    constructor: a module, or a partial of one.
    options: by name; None leaves the module's own default, and a flag of several values may stand for one.
    decided: fields that are no options: the data, or the model's name, decides them.

  Raises:
    UsageError: for an option that the model has not, or several values where it takes one.
  """
  fields, chosen = _fields(constructor, decided), {}
  for option, value in options.items():
    if value is None:
      continue
    if option not in fields:
      raise errors.UsageError(f'model {name} has no --{option}. Its options: {", ".join(sorted(fields)) or "none"}')
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if 'tuple' in str(fields[option].type):
      chosen[option] = values
    elif len(values) == 1:
      chosen[option] = values[0]
    else:
      raise errors.UsageError(f'--{option}={",".join(map(str, values))}: model {name} takes one value')
  return chosen
