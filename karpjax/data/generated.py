"""Pairs of texts made by rule: tasks of sequences that need no download. Each seed makes the same."""

import datetime

import numpy as np

from karpjax.data.entities import FORMS
from karpjax.errors import UsageError

FIRST_DAY, DAYS = datetime.date(1950, 1, 1), 36_525  # to the end of 2049, so that two digits name a year
LARGEST = 999  # of the numbers that are added
FORMATS = (  # d.m. and m/d are told apart by their marks
  '{day} {month} {year}', '{month} {day}, {year}', '{weekday}, {month} {ordinal}, {year}', 'the {ordinal} of {month} {year}',
  '{weekday:.3} {day} {month:.3} {year}', "{day} {month:.3} '{short:02}", '{day}-{month:.3}-{short:02}',
  '{day}.{number}.{year}', '{day:02}.{number:02}.{short:02}', '{number}/{day}/{year}', '{number:02}/{day:02}/{short:02}',
  '{year}{number:02}{day:02}',
)  # fmt: skip


def _written(day: datetime.date, form: str) -> str:
  """A day in one of FORMATS."""
  suffix = 'th' if day.day in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(day.day % 10, 'th')
  words = {
    'month': FORMS['month'][day.month - 1],
    'weekday': FORMS['day'][day.weekday()],
    'ordinal': f'{day.day}{suffix}',
  }
  return form.format(day=day.day, number=day.month, year=day.year, short=day.year % 100, **words)


def dates(examples: int, seed: int) -> list[tuple[str, str]]:
  """Days in one of twelve ways to write them, and in ISO 8601: ('12-Mar-98', '1998-03-12'); no day comes twice."""
  _refuse_more('dates', examples, DAYS)
  draw = np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64)))
  days = draw.permutation(DAYS)[:examples]
  chosen = draw.integers(len(FORMATS), size=examples)
  days = [FIRST_DAY + datetime.timedelta(n) for n in days.tolist()]
  return [(_written(day, FORMATS[i]), day.isoformat()) for i, day in zip(chosen, days)]


def addition(examples: int, seed: int) -> list[tuple[str, str]]:
  """Sums of two numbers of one to three digits, ('535+61', '596'); no two numbers are added twice, in any order.

  Both numbers have one, two or three digits with equal chance, as in Keras' addition_rnn.
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
