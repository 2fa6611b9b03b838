"""A grid: all combinations of the axes' values. What can be traced runs together in one program, the rest one by one."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path

from karpjax import config, errors
from karpjax.commands.sweep import processes, question, table, vmapped

Setting = dict[str, str]  # {flag: value as typed}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which settings share a program.

  Attributes:
    parts: the settings of each program.
    lines: what is said of it to the reader.
  """

  parts: list[list[Setting]]
  lines: list[str]


def plan(asked: question.Question) -> Plan:
  """Looks at every program that will be needed, and every value; compiles nothing.

  Raises:
    UsageError: for any value that no run can have, and for a metric that there is not.
  """
  axes, seeds = asked.axes, asked.base.seeds
  wide = {name: values for name, values in axes.items() if vmapped.are_numbers(asked, name, values)}
  structural = [name for name in axes if name not in wide]
  looked = []
  for combination in _product(axes, structural):
    first = combination | {name: values[0] for name, values in wide.items()}
    program, dataset, resolved = question.examine(asked, first)
    make = functools.partial(asked.module.program, data=dataset)
    looked.append((combination, make, resolved, question.example(dataset), dataset.spec.examples))
    if len(looked) == 1:
      question.check_metric(asked, program, dataset)
  for combination, make, resolved, _, examples in looked:
    for name, values in wide.items():
      for text in values[1:]:
        _check(asked, combination, make, resolved, examples, name, text)
  able = lambda name: all(vmapped.can_be_traced(make, resolved, name, batch) for _, make, resolved, batch, _ in looked)
  traced = [name for name in wide if able(name)]
  outer = [name for name in axes if name not in traced]
  parts = []
  for combination in _product(axes, outer):
    settings = [{name: (combination | numbers)[name] for name in axes} for numbers in _product(axes, traced)]
    size = max(1, asked.together // seeds) if asked.together else len(settings)
    parts += [settings[i : i + size] for i in range(0, len(settings), size)]
  return Plan(parts, _lines(asked, traced, wide, parts))


def run(asked: question.Question, plan: Plan, folder: Path, say: Callable[[str], None]) -> list[table.Trial]:
  """Runs the parts that are not finished, one after the other, and returns every setting's outcome."""
  trials = []
  for number, settings in enumerate(plan.parts, start=1):
    place, common = folder / f'part-{number:03d}', _common(settings)
    finished = processes.members(place) is not None
    what = ' '.join(f'{name}={text}' for name, text in common.items()) or 'all settings'
    say(
      f'part {number} of {len(plan.parts)}: {what}, {len(settings) * asked.base.seeds} members'
      + (', finished before' if finished else f'; output in {place / processes.OUTPUT}')
    )
    watch = processes.watcher(say, asked.metric, asked.sign)
    outcome, reason = processes.run(place, part(asked, settings), watch, asked.metric)
    found = processes.members(place)
    for i, setting in enumerate(settings):
      rows = slice(i * asked.base.seeds, (i + 1) * asked.base.seeds)
      numbers = {name: values[rows] for name, values in found['numbers'].items()} if found else {}
      bad = found['nonfinite_step'][rows] if found else ()
      trials.append(table.judged(len(trials) + 1, setting, numbers, bad, outcome, reason, place, asked))
    if not finished:
      worked = table.best(trials[-len(settings) :], asked)
      say(f'  best: {table.value(worked, asked)}' if worked else f'  failed: {trials[-1].reason}')
  return trials


def part(asked: question.Question, settings: list[Setting]) -> dict:
  """What part.json holds: flags that all its settings share, and numbers that are each setting's own."""
  common = settings[0] if len(settings) == 1 else _common(settings)
  own = [name for name in settings[0] if name not in common]
  if not own and len(settings) > 1:  # drawn alike
    own = list(settings[0])
  numbers = {}
  for name in own:
    parsed = [getattr(asked.config(setting), name) for setting in settings]
    numbers[name] = [value[0] if isinstance(value, tuple) else value for value in parsed]
  return {'experiment': asked.experiment, 'flags': asked.flags(common), 'hyper': numbers}


def _common(settings: list[Setting]) -> Setting:
  """The values that are the same in all of these settings."""
  return {n: text for n, text in settings[0].items() if all(setting[n] == text for setting in settings)}


def _product(axes: dict[str, tuple[str, ...]], names: list[str]) -> list[Setting]:
  return [dict(zip(names, texts)) for texts in itertools.product(*(axes[name] for name in names))]


def _check(asked, combination, make, resolved, examples, name, text):
  """Raises UsageError where one value of a traced axis cannot be."""
  changed = dataclasses.replace(resolved, **{name: getattr(asked.config({name: text}), name)})
  try:
    make(config.resolve(changed, examples))
  except errors.UsageError as error:
    swept = ' '.join(f'{n}={t}' for n, t in (combination | {name: text}).items())
    raise errors.UsageError(f'{swept}: {error}') from None


def _lines(asked, traced, wide, parts) -> list[str]:
  seeds, settings = asked.base.seeds, math.prod(map(len, asked.axes.values()))
  together = [*traced, *(['seeds'] if seeds > 1 else [])]
  lines = [f'sweep: {settings} settings × {seeds} seeds of {asked.experiment}, in {len(parts)} programs']
  lines += [f'vmapped, in one program: {", ".join(together)}'] if together else []
  for name, values in asked.axes.items():
    if name in traced or len(values) == 1:
      continue
    why = 'its values change the program itself'
    if name in vmapped.TRACEABLE:
      why = 'the experiment looks at its value' if name in wide else 'its values are lists'
    lines.append(f'not vmapped, one program each: {name}, because {why}')
  return lines
