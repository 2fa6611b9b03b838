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
  ],
)
def test_durations(text, steps):
  assert config.in_steps(text, batch_size=128, examples=1000) == steps


@pytest.mark.parametrize('text', ['ten', '10 hours', '-3', '', 'nan', '1.2.3'])
def test_what_is_no_duration(text):
  with pytest.raises(UsageError, match='warmup=.*10epochs'):
    config.in_steps(text, batch_size=1, examples=1, name='warmup')


def test_resolved_durations_are_whole_steps_and_resolving_again_changes_nothing():
  once = config.resolve(Config(steps='2epochs', batch_size=10, boundaries=('1epochs', '15')), examples=95)
  assert (once.steps, once.boundaries, once.eval_every) == (19, (10, 15), 10)
  assert config.resolve(once, examples=95) == once


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
