"""Durations of a run: in steps, epochs, examples, parts of the run or steps of environments."""

import dataclasses
import math
import re
import typing
from fractions import Fraction

from karpjax.errors import UsageError

Duration = typing.NewType('Duration', str)  # '2000', '10epochs' or '50000examples'; an int once resolved
MOST_STEPS = 2**31 - 1  # and updates: of a state's int32
OFTEN = 20  # times in a run, at the most, that `auto` evaluates and saves


def in_steps(
  duration, *, batch_size: int, examples: int, name: str = 'steps', run: int = 0, environment_steps=lambda: 0
) -> int:
  """'2000', '10epochs', '50000examples' or '500000env' in steps, rounded up.

  In a `run` of so many steps also '5%' of it, and 'auto': each epoch or rarer.

  Args:
    environment_steps: () -> how many steps of environments a step makes.

  Raises:
    UsageError: for anything else, or a negative one.
  """
  if duration == 'auto' and run:
    return max(math.ceil(examples / batch_size), math.ceil(run / OFTEN))
  match = re.fullmatch(r'(\d+(?:\.\d+)?(?:e\d+)?)\s*(steps?|epochs?|examples?|env|%)?', str(duration).strip())
  if not match or (match[2] == '%' and not run):
    raise UsageError(
      f'{name}={duration} is no duration: type 2000 (steps), 10epochs, 50000examples{", 5% (of the run)" * (run > 0)} '
      'or, of environments, 500000env'
    )
  number, unit = float(match[1]), (match[2] or 'steps').rstrip('s')
  if number == math.inf:
    raise UsageError(f'{name}={duration}: a smaller number is needed')
  if unit == 'env':
    if not (each := environment_steps()):
      raise UsageError(f'{name}={duration}: a step makes no fixed number of steps of environments; give steps')
    return math.ceil(number / each)
  if unit == '%':
    return math.ceil(round(number / 100 * run, 6))
  examples_seen = {'step': number * batch_size, 'epoch': number * examples, 'example': number}[unit]
  # Rounded before the ceiling: 0.1 + 0.2 epochs must not become one step more.
  return math.ceil(round(examples_seen / batch_size, 6))


@dataclasses.dataclass(frozen=True)
class Pace:
  """When an optimiser makes its updates: `per_step` in each step of a run, perhaps a fraction, from step `first` on."""

  per_step: int | Fraction = 1
  first: int = 0

  def made(self, step: int) -> int:
    """How many updates it has made before a step."""
    return int(max(step, self.first) * self.per_step) - int(self.first * self.per_step)


def step_range(text: str) -> tuple[int, int]:
  """A `profile`: '100:110' -> (100, 110); '' -> (-1, -1); UsageError for anything else."""
  match = re.fullmatch(r'(\d+):(\d+)', text)
  first, last = (int(match[1]), int(match[2])) if match else (-1, -1)
  if text and first >= last:
    raise UsageError(f'profile={text}: write FIRST:LAST in steps, as 100:110')
  return first, last
