"""The defaults of flags: those of an experiment, and in their place those of one of its models."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping

from karpjax import options
from karpjax.errors import choose


def metadata(field: dataclasses.Field):
  """What `options.option` says of a field; a plain dataclass field is a flag of the group Experiment too."""
  return field.metadata or options.option(None, group='Experiment').metadata


def defaults(models: Mapping[str, Mapping[str, typing.Any]] = types.MappingProxyType({}), **changes):
  """A class decorator that makes a Config of a class, and gives flags it inherits other defaults: `@defaults(steps='2000')`.

  Those of `models`, {model: {flag: default}}, hold where the flag `model` names it: see `settled`.
  """

  def decorate(cls):
    inherited = {f.name: f for base in reversed(cls.__bases__) for f in dataclasses.fields(base)}
    annotations = inspect.get_annotations(cls)
    for name in dict.fromkeys([*changes, *(name for own in models.values() for name in own)]):
      field = choose('flag', name, inherited)
      before = {'': changes[name]} if name in changes else metadata(field).get('of_models') or {'': field.default}
      every = before | {model: own[name] for model, own in models.items() if name in own}
      value, of_models = (None, every) if len(every) > 1 else (every[''], None)
      setattr(cls, name, dataclasses.field(default=value, metadata={**metadata(field), 'of_models': of_models}))
      annotations[name] = field.type
    cls.__annotations__ = annotations
    made = dataclasses.dataclass(frozen=True)(cls)
    for model in models:
      choose('model', model, dict.fromkeys(made.__dataclass_fields__['model'].metadata['choices'] or models))
    return made

  return decorate


def of(config, field: dataclasses.Field):
  """The default, for the config's model, of a flag in which models differ."""
  of_models = metadata(field)['of_models']
  return of_models.get(config.model, of_models[''])


def with_own_values(config, values: Mapping[str, typing.Any]):
  """The config with an algorithm's or a network's own values where a flag is None."""
  return dataclasses.replace(config, **{name: x for name, x in values.items() if getattr(config, name) is None})


def settled(config):
  """The same config with its model's own defaults in place of None, which flags that have such are where they are not given."""
  missing = [f for f in dataclasses.fields(config) if metadata(f).get('of_models') and getattr(config, f.name) is None]
  return dataclasses.replace(config, **{f.name: of(config, f) for f in missing}) if missing else config
