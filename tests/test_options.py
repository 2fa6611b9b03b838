"""An option is said once: its range is checked wherever it is given, and a model's fields are its flags."""

import dataclasses
import functools
import math
from typing import Optional

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from karpjax import command_line, config, options
from karpjax.errors import UsageError


class Net(nn.Module):
  classes: int  # decided by the data: no option
  widths: tuple[int, ...] = options.option((8,), 'Units of each layer.', low=1)
  activation: str = options.option('relu', 'The activation.', choices=('relu', 'tanh'))
  rate: float = options.option(0.0, 'A rate.', low=0, below=1)

  @nn.compact
  def __call__(self, x, train=False):
    for width in self.widths:
      x = getattr(nn, self.activation)(nn.Dense(width)(x))
    if len(x) != 1:
      raise UsageError('one row is needed')
    return nn.Dense(self.classes)(x)


class Linear(nn.Module):
  classes: int
  activation: str = options.option('gelu', 'The activation.', choices=('gelu',))
  scale: float = options.option(1.0, 'A scale.', above=0)

  def __call__(self, x):
    return x


MODELS = {'net': Net, 'wide': functools.partial(Net, widths=(64, 64)), 'linear': Linear}


@dataclasses.dataclass(frozen=True)
class Config(config.model_flags(MODELS), config.Train):
  model: str = config.flag('net', 'Which.', choices=MODELS)
  plain: int = 8
  factor: float = config.flag(1.0, 'A factor.', low=0.5, high=2)
  many: tuple[int, ...] = config.flag((), 'Some.', above=0)
  free: float = 1.0
  layers: tuple[int, ...] = config.flag((3,), 'Some.', least=1)
  word: str = ''


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'factor': 0.4}, 'factor=0.4: at least 0.5 and at most 2 is needed'),
    ({'factor': 2.5}, 'factor=2.5: at least 0.5 and at most 2 is needed'),
    ({'factor': float('nan')}, 'factor=nan: '),
    ({'many': (3, 0)}, 'many=3,0: more than 0 is needed'),
    ({'beta1': 1.0}, 'beta1=1.0: at least 0 and less than 1 is needed'),
    ({'optimiser': 'adamm'}, 'optimiser=adamm: unknown. Did you mean adam?'),
    ({'layers': ()}, 'layers=: at least 1 value is needed'),
    ({'plain': 2**31}, 'plain=2147483648: at least -2147483648 and at most 2147483647 is needed'),
    ({'many': (10**400,)}, 'many=1000'),
    ({'free': math.inf}, 'free=inf: at least -3.4e+38 and at most 3.4e+38 is needed'),
    ({'many': (1e300,)}, 'many=1e+300: at least -3.4e+38 and at most 3.4e+38 is needed'),
    ({'word': 'a\udcffb'}, r'word=a\udcffb: it has bytes that are no text'),
  ],
)
def test_ranges_are_refused_by_name(changes, message):
  options.check(Config())
  with pytest.raises(UsageError) as error:
    options.check(Config(**changes))
  assert str(error.value).startswith(message)


def test_bounds_themselves_and_traced_numbers_pass():
  options.check(Config(factor=0.5, many=(1,), beta1=0.0))
  options.check(Config(factor=2))
  jax.eval_shape(lambda x: options.check(Config(factor=x)), jnp.zeros(()))


def test_a_models_fields_are_flags_with_the_models_own_defaults():
  fields = {f.name: f for f in dataclasses.fields(Config)}
  assert (
    'classes' not in fields and fields['widths'].default is None and fields['widths'].type == tuple[int, ...] | None
  )
  assert (
    fields['rate'].metadata['help'] == 'A rate (net, wide).'
    and fields['activation'].metadata['help'] == 'The activation.'
  )
  assert fields['activation'].metadata['choices'] == ('relu', 'tanh', 'gelu')
  given = command_line.parse(Config, ['--widths=3,4', '--activation=tanh', '--plain=9'])
  assert given.model_options() == {'widths': (3, 4), 'activation': 'tanh', 'rate': None, 'scale': None}
  assert given.plain == 9  # a plain dataclass field is a flag too
  assert config.from_json(Config, config.to_json(given)) == given


def test_a_plain_field_is_shown_in_help():
  text = command_line.usage(Config, 'x', '')
  assert '--plain=int (default 8)' in text and text.index('Experiment:') < text.index('Model:') < text.index('Run:')


