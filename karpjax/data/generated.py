"""Pairs of texts made by rule: tasks of sequences that need no download. Each seed makes the same."""

import datetime

import numpy as np

from karpjax.errors import UsageError

FIRST_DAY, DAYS = datetime.date(1950, 1, 1), 36_525  # to the end of 2049, so that two digits name a year
MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
]
WEEKDAYS = ['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday']
LARGEST = 999  # of the numbers that are added

FORMATS = (  # day -> text; d.m. and m/d are told apart by their marks
  lambda d: f'{d.day} {_month(d)} {d.year}',
  lambda d: f'{_month(d)} {d.day}, {d.year}',
  lambda d: f'{_weekday(d)}, {_month(d)} {_ordinal(d)}, {d.year}',
  lambda d: f'the {_ordinal(d)} of {_month(d)} {d.year}',
  lambda d: f'{_weekday(d)[:3]} {d.day} {_month(d)[:3]} {d.year}',
  lambda d: f"{d.day} {_month(d)[:3]} '{d.year % 100:02}",
  lambda d: f'{d.day}-{_month(d)[:3]}-{d.year % 100:02}',
  lambda d: f'{d.day}.{d.month}.{d.year}',
  lambda d: f'{d.day:02}.{d.month:02}.{d.year % 100:02}',
  lambda d: f'{d.month}/{d.day}/{d.year}',
  lambda d: f'{d.month:02}/{d.day:02}/{d.year % 100:02}',
  lambda d: f'{d.year}{d.month:02}{d.day:02}',
)


def _month(day):
  return MONTHS[day.month - 1]


def _weekday(day):
  return WEEKDAYS[day.weekday()]


def _ordinal(day):
  suffix = 'th' if day.day in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(day.day % 10, 'th')
  return f'{day.day}{suffix}'


def dates(examples: int, seed: int) -> list[tuple[str, str]]:
  """Days in one of twelve ways to write them, and in ISO 8601: ('12-Mar-98', '1998-03-12'); no day comes twice.

  Raises:
    UsageError: where there are not so many days.
  """
  _refuse_more('dates', examples, DAYS)
  draw = np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64)))
  days = draw.permutation(DAYS)[:examples]
  chosen = draw.integers(len(FORMATS), size=examples)
  days = [FIRST_DAY + datetime.timedelta(int(n)) for n in days]
  return [(FORMATS[i](day), day.isoformat()) for i, day in zip(chosen, days)]


def addition(examples: int, seed: int) -> list[tuple[str, str]]:
  """Sums of two numbers of one to three digits, ('535+61', '596'); no two numbers are added twice, in any order.

  Both numbers have one, two or three digits with equal chance, as in Keras' addition_rnn.

  Raises:
    UsageError: where there are not so many sums.
  """
  _refuse_more('addition', examples, (LARGEST + 1) * (LARGEST + 2) // 2)
  draw = np.random.Generator(np.random.Philox(key=np.array([seed, 1], np.uint64)))
  found = {}
  while len(found) < examples:
    digits = draw.integers(1, 4, size=(examples, 2))
    pairs = np.minimum((draw.random((examples, 2)) * 10**digits).astype(int), 10**digits - 1)
    for a, b in pairs.tolist():
      found.setdefault((min(a, b), max(a, b)), (f'{a}+{b}', str(a + b)))
  return list(found.values())[:examples]


def _refuse_more(name, examples, most):
  if not 1 <= examples <= most:
    raise UsageError(f'examples={examples}: {name} has {most:,} different ones')


GENERATORS = {'dates': (dates, 10_000), 'addition': (addition, 50_000)}  # and how many examples if not told
