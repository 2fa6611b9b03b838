"""Durations, values that no run can have, and JSON."""

import dataclasses

import pytest

from karpjax import config, optim
from karpjax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config(config.Train):
  widths: tuple[int, ...] | None = config.flag(None, 'Widths.')
  rate: float | None = config.flag(None, 'A rate.')
  flag: bool | None = config.flag(None, 'A flag.')


@pytest.mark.parametrize(
  'text, steps',
  [
    ('2000', 2000),
    (7, 7),
    ('10epochs', 79),
    ('1 epoch', 8),
    ('0.5epochs', 4),
    ('1000examples', 8),
    ('1e3', 1000),
    ('128examples', 1),
    ('0', 0),
    ('5%', 13),
    ('0.1 %', 1),
  ],
)
def test_durations(text, steps):
  assert config.in_steps(text, batch_size=128, examples=1000, run=250) == steps


@pytest.mark.parametrize('text', ['ten', '10 hours', '-3', '', 'nan', '1.2.3'])
def test_what_is_no_duration(text):
  with pytest.raises(UsageError, match='warmup=.*10epochs'):
    config.in_steps(text, batch_size=1, examples=1, name='warmup', run=10)


def test_a_run_is_no_part_of_itself():
  with pytest.raises(UsageError, match='steps=10% is no duration'):
    config.resolve(config.Train(steps='10%', batch_size=1), examples=10)


def test_resolved_durations_are_whole_steps_and_resolving_again_changes_nothing():
  once = config.resolve(Config(steps='2epochs', batch_size=10, boundaries=('1epochs', '15')), examples=95)
  assert (once.steps, once.boundaries, once.eval_every) == (19, (10, 15), 10)
  assert config.resolve(once, examples=95) == once


@config.defaults(models={'deep': {'learning_rate': 5e-4, 'warmup': '10%'}, 'wide': {'clip': 1.0}}, learning_rate=0.01)
class OfModels(config.Train):
  model: str = config.flag('plain', 'The model.')


@pytest.mark.parametrize(
  'given, holds',
  [
    ({}, (0.01, 0, 0.0)),
    ({'model': 'deep'}, (5e-4, 20, 0.0)),
    ({'model': 'wide'}, (0.01, 0, 1.0)),
    (
      {'model': 'deep', 'learning_rate': 0.01, 'warmup': '0'},
      (0.01, 0, 0.0),
    ),  # what is given wins, be it others' default
    ({'model': 'another'}, (0.01, 0, 0.0)),
  ],
)
def test_a_model_may_have_defaults_of_its_own(given, holds):
  settled = config.resolve(OfModels(steps='200', **given), 1000)
  assert (settled.learning_rate, settled.warmup, settled.clip) == holds
  of_model = {'learning_rate', 'warmup'} & given.keys()
  for form, examples in ((OfModels(steps='200', **given), 0), (settled, 1000)):
    assert config.changed(form, examples).keys() == {'steps', *given.keys() & {'model'}, *of_model}
  # a run keeps what held, whatever the defaults become
  assert config.from_json(OfModels, config.to_json(settled)) == settled


def test_an_heir_changes_what_all_models_have_or_one():
  one = config.defaults(models={'wide': {'learning_rate': 0.2}})(type('Config', (OfModels,), {}))
  rates = {m: config.resolve(one(model=m), 1000).learning_rate for m in ('plain', 'wide', 'deep')}
  assert rates == {'plain': 0.01, 'wide': 0.2, 'deep': 5e-4}
  assert config.defaults(learning_rate=0.3)(type('Config', (OfModels,), {}))(model='deep').learning_rate == 0.3


def test_defaults_of_no_model_are_refused():
  chosen = {'__annotations__': {'model': str}, 'model': config.flag('flat', choices=('flat', 'deep'))}
  with pytest.raises(UsageError, match='dep.*Did you mean deep'):
    config.defaults(models={'dep': {'clip': 1.0}})(type('Config', (config.Train,), chosen))


def test_json_round_trip():
  given = Config(seed=3, widths=(1, 2), rate=0.5, learning_rate=1e-4, flag=True, eval_splits=())
  assert config.from_json(Config, config.to_json(given)) == given


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'batch_size': -1}, 'batch_size=-1'),
    ({'seeds': 0}, 'seeds=0'),
    ({'ema': 1.0}, 'ema'),
    ({'steps_per_call': 'many'}, 'steps_per_call'),
  ],
)
def test_values_no_run_can_have(changes, message):
  with pytest.raises(UsageError, match=message):
    config.resolve(Config(**{'batch_size': 10} | changes), examples=100)


def test_a_batch_of_0_is_the_whole_train_split():
  assert config.resolve(Config(batch_size=0, steps='3epochs'), examples=100).batch_size == 100
  assert config.resolve(Config(batch_size=0, steps='3epochs'), examples=100).steps == 3


def test_flags_that_were_given_and_are_not_read_are_known():
  given = config.resolve(config.Train(dtype='bfloat16', ema=0.5, momentum=0.5, steps='5', batch_size=5), 10)
  read = set()
  watched = config.watched(given, read)
  assert config.unread(given, 10, read) == ['dtype', 'momentum', 'ema']
  assert watched.ema == 0.5 and dataclasses.replace(watched, seed=1).optimiser == 'adam'
  assert config.unread(given, 10, read) == ['dtype'] and read == {'ema', 'optimiser'}


@pytest.mark.parametrize('schedule, left', [('cosine', ['boundaries', 'decay']), ('step', ['final_learning_rate'])])
def test_flags_of_another_schedule_are_of_no_use(schedule, left):
  given = config.Train(boundaries=('5',), decay=0.5, final_learning_rate=1e-4, schedule=schedule, batch_size=5)
  given, read = config.resolve(given, 10), set()
  optim.configured(config.watched(given, read))
  assert config.unread(given, 10, read) == left