@dataclasses.dataclass(frozen=True)
class Mixin:
  batch_size: int = config.data_flag(7, 'Examples in one step.')


@config.defaults(steps='5', batch_size=32)
class Changed(config.Train):
  """A docstring."""

  own: int = config.flag(1, 'Own.')


def test_defaults_change_a_flag_without_declaring_it_again():
  fields = {f.name: f for f in dataclasses.fields(Changed)}
  assert (Changed().steps, Changed().batch_size, Changed().own) == ('5', 32, 1)
  original = {f.name: f for f in dataclasses.fields(config.Train)}
  assert fields['batch_size'].metadata == original['batch_size'].metadata and fields['steps'].type is config.Duration
  with pytest.raises(UsageError, match='Did you mean batch_size'):
    config.defaults(batch_sise=3)(type('Other', (config.Train,), {}))


def test_a_model_is_built_of_its_own_options():
  x = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  build = lambda name='net', **chosen: options.build(MODELS, name, Config(**chosen), x, classes=3)
  assert build().widths == (8,) and build('wide').widths == (64, 64) and build('wide', widths=(2,)).widths == (2,)
  assert options.build(MODELS, 'net', {'widths': 5}, classes=3).widths == (5,)  # one value stands for several


@pytest.mark.parametrize(
  'name, chosen, message',
  [
    ('nat', {}, 'Did you mean net?'),
    ('linear', {'widths': (3,)}, 'model linear has no widths=3. Its options: activation, scale'),
    ('net', {'widths': (3, 0)}, 'widths=3,0: at least 1 is needed'),
    ('net', {'activation': 'gelu'}, 'activation=gelu: unknown.'),
    ('net', {'rate': 1.0}, 'rate=1.0: at least 0 and less than 1'),
    ('linear', {'scale': 0.0}, 'scale=0.0: more than 0'),
  ],
)
def test_options_that_a_model_has_not_are_refused(name, chosen, message):
  with pytest.raises(UsageError, match=message.replace('?', r'\?')):
    options.build(MODELS, name, Config(**chosen), classes=3)


def test_a_model_is_traced_for_its_errors():
  with pytest.raises(UsageError, match='one row is needed'):
    options.build(MODELS, 'net', {}, jax.ShapeDtypeStruct((2, 4), jnp.float32), classes=3, call={'train': True})


class Own(nn.Module):
  classes: int
  units: 'int' = 4  # as below `from __future__ import annotations`
  sizes: tuple = (3, 4)
  rate: Optional[float] = None  # noqa: UP045
  dtype: type = None

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.classes)(nn.Dense(self.units)(x))


class Lacking(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.hidden)(x)


def test_the_fields_of_a_model_of_ones_own_are_flags_however_they_are_annotated():
  found = options.of_model(Own, own=True)
  assert {name: field.type for name, field in found.items()} == {'units': int, 'sizes': tuple[int, ...], 'rate': float}


def test_a_model_of_ones_own_that_cannot_be_built_is_said_in_a_line(monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'raising_models.py').write_text('raise RuntimeError("boom")')
  with pytest.raises(UsageError, match=r'does not import: RuntimeError: boom \(.*raising_models.py, line 1\)'):
    options.own_model('raising_models:X')
  for cls, call, message in ((Lacking, {}, 'its field hidden has no default'), (Own, {'train': False}, "'train'")):
    monkeypatch.setattr(options, 'own_model', lambda name, cls=cls: cls)
    with pytest.raises(UsageError, match=message):
      options.build(MODELS, 'own:X', {}, jax.ShapeDtypeStruct((1, 4), jnp.float32), classes=3, call=call)


def test_values_read_from_json_are_typed_as_they_were():
  assert options.as_flags({'widths': [64, 32], 'rate': 0.5}) == ['--widths=64,32', '--rate=0.5']


def test_help_shows_the_defaults_of_models_and_by_whom_where_they_differ():
  shown = {
    line.split('=')[0].strip(): line for line in command_line.usage(Config, 'x', '').splitlines() if ' --' in line
  }
  assert shown['--widths'].endswith('(default 8 (net); 64,64 (wide))')
  assert shown['--activation'].endswith('(default relu (net, wide); gelu (linear))')
  assert shown['--rate'].endswith('(default 0.0)') and shown['--scale'].endswith('(default 1.0)')
  changed = config.defaults(rate=0.25)(type('Own', (Config,), {}))
  assert '--rate=number (default 0.25)' in command_line.usage(changed, 'x', '')
